"""Distances along rays as depth along the camera's axis."""

from functools import lru_cache

import numpy as np

from prior3d.contracts.reader import Camera
from prior3d.data.posed.cameras import scaled
from prior3d.data.posed.lenses import Lens

_KEPT = 8
_ITERATIONS, _CONVERGED = 20, 1e-6
_STEEPEST = 1.5  # radians off the axis at which the search starts at most: tan grows without limit


def along_axis(distance_m: np.ndarray, camera: Camera) -> np.ndarray:
    """Return depth [h, w] along the axis of the depth camera, float32 meters, from distances along the rays.

    Args:
        distance_m: Distance [h, w] of each pixel's surface from the camera's center, meters, 0 = unknown.
        camera: Camera of the frame: its depth camera, or the camera itself, with its lens, if depth is registered.
    """
    own = camera.depth_intrinsics is not None
    size = tuple(camera.depth_size or camera.size)
    matrix = camera.depth_intrinsics if own else scaled(camera.intrinsics, camera.size, size)
    numbers = tuple(np.asarray(matrix, np.float64).ravel().tolist())
    return distance_m * _cosines(numbers, size, None if own else Lens.of(camera))


@lru_cache(maxsize=_KEPT)
def _cosines(matrix: tuple[float, ...], size: tuple[int, int], lens: Lens | None) -> np.ndarray:
    """Return the cosine [h, w] float32 of the angle between each pixel's ray and the axis; 0 for pixels without ray."""
    column, row = np.meshgrid(np.arange(size[1]) + 0.5, np.arange(size[0]) + 0.5)
    pixels = np.stack([column, row, np.ones(size)]).reshape(3, -1)
    x, y, _ = np.linalg.inv(np.array(matrix).reshape(3, 3)) @ pixels
    known = np.ones(x.shape, bool)
    if lens is not None:
        x, y, known = _through(lens, x, y)
    return np.where(known, 1 / np.sqrt(1 + x * x + y * y), 0).astype(np.float32).reshape(size)


def _through(lens: Lens, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rays x / z, y / z [N] that a lens shows at points [N], and whether each was found: Newton's method."""
    seen, step = (x, y), 1e-6
    if lens.model == "fisheye":
        angle = np.hypot(x, y).clip(1e-9)
        start = np.tan(angle.clip(max=_STEEPEST)) / angle
        x, y = x * start, y * start
    with np.errstate(all="ignore"):
        for _ in range(_ITERATIONS):
            (u, v), right, down = lens.distorted(x, y), lens.distorted(x + step, y), lens.distorted(x, y + step)
            a, b, c, d = ((one - other) / step for one, other in zip((*right, *down), (u, v, u, v), strict=True))
            off_x, off_y, turns = seen[0] - u, seen[1] - v, a * d - b * c
            x, y = x + (d * off_x - c * off_y) / turns, y + (a * off_y - b * off_x) / turns
        error = np.abs(np.subtract(lens.distorted(x, y), seen)).max(0)
    return x, y, error < _CONVERGED
