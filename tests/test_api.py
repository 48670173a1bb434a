"""prior3d from Python: public names, and results that equal those of the commands."""

import json
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

import prior3d
from prior3d import cli

RECIPE = {
    "seed": 3,
    "backbone": {"name": "test_resnet", "decoder_stride": 4, "channels": 8},
    "data": {"name": "synthetic_rooms", "rooms": 1, "test_rooms": 1, "frames": 6, "size": [48, 64], "batch_size": 2},
    "priors": {"view_invariance": {"points": 32}},
    "optim": {"warmup": 1},
    "trainer": {"max_steps": 3, "accelerator": "cpu", "draw_every": 0},
    "probes": {"depth": {}},
}
RANDOM = {"backbone.pretrained": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="module")
def recipe(folder):
    data = {**RECIPE["data"], "workers": 0, "cache": str(folder / "cache")}
    return {**RECIPE, "data": data}


@pytest.fixture(scope="module")
def run(folder, recipe):
    return prior3d.train(recipe, {"trainer.max_steps": 2}, out=folder / "python", quiet=True)


def test_public_names_are_there_and_cost_nothing_before_they_are_used():
    program = (
        "import sys, time; start = time.perf_counter(); import prior3d; seconds = time.perf_counter() - start\n"
        "assert not {'torch', 'numpy', 'lightning', 'yaml', 'pydantic'} & set(sys.modules)\n"
        "assert seconds < 0.3, seconds\n"
        "assert set(prior3d.__all__) <= set(dir(prior3d))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    for name in prior3d.__all__:
        assert getattr(prior3d, name) is not None
    assert prior3d.losses.__name__ == "prior3d.losses"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = prior3d.nothing


def test_training_from_python_gives_what_the_command_gives(run, folder, recipe):
    file = folder / "recipe.yaml"
    file.write_text(json.dumps({**recipe, "trainer": {**recipe["trainer"], "max_steps": 2}}))
    assert cli.train([str(file), "--out", str(folder / "command")]) == 0
    (other,) = (folder / "command").iterdir()
    ours, theirs = load_file(run.folder / "backbone.safetensors"), load_file(other / "backbone.safetensors")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert json.loads((other / "probes.json").read_text()) == run.metrics
    assert run.steps == 2 and run.stopped_by is None and run.idle == []


def test_a_run_gives_its_report_and_its_backbone(run):
    assert set(run.metrics["depth"]) >= {"before", "after"}
    assert run.report.metrics["depth"]["after"] == pytest.approx(run.metrics["depth"]["after"])
    assert run.report.text.startswith("# ") and all(file.is_file() for file in run.report.figures.values())
    loaded = prior3d.load(run.folder)
    ours, theirs = run.backbone.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert loaded.spec == run.backbone.spec and not loaded.training
    assert repr(run) == f"Run('{run.folder}', test_resnet, step 2 of 2)"


def test_evaluation_from_python_gives_what_the_command_gives(run, folder):
    report = prior3d.evaluate(run, probes=["depth"], out=folder / "eval-python", device="cpu")
    arguments = [str(run.folder), "--probes", "depth", "--out", str(folder / "eval-command"), "--device", "cpu"]
    assert cli.evaluate(arguments) == 0
    theirs = json.loads((folder / "eval-command" / "report.json").read_text())
    assert report.content["probes"] == theirs["probes"]
    assert report.metrics["depth"]["after"] == pytest.approx(run.metrics["depth"]["after"])


def test_features_are_those_of_the_backbone_whatever_the_images_come_as(run, folder):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), dtype=np.uint8)
    floats = (torch.from_numpy(pixels).movedim(-1, 1).float() / 255).contiguous()
    found = prior3d.features(run, floats)
    with torch.no_grad():
        assert torch.equal(found, prior3d.load(run.folder)(floats.contiguous(), ("dense",)).dense)
    assert found.shape == (2, 8, 12, 16)
    files = []
    for index, image in enumerate(pixels):
        files.append(folder / f"{index}.png")
        Image.fromarray(image).save(files[-1])
    for images in (pixels, list(pixels), [Image.fromarray(image) for image in pixels], files, list(floats)):
        assert torch.equal(prior3d.features(run.folder, images), found)
    assert torch.equal(prior3d.features(run, str(files[1])), prior3d.features(run, floats[1]))


@pytest.mark.parametrize(("name", "stride"), [("test_resnet", 32), ("test_vit", 16), ("convnext_atto", 32)])
def test_features_of_images_of_whatever_size(name, stride):
    backbone = prior3d.load(name, overrides=RANDOM)
    backbone.train()
    maps = prior3d.features(backbone, torch.rand(1, 3, 75, 101))
    assert maps.shape == (1, backbone.spec.dense_channels, -(-75 // stride), -(-101 // stride))
    assert backbone.training, "the mode is given back"


@pytest.mark.parametrize(
    ("images", "error", "words"),
    [
        (torch.rand(1, 3, 8, 8) * 255, ValueError, "expected values of 0..1, got"),
        (np.zeros((8, 8, 4), np.uint8), ValueError, "got [8, 8, 4]"),
        ([], ValueError, "expected at least one image"),
        ("no.png", prior3d.UserError, "no such image: no.png"),
        ([torch.rand(3, 8, 8), torch.rand(3, 9, 8)], prior3d.UserError, "several sizes (8 x 8, 9 x 8): give size="),
    ],
)
def test_images_that_cannot_be_encoded_are_refused_in_words(images, error, words):
    with pytest.raises(error) as refused:
        prior3d.features(prior3d.load("test_resnet", overrides=RANDOM), images)
    assert words in str(refused.value)


def test_images_of_several_sizes_are_resized_to_one():
    backbone = prior3d.load("test_resnet", overrides=RANDOM)
    several = [torch.rand(3, 64, 64), torch.rand(3, 100, 80)]
    assert prior3d.features(backbone, several, size=(64, 96)).shape[-2:] == (2, 3)


def test_what_is_exported_loads_strictly_into_timm(run, folder):
    file = prior3d.export(run, "timm", folder / "exported.safetensors")
    model = timm.create_model("test_resnet", num_classes=0)
    model.load_state_dict(load_file(file), strict=True)
    again = prior3d.load(file)
    assert torch.equal(again.encoder.mean, run.backbone.encoder.mean)
    images = torch.rand(1, 3, 64, 64)
    run.backbone.eval()
    with torch.no_grad():
        assert torch.equal(again(images, ("encoder",)).encoder[32], run.backbone(images, ("encoder",)).encoder[32])
    with pytest.raises(prior3d.UserError, match="unknown exporter 'tim', did you mean 'timm'"):
        prior3d.export(run, "tim", folder / "exported.safetensors")


def test_errors_name_key_file_and_line(folder, recipe):
    file = folder / "wrong.yaml"
    file.write_text("seed: 0\nbackbone:\n  name: test_resnet\n  chanels: 3\n")
    with pytest.raises(prior3d.UserError, match=r"wrong\.yaml:4: backbone\.chanels: unknown key"):
        prior3d.train(file)
    with pytest.raises(prior3d.UserError, match=r"optim\.lr: "):
        prior3d.train(recipe, {"optim.lr": -1})
    with pytest.raises(prior3d.UserError, match="which recipe"):
        prior3d.train()
    with pytest.raises(prior3d.UserError, match="keeps its own recipe"):
        prior3d.train(recipe, resume=folder)
    assert recipe["trainer"]["max_steps"] == 3, "what was given is not changed"
