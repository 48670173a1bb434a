"""Training a backbone with a recipe: the step, optimisation, checkpoints, pictures and the run folder; no priors."""

from prior3d.pretraining.run import prepare_only, run

__all__ = ["prepare_only", "run"]
