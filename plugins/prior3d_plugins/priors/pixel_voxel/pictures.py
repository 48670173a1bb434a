"""Figures of pixel-voxel matches: one color for a pixel and its voxel."""

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor

from prior3d.figures import panels, to_picture
from prior3d.geometry import project

_SHOWN_VOXELS = 8000


def plot_matches(
    image: Tensor,  # [3, H, W] 0..1
    pixels: Tensor,  # [K, 2] x, y; centers at +0.5
    matched: Tensor,  # [K] int64, rows of `centers`
    centers: Tensor,  # [M, 3] meters, world axes
    intrinsics: Tensor,  # [3, 3]
    world_from_camera: Tensor,  # [4, 4]
    axes: tuple[int, int, int],  # world axes: two horizontal ones, then the vertical one
) -> Figure:
    """Plot matched pixels, the chunk's voxels projected into the image, and the chunk from above.

    A voxel's color is its height, and a matched pixel has the color of its voxel: in the first two panels, the same
    place has the same color. From above, voxels without a match are gray.
    """
    figure, ((left, middle, right),) = panels(1, 3)
    centers_m = centers.float().cpu().numpy()
    height = centers_m[:, axes[2]]
    colors = colormaps["turbo"]((height - height.min()) / max(float(np.ptp(height)), 1e-6))
    rows = matched.cpu().numpy()
    dots = pixels.float().cpu().numpy() - 0.5  # imshow puts the center of the first pixel at 0
    left.imshow(to_picture(image))
    left.scatter(*dots.T, c=colors[rows], s=5)
    left.set_title(f"{len(dots)} matched pixels, by their voxels' height", fontsize=7)

    projected, depth = project(centers.float(), intrinsics, world_from_camera)
    order = depth.argsort(descending=True).cpu().numpy()  # near voxels cover far ones
    order = order[(depth > 0).cpu().numpy()[order]]
    x, y = projected.cpu().numpy()[order].T - 0.5
    middle.imshow(to_picture(image), alpha=0.35)
    middle.scatter(x, y, c=colors[order], s=3, marker="s", linewidths=0)
    middle.set_xlim(left.get_xlim())
    middle.set_ylim(left.get_ylim())
    middle.set_title(f"its chunk: {len(centers_m)} voxels", fontsize=7)

    thinned = centers_m[:: max(1, len(centers_m) // _SHOWN_VOXELS)]
    right.scatter(thinned[:, axes[0]], thinned[:, axes[1]], c="0.85", s=1)
    right.scatter(centers_m[rows, axes[0]], centers_m[rows, axes[1]], c=colors[rows], s=3)
    camera = world_from_camera[:3, 3].float().cpu().numpy()
    right.plot(camera[axes[0]], camera[axes[1]], "k^", ms=5)
    right.set_aspect("equal")
    right.set_title("from above; triangle: the camera", fontsize=7)
    return figure
