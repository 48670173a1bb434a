"""Depth files of nerfstudio: 16-bit PNG or npy, in a declared unit."""

from pathlib import Path

import numpy as np

from prior3d import DamagedFile
from prior3d.data import read_array, read_header
from prior3d.data.posed import DepthCodes

_INVALID = (0, 65535)  # the largest number of 16 bits is no distance but an overflow


class DepthFiles:
    """Reads depth files.

    Args:
        unit: meters per unit of the files.
    """

    def __init__(self, unit: float) -> None:
        self.unit = unit
        self._codes = DepthCodes(1 / unit, _INVALID)

    def read(self, path: Path) -> np.ndarray:
        """Return a depth map [h, w] float32 meters, 0 = unknown."""
        if path.suffix.lower() != ".npy":
            return self._codes.read(path)
        depth = read_array(path) * np.float32(self.unit)
        return np.where(depth > 0, depth, np.float32(0))

    def size(self, path: Path) -> tuple[int, int]:
        """Return height and width of a depth map from its header.

        Raises:
            DamagedFile: it cannot be read, or is no depth map.
        """
        if path.suffix.lower() != ".npy":
            header = read_header(path)
            if header.problem_as_depth:
                raise DamagedFile(path, f"depth: {header.problem_as_depth}")
            return header.size
        try:
            shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
        except (OSError, ValueError, EOFError) as error:
            raise DamagedFile(path, str(error)) from error
        if len(shape) != 2 or not min(shape):
            raise DamagedFile(path, f"expected depth with two axes, got {list(shape)}")
        return shape
