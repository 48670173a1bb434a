"""Fusion of many frames into one cloud of colored points: thinned to voxels, without points that sensors invent."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from prior3d.contracts.reader import Cloud
from prior3d.data.posed.surface import SurfaceOptions

MAX_SLOPE_DEG = 80.0
"""Largest angle, in degrees, between surface normal and line of sight at which a step in depth is not an edge."""

_SUPPORT = 4
_BITS = 20
_MIN_PENDING = 1_000_000


class PosedFrame(NamedTuple):
    """A frame to fuse.

    Attributes:
        depth: Depth [H, W], meters, 0 = unknown.
        intrinsics: Matrix [3, 3], pixels of `depth`, centers at +0.5.
        world_from_camera: Pose [4, 4], meters.
        image: Image [h, w, 3] uint8 with the field of view of `depth`, at any resolution: depth is registered to it.
    """

    depth: np.ndarray
    intrinsics: np.ndarray
    world_from_camera: np.ndarray
    image: np.ndarray


def fuse(frames: Iterable[PosedFrame], options: SurfaceOptions) -> Cloud:
    """Fuse frames: the mean of the points, and of the colors of their pixels, in each voxel of `options.voxel_size`.

    Two kinds of points are dropped: pixels at an edge of depth (see `away_from_edges`), and voxels in whose
    surroundings, a cell of 4 x 4 x 4 voxels, fewer than `options.min_frames` frames (or all, if there are fewer) have a
    point. Flying pixels and speckle appear in only one frame.

    Args:
        frames: Frames in any order, read one at a time.
        options: Options, see `SurfaceOptions`.

    Returns:
        Points and colors; points over 2^19 voxels from the first camera are left out.
    """
    means, support, origin, count = _Bins(), _Bins(), None, 0
    for frame in frames:
        origin = frame.world_from_camera[:3, 3].astype(np.float64) if origin is None else origin
        points, colors = _unproject(frame, origin, options.edge)
        cells = np.floor(points / options.voxel_size).astype(np.int64)
        near = (np.abs(cells) < 2 ** (_BITS - 1)).all(1)
        points, colors, keys = points[near], colors[near], _pack(cells[near])
        means.add(keys, np.column_stack([points, np.ones(len(points)), colors]))
        seen = np.unique(_coarse(keys))
        support.add(seen, np.ones((len(seen), 1)))
        count += 1
    if origin is None:
        return Cloud(np.zeros((0, 3)), np.zeros((0, 3), np.uint8))
    keys, sums = means.collect()
    coarse, frames_seen = support.collect()
    enough = frames_seen[np.searchsorted(coarse, _coarse(keys)), 0] >= min(options.min_frames, count)
    sums, pixels = sums[enough], sums[enough, 3:4]
    return Cloud(sums[:, :3] / pixels + origin, np.rint(sums[:, 4:] / pixels).astype(np.uint8))


def away_from_edges(depth: np.ndarray, focal: float, edge: float) -> np.ndarray:
    """Return which pixels [H, W] are known and on one surface with all four neighbors.

    Neighbors belong to one surface if both are known and their depth differs by at most the share `edge` of it, or by
    the step that a plane at 80 degrees to the line of sight makes in one pixel.

    Args:
        depth: Depth [H, W], meters, 0 = unknown.
        focal: Focal length, pixels.
        edge: Share of depth.
    """
    limit = max(edge, math.tan(math.radians(MAX_SLOPE_DEG)) / focal)
    depth = np.where(np.isfinite(depth) & (depth > 0), depth, 0)
    good = depth > 0
    for axis in (0, 1):
        here, there = (slice(None),) * axis + (slice(1, None),), (slice(None),) * axis + (slice(None, -1),)
        step = np.abs(depth[here] - depth[there]) <= limit * np.minimum(depth[here], depth[there])
        step &= (depth[here] > 0) & (depth[there] > 0)
        good[here] &= step
        good[there] &= step
    return good


def _unproject(frame: PosedFrame, origin: np.ndarray, edge: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the points [n, 3] of a depth map away from edges, in world axes relative to `origin`, and their colors."""
    depth, intrinsics, world_from_camera, image = frame
    # Not `prior3d.geometry`: it computes in another order, so the last bits of points, and a few voxels, would differ.
    row, column = np.nonzero(away_from_edges(depth, abs(float(intrinsics[0, 0])), edge))
    z = depth[row, column].astype(np.float64)
    rays = np.stack([column + 0.5, row + 0.5, np.ones(len(z))]) * z
    rotation = world_from_camera[:3, :3] @ np.linalg.inv(intrinsics)
    points = (rotation @ rays).T + (world_from_camera[:3, 3] - origin)
    # Take the nearest pixel, as everywhere that depth and image meet: nothing is mixed across edges.
    rows, columns = (_same_rays(cells, known) for cells, known in zip(image.shape[:2], depth.shape, strict=True))
    return points, image[rows[row], columns[column]]


def _same_rays(cells: int, count: int) -> np.ndarray:
    """Return, for each of `count` pixels along an axis, which of `cells` over the same field of view has its center."""
    return ((np.arange(count) + 0.5) * (cells / count)).astype(np.int64).clip(0, cells - 1)


def _pack(cells: np.ndarray) -> np.ndarray:
    x, y, z = (cells + 2 ** (_BITS - 1)).T
    return (x << 2 * _BITS) | (y << _BITS) | z


def _coarse(keys: np.ndarray) -> np.ndarray:
    """Return the keys of the cells of `_SUPPORT` voxels that contain packed voxels."""
    low_bits = (_SUPPORT - 1) * (1 | 1 << _BITS | 1 << 2 * _BITS)
    return keys & ~np.int64(low_bits)


@dataclass
class _Bins:
    """Sums by key, merged whenever the new entries outnumber the sums: memory stays near that of the result."""

    keys: list[np.ndarray] = field(default_factory=list)
    values: list[np.ndarray] = field(default_factory=list)
    pending: int = 0

    def add(self, keys: np.ndarray, values: np.ndarray) -> None:
        """Add rows of values [n, k] to the bins of their keys [n]."""
        keys, values = _sum_by_key(keys, values)
        self.keys.append(keys)
        self.values.append(values)
        self.pending += len(keys)
        if self.pending > max(_MIN_PENDING, 2 * len(self.keys[0])):
            self.collect()

    def collect(self) -> tuple[np.ndarray, np.ndarray]:
        """Return all keys, ascending, and their sums [n, k]."""
        keys, values = _sum_by_key(np.concatenate(self.keys), np.concatenate(self.values))
        self.keys, self.values, self.pending = [keys], [values], len(keys)
        return keys, values


def _sum_by_key(keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if not len(keys):
        return keys, values
    order = np.argsort(keys, kind="stable")  # stable, so sums do not depend on the machine
    keys = keys[order]
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return keys[first], np.add.reduceat(values[order], first)
