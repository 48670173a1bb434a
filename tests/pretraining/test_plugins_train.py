"""A stranger's prior trains: from a file a recipe names, and from a distribution installed on its own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from prior3d import cli

ROOT = Path(__file__).resolve().parents[2]


def code_in_readme():
    """The prior that README.md tells a newcomer to write."""
    return re.search(r"```python\n(# my_prior\.py\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL).group(1)


@pytest.fixture
def recipe_with(recipe, tmp_path):
    """The small recipe with other priors and plugins."""

    def write(priors, plugins=""):
        text = recipe.read_text()
        start, end = text.index("priors:"), text.index("optim:")
        path = tmp_path / "mine.yaml"
        path.write_text(f"{text[:start]}priors: {priors}\n{plugins}\n{text[end:]}")
        return path

    return write


def test_the_prior_of_the_readme_trains_and_keeps_the_contract(recipe_with, tmp_path):
    (tmp_path / "my_prior.py").write_text(code_in_readme())
    assert len([line for line in code_in_readme().splitlines() if line.strip()]) <= 16
    path = recipe_with("{smoothness: {weight: 0.1, width: 0.2}, view_invariance: {}}", "plugins: [my_prior.py]")
    assert cli.train([str(path), "trainer.max_steps=2", "--out", str(tmp_path / "out")]) == 0
    summary = json.loads(next((tmp_path / "out").glob("*/summary.json")).read_text())
    assert summary["losses, mean of the last batches"]["smoothness"] > 0
    from prior3d.registry import Registry
    from prior3d.testing import check_prior

    check_prior(Registry([tmp_path / "my_prior.py"]).get("priors", "smoothness"))


def test_the_same_prior_twice_under_two_labels(recipe_with, tmp_path):
    path = recipe_with("{near: {prior: view_invariance, max_angle: 15}, far: {prior: view_invariance, min_angle: 15}}")
    assert cli.train([str(path), "trainer.max_steps=2", "--out", str(tmp_path / "out")]) == 0
    summary = json.loads(next((tmp_path / "out").glob("*/summary.json")).read_text())
    assert set(summary["losses, mean of the last batches"]) == {"near", "far"}


@pytest.mark.slow
def test_a_distribution_of_its_own_is_found_and_trains(recipe_with, tmp_path):
    site = tmp_path / "site"
    (site / "acme-1.2.dist-info").mkdir(parents=True)
    (site / "acme-1.2.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.2\n")
    (site / "acme-1.2.dist-info" / "entry_points.txt").write_text("[prior3d.priors]\nsmooth = acme:Smoothness\n")
    (site / "acme.py").write_text(code_in_readme())
    path = recipe_with("{smooth: {}}")
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "import sys; from prior3d.cli import train; sys.exit(train(sys.argv[1:]))"]
    arguments = [str(path), "trainer.max_steps=1", "--out", str(tmp_path / "out")]
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text = next((tmp_path / "out").glob("*/recipe.yaml")).read_text()
    assert "# prior 'smooth' (acme 1.2)" in text
