"""A wheel built from the checkout and installed elsewhere is complete, and trains."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"prior3d": ROOT / "prior3d", "prior3d_plugins": ROOT / "plugins" / "prior3d_plugins"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source = tmp_path_factory.mktemp("source") / "prior3d"
    ignored = shutil.ignore_patterns(".*", "runs", "build", "dist", "tests", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignored)
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", out, source]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob("prior3d-*.whl"))


def test_holds_every_module_plugin_and_recipe(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for package, folder in PACKAGES.items():
        for file in folder.rglob("*.py"):
            assert f"{package}/{file.relative_to(folder)}" in names
    for file in (ROOT / "recipes").rglob("*.yaml"):
        assert f"prior3d/recipes/{file.relative_to(ROOT / 'recipes')}" in names
    assert not any(name.startswith(("plugins/", "tests/", "tools/", "recipes/")) for name in names)


@pytest.mark.slow
def test_trains_a_shipped_recipe_by_name_away_from_the_checkout(wheel, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    small = ["data.rooms=1", "data.test_rooms=1", "data.frames=6", "data.workers=0", "data.size=[48,64]"]
    more = ["trainer.max_steps=1", f"data.cache={tmp_path / 'cache'}", "probes.correspondence.pairs_per_bin=2"]
    code = "import sys, prior3d; from prior3d.cli import train; print(prior3d.__file__); sys.exit(train(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "joint", *small, *more, "--out", tmp_path / "runs"],
        env=os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(site))
    assert "frozen features on held-out scenes" in done.stdout
