"""prior3d from Python: public names, and results that equal those of the commands."""

import json
import logging
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

import prior3d
from prior3d import cli
from prior3d.jobs.running import make_runner
from prior3d.registry import Registry

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


@pytest.mark.slow
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


def test_options_of_timm_are_exported_with_a_backbone(folder):
    options = {"act_layer": "gelu"}
    backbone = prior3d.load("test_resnet", overrides={**RANDOM, "backbone.timm_options": options})
    file = prior3d.export(backbone, "timm", folder / "gelu.safetensors")
    assert json.loads(file.with_suffix(".json").read_text())["timm_options"] == options
    again = prior3d.load(file)
    images = torch.rand(1, 3, 64, 64)
    assert again.encoder.timm_options == options
    assert torch.equal(prior3d.features(again, images), prior3d.features(backbone, images))


PLUGINS = '''
from pathlib import Path
from prior3d import Exporter, Runner
from prior3d.registry import current

class Files(Exporter):
    """Write the names of the plugin files of its registry."""

    def __init__(self) -> None:
        self.files = current().files

    def export(self, model, description, target):
        target.write_text(" ".join(file.name for file in self.files))
        return target

class Knows(Runner):
    """A runner that knows the plugin files of its registry."""

    def __init__(self) -> None:
        self.files = current().files

    def run(self, jobs, work):
        yield from ()
'''


def test_exporters_and_runners_are_made_within_the_registry_of_their_plugin_files(folder):
    (folder / "knowing.py").write_text(PLUGINS)
    backbone = prior3d.load("test_resnet", overrides=RANDOM)
    written = prior3d.export(backbone, "files", folder / "names.txt", plugins=[folder / "knowing.py"])
    assert written.read_text() == "knowing.py"
    runner = make_runner("knows", {}, Registry([folder / "knowing.py"]))
    assert [file.name for file in runner.files] == ["knowing.py"]


@pytest.mark.parametrize(
    ("returned", "said"), [("None", "NoneType"), ("str(target)", "str"), ("target / 'a'", "out/a, which is not there")]
)
def test_an_exporter_that_returns_no_path_is_an_error(tmp_path, monkeypatch, returned, said):
    monkeypatch.chdir(tmp_path)
    Path("lost.py").write_text(
        "from prior3d import Exporter\n\n\nclass Lost(Exporter):\n"
        f"    def export(self, model, description, target):\n        return {returned}\n"
    )
    with pytest.raises(prior3d.UserError) as refused:
        prior3d.export(prior3d.load("test_resnet", overrides=RANDOM), "lost", "out", plugins=["lost.py"])
    must = "it must return the path of what it wrote"
    assert str(refused.value) == f"exporter 'lost' (file lost.py): export returned {said}; {must}"


@pytest.mark.slow
def test_the_process_is_left_as_it_was(folder, recipe, run, monkeypatch, request):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 2)

    def state():
        return torch.get_num_threads(), list(warnings.filters), logging.getLogger("lightning.pytorch").level

    torch.set_num_threads(2)
    request.addfinalizer(lambda: torch.set_num_threads(1))
    before = state()
    assert before[0] == 2
    other = prior3d.train(recipe, {"trainer.max_steps": 1, "probes": {}}, out=folder / "left", quiet=True)
    assert json.loads((other.folder / "summary.json").read_text())["threads"] == 1
    assert state() == before
    prior3d.prepare(recipe)
    assert state() == before
    prior3d.evaluate(run, probes=["depth"], out=folder / "left-eval", device="cpu")
    assert state() == before
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(prior3d.UserError, match="3 processes were started"):
        prior3d.train(recipe, quiet=True)
    assert state() == before


def test_errors_in_python_speak_of_arguments_and_overrides(folder, recipe, run):
    def said(function, *arguments, **more):
        with pytest.raises(prior3d.UserError) as refused:
            function(*arguments, **more)
        assert "--" not in str(refused.value) and "command line" not in str(refused.value)
        return str(refused.value)

    (folder / "file").write_text("")
    (folder / "r.yaml").write_text(json.dumps(recipe))
    assert said(prior3d.train, resume=run.folder, out="o") == "out: a resumed run stays in its folder: leave out o"
    assert said(prior3d.train, resume="nowhere").startswith("resume: nowhere is not a run folder")
    assert said(prior3d.train, recipe, out=folder / "file", quiet=True).startswith("out: cannot make the run folder")
    assert said(prior3d.train, recipe, plugins=["no.py"]).startswith("plugins: plugin file no.py cannot be read")
    wrong = "overrides: optim.lrr: unknown key, did you mean 'lr'?"
    for target in (recipe, folder / "r.yaml", prior3d.load_recipe(folder / "r.yaml")):
        assert said(prior3d.train, target, {"optim.lrr": 1}) == wrong
        assert said(prior3d.prepare, target, ["optim.lrr=1"]) == wrong
    for overrides in ({"optim.lrr": 1}, ["optim.lrr=1"]):
        assert said(prior3d.train, resume=run.folder, overrides=overrides) == wrong
    assert said(prior3d.train, recipe, ["a"]) == "overrides: expected key.path=value, got 'a'"
    assert said(prior3d.train, recipe, {"seed.x": 1}) == "overrides: seed.x: seed is 3, not a section"
    assert said(prior3d.evaluate, run, overrides={"priors.x": 1}).startswith("overrides: priors.x: nothing is trained")
    assert said(prior3d.evaluate, run, seeds=0) == "seeds: expected a number of at least 1, got 0"
    assert said(prior3d.evaluate, run, against="resnet1").startswith("against: resnet1 is neither")
    assert said(prior3d.evaluate, run, out=folder / "file") == f"out: {folder / 'file'} is not a folder"
    wrong = "overrides: backbone.x: unknown key"
    assert said(prior3d.load, "test_resnet", overrides={"backbone.x": 1}).startswith(wrong)


def test_a_text_where_a_list_is_meant_is_refused_as_one(folder, recipe, run):
    def said(function, *arguments, **more):
        with pytest.raises(prior3d.UserError) as refused:
            function(*arguments, **more)
        return str(refused.value)

    line = "expected a list, got the text 'x.py': write ['x.py']"
    assert said(prior3d.evaluate, run, probes="x.py") == f"probes: {line}"
    assert said(prior3d.Joint, "test_resnet", "x.py", size=(64, 64)) == f"priors: {line}"
    for overrides in ("x.py", Path("x.py")):
        assert said(prior3d.train, recipe, overrides) == f"overrides: {line}"
    assert said(prior3d.load_recipe, "joint", "x.py") == f"overrides: {line}"
    for function, arguments in (
        (prior3d.train, [recipe]),
        (prior3d.prepare, [recipe]),
        (prior3d.evaluate, [run]),
        (prior3d.export, [run, "timm", folder / "a.safetensors"]),
        (prior3d.load_recipe, ["joint"]),
    ):
        for plugins in ("x.py", Path("x.py")):
            assert said(function, *arguments, plugins=plugins) == f"plugins: {line}"
    assert said(prior3d.train, resume=run.folder, plugins="x.py") == f"plugins: {line}"
    assert said(prior3d.Joint, "test_resnet", ["depth_regression"], size=(64, 64), plugins="x.py") == f"plugins: {line}"


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
