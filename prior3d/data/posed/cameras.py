"""The two cameras of an RGB-D sensor and its poses, read from text files and checked."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prior3d.errors import UserError

Row = tuple[float, float, float]

RIGID_TOLERANCE = 1e-2
"""How far R^T R of a pose may be from the identity; the released 7-Scenes poses are off by up to 3e-4."""


@dataclass(frozen=True)
class Calibration:
    """A colour camera that differs from the depth camera beside it: `data.depth_to_color`.

    A point at X (metres, axes of the depth camera) lies at `rotation @ X + translation` in the axes of the colour
    camera, which sees it with the focal lengths and principal point given here.

    Attributes:
        fx: focal length of the colour camera along x, pixels of its images.
        fy: focal length along y, pixels.
        cx: principal point from the left, pixels, in the convention of `data.pixel_centers`.
        cy: principal point from the top, pixels, likewise.
        translation: metres.
        rotation: rows of the rotation matrix; none by default.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    translation: Row
    rotation: tuple[Row, Row, Row] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))

    def __post_init__(self) -> None:
        if not (self.fx > 0 and self.fy > 0):
            raise ValueError(f"expected positive focal lengths, got {self.fx} and {self.fy}")
        if not is_rigid(self.color_from_depth):
            raise ValueError(f"expected the rows of a rotation matrix, got {self.rotation}")

    @property
    def color_from_depth(self) -> np.ndarray:
        """[4, 4] pose of the depth camera in the axes of the colour camera, metres."""
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = self.rotation, self.translation
        return matrix


def pinhole(fx: float, fy: float, cx: float, cy: float, pixel_centers: str) -> np.ndarray:
    """Return the pinhole matrix [3, 3] with pixel centres at +0.5.

    Args:
        fx: focal length along x, pixels.
        fy: focal length along y, pixels.
        cx: principal point from the left, pixels.
        cy: principal point from the top, pixels.
        pixel_centers: "integer" if the principal point counts the centre of the first pixel as 0, "half" if as 0.5.
    """
    shift = {"integer": 0.5, "half": 0.0}[pixel_centers]
    return np.array([[fx, 0, cx + shift], [0, fy, cy + shift], [0, 0, 1.0]])


def read_pinhole(path: Path, pixel_centers: str, key: str) -> np.ndarray:
    """Return the pinhole matrix [3, 3], pixel centres at +0.5, of a text file: a 3x3 or 4x4 matrix or `fx fy cx cy`.

    Args:
        path: the file.
        pixel_centers: its convention, see `pinhole`.
        key: what in the recipe leads to this file, for errors.

    Raises:
        UserError: if the file holds anything else.
    """
    numbers = read_numbers(path)
    if numbers is not None and numbers.size in (9, 16):
        matrix = numbers.reshape(3, 3) if numbers.size == 9 else numbers.reshape(4, 4)
        numbers = matrix[[0, 1, 0, 1], [0, 1, 2, 2]]
    if numbers is None or numbers.size != 4 or not (np.isfinite(numbers).all() and (numbers[:2] > 0).all()):
        raise UserError(
            f"expected intrinsics (a 3x3 or 4x4 matrix or fx fy cx cy, positive focal lengths) in {path}", key
        )
    return pinhole(*numbers.tolist(), pixel_centers)


def read_numbers(path: Path) -> np.ndarray | None:
    """Return all numbers of a text file, float64, or None where it is unreadable or holds anything else."""
    try:
        return np.array(path.read_text(encoding="utf-8").replace(",", " ").split(), dtype=np.float64)
    except (OSError, ValueError):
        return None


def pose_problem(numbers: np.ndarray | None) -> str | None:
    """Say what is wrong with the numbers of a pose file, or nothing.

    Args:
        numbers: what `read_numbers` returned.
    """
    if numbers is None or numbers.size != 16:
        return "no 4x4 matrix"
    if not np.isfinite(numbers).all():
        return "not finite"
    return None if is_rigid(numbers.reshape(4, 4)) else "not rigid"


def is_rigid(pose: np.ndarray) -> bool:
    """Whether a matrix [4, 4] is a rotation (no mirroring, no scale) and a translation, within `RIGID_TOLERANCE`."""
    rotation = pose[:3, :3]
    orthonormal = np.allclose(rotation.T @ rotation, np.eye(3), atol=RIGID_TOLERANCE)
    return bool(orthonormal and np.linalg.det(rotation) > 0 and np.allclose(pose[3], [0, 0, 0, 1]))
