"""Whether points lie on the surface that a depth map measured: the inner loop of overlap, for CPUs and for GPUs."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from prior3d.geometry.cameras import MIN_DEPTH, known_depth
from prior3d.geometry.overlap_samples import CameraNumbers

WINDOW_STEPS = 7
"""A sample is compared with 7 x 7 depth pixels, spread over the disc in which a point within the limit can lie, so the
result depends little on resolution or focal length. On real office and kitchen frames at 640x480, with limits of 2 cm
and of 2 cm or 1 %, it is 0.00 to 0.03 below a k-d tree over all pixels, whose values range from 0.07 to 0.97."""

_FRACTIONS = torch.linspace(-1, 1, WINDOW_STEPS + 2)[1:-1].numpy()
_MIDDLE = WINDOW_STEPS // 2


class DepthMapSurface:
    """One depth map on a CPU: points that are settled, or not seen, are left out at every step.

    In NumPy, whose comparisons and selections take a tenth of torch's time on a CPU; both round alike.

    Args:
        depth: depth map [H, W], meters.
    """

    def __init__(self, depth: Tensor) -> None:
        depth = depth.numpy()
        self.height, self.width = depth.shape
        # Unknown depth becomes nan or infinite, as is the border: nothing is near that.
        padded = np.full((self.height + 2, self.width + 2), np.nan, depth.dtype)
        with np.errstate(all="ignore"):
            np.divide(depth, depth > 0, out=padded[1:-1, 1:-1])
        self._depth = padded.reshape(-1)

    def count_met(self, points: Sequence[np.ndarray], limit: np.ndarray, camera: CameraNumbers) -> np.ndarray:
        """Return how many of the S points of each of P frames are near the surface, [P].

        Args:
            points: x, y and z, each [P, S]: meters, world axes; nan for no point.
            limit: [P, S] distance limits, meters.
            camera: camera of the depth map.
        """
        with np.errstate(all="ignore"):
            x, y, depth = camera.transform(points)
            x, y = camera.pixels(x, y, np.maximum(depth, depth.dtype.type(MIN_DEPTH)))
            seen = depth > 0
            for pixel, size in ((x, self.width), (y, self.height)):
                seen &= pixel >= 0
                seen &= pixel < size
            index = np.flatnonzero(seen)
            met = self._met(*(values.reshape(-1).take(index) for values in (x, y, depth, limit)), camera)
            seen.reshape(-1)[index] = met
        return np.count_nonzero(seen, axis=1)

    def _met(
        self, x: np.ndarray, y: np.ndarray, depth: np.ndarray, limit: np.ndarray, camera: CameraNumbers
    ) -> np.ndarray:
        """Return which [N] points, at pixels x, y in the image, are near the surface."""
        rays = camera.rays(x, y)
        point = rays[0] * depth, rays[1] * depth
        square = np.square(limit)
        column, row = np.floor(x), np.floor(y)
        met = _near(point, depth, square, column, row, self._at(self._row_start(row) + _column(column)), camera)
        left = np.flatnonzero(~met)
        x, y, depth, limit, square = (values.take(left) for values in (x, y, depth, limit, square))
        point = [values.take(left) for values in point]
        shifts = np.rint(camera.focal * limit / depth * _FRACTIONS.astype(x.dtype)[:, None])  # [7, N]
        columns, rows = np.floor(x + shifts), np.floor(y + shifts)
        unmet = np.arange(len(left))
        for across, down in _rings():
            if not len(unmet):
                break
            near = self._first_near(point, depth, square, columns[across], rows[down], camera)
            met[left[unmet[near]]] = True
            others = np.ones(len(unmet), bool)
            others[near] = False
            k = np.flatnonzero(others)
            unmet, depth, square = unmet.take(k), depth.take(k), square.take(k)
            point = [values.take(k) for values in point]
            columns, rows = columns.take(k, axis=1), rows.take(k, axis=1)
        return met

    def _first_near(
        self,
        point: Sequence[np.ndarray],
        depth: np.ndarray,
        square: np.ndarray,
        columns: np.ndarray,
        rows: np.ndarray,
        camera: CameraNumbers,
    ) -> np.ndarray:
        """Return the indices, repeated, of those of N points that are near pixels of columns [C, N] x rows [R, N]."""
        across = _column(np.fmin(np.fmax(columns, -1), self.width))
        down = self._row_start(np.fmin(np.fmax(rows, -1), self.height))
        surface = self._at((down[:, None] + across).reshape(-1, len(depth)))  # [R * C, N]
        # The distance along the axis alone is within the limit wherever the distance is, also after rounding.
        offset = surface - depth
        offset *= offset
        number = np.flatnonzero(offset <= square)
        pixel, k = np.divmod(number, len(depth))
        row, column = np.divmod(pixel, len(columns))
        surface = surface.reshape(-1).take(number)
        near_points = [values.take(k) for values in point], depth.take(k), square.take(k)
        return k[_near(*near_points, columns[column, k], rows[row, k], surface, camera)]

    def _at(self, index: np.ndarray) -> np.ndarray:
        return self._depth.take(index, mode="clip")  # faster than with a check

    def _row_start(self, row: np.ndarray) -> np.ndarray:
        start = row.astype(np.int32)
        start += 1
        start *= self.width + 2
        return start


def _column(column: np.ndarray) -> np.ndarray:
    return column.astype(np.int32) + np.int32(1)


def _rings() -> Iterator[tuple[slice | list[int], slice | list[int]]]:
    """Yield columns and rows of `_FRACTIONS` whose products are all pixels of the window, the nearest first."""
    for ring in range(1, _MIDDLE + 1):
        inner, outer = slice(_MIDDLE - ring, _MIDDLE + ring + 1), [_MIDDLE - ring, _MIDDLE + ring]
        yield inner, outer
        yield outer, slice(_MIDDLE - ring + 1, _MIDDLE + ring)


class DenseSurface:
    """Several depth maps on a GPU: every point is compared with every pixel of its window, and nothing is waited for.

    Args:
        maps: T depth maps [H, W] of one device, meters.
    """

    def __init__(self, maps: Sequence[Tensor]) -> None:
        self.height, self.width = maps[0].shape
        depth = torch.stack(list(maps))
        self._depth = pad(torch.where(known_depth(depth), depth, math.nan), (1, 1, 1, 1), value=math.nan).flatten()

    def count_met(self, points: Sequence[Tensor], limit: Tensor, camera: CameraNumbers, number: Tensor) -> Tensor:
        """Return how many of the S points of each of P pairs are near the surface of the pair's map, [P].

        Args:
            points: x, y and z, each [P, S]: meters, world axes; nan for no point.
            limit: [P, S] distance limits, meters.
            camera: cameras of the maps, numbers of shape [P, 1].
            number: [P, 1] number of each pair's map.
        """
        x, y, depth = camera.transform(points)
        x, y = camera.pixels(x, y, depth.clamp(min=MIN_DEPTH))
        seen = (depth > 0) & (x >= 0) & (x < self.width) & (y >= 0) & (y < self.height)
        rays = camera.rays(x, y)
        point = rays[0] * depth, rays[1] * depth
        reach, square = camera.focal * limit / depth, limit.square()
        first = number * ((self.height + 2) * (self.width + 2))
        met = torch.zeros_like(seen)
        for down in _FRACTIONS.tolist():
            row = (y + (reach * down).round()).floor().nan_to_num(nan=-1).clamp(-1, self.height)
            start = first + (row.long() + 1) * (self.width + 2)
            for right in _FRACTIONS.tolist():
                column = (x + (reach * right).round()).floor().nan_to_num(nan=-1).clamp(-1, self.width)
                met |= _near(point, depth, square, column, row, self._depth[start + column.long() + 1], camera)
        return (met & seen).sum(-1)


def _near(
    point: Sequence[np.ndarray | Tensor],
    depth: np.ndarray | Tensor,
    square: np.ndarray | Tensor,
    column: np.ndarray | Tensor,
    row: np.ndarray | Tensor,
    surface: np.ndarray | Tensor,
    camera: CameraNumbers,
) -> np.ndarray | Tensor:
    """Return whether points (x, y) `point`, `depth` are within the limit, squared, of what pixels measured."""
    x, y = camera.rays(column + 0.5, row + 0.5)
    x *= surface
    x -= point[0]
    x *= x
    y *= surface
    y -= point[1]
    y *= y
    x += y
    z = surface - depth
    z *= z
    x += z
    return x <= square
