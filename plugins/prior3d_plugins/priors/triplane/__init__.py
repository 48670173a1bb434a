"""The tri-plane prior: its two decoders, its terms and its pictures; volume rendering itself is `prior3d.volume`."""

from prior3d_plugins.priors.triplane.prior import Triplane

__all__ = ["Triplane"]
