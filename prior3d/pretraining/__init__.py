"""Training of a backbone with a recipe: the step, optimization, checkpoints, pictures and run folder; no priors."""

from prior3d.pretraining.resuming import Begun, find_begun
from prior3d.pretraining.run import Run
from prior3d.pretraining.training import prepare_only, train

__all__ = ["Begun", "Run", "find_begun", "prepare_only", "train"]
