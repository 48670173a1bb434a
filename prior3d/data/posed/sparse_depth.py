"""Sparse depth: points of a scene as one camera sees them."""

import numpy as np

from prior3d.contracts.fields import UNKNOWN_DEPTH
from prior3d.contracts.reader import Camera


def project_through_lens(points: np.ndarray, camera: Camera) -> np.ndarray:
    """Return where points appear in the images of a camera, with the distortion of its lens.

    Args:
        points: [N, 3], axes of the camera, in front of it.
        camera: Camera of any lens model.

    Returns:
        [N, 2] float64, x and y in pixels, pixel centers at +0.5.

    Reference:
        The models of OpenCV's `calib3d` and `fisheye`, up to 8 coefficients.
    """
    x, y = points[:, 0] / points[:, 2], points[:, 1] / points[:, 2]
    squared = x * x + y * y
    if camera.model == "fisheye":
        radius = np.sqrt(squared)
        angle = np.arctan(radius)
        k1, k2, k3, k4 = (*camera.distortion, *(0.0,) * (4 - len(camera.distortion)))
        t = angle * angle
        distorted = angle * (1 + t * (k1 + t * (k2 + t * (k3 + t * k4))))
        scale = np.divide(distorted, radius, out=np.ones_like(radius), where=radius > 0)
        x, y = x * scale, y * scale
    elif camera.distortion:
        k1, k2, p1, p2, k3, k4, k5, k6 = (*camera.distortion, *(0.0,) * (8 - len(camera.distortion)))
        radial = 1 + squared * (k1 + squared * (k2 + squared * k3))
        radial = radial / (1 + squared * (k4 + squared * (k5 + squared * k6)))
        x, y = (
            x * radial + 2 * p1 * x * y + p2 * (squared + 2 * x * x),
            y * radial + p1 * (squared + 2 * y * y) + 2 * p2 * x * y,
        )
    return np.stack([x, y, np.ones_like(x)], 1) @ camera.intrinsics[:2].T


def sparse_depth(points: np.ndarray, world_from_camera: np.ndarray, camera: Camera) -> np.ndarray:
    """Return the depth map [h, w] float32 of points that a view sees; pixels without a point are unknown.

    Of several points in one pixel, the nearest counts. Whether a point is hidden is not tested.

    Args:
        points: [N, 3], meters, world axes.
        world_from_camera: Pose [4, 4], meters.
        camera: Camera; the map has its `size`.
    """
    height, width = camera.size
    depth_m = np.full(height * width, np.inf)
    in_camera = (points - world_from_camera[:3, 3]) @ world_from_camera[:3, :3]
    in_camera = in_camera[in_camera[:, 2] > 0]
    columns, rows = np.floor(project_through_lens(in_camera, camera)).T
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    pixels = rows[inside].astype(np.int64) * width + columns[inside].astype(np.int64)
    np.minimum.at(depth_m, pixels, in_camera[inside, 2])
    depth_m[np.isinf(depth_m)] = UNKNOWN_DEPTH
    return depth_m.reshape(height, width).astype(np.float32)
