"""Sparse depth: points of a scene as one camera sees them."""

import numpy as np

from prior3d.contracts.fields import UNKNOWN_DEPTH
from prior3d.contracts.reader import Camera
from prior3d.data.posed.lenses import Lens


def _pixels(points: np.ndarray, camera: Camera) -> np.ndarray:
    """Return where points [N, 3] in camera axes appear in the images: x and y [N, 2] in pixels, centers at +0.5."""
    x, y = points[:, 0] / points[:, 2], points[:, 1] / points[:, 2]
    lens = Lens.of(camera)
    if lens is not None:
        x, y = lens.distorted(x, y)
    return np.stack([x, y, np.ones_like(x)], 1) @ camera.intrinsics[:2].T


def sparse_depth(points: np.ndarray, world_from_camera: np.ndarray, camera: Camera) -> np.ndarray:
    """Return the depth map [h, w] float32 of points that a view sees; pixels without a point are unknown.

    Of several points in one pixel, the nearest counts. Whether a point is hidden is not tested.

    Args:
        points: [N, 3], meters, world axes.
        world_from_camera: Pose [4, 4], meters.
        camera: Camera; the map has its `depth_size`.
    """
    height, width = camera.depth_size
    depth_m = np.full(height * width, np.inf)
    in_camera = (points - world_from_camera[:3, 3]) @ world_from_camera[:3, :3]
    in_camera = in_camera[in_camera[:, 2] > 0]
    share = np.array([width / camera.size[1], height / camera.size[0]])
    columns, rows = np.floor(_pixels(in_camera, camera) * share).T
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    pixels = rows[inside].astype(np.int64) * width + columns[inside].astype(np.int64)
    np.minimum.at(depth_m, pixels, in_camera[inside, 2])
    depth_m[np.isinf(depth_m)] = UNKNOWN_DEPTH
    return depth_m.reshape(height, width).astype(np.float32)
