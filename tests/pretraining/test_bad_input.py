"""What a user can get wrong is one line with the key's path, exit status 2, and nothing left behind."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from prior3d import cli


@pytest.fixture
def attempt(recipe, tmp_path, capsys):
    """Run the command; return its exit status, its line on stderr, and what it left behind."""

    def run(*arguments, path=recipe):
        out = tmp_path / "out"
        status = cli.train([str(argument) for argument in (path, *arguments, "--out", out)])
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) <= 1, lines
        return status, (lines[0] if lines else ""), sorted(out.rglob("*")) if out.exists() else []

    return run


def expect(result, *words):
    status, line, left = result
    assert status == 2
    for word in words:
        assert word in line, line
    assert not left


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.rooom=3", "command line: data.rooom: unknown key, did you mean 'rooms'?"),
        ("optim.learning_rate=1", "optim.learning_rate: unknown key"),
        ("priors.view_invariance.temperatur=1", "unknown key, did you mean 'temperature'?"),
        ("trainer.max_steps=true", "trainer.max_steps: expected an integer"),
        ('trainer.max_steps="12"', "trainer.max_steps: expected an integer"),
        ("optim.lr=.nan", "optim.lr: "),
        ("priors.view_invariance.weight=-1", "priors.view_invariance.weight: "),
        ("priors.view_invariance.points=1", "priors.view_invariance.points: "),
        ("backbone.name=convnext_ato", "backbone.name: timm has no model 'convnext_ato', did you mean 'convnext_atto'"),
        ("data.name=synthetic_room", "data.name: unknown dataset 'synthetic_room', did you mean 'synthetic_rooms'?"),
        ("backbone.weights=no.pth", "backbone.weights: no such file"),
        ("backbone.name=vit_tiny_patch16_224", "data.size: vit_tiny_patch16_224 cannot take images of 50 x 64 pixels"),
        ("data.views=1", "priors.view_invariance: view_invariance needs 2 views of a scene, but data.views is 1"),
        ("data.rooms=0", "data.rooms: "),
        ("data.pairs.min_overlap=0.999", "overlap"),
        (
            "priors={triplane: {stride: 7}}",
            "priors.triplane.stride: convnext_atto has no map of stride 7; its strides are 4, 8",
        ),
        ("priors={gaussian_distillation: {teacher: ema}}", "backbone.ema"),
        ("priors={pixel_voxel: {engine: minkowski}}", "engine: unknown sparse engine 'minkowski'"),
    ],
)
def test_wrong_values(attempt, override, words):
    more = ["data.size=[50,64]"] if "vit" in override else []
    expect(attempt(override, *more), words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: 1\nseed: 2\n", "seed"),
        ("seed: !!python/name:os.system\n", "tag"),
        ("backbone: &a {name: resnet10t}\n", "anchor"),
        ("priors: {view_invarianc: {}}\n", "did you mean 'view_invariance'?"),
        ("", "backbone"),
    ],
)
def test_wrong_files(attempt, recipe, tmp_path, text, words):
    path = tmp_path / "wrong.yaml"
    rest = recipe.read_text().splitlines(keepends=True)
    body = "".join(rest)
    if text.startswith("priors"):
        start, end = body.index("priors:"), body.index("optim:")
        body = body[:start] + text + body[end:]
    elif text.startswith("seed"):
        body = text + body.replace("seed: 3\n", "")
    elif text.startswith("backbone"):
        body = "".join(text if line.startswith("backbone") else line for line in rest)
    else:
        body = ""
    path.write_text(body)
    expect(attempt(path=path), "wrong.yaml", words)


def test_a_missing_recipe(attempt, tmp_path):
    expect(attempt(path=tmp_path / "none.yaml"), "none.yaml")


@pytest.mark.parametrize(
    ("prior", "missing"),
    [
        ("depth_regression", "depth"),
        ("pixel_voxel", "depth, intrinsics, world_from_camera, surface"),
        ("triplane", "pseudo_depth|depth"),
        ("gaussian_distillation", "depth"),
    ],
)
def test_a_prior_whose_needs_the_dataset_lacks_is_refused_before_data_is_read(attempt, tmp_path, prior, missing):
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    text = f"""
backbone: {{name: resnet10t, decoder_stride: 4}}
data: {{name: image_folder, root: {tmp_path}, size: [48, 64], views: 1, batch_size: 2}}
priors: {{{prior}: {{}}}}
trainer: {{max_steps: 1, accelerator: cpu}}
"""
    path = tmp_path / "images.yaml"
    path.write_text(text)
    expect(attempt(path=path), f"priors.{prior}: ", missing, "image_folder does not provide")


def test_pseudo_depth_of_an_unknown_kind_is_refused(attempt, tmp_path):
    for folder in ("images", "depth"):
        (tmp_path / folder).mkdir()
        Image.new("RGB" if folder == "images" else "I;16", (64, 48)).save(tmp_path / folder / "a.png")
    text = f"""
backbone: {{name: resnet10t, decoder_stride: 4}}
data:
  name: image_folder
  root: {tmp_path / "images"}
  pseudo_depth: {tmp_path / "depth"}
  size: [48, 64]
  views: 1
  batch_size: 1
priors: {{triplane: {{distill_weight: 0}}}}
trainer: {{max_steps: 1, accelerator: cpu}}
"""
    path = tmp_path / "pseudo.yaml"
    path.write_text(text)
    expect(attempt(path=path), "data.pseudo_kind: ", "depth", "disparity")


def test_weights_that_do_not_fit_name_the_mismatches(attempt, tmp_path):
    torch.save({"stem.0.weight": torch.zeros(1)}, tmp_path / "wrong.pth")
    expect(attempt(f"backbone.weights={tmp_path / 'wrong.pth'}"), "stem.0.weight is [1] and should be [40, 3, 4, 4]")


def test_a_probe_without_held_out_scenes_is_refused(attempt, frames):
    expect(attempt(*as_data(frames(8)), "probes={correspondence: {}}"), "probes.correspondence: ", "test_scenes")


@pytest.fixture
def frames(tmp_path):
    """Write a scene of a textured wall seen from a sliding camera, in the 7-Scenes layout."""

    def write(count, intrinsics=True):
        scene = tmp_path / "scans" / "wall"
        scene.mkdir(parents=True)
        texture = np.random.default_rng(0).integers(0, 255, (96, 256, 3), dtype=np.uint8)
        for index in range(count):
            Image.fromarray(texture[:, index * 4 : index * 4 + 128]).save(scene / f"frame-{index:06d}.color.png")
            depth = np.full((96, 128), 2000, np.uint16)
            Image.fromarray(depth).save(scene / f"frame-{index:06d}.depth.png")
            pose = np.eye(4)
            pose[0, 3] = index * 4 * 2.0 / 100
            np.savetxt(scene / f"frame-{index:06d}.pose.txt", pose)
        if intrinsics:
            np.savetxt(scene / "camera-intrinsics.txt", [[100, 0, 63.5], [0, 100, 47.5], [0, 0, 1]])
        return scene

    return write


def as_data(scene: Path) -> list[str]:
    section = {"name": "posed_rgbd", "root": str(scene.parent), "size": [48, 64], "batch_size": 2, "workers": 0}
    section["cache"] = str(scene.parent.parent / "cache")
    return [f"data={json.dumps(section)}", "trainer.max_steps=2"]


def test_real_frames_train(attempt, frames):
    status, line, left = attempt(*as_data(frames(8)))
    assert status == 0, line
    assert any(path.name == "backbone.safetensors" for path in left)


def test_an_empty_folder(attempt, tmp_path):
    (tmp_path / "scans" / "wall").mkdir(parents=True)
    expect(attempt(*as_data(tmp_path / "scans" / "wall")), "data.root: ")


def test_missing_intrinsics(attempt, frames):
    expect(attempt(*as_data(frames(4, intrinsics=False))), "data.intrinsics: ")


def test_counts_of_depth_and_color_that_differ(attempt, frames):
    scene = frames(4)
    (scene / "frame-000002.depth.png").unlink()
    expect(attempt(*as_data(scene)), "data.root: scene wall has 4 color, 3 depth, 4 pose files", "frame is 2")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["depth", "color"])
def test_a_truncated_file_ends_the_run_or_is_skipped_and_named(attempt, frames, kind, capsys):
    scene = frames(8)
    path = scene / f"frame-000003.{kind}.png"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    # every frame is decoded within a few steps
    arguments = [*as_data(scene)[:1], "trainer.max_steps=12"]
    expect(attempt(*arguments), "data.on_damage: damaged file ", path.name, "on_damage: skip")
    status, line, left = attempt(*arguments, "data.on_damage=skip")
    assert status == 0, line
    summary = json.loads(next(path for path in left if path.name == "summary.json").read_text())
    assert summary["damaged"]["count"] == 1
    assert [Path(name).name for name in summary["damaged"]["files"]] == [path.name]
