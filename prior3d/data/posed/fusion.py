"""Fusion of many frames into one cloud of colored points: thinned to voxels, without points that sensors invent."""

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from prior3d.contracts.reader import Cloud
from prior3d.data.posed.surface import SurfaceOptions
from prior3d.data.posed.voxels import VoxelSums

MAX_SLOPE_DEG = 80.0
"""Largest angle, in degrees, between surface normal and line of sight at which a step in depth is not an edge."""


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
    voxels, origin, count, adding = VoxelSums(options.voxel_size), None, 0, None
    with ThreadPoolExecutor(1) as pool:  # adds a frame while the next is read: decoders and NumPy release the GIL
        for frame in frames:
            origin = frame.world_from_camera[:3, 3].astype(np.float64) if origin is None else origin
            if adding is not None:
                adding.result()
            adding = pool.submit(_add, voxels, frame, origin, options.edge)
            count += 1
        if adding is not None:
            adding.result()
    if origin is None:
        return Cloud(np.zeros((0, 3)), np.zeros((0, 3), np.uint8))
    points, colors = voxels.means(min(options.min_frames, count))
    return Cloud(points + origin, colors)


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


def _add(voxels: VoxelSums, frame: PosedFrame, origin: np.ndarray, edge: float) -> None:
    voxels.add(*_unproject(frame, origin, edge))


def _unproject(frame: PosedFrame, origin: np.ndarray, edge: float) -> tuple[Sequence[np.ndarray], ...]:
    """Return what a frame shows away from edges: x, y, z [n] in world axes from `origin`, and red, green, blue [n]."""
    depth, intrinsics, world_from_camera, image = frame
    pixels = np.flatnonzero(away_from_edges(depth, abs(float(intrinsics[0, 0])), edge))
    z = depth.ravel().take(pixels).astype(np.float64)
    row, column = np.divmod(pixels.astype(np.int32), np.int32(depth.shape[1]))
    across, down = (column + 0.5) * z, (row + 0.5) * z
    rotation = world_from_camera[:3, :3] @ np.linalg.inv(intrinsics)
    # Sums of products, not a matrix product, which differs in its last bits from machine to machine.
    points = [
        a * across + b * down + c * z + shift
        for (a, b, c), shift in zip(rotation, world_from_camera[:3, 3] - origin, strict=True)
    ]
    if image.shape[:2] != depth.shape:
        # Take the nearest pixel, as everywhere that depth and image meet: nothing is mixed across edges.
        rows, columns = (_same_rays(cells, known) for cells, known in zip(image.shape[:2], depth.shape, strict=True))
        image = image[rows[:, None], columns]
    return points, [image[..., channel].ravel().take(pixels) for channel in range(3)]


def _same_rays(cells: int, count: int) -> np.ndarray:
    """Return, for each of `count` pixels along an axis, which of `cells` over the same field of view has its center."""
    return ((np.arange(count) + 0.5) * (cells / count)).astype(np.int64).clip(0, cells - 1)
