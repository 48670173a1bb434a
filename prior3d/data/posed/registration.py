"""Registration of depth maps from the depth camera to the color camera."""

from dataclasses import dataclass

import numpy as np

from prior3d.contracts.fields import UNKNOWN_DEPTH

_FOOTPRINT_MARGIN = 0.1
"""Pixels added to the footprint of a depth pixel on each side, to keep tilted surfaces closed."""

_SAME_PIXEL = 0.25
"""Cameras with one center whose pixels differ by less than this share of a pixel count as registered."""

_NEAREST_M = 1e-2


@dataclass(frozen=True)
class CameraPair:
    """The depth camera and the color camera of one scene, both at the resolution of the depth maps.

    Attributes:
        depth_intrinsics: Matrix [3, 3], pixels, centers at +0.5.
        color_intrinsics: Matrix [3, 3], the same for color, scaled so the depth maps' size covers the color image.
        color_from_depth: Pose [4, 4], meters.
    """

    depth_intrinsics: np.ndarray
    color_intrinsics: np.ndarray
    color_from_depth: np.ndarray

    def register(self, depth_m: np.ndarray) -> np.ndarray:
        """Return the depth that the color camera sees, [h, w] float32 meters along ITS axis, 0 = unknown.

        Args:
            depth_m: Depth [h, w] float32 along the depth camera's axis, meters, 0 = unknown.
        """
        if not np.array_equal(self.color_from_depth, np.eye(4)):
            return self._splat(depth_m)
        if self._registered(depth_m.shape):
            return depth_m
        return self._look_up(depth_m)

    def _registered(self, size: tuple[int, int]) -> bool:
        corners = np.array([[0, size[1], 0, size[1]], [0, 0, size[0], size[0]], [1, 1, 1, 1]])
        moved = self.color_intrinsics @ np.linalg.inv(self.depth_intrinsics) @ corners
        return bool(np.abs(moved - corners).max() < _SAME_PIXEL)

    def _look_up(self, depth_m: np.ndarray) -> np.ndarray:
        """Take each color pixel's depth from the depth pixel on the same ray: no surface hides another."""
        columns, known_columns = self._sources(depth_m.shape[1], axis=0)
        rows, known_rows = self._sources(depth_m.shape[0], axis=1)
        found = depth_m[rows[:, None], columns[None, :]]
        return np.where(known_rows[:, None] & known_columns[None, :], found, np.float32(UNKNOWN_DEPTH))

    def _sources(self, count: int, axis: int) -> tuple[np.ndarray, np.ndarray]:
        """Return, for each color column (axis 0) or row (1), that of the depth map, and whether there is one."""
        color, depth = self.color_intrinsics, self.depth_intrinsics
        slope = (np.arange(count) + 0.5 - color[axis, 2]) / color[axis, axis]
        source = np.floor(slope * depth[axis, axis] + depth[axis, 2]).astype(np.int64)
        return source.clip(0, count - 1), (source >= 0) & (source < count)

    def _splat(self, depth_m: np.ndarray) -> np.ndarray:
        """Project every depth pixel and keep the nearest at each color pixel.

        A depth pixel covers its whole footprint in the color image, not just the pixel of its center. So a surface in
        front stays closed, and nothing behind it shows through. Surfaces that only the color camera sees stay unknown.
        Pixels that the sensor did not measure are not filled.
        """
        height, width = depth_m.shape
        nearest = np.full(height * width, np.inf, dtype=np.float32)
        x, y, z = self._project(depth_m)
        half_x, half_y = self._half_footprint()
        first_column, first_row = np.ceil(x - (half_x + 0.5)), np.ceil(y - (half_y + 0.5))
        more_columns = np.floor(x + (half_x - 0.5)) - first_column
        more_rows = np.floor(y + (half_y - 0.5)) - first_row
        for right in range(int(2 * half_x) + 1):
            for down in range(int(2 * half_y) + 1):
                covered = np.flatnonzero((more_columns >= right) & (more_rows >= down))
                column, row = first_column[covered] + right, first_row[covered] + down
                inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
                pixels = row[inside].astype(np.int64) * width + column[inside].astype(np.int64)
                np.minimum.at(nearest, pixels, z[covered][inside])
        nearest[np.isinf(nearest)] = UNKNOWN_DEPTH
        return nearest.reshape(height, width)

    def _project(self, depth_m: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return x, y (pixels of the color camera) and depth (meters) of the known depth pixels, each [N] float32."""
        (height, width), color = depth_m.shape, self.color_intrinsics.astype(np.float32)
        inverse = np.linalg.inv(self.depth_intrinsics)
        ray_x = (inverse[0, 0] * (np.arange(width) + 0.5) + inverse[0, 2]).astype(np.float32)[None, :]
        ray_y = (inverse[1, 1] * (np.arange(height) + 0.5) + inverse[1, 2]).astype(np.float32)[:, None]
        rotation, shift = self.color_from_depth[:3, :3].astype(np.float32), self.color_from_depth[:3, 3]
        points = [
            (rotation[i, 0] * ray_x + rotation[i, 1] * ray_y + rotation[i, 2]) * depth_m + np.float32(shift[i])
            for i in range(3)
        ]
        known = (depth_m > UNKNOWN_DEPTH) & (points[2] > _NEAREST_M)
        point_x, point_y, z = (point[known] for point in points)
        return point_x / z * color[0, 0] + color[0, 2], point_y / z * color[1, 1] + color[1, 2], z

    def _half_footprint(self) -> tuple[float, float]:
        """Return half the size of a depth pixel in the color image, pixels along x and y."""
        depth, color = self.depth_intrinsics, self.color_intrinsics
        return tuple(float(color[axis, axis] / depth[axis, axis] / 2) + _FOOTPRINT_MARGIN for axis in (0, 1))
