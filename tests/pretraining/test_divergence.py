"""A training whose numbers are lost ends with one line; figures that are only logged never end it."""

import json
import math

import pytest
import torch

from prior3d import cli
from prior3d.backbone import Maps
from prior3d.errors import UserError
from prior3d.files import write_json
from prior3d.pretraining.health import PATIENCE, Divergence, check_finite, feature_health


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_features_that_are_not_finite_have_no_rank(broken):
    dense = torch.randn(2, 8, 6, 8)
    dense[0, 3, 2, 2] = broken
    found = feature_health(Maps({}, dense, None))
    assert math.isnan(found["effective_rank"]) and math.isnan(found["spread"])


def test_features_that_are_all_zero_have_no_spread_and_one_direction():
    found = feature_health(Maps({}, torch.zeros(2, 8, 6, 8), None))
    assert found["spread"] == 0 and found["effective_rank"] == pytest.approx(1)


def test_an_eigenvalue_decomposition_that_fails_is_no_error(monkeypatch):
    def fail(matrix):
        raise torch.linalg.LinAlgError("failed to converge")

    monkeypatch.setattr(torch.linalg, "eigvalsh", fail)
    found = feature_health(Maps({}, torch.randn(2, 8, 6, 8), None))
    assert math.isnan(found["effective_rank"]) and found["spread"] > 0


def losses(*, near, far):
    return torch.tensor([near, far])


def test_only_losses_that_stay_lost_are_a_divergence_and_the_first_prior_is_named():
    watch = Divergence(["near", "far"])
    assert not watch.has_lasted(3)
    for step in range(40):
        far, near = (math.inf if step == 2 or step >= 20 else 1.0), (math.nan if step >= 22 else 1.0)
        watch.see(step, losses(near=near, far=far))
        assert watch.has_lasted(step) == (step >= 20 + PATIENCE - 1)
    assert str(watch.error(39)).startswith("priors.far: its loss has not been finite since step 20: the training has")
    watch.see(40, losses(near=1.0, far=1.0))
    assert not watch.has_lasted(41)
    watch.see(41, losses(near=math.nan, far=math.nan))
    assert str(watch.error(45)).startswith("priors.near: its loss (and of far) has not been finite since step 41")


def test_weights_that_are_not_finite_are_not_exported():
    check_finite({"a": torch.ones(3), "count": torch.tensor(3)})
    with pytest.raises(UserError, match=r"the trained weights are not finite \(b, for example\)"):
        check_finite({"a": torch.ones(3), "b": torch.tensor([0.0, math.nan])})


def test_a_run_that_diverges_ends_with_one_line(recipe, tmp_path, capsys):
    arguments = ["optim.lr=1e30", "optim.clip=1e30", "optim.warmup=0", "trainer.gradients_every=0"]
    assert cli.train([str(recipe), *arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert ": its loss" in error and "has not been finite since step" in error and "lower optim.lr" in error
    assert not list(tmp_path.rglob("backbone.safetensors"))


def test_a_run_too_short_to_notice_exports_nothing(recipe, tmp_path, capsys):
    arguments = ["optim.lr=1e30", "optim.clip=1e30", "optim.warmup=0", "trainer.max_steps=3"]
    assert cli.train([str(recipe), *arguments, "trainer.gradients_every=0", "--out", str(tmp_path / "out")]) == 2
    assert "optim.lr: the trained weights are not finite" in capsys.readouterr().err
    assert not list(tmp_path.rglob("backbone.safetensors"))


def test_what_a_run_writes_is_json_to_every_reader(tmp_path):
    write_json(tmp_path / "a.json", {"loss": math.nan, "by": [1.5, -math.inf, {"x": True}], "name": "NaN"})
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "loss": None,
        "by": [1.5, None, {"x": True}],
        "name": "NaN",
    }
