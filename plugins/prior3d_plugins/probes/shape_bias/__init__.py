"""Whether a model names images by shape or by texture."""

from prior3d_plugins.probes.shape_bias.probe import ShapeBias

__all__ = ["ShapeBias"]
