"""Lens distortion: the pinhole camera that shows what a lens saw, and images and maps moved to it.

The pinhole camera has the lens's position, axes and focal lengths. Its image is the largest rectangle in which every
pixel was seen by the lens. OpenCV's optimal matrix with alpha 0 is not used: it stretches width and height apart, and
finds the rectangle from few points. Both focal lengths are reduced by one factor where the rectangle would otherwise
have more pixels than the lens's image, as for fisheyes.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from types import ModuleType
from typing import Literal, NamedTuple

import numpy as np

from prior3d.contracts.fields import Field
from prior3d.contracts.reader import Camera
from prior3d.data.libraries import library
from prior3d.data.posed.cameras import scaled
from prior3d.errors import UserError

LENS_VERSION = 1
"""Version of undistortion. Raise it when the images change; what was computed from them is then computed again."""

_COEFFICIENTS = {"opencv": (4, 5, 8), "fisheye": (4,)}
_WIDEST = math.tan(math.radians(70))  # a pinhole image is stretched more than eightfold beyond 70 degrees off its axis
_STEPS, _CELLS, _EDGE_POINTS, _HALVINGS = 256, 32, 33, 12
_SNAPPED = 0.02  # pixels; the sides are found less precisely than numbers are
_LEAST_SHARE = 0.25  # of the width or height; coefficients that leave less are nonsense
_CAMERAS_KEPT, _MAPS_KEPT = 4096, 8


@dataclass(frozen=True)
class Lens:
    """A lens as numbers that can be compared: cameras with the same numbers share their maps.

    Attributes:
        model: OpenCV's name of the model.
        distortion: Coefficients in OpenCV's order: k1 k2 p1 p2 [k3 [k4 k5 k6]], or k1 k2 k3 k4 of a fisheye.
        focal: fx and fy, pixels.
        center: cx and cy, pixels, the first pixel's center at 0.5.
        size: Height and width of the images, pixels.
    """

    model: Literal["opencv", "fisheye"]
    distortion: tuple[float, ...]
    focal: tuple[float, float]
    center: tuple[float, float]
    size: tuple[int, int]

    @classmethod
    def of(cls, camera: Camera) -> "Lens | None":
        """Return the lens of a camera; None for a pinhole, which `opencv` with coefficients of 0 is as well."""
        if camera.model == "pinhole" or (camera.model == "opencv" and not any(camera.distortion)):
            return None
        matrix = camera.intrinsics
        focal, center = (float(matrix[0, 0]), float(matrix[1, 1])), (float(matrix[0, 2]), float(matrix[1, 2]))
        return cls(camera.model, tuple(map(float, camera.distortion)), focal, center, tuple(camera.size))

    @property
    def matrix(self) -> np.ndarray:
        """Intrinsics [3, 3], pixel centers at +0.5."""
        return np.array([[self.focal[0], 0, self.center[0]], [0, self.focal[1], self.center[1]], [0, 0, 1.0]])

    def distorted(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return where the lens shows points, as x / z and y / z of the pinhole that would show them there.

        Args:
            x: x / z of the points in camera axes.
            y: y / z, of the same shape.
        """
        square = x * x + y * y
        if self.model == "fisheye":
            radius = np.sqrt(square)
            angle = np.arctan(radius)
            k1, k2, k3, k4 = self.distortion
            a = angle * angle
            bent = angle * (1 + a * (k1 + a * (k2 + a * (k3 + a * k4))))
            scale = np.where(radius > 0, bent / np.where(radius > 0, radius, 1), 1.0)
            return x * scale, y * scale
        k1, k2, p1, p2, k3, k4, k5, k6 = (*self.distortion, *[0.0] * (8 - len(self.distortion)))
        below = 1 + square * (k4 + square * (k5 + square * k6))
        scale = (1 + square * (k1 + square * (k2 + square * k3))) / np.where(below == 0, np.nan, below)
        return (
            x * scale + 2 * p1 * x * y + p2 * (square + 2 * x * x),
            y * scale + p1 * (square + 2 * y * y) + 2 * p2 * x * y,
        )

    def sees(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return whether points (x / z, y / z) lie in the lens's image, and whether the lens does not fold there.

        A lens folds where its polynomial turns back: two rays then share a pixel, which no lens does.
        """
        step = 1e-5
        with np.errstate(all="ignore"):  # numbers of senseless coefficients overflow, and are then not inside
            (u, v), right, down = self.distorted(x, y), self.distorted(x + step, y), self.distorted(x, y + step)
            turns = (right[0] - u) * (down[1] - v) - (right[1] - v) * (down[0] - u)
            column, row = u * self.focal[0] + self.center[0], v * self.focal[1] + self.center[1]
            height, width = self.size
            return (column >= 0) & (column <= width) & (row >= 0) & (row <= height), turns > 0


class Pinhole(NamedTuple):
    """Intrinsics [3, 3] float64, pixel centers at +0.5, and height and width of a pinhole camera."""

    intrinsics: np.ndarray
    size: tuple[int, int]


def lens_problem(camera: Camera) -> str | None:
    """Return why images of a camera cannot be undistorted, None if they can or need not be.

    Args:
        camera: Camera with valid intrinsics.

    Raises:
        UserError: OpenCV is needed and not installed.
    """
    if camera.model == "pinhole":
        if any(camera.distortion):
            return f"a pinhole has no distortion, got {list(camera.distortion)}: name the lens model"
        return None
    if camera.model not in _COEFFICIENTS:
        return f"no lens model {camera.model}, only pinhole, {', '.join(_COEFFICIENTS)}"
    lens, lengths = Lens.of(camera), _COEFFICIENTS[camera.model]
    if lens is None:
        return None
    if len(camera.distortion) not in lengths or not np.isfinite(camera.distortion).all():
        expected = " or ".join(map(str, lengths))
        return f"expected {expected} finite coefficients of the lens {camera.model}, got {list(camera.distortion)}"
    if abs(camera.intrinsics[0, 1]) > 1e-6 * lens.focal[0]:
        return f"expected no skew next to lens coefficients, got {camera.intrinsics[0, 1]:g}"
    _opencv()
    reach = _reach(lens)
    words = f"the coefficients {list(lens.distortion)} of its lens ({lens.model})"
    advice = "check their order, the model, and the resolution of the intrinsics"
    if reach is None:
        return f"{words} fold the image onto itself before its edges: {advice}"
    shares = (np.array([reach[0] + reach[1], reach[2] + reach[3]]) * lens.focal / lens.size[::-1]).round(2).tolist()
    if min(shares) < _LEAST_SHARE:
        return f"{words} leave {shares[0]:.0%} of the width and {shares[1]:.0%} of the height: {advice}"
    return None


def undistorted_camera(camera: Camera) -> Camera:
    """Return the pinhole camera that a camera's undistorted views have; the camera itself if it is one.

    Registered depth goes through the same lens, so its size changes with the image's. A depth camera of its own is a
    pinhole and stays as it is.

    Args:
        camera: Camera without a `lens_problem`.
    """
    lens = Lens.of(camera)
    if lens is None:
        return camera
    pinhole, depth_size = pinhole_of(lens), camera.depth_size
    if depth_size is not None and camera.depth_intrinsics is None:
        depth_size = _size_at(lens, depth_size)
    return replace(
        camera,
        model="pinhole",
        distortion=(),
        intrinsics=pinhole.intrinsics.copy(),
        size=pinhole.size,
        depth_size=depth_size,
    )


def undistorted(values: np.ndarray, field: Field, camera: Camera) -> np.ndarray:
    """Return a field of a view as `undistorted_camera(camera)` shows it; unchanged if the camera is a pinhole.

    Images are interpolated. Depth, class ids and normals take the nearest pixel: values are kept exactly, and never
    mixed across edges.

    Args:
        values: Field of a view, see `View`; maps have any resolution over the image's field of view.
        field: Entry in the table of fields.
        camera: Camera without a `lens_problem`.

    Raises:
        UserError: The field holds boxes, which a lens bends.
    """
    lens = Lens.of(camera)
    if lens is None or field.moves in ("none", "intrinsics"):
        return values
    if field.moves == "boxes":
        raise UserError(f"{field.name} of images with a distorted lens ({lens.model}) cannot be used", "root")
    size = values.shape[:2]
    if field.moves == "resample":
        cv2 = _opencv()
        values = values if values.dtype == np.uint8 else values.astype(np.float32)
        return cv2.remap(values, *_smooth_maps(lens, size), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    nearest = _nearest_pixels(lens, size)
    return np.ascontiguousarray(values).reshape(-1, *values.shape[2:]).take(nearest, axis=0)


@lru_cache(maxsize=_CAMERAS_KEPT)
def pinhole_of(lens: Lens) -> Pinhole:
    """Return the pinhole camera that shows the largest rectangle of pixels that a lens saw.

    Args:
        lens: Lens that does not fold before the edges of its image.
    """
    left, right, top, bottom = _rectangle(lens)
    (height, width), (fx, fy) = lens.size, lens.focal
    pixels = (left + right) * fx * (top + bottom) * fy
    scale = min(1.0, math.sqrt(width * height / pixels))
    intrinsics = np.diag([scale, scale, 1.0]) @ lens.matrix
    size = []
    for axis, low, high in ((0, left, right), (1, top, bottom)):
        # Whole pixels are cut off, so that at the old focal length a pixel stays where it was.
        focal, center = intrinsics[axis, axis], intrinsics[axis, 2]
        first, last = math.ceil(center - focal * low - _SNAPPED), math.floor(center + focal * high + _SNAPPED)
        intrinsics[axis, 2] -= first
        size.append(max(1, last - first))
    return Pinhole(intrinsics, (size[1], size[0]))


def _reach(lens: Lens) -> tuple[float, float, float, float] | None:
    """Return how far the lens sees to the left, right, top and bottom of its axis; None if it folds before that.

    Distances are |x / z| or |y / z|, at most `_WIDEST`, to the precision of the steps.
    """
    distances = _WIDEST * np.linspace(0, 1, _STEPS) ** 2
    signs = np.array([-1, 1, 0, 0]), np.array([0, 0, -1, 1])
    inside, plain = lens.sees(*(sign[:, None] * distances for sign in signs))
    found = []
    for within, unfolded in zip(inside, plain, strict=True):
        outside, folds = (int(np.argmin(kept)) if not kept.all() else _STEPS for kept in (within, unfolded))
        if folds < outside:
            return None
        found.append(float(distances[min(outside, _STEPS) - 1]) if outside else 0.0)
    return tuple(found)


def _rectangle(lens: Lens) -> tuple[float, float, float, float]:
    """Return the largest rectangle around the axis that the lens sees: its left, right, top and bottom distance.

    A grid finds it; then each side moves out as far as it can.
    """
    reach = _reach(lens)
    if reach is None:
        raise ValueError(f"expected a lens that does not fold, got {lens}")
    left, right, up, down = (np.linspace(0, far, _CELLS) for far in reach)

    def seen_in_rows(columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return the number of columns that are seen in ALL rows up to each one."""
        seen = np.logical_and(*lens.sees(columns[None, :], rows[:, None]))
        return np.minimum.accumulate(np.logical_and.accumulate(seen, axis=1).sum(1))

    widths = []
    for columns, sign in ((left, -1), (right, 1)):
        above, below = (seen_in_rows(sign * columns, rows) for rows in (-up, down))
        number = np.minimum(above[:, None], below[None, :])
        widths.append(np.where(number > 0, columns[number - 1], -np.inf))
    area = (widths[0] + widths[1]) * (up[:, None] + down[None, :])
    row, other = np.unravel_index(int(np.argmax(area)), area.shape)
    sides = [float(widths[0][row, other]), float(widths[1][row, other]), float(up[row]), float(down[other])]
    for side in range(4):
        step = 2 * max(reach) / _CELLS
        for _ in range(_HALVINGS):
            step /= 2
            wider = [min(_WIDEST, far + step) if number == side else far for number, far in enumerate(sides)]
            if _sees_side(lens, wider, side):
                sides = wider
    return tuple(sides)


def _sees_side(lens: Lens, sides: list[float], side: int) -> bool:
    """Return whether the lens sees one side of a rectangle; the others are not looked at again."""
    left, right, top, bottom = sides
    along = np.linspace(-top, bottom, _EDGE_POINTS) if side < 2 else np.linspace(-left, right, _EDGE_POINTS)
    there = np.full(_EDGE_POINTS, sides[side] * (-1, 1, -1, 1)[side])
    return bool(np.logical_and(*lens.sees(*((there, along) if side < 2 else (along, there)))).all())


def _size_at(lens: Lens, size: tuple[int, int]) -> tuple[int, int]:
    """Return height and width of an undistorted map that had `size` over the field of view of the lens's image."""
    new = pinhole_of(lens).size
    return tuple(max(1, round(new[axis] * size[axis] / lens.size[axis])) for axis in (0, 1))


def _source_maps(lens: Lens, size: tuple[int, int], kind: int) -> tuple[np.ndarray, np.ndarray]:
    """Return OpenCV's maps: for each pixel of the undistorted map, where it lies in the map that the lens made."""
    cv2, pinhole, new_size = _opencv(), pinhole_of(lens), _size_at(lens, size)
    old, new = scaled(lens.matrix, lens.size, size), scaled(pinhole.intrinsics, pinhole.size, new_size)
    for matrix in (old, new):
        matrix[:2, 2] -= 0.5  # OpenCV counts the center of the first pixel as 0
    module = cv2.fisheye if lens.model == "fisheye" else cv2
    return module.initUndistortRectifyMap(old, np.array(lens.distortion), np.eye(3), new, new_size[::-1], kind)


@lru_cache(maxsize=_MAPS_KEPT)
def _smooth_maps(lens: Lens, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    return _source_maps(lens, size, _opencv().CV_16SC2)  # to 1/32 of a pixel, as precise as its interpolation


@lru_cache(maxsize=_MAPS_KEPT)
def _nearest_pixels(lens: Lens, size: tuple[int, int]) -> np.ndarray:
    """Return the flat index [h, w] int32 of the pixel that each pixel of the undistorted map takes."""
    columns, rows = (np.rint(one).astype(np.int32) for one in _source_maps(lens, size, _opencv().CV_32FC1))
    return rows.clip(0, size[0] - 1) * np.int32(size[1]) + columns.clip(0, size[1] - 1)


def _opencv() -> ModuleType:
    cv2 = library("cv2", "undistorting images (the package opencv-python-headless)")
    cv2.setNumThreads(1)  # its threads do not survive the fork of a loader's workers, which share the cores anyway
    return cv2
