"""Figures: image, rendered targets, the features that learn from them in one basis, and the mask."""

import torch
from matplotlib.figure import Figure
from torch import Tensor

from prior3d.figures import panels, principal_colors, to_picture


def plot_distillation(images: Tensor, targets: Tensor, known: Tensor, students: Tensor) -> Figure:
    """Plot a row per view; cells without a target are white.

    Args:
        images: [N, 3, H, W] in 0..1.
        targets: [N, C, h, w].
        known: [N, h, w] cells that have a target.
        students: [N, C, h, w] trained features.
    """
    students = students.float()
    shown = torch.where(known[:, None], targets, students)  # cells without a target do not affect the basis
    colors = principal_colors(torch.cat([shown, students]))
    figure, axes = panels(len(images), 4)
    for axis, title in zip(axes[0], ("image", "target", "features", "masked"), strict=True):
        axis.set_title(title, fontsize=8)
    for row, (image, target, student, mask) in zip(
        axes, zip(images, colors[: len(images)], colors[len(images) :], known.cpu().numpy(), strict=True), strict=True
    ):
        target[~mask] = 1.0
        row[0].imshow(to_picture(image))
        row[1].imshow(target)
        row[2].imshow(student)
        row[3].imshow(~mask, cmap="gray_r", vmin=0, vmax=1)
    return figure
