"""The tri-plane prior: two decoders, loss terms and figures; volume rendering itself is `prior3d.volume`."""

from prior3d_plugins.priors.triplane.prior import Triplane

__all__ = ["Triplane"]
