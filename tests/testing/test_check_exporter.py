"""`check_exporter` passes the built-in exporter, and catches exporters that break one point of the contract each."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from prior3d import Exporter, UserError
from prior3d.testing import check_exporter
from prior3d_plugins.exporters.timm import Timm


def read(file, images):
    model = timm.create_model("test_resnet", num_classes=0)
    model.load_state_dict(load_file(file), strict=True)
    return model.eval().forward_features(images)


class Plain(Exporter):
    """Write safetensors and nothing else."""

    def export(self, model, description, target):
        self.check(model, target)
        self.write({name: value.clone() for name, value in model.state_dict().items()}, target)
        return target

    def check(self, model, target):
        if not target.parent.is_dir():
            raise UserError(f"no folder {target.parent}")
        if not all(value.isfinite().all() for value in model.state_dict().values()):
            raise UserError("weights are not finite")

    def write(self, weights, target):
        save_file(weights, target)


class Documented(Plain):
    """It keeps to everything."""


class ChangesWeights(Plain):
    """It rounds the weights it writes."""

    def write(self, weights, target):
        save_file({name: value.bfloat16().to(value.dtype) for name, value in weights.items()}, target)


class ForgetsStatistics(Plain):
    """It writes fresh running statistics."""

    def write(self, weights, target):
        save_file({name: torch.ones_like(v) if "running_var" in name else v for name, v in weights.items()}, target)


class KeepsTheFirst(Plain):
    """It does not replace what is there."""

    def write(self, weights, target):
        if not target.exists():
            save_file(weights, target)


class ChangesTheModel(Plain):
    """It moves the weights."""

    def check(self, model, target):
        super().check(model, target)
        with torch.no_grad():
            next(model.parameters()).add_(1e-9).mul_(2)


class ChangesTheDescription(Plain):
    """It takes a key out."""

    def export(self, model, description, target):
        description.pop("mean")
        return super().export(model, description, target)


class LeavesTraining(Plain):
    """It leaves the model in training mode."""

    def write(self, weights, target):
        super().write(weights, target)
        self.model.train()

    def check(self, model, target):
        super().check(model, target)
        self.model = model


class LeavesTemporaries(Plain):
    """It leaves a temporary file."""

    def write(self, weights, target):
        super().write(weights, target)
        (target.parent / f".{target.name}.tmp").write_text("")


class WritesElsewhere(Plain):
    """It chooses a name of its own."""

    def export(self, model, description, target):
        return super().export(model, description, target.with_name("other.safetensors"))


class ReturnsNothing(Plain):
    """It returns nothing."""

    def export(self, model, description, target):
        super().export(model, description, target)


class TakesNaN(Plain):
    """It writes whatever it is given."""

    def check(self, model, target):
        if not target.parent.is_dir():
            raise UserError(f"no folder {target.parent}")


class LetsErrorsThrough(Plain):
    """It leaves missing folders to the system."""

    def check(self, model, target):
        if not all(value.isfinite().all() for value in model.state_dict().values()):
            raise UserError("weights are not finite")


class Anything(Plain):
    """It takes any option."""

    def __init__(self, **options):
        self.options = options


@pytest.mark.parametrize("cls", [Timm, Documented])
def test_what_keeps_to_the_contract_passes(cls):
    assert isinstance(check_exporter(cls, "model.safetensors", read), cls)


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (ChangesWeights, "features differ by"),
        (ForgetsStatistics, "features differ by"),
        (KeepsTheFirst, "features differ by"),
        (ChangesTheModel, "the model is changed"),
        (ChangesTheDescription, "the description is changed"),
        (LeavesTraining, "training mode"),
        (LeavesTemporaries, "behind"),
        (WritesElsewhere, "asked for was"),
        (ReturnsNothing, "export returns NoneType"),
        (TakesNaN, "weights with NaN is not refused"),
        (LetsErrorsThrough, "should be a UserError"),
    ],
)
def test_what_breaks_a_point_is_caught(cls, words):
    with pytest.raises(AssertionError, match=words):
        check_exporter(cls, "model.safetensors", read)


def test_an_exporter_that_takes_any_option_is_refused():
    with pytest.raises(UserError, match="every option must be named"):
        check_exporter(Anything, "model.safetensors", read)


def test_the_file_of_timm_describes_itself(tmp_path):
    model = timm.create_model("test_resnet", num_classes=0).eval()
    about = {"model": "test_resnet", "timm_options": {}, "mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0]}
    file = Timm().export(model, about, tmp_path)
    assert file == tmp_path / "test_resnet.safetensors"
    beside = json.loads((tmp_path / "test_resnet.json").read_text())
    assert (beside["model"], beside["mean"]) == ("test_resnet", [0.1, 0.2, 0.3])
    assert "timm.create_model('test_resnet', num_classes=0)" in beside["use"]
    with pytest.raises(UserError, match="must end in"):
        Timm().export(model, about, Path(tmp_path / "model.pth"))
