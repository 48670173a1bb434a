"""A finished run small enough for a test, and a probe that is quick and counts how often it is asked."""

import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from prior3d import cli
from prior3d.recipe.yaml12 import dump, load

RECIPE = """\
seed: 3
backbone: {{name: convnext_atto, decoder_stride: 4, channels: 8}}
data:
  {{name: synthetic_rooms, rooms: 1, test_rooms: 2, frames: 6, size: [48, 64], batch_size: 2, cache: {cache}}}
priors: {{depth_regression: {{}}}}
trainer: {{max_steps: 2, accelerator: cpu, draw_every: 0, gradients_every: 0}}
probes: {{glow: {{}}}}
plugins: [glow.py]
"""
GLOW = '''
import sys
import types

import torch
from matplotlib.figure import Figure
from prior3d.contracts.probe import Probe
from prior3d.contracts.scores import by_group

# one list, whichever copy of this file a run brings along
asked = sys.modules.setdefault("asked_of_glow", types.ModuleType("asked_of_glow")).__dict__.setdefault("asked", [])

class Glow(Probe):
    """How strong features are."""

    seeded = True

    def __init__(self, *, scale: float = 1.0):
        self.scale = scale

    def measure(self, model, data, seed=0):
        asked.append((len(model.backbones), seed))
        values = sum(part.take(torch.arange(len(part))).float().abs().mean((1, 2, 3))
                     for part in data.features(model, "held_out"))
        return by_group(*data.groups("held_out"), {"sum": self.scale * values, "count": torch.ones(len(values))})

    def summarize(self, total):
        return {"glow": float(total["sum"] / total["count"])}

    def controls(self, data):
        names, groups = data.groups("held_out")
        return {"dark": by_group(names, groups, {"sum": torch.zeros(len(groups)), "count": torch.ones(len(groups))})}

    def plot(self, models, data, shown):
        figure = Figure((1, 1))
        figure.suptitle(" ".join(models))
        return {"glow": figure}
'''


@pytest.fixture(scope="session")
def workshop(tmp_path_factory):
    """A folder with the recipe, the probe and a finished run."""
    folder = tmp_path_factory.mktemp("workshop")
    (folder / "glow.py").write_text(GLOW)
    (folder / "small.yaml").write_text(RECIPE.format(cache=folder / "cache"))
    assert cli.train([str(folder / "small.yaml"), "--out", str(folder / "runs")]) == 0
    return folder


@pytest.fixture(scope="session")
def finished(workshop) -> Path:
    """The run: never written to by tests, which copy it or name a folder of their own."""
    (found,) = (workshop / "runs").iterdir()
    return found


@pytest.fixture(scope="session")
def rooms(workshop):
    """Arguments that measure a model without a run on the same data."""
    return [
        "data.rooms=1",
        "data.test_rooms=2",
        "data.frames=6",
        "data.size=[48,64]",
        "data.workers=0",
        f"data.cache={workshop / 'cache'}",
    ]


@pytest.fixture
def with_probes(finished, tmp_path):
    """Return a copy of the run whose recipe names other probes."""

    def copy(probes):
        run = tmp_path / "with_probes"
        shutil.copytree(finished, run)
        recipe = load((run / "recipe.yaml").read_text(), "recipe.yaml").value
        (run / "recipe.yaml").write_text(dump({**recipe, "probes": probes}))
        return run

    return copy


@pytest.fixture
def class_folders(tmp_path):
    """Arguments that measure on images of two classes, which are no cue conflicts."""
    for split in ("train", "test"):
        for red, name in ((0, "cat"), (255, "dog")):
            (tmp_path / "animals" / split / name).mkdir(parents=True)
            for index in range(6):
                image = Image.new("RGB", (64, 48), (red, index * 40, 0))
                image.save(tmp_path / "animals" / split / name / f"{index}.png")
    root = f"data.root={tmp_path / 'animals'}"
    return ["data.name=classification_folder", root, "data.size=[48,64]", "data.workers=0"]


@pytest.fixture
def asked(finished):
    """How often the probe was asked: backbones and seed of each time."""
    asked = sys.modules["asked_of_glow"].asked
    asked.clear()
    return asked


@pytest.fixture
def evaluate(capsys):
    """Run the real command; return its status, output and the line on stderr."""

    def run(*arguments):
        status = cli.evaluate([str(argument) for argument in arguments])
        output = capsys.readouterr()
        assert output.err.count("\n") <= 1, output.err
        return status, output.out, output.err.rstrip("\n")

    return run
