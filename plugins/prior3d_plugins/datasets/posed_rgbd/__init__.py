"""Folders of colour, 16-bit depth and pose files: where they lie, how their cameras are related, the dataset."""

from prior3d.data.posed.cameras import Calibration
from prior3d_plugins.datasets.posed_rgbd.dataset import PosedRGBD

__all__ = ["Calibration", "PosedRGBD"]
