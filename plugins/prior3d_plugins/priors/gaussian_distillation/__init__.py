"""The prior `gaussian_distillation`: lifted scenes, targets rendered from them, its loss and pictures; no splatting."""

from prior3d_plugins.priors.gaussian_distillation.prior import GaussianDistillation

__all__ = ["GaussianDistillation"]
