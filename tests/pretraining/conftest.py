"""Runs of the real command on rooms small enough for a test."""

import multiprocessing
import time
from pathlib import Path

import pytest

from prior3d import cli

RECIPE = """
seed: 3
backbone: {{name: convnext_atto, decoder_stride: 4, channels: 16}}
data:
  name: synthetic_rooms
  rooms: 2
  test_rooms: 1
  frames: 6
  size: [48, 64]
  batch_size: 2
  workers: 0
  cache: {cache}
priors:
  view_invariance: {{points: 64}}
  augmentation_invariance: {{weight: 0.2, points: 64}}
  depth_regression: {{weight: 0.2}}
optim: {{lr: 1.0e-3, warmup: 2}}
trainer: {{max_steps: 24, accelerator: cpu, checkpoint_every: 4, log_every: 1, gradients_every: 3, draw_every: 0}}
"""


@pytest.fixture(scope="session")
def recipe(tmp_path_factory):
    """A small recipe: 24 steps in a few seconds."""
    folder = tmp_path_factory.mktemp("recipe")
    path = folder / "small.yaml"
    path.write_text(RECIPE.format(cache=folder / "cache"))
    return path


@pytest.fixture(scope="session")
def train(recipe):
    """Run the command in this process; returns its run folder."""

    def run(out, *arguments):
        status = cli.train([str(argument) for argument in (recipe, *arguments, "--out", out)])
        assert status == 0
        return run_folder(out)

    return run


@pytest.fixture(scope="session")
def start():
    """Start the command in a process of its own, from a server that has imported everything once.

    `pause` seconds are waited after each step: a busy machine then interrupts the run before it is over.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["prior3d.api", "prior3d.pretraining.training", "prior3d.recipe", "prior3d_plugins.datasets.synthetic_rooms"]
    )
    started = []

    def run(*arguments, pause=0.0):
        process = context.Process(target=_train_as_users_do, args=([str(argument) for argument in arguments], pause))
        process.start()
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()


@pytest.fixture(scope="session")
def uninterrupted(train, tmp_path_factory):
    """The small recipe, run from beginning to end."""
    return train(tmp_path_factory.mktemp("uninterrupted"))


def _train_as_users_do(arguments, pause):
    """Train, with workers of the platform's kind: those of a fork server outlive a run that is killed."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    multiprocessing.set_start_method(None, force=True)
    register_optimizer_step_post_hook(lambda *_: time.sleep(pause))
    return cli.train(arguments)


def run_folder(out: Path) -> Path:
    """Return the one run folder in a folder."""
    (found,) = (path.parent for path in Path(out).glob("*/recipe.yaml"))
    return found
