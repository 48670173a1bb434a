"""What `pip install prior3d` installs is enough: without the packages of the extras, all imports, and a run trains."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODULES = {
    "faiss-cpu": "faiss",
    "faiss-gpu-cu12": "faiss",
    "gsplat": "gsplat",
    "h5py": "h5py",
    "mlflow": "mlflow",
    "ninja": "ninja",
    "opencv-python-headless": "cv2",
    "OpenEXR": "OpenEXR",
    "pycolmap": "pycolmap",
    "pytest": "pytest",
    "pytest-xdist": "xdist",
    "ruff": "ruff",
    "scikit-learn": "sklearn",
    "scipy": "scipy",
    "wandb": "wandb",
}
"""The module of each package of an extra."""

OF_THE_BASE = {"setuptools", "torchmetrics"}
"""Packages of an extra that torch and lightning need themselves."""

PROGRAM = """
import importlib.machinery, json, pkgutil, sys

absent = json.loads(sys.argv[1])

class Installed(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in absent.values() else super().find_spec(name, path, target)

    @classmethod
    def find_distributions(cls, context):
        return [] if context.name in absent else super().find_distributions(context)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Installed
import prior3d, prior3d_plugins
names = [module.name for package in (prior3d, prior3d_plugins)
         for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != "triton":  # torch brings it on Linux alone; its kernels are imported where they are used
            raise
print(len(names), "modules")
sys.exit(prior3d.cli.train(sys.argv[2:]))
"""
RECIPE = """
backbone: {{name: test_resnet, decoder_stride: 4, channels: 8}}
data: {{name: synthetic_rooms, rooms: 1, test_rooms: 1, frames: 6, size: [48, 64], batch_size: 2, workers: 0,
  cache: {cache}}}
priors: {{view_invariance: {{points: 16}}, depth_regression: {{}}}}
trainer: {{max_steps: 1, accelerator: cpu, draw_every: 1, gradients_every: 0}}
probes: {{depth: {{}}, segmentation: {{}}}}
"""


def test_without_the_extras_everything_imports_and_a_run_trains_and_reports(tmp_path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    packages = {line.partition(";")[0].partition(">")[0].strip() for line in extras} - OF_THE_BASE
    absent = {name: MODULES[name] for name in packages}
    (tmp_path / "small.yaml").write_text(RECIPE.format(cache=tmp_path / "cache"))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(absent), tmp_path / "small.yaml", "--out", tmp_path / "runs"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert int(done.stdout.split()[0]) > 200
    (run,) = (tmp_path / "runs").iterdir()
    assert "segmentation" in (run / "report.md").read_text()
    assert list((run / "figures").glob("*clusters*.png"))
