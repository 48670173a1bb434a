"""Cameras and poses of recordings: read from text files, checked, scaled to other sizes."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from prior3d.contracts.reader import Camera
from prior3d.data.decoding import same_field_of_view
from prior3d.errors import UserError

ThreeNumbers = tuple[float, float, float]

FocalAndCenter = tuple[float, float, float, float]
"""Focal lengths along x and y and principal point, pixels: fx, fy, cx, cy."""

PixelCenters = Literal["integer", "half"]
"""Convention of principal points: the first pixel's center is at 0 ("integer", as in sensors' own files) or at 0.5."""

RIGID_TOLERANCE = 1e-2
"""Allowed distance of R^T R of a pose from the identity; the released 7-Scenes poses are off by up to 3e-4."""

_LAST_ROW_TOLERANCE = 1e-5
_IDENTITY = np.eye(4)


@dataclass(frozen=True)
class Calibration:
    """Color camera that differs from the depth camera: the option `depth_to_color`.

    A point at X (meters, axes of the depth camera) is at `rotation @ X + translation` in the axes of the color camera.
    The focal lengths and principal point are those of the color camera.

    Attributes:
        fx: Focal length of the color camera along x, pixels of its images.
        fy: Focal length along y, pixels.
        cx: Principal point from the left, pixels.
        cy: Principal point from the top, pixels.
        translation: Translation x, y, z from depth to color camera, meters.
        rotation: Rows of the rotation matrix; no rotation by default.
        pixel_centers: Convention of cx and cy: the center of the first pixel is at 0 ("integer") or at 0.5 ("half").
    """

    fx: float
    fy: float
    cx: float
    cy: float
    translation: ThreeNumbers
    rotation: tuple[ThreeNumbers, ThreeNumbers, ThreeNumbers] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    pixel_centers: PixelCenters = "integer"

    def __post_init__(self) -> None:
        if not (self.fx > 0 and self.fy > 0):
            raise ValueError(f"expected positive focal lengths, got {self.fx} and {self.fy}")
        if not is_rigid(self.color_from_depth):
            raise ValueError(f"expected the rows of a rotation matrix, got {self.rotation}")

    @property
    def color_from_depth(self) -> np.ndarray:
        """Pose [4, 4] of the depth camera in the axes of the color camera, meters."""
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = self.rotation, self.translation
        return matrix

    def of_color(self, camera: Camera) -> Camera:
        """Return the color camera for a format that has one camera for color and depth.

        Args:
            camera: The format's camera, taken as the depth camera.
        """
        depth = camera.depth_intrinsics
        if depth is None and camera.depth_size is not None:
            depth = scaled(camera.intrinsics, camera.size, camera.depth_size)
        return replace(
            camera,
            intrinsics=pinhole(self.fx, self.fy, self.cx, self.cy, self.pixel_centers),
            depth_intrinsics=depth,
            color_from_depth=self.color_from_depth,
        )


def pinhole(fx: float, fy: float, cx: float, cy: float, pixel_centers: PixelCenters = "half") -> np.ndarray:
    """Return the pinhole matrix [3, 3] with pixel centers at +0.5.

    >>> pinhole(585, 585, 320, 240, "integer")[0].tolist()
    [585.0, 0.0, 320.5]

    Args:
        fx: Focal length along x, pixels.
        fy: Focal length along y, pixels.
        cx: Principal point from the left, pixels.
        cy: Principal point from the top, pixels.
        pixel_centers: Convention of cx and cy: the center of the first pixel is at 0 ("integer") or at 0.5 ("half").
    """
    shift = {"integer": 0.5, "half": 0.0}[pixel_centers]
    return np.array([[fx, 0, cx + shift], [0, fy, cy + shift], [0, 0, 1.0]])


def scaled(intrinsics: np.ndarray, size: tuple[int, int], new_size: tuple[int, int]) -> np.ndarray:
    """Return intrinsics [3, 3] in pixels of the same field of view at another size (height, width)."""
    return np.diag([new_size[1] / size[1], new_size[0] / size[0], 1.0]) @ intrinsics


@dataclass(frozen=True)
class GivenIntrinsics:
    """The options `intrinsics` and `pixel_centers` of a reader.

    Attributes:
        intrinsics: fx, fy, cx, cy, or a file with these numbers or a matrix; for scenes without a file.
        pixel_centers: Convention of `intrinsics` and of the files: the center of the first pixel is at 0 ("integer") or
            at 0.5 ("half").
    """

    intrinsics: FocalAndCenter | Path | None
    pixel_centers: PixelCenters

    def read(self, path: Path) -> np.ndarray:
        """Return the pinhole matrix [3, 3] of a scene's file, see `read_pinhole`."""
        return read_pinhole(path, self.pixel_centers, "root")

    def declared(self) -> np.ndarray | None:
        """Return the pinhole matrix [3, 3] of the option `intrinsics`, None if it is not set.

        Raises:
            UserError: The file does not exist or has no intrinsics, or the numbers are no valid intrinsics.
        """
        if self.intrinsics is None:
            return None
        if isinstance(self.intrinsics, Path):
            path = self.intrinsics.expanduser()
            if not path.is_file():
                raise UserError(f"no file {path}", "intrinsics")
            return read_pinhole(path, self.pixel_centers, "intrinsics")
        if min(self.intrinsics[:2]) <= 0:
            raise UserError(f"expected positive focal lengths, got {list(self.intrinsics[:2])}", "intrinsics")
        return pinhole(*self.intrinsics, self.pixel_centers)

    def unused(self, own: bool) -> list[str]:
        """Return a note for the log if the option `intrinsics` is set for a scene that has its own file."""
        return ["intrinsics goes unused: it has a file of its own"] if own and self.intrinsics is not None else []


def read_pinhole(path: Path, pixel_centers: PixelCenters, key: str) -> np.ndarray:
    """Return the pinhole matrix [3, 3], pixel centers at +0.5, of a text file: a 3x3 or 4x4 matrix or `fx fy cx cy`.

    Args:
        path: Text file.
        pixel_centers: Convention of the file, see `pinhole`.
        key: Option that leads to this file, for errors.

    Raises:
        UserError: The file holds anything else.
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
    """Return all numbers of a text file, float64, or None if it is unreadable or holds anything else."""
    try:
        return np.array(path.read_text(encoding="utf-8").replace(",", " ").split(), dtype=np.float64)
    except (OSError, ValueError):
        return None


def read_pose(path: Path | None) -> tuple[np.ndarray | None, str | None]:
    """Return the pose [4, 4] of a text file, or None and the problem with it.

    Args:
        path: Pose file; None if a frame has none, which is normal after lost tracking.

    >>> read_pose(None)
    (None, 'no pose')
    """
    if path is None:
        return None, "no pose"
    numbers = read_numbers(path)
    problem = pose_problem(numbers)
    return (numbers.reshape(4, 4), None) if problem is None else (None, problem)


def pose_problem(numbers: np.ndarray | None) -> str | None:
    """Return the problem with the numbers of a pose, None if there is none.

    Args:
        numbers: 16 numbers of any shape, row by row; None for a file that holds anything else.
    """
    if numbers is None or numbers.size != 16:
        return "pose no 4x4 matrix"
    if not np.isfinite(numbers).all():
        return "pose not finite"
    return None if is_rigid(numbers.reshape(4, 4)) else "pose not rigid"


def is_rigid(pose: np.ndarray) -> bool:
    """Return whether a matrix [4, 4] is a rotation (no mirroring, no scale) and a translation, to `RIGID_TOLERANCE`."""
    rotation = pose[:3, :3]
    # There are thousands of frames, and np.allclose takes several times as long.
    turned = np.abs(rotation.T @ rotation - _IDENTITY[:3, :3]).max() <= RIGID_TOLERANCE
    affine = np.abs(pose[3] - _IDENTITY[3]).max() <= _LAST_ROW_TOLERANCE
    return bool(turned and affine and np.linalg.det(rotation) > 0)


def camera_problem(camera: Camera) -> str | None:
    """Return why views of a camera cannot be used, None if they can; `lens_problem` checks its lens.

    Args:
        camera: Camera as a reader describes it.
    """
    for what, matrix in (("", camera.intrinsics), ("depth ", camera.depth_intrinsics)):
        if matrix is not None and not (np.isfinite(matrix).all() and matrix[0, 0] > 0 and matrix[1, 1] > 0):
            return f"expected finite {what}intrinsics with positive focal lengths, got {matrix.tolist()}"
    is_registered = camera.depth_size is not None and camera.depth_intrinsics is None
    if is_registered and not same_field_of_view(camera.size, camera.depth_size):
        color, depth = (f"{width} x {height}" for height, width in (camera.size, camera.depth_size))
        return (
            f"color of {color} pixels and depth of {depth} cannot be one field of view: one of them was cropped or"
            " turned, or depth_to_color has to say which other camera took the color images"
        )
    for what, matrix, size in (
        ("", camera.intrinsics, camera.size),
        ("depth ", camera.depth_intrinsics, camera.depth_size),
    ):
        if matrix is not None and size is not None and not (0 < matrix[0, 2] < size[1] and 0 < matrix[1, 2] < size[0]):
            return (
                f"the principal point ({matrix[0, 2]:.0f}, {matrix[1, 2]:.0f}) lies outside of the {what}images of"
                f" {size[1]} x {size[0]} pixels: these intrinsics are of another resolution"
            )
    return None
