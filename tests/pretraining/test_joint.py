"""The joint recipe of the four priors, made small: one backbone pass, every gradient reaches the encoder."""

from itertools import combinations
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from prior3d import cli
from prior3d.backbone import Backbone
from prior3d.pretraining.task import PretrainingTask

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "joint.yaml"
LABELS = ("view_invariance", "pixel_voxel", "triplane", "gaussian_distillation")
SMALL = [
    "data.rooms=2",
    "data.test_rooms=1",
    "data.frames=8",
    "data.batch_size=2",
    "data.workers=0",
    "trainer.max_steps=6",
    "trainer.accelerator=cpu",
    "trainer.log_every=1",
    "trainer.gradients_every=1",
    "trainer.draw_every=5",
    "priors.gaussian_distillation.start_step=2",
    "priors.gaussian_distillation.refresh_every=2",
    "probes={}",
]


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    """The run's event file, and how many images each training step gave to the backbone, call by call."""
    folder = tmp_path_factory.mktemp("joint")
    calls, steps = [], []
    forward, step = Backbone.forward, PretrainingTask.training_step

    def counted(self, batch, batch_idx):
        before = len(calls)
        result = step(self, batch, batch_idx)
        steps.append(calls[before:])
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Backbone, "forward", lambda self, *a, **k: calls.append(len(a[0])) or forward(self, *a, **k))
        patch.setattr(PretrainingTask, "training_step", counted)
        arguments = [str(RECIPE), *SMALL, f"data.cache={folder / 'cache'}", "--out", str(folder / "out")]
        assert cli.train(arguments) == 0
    events = EventAccumulator(str(next((folder / "out").glob("*/"))), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return events, steps


def test_the_backbone_is_called_once_per_step(joint):
    assert joint[1] == [[4]] * 6


def test_the_gradient_of_every_prior_reaches_the_encoder(joint):
    for label in LABELS:
        norms = [point.value for point in joint[0].Scalars(f"gradients/norm/{label}")]
        assert norms[-1] > 0
    # nothing to distil before the first lift
    assert joint[0].Scalars("gradients/norm/gaussian_distillation")[0].value == 0
    active = [point.value for point in joint[0].Scalars("gaussian_distillation/active")]
    assert active == [0, 0, 1, 1, 1, 1]


def test_the_cosine_between_each_pair_of_priors_is_logged(joint):
    tags = set(joint[0].Tags()["scalars"])
    assert {f"gradients/cosine/{a}/{b}" for a, b in combinations(LABELS, 2)} <= tags


def test_every_prior_draws(joint):
    drawn = {tag.split("/")[0] for tag in joint[0].Tags()["images"]}
    assert drawn == {*LABELS, "features"}
