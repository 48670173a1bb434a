"""Training a backbone with a recipe: the step, optimisation, checkpoints, pictures and the run folder; no priors."""

from prior3d.pretraining.run import run

__all__ = ["run"]
