"""What `prior3d-eval` measures and leaves behind, through the command itself."""

import json
import re
import shutil
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from prior3d import cli
from prior3d.backbone import Backbone
from prior3d.backbone.weights import save_weights
from prior3d.evaluation import pictures
from prior3d.pretraining.building import make_backbone
from prior3d.probes import measuring
from prior3d.probes.results import Results
from prior3d.recipe.sections import BackboneSection

FOUR = ["before", "after", "before + after", "before + random"]


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


def values(report, probe="glow", metric="glow"):
    return {name: cell["value"] for name, cell in report["probes"][probe]["metrics"][metric]["columns"].items()}


def test_training_ends_with_a_report_of_both(finished):
    report = report_of(finished)
    assert set(values(report)) == {"before", "after", "dark"}
    assert values(report)["before"] != values(report)["after"]
    assert list(report["figures"]) == ["features/pca", "features/clusters", "glow/glow"]
    assert all((finished / file).stat().st_size > 500 for file in report["figures"].values())
    text = (finished / "report.md").read_text()
    assert "after 2 steps with depth_regression" in text and "(figures/glow-glow.png)" in text
    events = EventAccumulator(str(finished), size_guidance={"images": 0})
    events.Reload()
    assert [point.step for point in events.Scalars("probes/glow/glow")] == [0, 2]
    assert {"probes/features/pca", "probes/glow/glow"} <= set(events.Tags()["images"])


def test_paths_with_brackets_are_printed_as_they_are(evaluate, finished, tmp_path):
    out = tmp_path / "[gpu]" / "[" / "b]:100:"
    status, text, line = evaluate(finished, "--out", out)
    assert (status, line) == (0, "") and f"report: {out / 'report.md'}\n" in text


def test_a_run_is_compared_with_its_initial_weights_and_a_control(evaluate, finished, tmp_path, asked):
    status, text, _ = evaluate(finished, "--out", tmp_path / "eval")
    assert status == 0 and "features side by side" in text and f"report: {tmp_path / 'eval' / 'report.md'}" in text
    report = report_of(tmp_path / "eval")
    found = values(report)
    assert list(found) == [*FOUR, "dark"]
    own = values(report_of(finished))
    assert (found["before"], found["after"], found["dark"]) == (own["before"], own["after"], 0)
    assert asked == [(2, 0), (2, 0)]  # before, after and the control are the run's own
    assert found["before + after"] == pytest.approx(found["before"] + found["after"], rel=1e-3)
    assert report["models"]["before"]["sha256"] != report["models"]["after"]["sha256"]
    assert report["probes"]["glow"]["data"]["held_out"] == {"split": "test", "images": 12, "scenes": 2}
    assert report["measured"]["device"].startswith(("CPU", "NVIDIA")) and report["recipe"]["data"]["test_rooms"] == 2
    names = {path.name for path in (tmp_path / "eval").iterdir() if not path.name.startswith("events")}
    assert names == {"report.md", "report.json", "scores.json", "figures"}


def test_a_complete_run_that_is_resumed_keeps_its_report(finished, tmp_path, asked, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    written = (run / "report.json").read_text()
    assert cli.train(["--resume", str(run)]) == 0
    assert asked == [] and (run / "report.json").read_text() == written
    assert f"report: {run / 'report.md'}" in capsys.readouterr().out
    (run / "report.md").unlink()
    assert cli.train(["--resume", str(run)]) == 0
    assert asked == [] and (run / "report.md").exists()


@pytest.mark.slow
def test_what_is_measured_is_not_measured_again(evaluate, finished, tmp_path, asked):
    out = tmp_path / "eval"
    assert evaluate(finished, "--out", out)[0] == 0
    written, asked[:] = (out / "report.json").read_text(), []
    status, text, _ = evaluate(finished, "--out", out)
    assert status == 0 and asked == [] and f"nothing is new; report: {out / 'report.md'}" in text
    assert (out / "report.json").read_text() == written
    assert evaluate(finished, "--out", out, "probes.glow.scale=2.0")[0] == 0
    assert len(asked) == 4  # another probe option: everything else
    asked.clear()
    assert evaluate(finished, "--out", out, "probes.glow.scale=2.0", "data.test_rooms=1")[0] == 0
    assert len(asked) == 4  # other data
    assert len(list(out.glob("events*"))) == 1


def test_an_interrupted_evaluation_goes_on(evaluate, finished, tmp_path, asked, monkeypatch):
    out, measure = tmp_path / "eval", measuring._by_seed
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "scores.json").unlink()

    def interrupted(task, model, data):
        if len(asked) == 2:
            raise KeyboardInterrupt
        return measure(task, model, data)

    monkeypatch.setattr(measuring, "_by_seed", interrupted)
    assert evaluate(run, "--out", out)[0] == 130
    assert [path.name for path in out.iterdir()] == ["scores.json"]
    assert set(Results.load(out / "scores.json").scores["glow"]) == {"before", "after", "dark"}
    monkeypatch.setattr(measuring, "_by_seed", measure)
    asked.clear()
    assert evaluate(run, "--out", out)[0] == 0
    assert asked == [(2, 0), (2, 0)]
    assert list(values(report_of(out))) == [*FOUR, "dark"]


def test_seeds_are_repeated_and_their_spread_is_told(evaluate, finished, tmp_path, asked):
    assert evaluate(finished, "--out", tmp_path, "--seeds", 2)[0] == 0
    assert [seed for _, seed in asked] == [0, 1] * 4
    cell = report_of(tmp_path)["probes"]["glow"]["metrics"]["glow"]["columns"]["after"]
    assert cell["by seed"] == [cell["value"]] * 2 and cell["spread over seeds"] == 0


def test_an_exported_backbone_is_the_same_model(evaluate, finished, workshop, rooms, tmp_path):
    arguments = ["--probes", "glow", "--plugin", workshop / "glow.py", "--out", tmp_path, *rooms]
    assert evaluate(finished / "backbone.safetensors", *arguments)[0] == 0
    report = report_of(tmp_path)
    assert values(report) == {"model": values(report_of(finished))["after"], "dark": 0}
    assert report["models"]["model"]["decoder stride"] == 4


def test_weights_of_others_say_which_model_they_are_of(evaluate, workshop, rooms, tmp_path):
    model = Backbone("resnet10t", (48, 64)).encoder.model
    torch.save({"state_dict": model.state_dict()}, tmp_path / "mine.pth")
    arguments = ["--probes", "glow", "--plugin", workshop / "glow.py", "--out", tmp_path / "eval", *rooms]
    line = evaluate(tmp_path / "mine.pth", *arguments)[2]
    assert "mine.pth does not say which model it belongs to: set backbone.name to a model of timm; as the" in line
    assert evaluate(tmp_path / "mine.pth", *arguments, "backbone.name=resnet10t")[0] == 0
    assert report_of(tmp_path / "eval")["models"]["model"]["backbone"] == "resnet10t"


def test_two_models_of_timm_and_a_control_of_the_same_size(evaluate, finished, workshop, rooms, tmp_path):
    start = tmp_path / "start.safetensors"
    shutil.copyfile(finished / "backbone.safetensors", start)
    arguments = ["--probes", "glow", "--plugin", workshop / "glow.py", "--out", tmp_path / "eval", *rooms]
    arguments += ["--against", start, "--control", start, "backbone.pretrained=false"]
    status, _, error = evaluate("convnext_atto", *arguments)
    assert (status, error) == (0, "")
    report = report_of(tmp_path / "eval")
    found = values(report)
    assert list(found) == ["start", "convnext_atto", "start + convnext_atto", "start + control", "dark"]
    assert found["start + control"] == pytest.approx(2 * found["start"], rel=1e-3)
    columns = report["columns"]
    assert "random weights" in columns["convnext_atto"] and "start.safetensors" in columns["start"]


def test_the_default_probes_are_those_that_the_data_fit(evaluate, rooms, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for index in range(3):
        Image.new("RGB", (64, 48), (index * 80, 0, 0)).save(images / f"{index}.png")
    data = ["data.name=image_folder", f"data.root={images}", "data.test_fraction=0.5", "data.size=[48,64]"]
    status, _, error = evaluate("convnext_atto", "backbone.pretrained=false", *data)
    assert status == 2 and "data.name: no probe fits this data: correspondence needs depth, intrinsics" in error


def test_all_are_the_probes_that_the_data_fit(evaluate, class_folders, tmp_path):
    arguments = ["--probes", "all", "probes.robustness.corrupted=16", *class_folders, "--out", tmp_path / "eval"]
    status, text, error = evaluate("convnext_atto", "backbone.pretrained=false", *arguments)
    assert (status, error) == (0, "")
    report = report_of(tmp_path / "eval")
    assert set(report["probes"]) == set(report["recipe"]["probes"]) == {"classification", "robustness"}
    left_out = dict(re.findall(r"^left out: (\w+): (.*)$", text, re.MULTILINE))
    assert left_out["shape_bias"].startswith("expected folders of the 16 classes airplane, bear, bicycle")
    assert left_out["depth"] == "needs depth, which the data (ClassificationFolder) does not provide"
    assert {"correspondence", "depth", "normals", "segmentation", "finetune_segmentation"} <= set(left_out)


def test_probes_of_a_run_that_other_data_do_not_fit_are_left_out(evaluate, with_probes, class_folders, tmp_path):
    run = with_probes({"depth": {}, "glow": {"scale": 2.0}, "shape_bias": {}})
    status, text, error = evaluate(run, *class_folders, "--out", tmp_path / "eval")
    assert (status, error) == (0, "")
    report = report_of(tmp_path / "eval")
    assert list(values(report)) == [*FOUR, "dark"] and list(report["recipe"]["probes"]) == ["glow"]
    assert report["recipe"]["probes"]["glow"]["scale"] == 2.0
    assert "left out: depth: needs depth, which the data (ClassificationFolder) does not provide\n" in text
    assert "left out: shape_bias: expected folders of the 16 classes" in text


@pytest.mark.parametrize("against", [False, True])
def test_pictures_need_neither_labels_nor_data(evaluate, finished, tmp_path, against):
    Image.new("RGB", (80, 60), (200, 30, 30)).save(tmp_path / "a.png")
    out = tmp_path / "out"
    other = ["--against", finished / "backbone.safetensors"] if against else []
    status, text, error = evaluate(finished, *other, "--pictures", tmp_path / "a.png", "--out", out)
    assert (status, error) == (0, "")
    assert {path.name for path in out.iterdir()} == {"pca.png", "clusters.png"} and str(out / "pca.png") in text


def test_a_classifier_comes_with_the_weights_and_measures_single_models(evaluate, finished, rooms, tmp_path):
    model = timm.create_model("resnet10t", num_classes=5)
    torch.save(model.state_dict(), tmp_path / "mine.pth")
    (tmp_path / "named.py").write_text(NAMED)
    arguments = ["--probes", "named", "--plugin", tmp_path / "named.py", "--out", tmp_path / "eval", *rooms]
    status, _, error = evaluate(tmp_path / "mine.pth", *arguments, "backbone.name=resnet10t")
    assert (status, error) == (0, "")
    report = report_of(tmp_path / "eval")
    assert values(report, "named", "logits") == {"model": 5}


NAMED = """
import torch
from prior3d.contracts.probe import Probe
from prior3d.contracts.scores import Scores

class Named(Probe):
    needs_classifier = True

    def measure(self, model, data, seed=0):
        logits = model.classify(torch.rand(2, 3, *data.size))
        return Scores(("a",), {"logits": torch.tensor([float(logits.shape[1])])})

    def summarize(self, total):
        return {"logits": float(total["logits"])}
"""


def test_a_run_that_measures_its_classifier_trains_all_the_same(tmp_path, workshop):
    torch.manual_seed(0)
    torch.save(timm.create_model("resnet10t", num_classes=5).state_dict(), tmp_path / "mine.pth")
    (tmp_path / "named.py").write_text(NAMED)
    recipe = (
        (workshop / "small.yaml").read_text().replace("convnext_atto,", f"resnet10t, weights: {tmp_path}/mine.pth,")
    )
    (tmp_path / "named.yaml").write_text(recipe.replace("glow: {}", "named: {}").replace("glow.py", "named.py"))
    assert cli.train([str(tmp_path / "named.yaml"), "--out", str(tmp_path / "runs")]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert values(report_of(run), "named", "logits") == {"before": 5, "after": 5}
    before, after = load_file(run / "initial.safetensors"), load_file(run / "backbone.safetensors")
    assert not torch.equal(before["encoder.model.conv1.0.weight"], after["conv1.0.weight"])


def test_side_by_side_there_is_no_classifier_and_no_column(evaluate, rooms, tmp_path):
    files = []
    for name in ("mine", "yours"):
        files.append(tmp_path / f"{name}.safetensors")
        about = {"model": "resnet10t", "timm_options": {}}
        save_weights(files[-1], timm.create_model("resnet10t", num_classes=5).state_dict(), about)
    (tmp_path / "named.py").write_text(NAMED)
    arguments = ["--probes", "named", "--plugin", tmp_path / "named.py", "--out", tmp_path / "eval", *rooms]
    status, _, error = evaluate(files[0], "--against", files[1], *arguments)
    assert (status, error) == (0, "")
    assert values(report_of(tmp_path / "eval"), "named", "logits") == {"yours": 5, "mine": 5}


def test_pictures_of_random_weights_are_of_those_that_would_be_measured(evaluate, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "write_pictures", lambda models, *_, **__: drawn.extend(models.values()) or [])
    for seed in (0, 5):
        arguments = ["backbone.pretrained=false", f"seed={seed}", "--pictures", "a.png", "--out", tmp_path / "out"]
        assert evaluate("resnet10t", *arguments)[0] == 0
    measured = [make_backbone(BackboneSection("resnet10t"), (48, 64), seed).digest() for seed in (0, 5)]
    assert [model.backbones[0].digest() for model in drawn] == measured and measured[0] != measured[1]


def test_models_of_one_name_are_drawn_side_by_side(evaluate, finished, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "write_pictures", lambda models, *_, **__: drawn.append(list(models)) or [])
    shutil.copytree(finished, other := tmp_path / "other" / finished.name)
    exported = finished / "backbone.safetensors"
    for against in (other, exported, finished):
        assert evaluate(finished, "--against", against, "--pictures", "a.png", "--out", tmp_path / "out")[0] == 0
    assert drawn == [[str(other), str(finished)], [str(exported), str(finished)], [f"{finished}, 1", f"{finished}, 2"]]


def test_the_probe_of_the_documentation_measures_and_takes_its_option(evaluate, rooms, tmp_path):
    page = (Path(__file__).resolve().parents[2] / "docs" / "plugins" / "probes.md").read_text()
    code = re.search(r"```python\n(# depth_edges\.py\n.*?)```", page, re.DOTALL).group(1)
    (tmp_path / "depth_edges.py").write_text(code)
    found = []
    for option in ([], ["probes.depth_edges.jump=0.2"]):
        arguments = ["--plugin", tmp_path / "depth_edges.py", "--probes", "depth_edges", "--out", tmp_path / "eval"]
        status, _, error = evaluate("convnext_atto", "backbone.pretrained=false", *arguments, *option, *rooms)
        assert (status, error) == (0, "")
        found += values(report_of(tmp_path / "eval"), "depth_edges", "change at depth edges").values()
    assert len(found) == 2 and 1 < found[0] != found[1] > 1
