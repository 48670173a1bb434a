"""The pages of docs/plugins: their files work as they stand and keep their contract, and their recipes are accepted."""

import ast
import importlib
import inspect
import re
import sys
from pathlib import Path

import pytest

from prior3d import Exporter, Prior, Probe, cli
from prior3d.contracts.fields import FIELDS
from prior3d.registry import KINDS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs" / "plugins").glob("*.md"))
BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
NAMED = re.compile(r"# ([\w.-]+\.(?:py|yaml))\n")


def files_of(page: Path) -> dict[str, str]:
    """Return the files that a page shows: blocks that begin with a comment of a file's name."""
    blocks = [block for _, block in BLOCK.findall(page.read_text(encoding="utf-8"))]
    return {found.group(1): block for block in blocks if (found := NAMED.match(block))}


@pytest.fixture
def written(request, tmp_path, monkeypatch):
    """The files of a page in a folder from which they can be imported, and its recipe run; forgotten afterward."""
    folder = tmp_path / "page"
    folder.mkdir()
    files = files_of(request.param)
    for name, text in files.items():
        (folder / name).write_text(text)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    yield folder, files
    for name in files:
        sys.modules.pop(name.removesuffix(".py"), None)


def by_page(pages):
    return pytest.mark.parametrize("written", pages, indirect=True, ids=[page.stem for page in pages])


def test_there_is_a_page_for_each_kind():
    assert {page.stem for page in PAGES} == set(KINDS)


@by_page(PAGES)
def test_the_example_of_a_page_keeps_the_contract(written, tmp_path):
    _, files = written
    (test,) = [name for name in files if name.startswith("test_")]
    assert f"check_{folder_kind(files)}" in files[test]
    module = importlib.import_module(test.removesuffix(".py"))
    functions = [value for name, value in vars(module).items() if name.startswith("test_")]
    assert functions
    for function in functions:
        takes = {"tmp_path": tmp_path / "data"} if inspect.signature(function).parameters else {}
        (tmp_path / "data").mkdir()
        function(**takes)


def folder_kind(files):
    return next(re.search(r"check_(\w+)", text).group(1) for name, text in files.items() if name.startswith("test_"))


WITH_RECIPE = [page for page in PAGES if "recipe.yaml" in files_of(page)]


@by_page(WITH_RECIPE)
def test_the_recipe_of_a_page_is_accepted(written, capsys):
    folder, _ = written
    for name in ("photos", "scans"):
        (folder / name).mkdir()
    assert cli.train(["recipe.yaml", "--check"]) == 0, capsys.readouterr().err
    assert "is fine" in capsys.readouterr().out


@by_page([page for page in PAGES if page.stem in ("priors", "runners")])
def test_the_recipe_of_a_page_runs(written, tmp_path, capsys):
    tiny = ["data.rooms=2", "data.test_rooms=1", "data.frames=6", f"data.cache={tmp_path / 'cache'}", "data.workers=0"]
    steps = ["trainer.max_steps=1", "trainer.accelerator=cpu", "trainer.draw_every=0", "probes={}"]
    status = cli.train(["recipe.yaml", *tiny, *steps, "--out", str(tmp_path / "out")])
    assert status == 0, capsys.readouterr().err
    assert len(list((tmp_path / "out").glob("*/backbone.safetensors"))) == 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_says_how_to_publish(page):
    text = page.read_text(encoding="utf-8")
    assert f'[project.entry-points."prior3d.{page.stem}"]' in text


WITH_TABLES = {"priors": Prior, "probes": Probe, "exporters": Exporter}


def rows(page: str) -> list[list[str]]:
    """Return the cells of the rows of a page's tables."""
    text = (ROOT / "docs" / "plugins" / f"{page}.md").read_text(encoding="utf-8")
    return [re.split(r" (?<!\\\\)\| ", line[2:-2]) for line in text.splitlines() if line.startswith("| `")]


@pytest.mark.parametrize("page", WITH_TABLES)
def test_the_tables_of_a_page_are_those_of_the_contract(page):
    base = WITH_TABLES[page]
    public = {name: value for name, value in vars(base).items() if not name.startswith("_")}
    shown = dict(re.fullmatch(r"`(\w+)\((.*)\)`", row[0]).groups() for row in rows(page) if "(" in row[0])
    methods = {name: list(inspect.signature(value).parameters)[1:] for name, value in public.items() if callable(value)}
    methods.pop("zero", None)  # is called, not written
    assert {
        name: arguments.split(", ") if arguments else [] for name, arguments in shown.items() if name != "__init__"
    } == methods
    declared = {row[0].strip("`"): row[1] for row in rows(page) if len(row) == 3 and row[1].startswith("`")}
    offline = {"contract", "prepares", "refresh_steps", "prepared_version", "prepared_options"}
    assert set(declared) == set(public) - set(methods) - offline - {"zero"}
    for name, default in declared.items():
        value = public[name]
        empty = {"frozenset()": frozenset(), "{}": {}}
        given = empty[default.strip("`")] if default.strip("`") in empty else ast.literal_eval(default.strip("`"))
        assert (dict(value) if isinstance(given, dict) else value) == given, name


def test_the_fields_of_the_page_of_priors_are_those_of_the_table():
    shown = [row for row in rows("priors") if row[1].startswith("[")]
    fields = [field for field in FIELDS.values() if not field.probes_only]
    assert shown == [[f"`{field.name}`", field.shape, field.meaning] for field in fields]
    text = (ROOT / "docs" / "plugins" / "probes.md").read_text(encoding="utf-8")
    assert not [name for name in FIELDS.probes_only if not name.endswith("_view") and f"`{name}`" not in text]


def test_the_page_of_options_is_up_to_date():
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        options = importlib.import_module("options")
    finally:
        sys.path.pop(0)
    found = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    assert found == options.page(), "make it again: python tools/options.py > docs/options.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_example_of_a_page_imports_public_names(page):
    program = "\n".join(text for name, text in files_of(page).items() if name.endswith(".py"))
    for module, names in re.findall(r"^from (prior3d[\w.]*) import (.+)$", program, re.MULTILINE):
        assert set(names.split(", ")) <= set(importlib.import_module(module).__all__), module
