"""A tiny recipe that goes through every stage: cached rooms and pairs, lifts within training, probes, a report."""

import pytest

RECIPE = """
seed: 3
backbone: {{name: test_convnext, decoder_stride: 4, channels: 8, ema: 0.8}}
data:
  name: synthetic_rooms
  rooms: 2
  test_rooms: 1
  frames: 6
  size: [48, 64]
  batch_size: 2
  workers: 1
  cache: {cache}
priors:
  view_invariance: {{points: 64}}
  gaussian_distillation:
    {{teacher: ema, start_step: 2, refresh_every: 3, refreshes: 2, min_views: 2, anchor: 0.0}}
optim: {{lr: 1.0e-3, warmup: 2}}
trainer:
  max_steps: 8
  accelerator: cpu
  checkpoint_every: 2
  log_every: 1
  gradients_every: 3
  draw_every: 4
  loggers: [tensorboard, csv]
probes: {{depth: {{steps: 20, batch: 4}}}}
"""


@pytest.fixture(scope="session")
def recipe(tmp_path_factory):
    """The recipe's file; what it caches lies next to it."""
    folder = tmp_path_factory.mktemp("recipe")
    path = folder / "tiny.yaml"
    path.write_text(RECIPE.format(cache=folder / "cache"))
    return path
