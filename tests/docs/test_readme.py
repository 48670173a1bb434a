"""README.md says what is true: its Python runs, its commands are accepted, its own-data command trains."""

import json
import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from prior3d import cli
from prior3d.contracts.dataset import DataSpec
from prior3d_plugins.datasets.synthetic_rooms import SyntheticRooms

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "docs" / "plugins").glob("*.md"))


def blocks(language, text=README):
    """Return the contents of the fenced blocks of a language, "" for those that name none."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [block for name, block in fenced if name == language]


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A small recipe called joint, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    content = {
        "backbone": {"name": "test_resnet", "decoder_stride": 4, "channels": 8},
        "data": {
            "name": "synthetic_rooms",
            "rooms": 2,
            "test_rooms": 1,
            "frames": 6,
            "size": [48, 64],
            "batch_size": 2,
            "workers": 0,
            "cache": str(tmp_path / "cache"),
        },
        "priors": {"view_invariance": {"points": 32}},
        "trainer": {"max_steps": 2, "accelerator": "cpu", "draw_every": 0},
        "probes": {"depth": {"steps": 5}},
    }
    (tmp_path / "joint").write_text(json.dumps(content))
    return tmp_path / "joint"


def test_the_python_of_the_readme_runs(recipe, tmp_path):
    (program,) = [block for block in blocks("python") if "prior3d.train(" in block]
    assert len([line for line in program.splitlines() if line.strip()]) <= 15
    for name in ("a.jpg", "b.jpg"):
        Image.fromarray(np.full((60, 80, 3), 90, np.uint8)).save(name)
    camera = torch.tensor([[60.0, 0, 32], [0, 60, 24], [0, 0, 1]]).repeat(2, 1, 1, 1)
    batch = {"image": torch.rand(2, 1, 3, 48, 64), "depth": 1 + torch.rand(2, 1, 48, 64), "intrinsics": camera}
    names = {"loader": [batch]}
    exec(program, names)
    assert names["maps"].shape == (2, 8, 24, 32)
    assert set(names["report"].metrics["depth"]) >= {"before", "after"}
    assert names["loss"].isfinite() and "loss/depth_regression" in names["scalars"]
    model = timm.create_model("test_resnet", num_classes=0)
    model.load_state_dict(load_file("encoder.safetensors"), strict=True)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto"])
def test_weights_are_used_as_the_readme_says(name):
    weights = timm.create_model(name, num_classes=0).state_dict()
    apart = timm.create_model(name, num_classes=0, features_only=True).load_state_dict(weights, strict=False)
    assert len(apart.unexpected_keys) == len(weights), "nothing is loaded"
    (program,) = [block for block in blocks("python") if "forward_intermediates" in block]
    assert "strict" not in program and 'create_model("convnext_atto", num_classes=0)' in program
    model = timm.create_model(name, num_classes=0)
    model.load_state_dict(weights)
    assert len(model.forward_intermediates(torch.rand(1, 3, 224, 224), intermediates_only=True)) > 1


def scans(folder):
    """Write two rooms as 7-Scenes does: color, depth in millimeters, poses, intrinsics."""
    rooms = SyntheticRooms(DataSpec((48, 64), 1, "train", folder / "rooms"), rooms=2, frames=8)
    for scene, name in enumerate(("kitchen", "office")):
        (folder / "scans" / name).mkdir(parents=True)
        for frame in range(rooms.frame_count(scene)):
            view = rooms.load(scene, frame, frozenset({"image", "depth", "intrinsics", "world_from_camera"}))
            stem = folder / "scans" / name / f"frame-{frame:06d}"
            Image.fromarray(view["image"]).save(f"{stem}.color.png")
            Image.fromarray((1000 * view["depth"]).round().astype(np.uint16)).save(f"{stem}.depth.png")
            np.savetxt(f"{stem}.pose.txt", view["world_from_camera"])
        matrix = view["intrinsics"].copy()
        matrix[:2, 2] -= 0.5  # files count the center of the first pixel as 0
        np.savetxt(folder / "scans" / name / "camera-intrinsics.txt", matrix)
    return folder / "scans"


def test_the_own_data_command_of_the_readme_trains(recipe, tmp_path, monkeypatch):
    (command,) = [line for block in blocks("") for line in block.splitlines() if "train joint data.name=posed" in line]
    scans(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    content = json.loads(recipe.read_text())
    rooms = ("rooms", "test_rooms", "frames")
    content["data"] = {key: value for key, value in content["data"].items() if key not in rooms}
    content["probes"] = {"depth": {"steps": 5}, "segmentation": {}}
    recipe.write_text(json.dumps(content))
    assert cli.train([*shlex.split(command)[1:], "--out", "out"]) == 0
    (folder,) = Path("out").iterdir()
    probed = json.loads((folder / "probes.json").read_text())
    assert "depth" in probed and "segmentation" not in probed


def commands():
    """All command lines of the README and of the pages that name a recipe to train with."""
    for page in PAGES:
        for block in blocks("", page.read_text(encoding="utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith(("prior3d-train", "prior3d-prepare")):
                    yield pytest.param(line, id=f"{page.stem}: {line[:60]}")


@pytest.mark.parametrize("line", commands())
def test_commands_on_recipes_are_accepted(line, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "scans" / "kitchen").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for name in ("base.yaml", "mine.yaml", "recipe.yaml"):
        Path(name).write_text((ROOT / "recipes" / "view_invariance.yaml").read_text())
    arguments = shlex.split(line, comments=True)[1:]
    parser = cli._train_parser() if line.startswith("prior3d-train") else cli._prepare_parser()
    given = parser.parse_intermixed_args(arguments)
    if line.startswith("prior3d-train") and given.resume is None and given.recipe:
        status = cli.train([*arguments, "--check"])
        assert status == 0, capsys.readouterr().err


def evaluations():
    for page in PAGES:
        for block in blocks("", page.read_text(encoding="utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("prior3d-eval"):
                    yield pytest.param(line, id=f"{page.stem}: {line[:70]}")


@pytest.mark.parametrize("line", evaluations())
def test_evaluations_can_be_parsed(line):
    given = cli._evaluate_parser().parse_intermixed_args(shlex.split(line, comments=True)[1:])
    assert given.model and all("=" in text for text in given.overrides)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_pictures_are_small():
    for picture in (ROOT / "docs" / "images").glob("*.png"):
        assert os.path.getsize(picture) < 300_000


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "options.md"], ids=lambda page: page.name)
def test_lines_are_short(page):
    long = [line for line in page.read_text(encoding="utf-8").splitlines() if len(line) > 120]
    assert [line for line in long if not line.startswith(("|", "    "))] == []  # tables, commands
