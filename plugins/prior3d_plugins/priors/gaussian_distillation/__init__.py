"""The prior `gaussian_distillation`: lifted scenes, their rendered targets, loss and figures; no splatting itself."""

from prior3d_plugins.priors.gaussian_distillation.prior import GaussianDistillation

__all__ = ["GaussianDistillation"]
