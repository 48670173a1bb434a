# One virtual environment for all targets; `make demo` and `make test` need nothing but Python >= 3.11.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One process more than there are cores, since some tests wait; tests of one file share what was trained for them.
PROCESSES := $(shell $(PYTHON) -c "import os; print(min(8, (os.cpu_count() or 1) + 1))")
PARALLEL := --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all lint clean

demo: $(STAMP)  ## train recipes/joint.yaml on the embedded data and print the before/after table
	$(BIN)/prior3d-train recipes/joint.yaml

test: $(STAMP)  ## run the tests but those that take long
	$(BIN)/python -m pytest -m "not slow" $(PARALLEL)

test-all: $(STAMP)  ## run all tests
	$(BIN)/python -m pytest $(PARALLEL)

lint: $(STAMP)  ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:  ## remove the environment and what runs left
	rm -rf $(VENV) runs build dist *.egg-info

# Rebuilt when what is installed changes; plugins and modules themselves are read where they lie.
$(STAMP): pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	touch $(STAMP)
