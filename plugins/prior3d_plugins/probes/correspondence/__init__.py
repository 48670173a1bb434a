"""Multi-view matching from frozen features."""

from prior3d_plugins.probes.correspondence.probe import Correspondence

__all__ = ["Correspondence"]
