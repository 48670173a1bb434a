"""Accuracy of a classifier on other domains and on corrupted images."""

from prior3d_plugins.probes.robustness.probe import Robustness

__all__ = ["Robustness"]
