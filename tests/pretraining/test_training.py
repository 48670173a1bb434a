"""What a run does and leaves behind."""

import io
import json
import math

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from prior3d.backbone import Backbone
from prior3d.backbone.batch_norm import reestimate_batch_norm
from prior3d.pretraining.task import PretrainingTask
from prior3d.pretraining.tracking import Curves
from prior3d.recipe import load_recipe


def curves(folder):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return events


def test_a_run_folder_holds_all_that_is_needed_later(uninterrupted, recipe):
    names = {path.name for path in uninterrupted.iterdir() if not path.name.startswith("events")}
    expected = {"recipe.yaml", "initial.safetensors", "checkpoints", "backbone.safetensors", "decoder.safetensors"}
    assert names == expected | {"summary.json"}
    text = (uninterrupted / "recipe.yaml").read_text()
    assert "# prior 'view_invariance' (prior3d 0.1.0)" in text
    assert load_recipe(uninterrupted / "recipe.yaml") == load_recipe(recipe)
    summary = json.loads((uninterrupted / "summary.json").read_text())
    assert summary["steps"] == summary["of"] == 24 and summary["damaged"]["count"] == 0
    assert set(summary["versions"]) >= {"prior3d", "torch", "timm", "lightning", "python"}


def test_the_exported_encoder_loads_strictly_into_timm(uninterrupted):
    path = uninterrupted / "backbone.safetensors"
    model = timm.create_model("convnext_atto", num_classes=0)
    model.load_state_dict(load_file(path), strict=True)
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["prior3d"])
    assert about["model"] == "convnext_atto"
    assert about["mean"] == pytest.approx([0.485, 0.456, 0.406])


def test_the_initial_weights_are_those_before_training(uninterrupted):
    initial, trained = (
        load_file(uninterrupted / "initial.safetensors"),
        load_file(uninterrupted / "backbone.safetensors"),
    )
    changed = [name for name in trained if not torch.equal(initial[f"encoder.model.{name}"], trained[name])]
    unread = {"head.norm.weight", "head.norm.bias"}
    assert set(changed) == set(trained) - unread


def test_curves_hold_every_loss_the_collapse_meter_and_the_cosines(uninterrupted):
    scalars = set(curves(uninterrupted).Tags()["scalars"])
    labels = ("view_invariance", "augmentation_invariance", "depth_regression")
    assert {"loss", *(f"loss/{label}" for label in labels)} <= scalars
    assert {"features/spread", "features/effective_rank", "view_invariance/matches"} <= scalars
    assert {f"gradients/norm/{label}" for label in labels} <= scalars
    assert "gradients/cosine/view_invariance/depth_regression" in scalars
    assert len(curves(uninterrupted).Scalars("loss")) == 24
    assert all(math.isfinite(point.value) for point in curves(uninterrupted).Scalars("loss"))


def test_the_loss_falls(uninterrupted):
    values = [point.value for point in curves(uninterrupted).Scalars("loss")]
    assert sum(values[-6:]) < 0.95 * sum(values[:6])


@pytest.mark.slow
def test_pictures_are_drawn_and_change_nothing(train, uninterrupted, tmp_path):
    folder = train(tmp_path, "trainer.draw_every=12")
    images = set(curves(folder).Tags()["images"])
    assert images == {
        "view_invariance/matches",
        "augmentation_invariance/matches",
        "depth_regression/depth",
        "features/image",
        "features/image_crops",
    }
    first, second = (load_file(run / "backbone.safetensors") for run in (folder, uninterrupted))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_a_prior_of_colored_voxels_trains_on_rooms_and_is_plotted(train, tmp_path):
    pixel_voxel = "{prior: pixel_voxel, voxels: color, voxel_size: 0.1, points: 32, width: 0.25}"
    priors = ["priors.view_invariance.points=32", f"priors.colored={pixel_voxel}"]
    surface = "data.surface={voxel_size: 0.05, min_frames: 1}"
    folder = train(tmp_path, *priors, surface, "trainer.max_steps=2", "trainer.draw_every=1", "data.workers=1")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["losses, mean of the last batches"]["colored"] > 0
    pictures = [image.encoded_image_string for image in curves(folder).Images("colored/matches")]
    shown = [np.asarray(Image.open(io.BytesIO(picture))) for picture in pictures]
    assert len(shown) == 2 and all(picture.std() > 10 for picture in shown)  # one per step, none blank


@pytest.mark.slow
def test_what_is_encoded_for_pictures_does_not_count(train, tmp_path, monkeypatch):
    counted, times = [], Curves._times

    def count(self, trainer):
        counted.append(self._images)
        return times(self, trainer)

    monkeypatch.setattr(Curves, "_times", count)
    train(tmp_path, "trainer.draw_every=1", "trainer.max_steps=2", "data.batch_size=5")
    assert counted == [20, 20]  # 5 samples x (2 views + 2 crops)


def test_the_backbone_is_called_once_per_step_also_for_crops(train, tmp_path, monkeypatch):
    calls, steps = [], []
    forward, step = Backbone.forward, PretrainingTask.training_step
    monkeypatch.setattr(Backbone, "forward", lambda self, *a, **k: calls.append(len(a[0])) or forward(self, *a, **k))

    def counted(self, batch, batch_idx):
        before = len(calls)
        result = step(self, batch, batch_idx)
        steps.append(calls[before:])
        return result

    monkeypatch.setattr(PretrainingTask, "training_step", counted)
    train(tmp_path, "trainer.max_steps=3")
    assert steps == [[8]] * 3  # 2 samples x (2 views + 2 crops), in one call


def test_a_frozen_encoder_keeps_its_weights(train, tmp_path):
    folder = train(tmp_path, "backbone.train=frozen", "trainer.max_steps=3")
    initial, trained = load_file(folder / "initial.safetensors"), load_file(folder / "backbone.safetensors")
    assert all(torch.equal(initial[f"encoder.model.{name}"], trained[name]) for name in trained)


def test_other_optimizers_schedules_and_precision_train(train, tmp_path, monkeypatch):
    made, rates, precisions = [], [], []
    configure, forward = PretrainingTask.configure_optimizers, Backbone.forward

    def spied_configure(task):
        found = configure(task)
        made.append(found["optimizer"])
        found["optimizer"].register_step_pre_hook(note)
        return found

    def note(optimizer, *_):
        rates.append({group["lr"] for group in optimizer.param_groups})

    def spied_forward(backbone, images, reads):
        maps = forward(backbone, images, reads)
        if made and torch.is_grad_enabled():  # in training, not in checks before it
            precisions.append(maps.dense.dtype)
        return maps

    monkeypatch.setattr(PretrainingTask, "configure_optimizers", spied_configure)
    monkeypatch.setattr(Backbone, "forward", spied_forward)
    folder = train(
        tmp_path,
        "optim.name=sgd",
        "optim.lr=0.01",
        "optim.schedule=poly",
        "trainer.precision=bf16",
        "trainer.max_steps=3",
        "backbone.ema=0.9",
    )
    assert all(torch.isfinite(value).all() for value in load_file(folder / "backbone.safetensors").values())
    (optimizer,) = made
    assert type(optimizer) is torch.optim.SGD and optimizer.param_groups[0]["momentum"] == 0.9
    expected = [0.01 * 1 / 2, 0.01 * (2 / 3) ** 0.9, 0.01 * (1 / 3) ** 0.9]  # warm-up over two steps, then the fall
    assert [len(one) for one in rates] == [1, 1, 1] and [one.pop() for one in rates] == pytest.approx(expected)
    assert precisions == [torch.bfloat16] * 3


def test_probes_are_measured_before_and_after_on_held_out_rooms(train, tmp_path, capsys):
    folder = train(tmp_path, "probes.correspondence.pairs_per_bin=4", "trainer.max_steps=2")
    results = json.loads((folder / "probes.json").read_text())["correspondence"]
    assert set(results) == {"before", "after", "raw patches", "position"}
    assert all(0 <= value <= 1 for metrics in results.values() for value in metrics.values())
    assert "frozen features on held-out scenes" in capsys.readouterr().out


def test_statistics_reestimated_twice_are_the_same(uninterrupted):
    model = Backbone("convnext_atto", (48, 64), decoder_stride=4, channels=16)
    model.load_state_dict(load_file(uninterrupted / "initial.safetensors"))
    images = [torch.rand(4, 3, 48, 64)]
    reestimate_batch_norm(model, lambda shown: model(shown, {"dense"}), images)
    first = {name: value.clone() for name, value in model.state_dict().items()}
    reestimate_batch_norm(model, lambda shown: model(shown, {"dense"}), images)
    assert all(torch.equal(first[name], value) for name, value in model.state_dict().items())
