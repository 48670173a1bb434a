"""Figures for datasets, priors and runs: views, matches across two views, depth, features in color.

Every function returns a matplotlib Figure made without pyplot: no global state, safe in threads and workers.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch
from torch import Tensor

from prior3d.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from prior3d.contracts.view import View

__all__ = [
    "plot_depth",
    "plot_features",
    "plot_judged_matches",
    "plot_matches",
    "plot_views",
    "panels",
    "principal_colors",
    "render",
    "plot_depth_map",
    "to_picture",
]

_INCHES = 2.6
"""Side of one panel in inches."""


def plot_views(views: "Sequence[View]") -> Figure:
    """Plot the views of a sample, color above depth."""
    figure, axes = panels(2 if any("depth" in view for view in views) else 1, len(views))
    for column, view in enumerate(views):
        axes[0][column].imshow(view["image"])
        axes[0][column].set_title(f"scene {view.scene} frame {view.frame}", fontsize=8)
        if "depth" in view:
            plot_depth_map(axes[1][column], view["depth"])
    return figure


def plot_matches(
    image_a: Tensor,  # [3, H, W] 0..1
    image_b: Tensor,  # [3, H, W] 0..1
    pixels_a: Tensor,  # [M, 2] x, y; centers at +0.5
    pixels_b: Tensor,  # [M, 2]
    shown: int = 40,
) -> Figure:
    """Plot two views side by side, with lines between an even subset of their matches."""
    figure, ((left, right),) = panels(1, 2)
    left.imshow(to_picture(image_a))
    right.imshow(to_picture(image_b))
    chosen = torch.linspace(0, max(len(pixels_a) - 1, 0), min(shown, len(pixels_a))).long()
    for order, index in enumerate(chosen.tolist()):
        color = _hue(order / max(len(chosen), 1))
        # imshow puts the center of the first pixel at 0; in our coordinates it is at 0.5
        from_a, to_b = (pixels[index].float().cpu().numpy() - 0.5 for pixels in (pixels_a, pixels_b))
        line = ConnectionPatch(from_a, to_b, "data", "data", axesA=left, axesB=right, color=color, lw=0.8, alpha=0.8)
        figure.add_artist(line)
        left.plot(*from_a, "o", color=color, ms=2.5)
        right.plot(*to_b, "o", color=color, ms=2.5)
    left.set_title(f"{len(pixels_a)} matches, {len(chosen)} plotted", fontsize=8)
    return figure


def plot_judged_matches(
    pairs: Sequence[Tensor],
    judged: Mapping[str, Sequence[tuple[Tensor, Tensor, Tensor]]],
    titles: Sequence[str],
    shown: int = 25,
) -> Figure:
    """Plot matches of several pairs of views, a row per pair and a column per model: correct green, wrong red.

    Args:
        pairs: images [2, 3, H, W] in 0..1 of each pair.
        judged: for each model, the matches in each pair: [M, 2] pixels in the first view, [M, 2] in the second, and [M]
            whether each match is correct.
        titles: title of each pair.
        shown: number of matches to plot per pair, the first ones.
    """
    figure, axes = panels(len(pairs), len(judged), width=2.1, height=0.9)
    for column, (name, matches) in enumerate(judged.items()):
        for row, (images, (pixels_a, pixels_b, right)) in enumerate(zip(pairs, matches, strict=True)):
            axis, across = axes[row][column], images.shape[-1] * 1.03
            height, width = images.shape[-2:]
            for image, left in zip(images, (0, across), strict=True):
                gray = to_picture(image).mean(-1)  # makes the colored lines stand out
                axis.imshow(gray, cmap="gray", vmin=0, vmax=1, extent=(left, left + width, height, 0))
            ends = torch.stack([pixels_a, pixels_b + pixels_b.new_tensor([across, 0])], 1).float().cpu().numpy()
            for (start, end), is_right in [*zip(ends, right.tolist(), strict=True)][:shown]:
                color = "#2ee62e" if is_right else "#ff3030"
                axis.plot(*zip(start, end, strict=True), "-o", color=color, lw=0.8, ms=2.2, alpha=0.9)
            axis.set(xlim=(0, across + width), ylim=(height, 0), frame_on=False)
            share = f"{100 * right.float().mean():.0f} % of {len(right)} right" if len(right) else "nothing in common"
            axis.set_title(f"{name}: {share}, {titles[row]}", fontsize=8)
    return figure


def plot_depth(images: Tensor, predicted: Tensor, truth: Tensor) -> Figure:
    """Plot images [N, 3, H, W], predicted and true depth [N, H, W] in meters, one row and one depth scale per image."""
    figure, axes = panels(len(images), 3)
    for row, (image, prediction, target) in enumerate(zip(images, predicted, truth, strict=True)):
        axes[row][0].imshow(to_picture(image))
        known = target[target > 0]
        limits = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
        plot_depth_map(axes[row][1], prediction.float().cpu().numpy(), limits)
        plot_depth_map(axes[row][2], target.float().cpu().numpy(), limits)
        if row == 0:
            for axis, title in zip(axes[0], ("image", "predicted depth", "measured depth"), strict=True):
                axis.set_title(title, fontsize=8)
    return figure


def plot_features(images: Tensor, features: Tensor) -> Figure:
    """Plot images [N, 3, H, W] above their features [N, C, h, w], colored by one shared principal-component basis."""
    figure, axes = panels(2, len(images))
    colors = principal_colors(features)
    for column, (image, color) in enumerate(zip(images, colors, strict=True)):
        axes[0][column].imshow(to_picture(image))
        axes[1][column].imshow(color)
    return figure


def principal_colors(features: Tensor) -> np.ndarray:
    """Map features [N, C, h, w] to colors [N, h, w, 3] by their first three principal components, over all N.

    All images share one basis and one range: equal colors mean equal features, also across views.
    """
    count, channels, height, width = features.shape
    rows = features.detach().float().cpu().permute(0, 2, 3, 1).reshape(-1, channels)
    centered = rows - rows.mean(0)
    _, axes = torch.linalg.eigh(centered.T @ centered)  # ascending
    components = centered @ axes[:, -3:].flip(1)
    low, high = components.quantile(0.02, 0), components.quantile(0.98, 0)
    colors = ((components - low) / (high - low).clamp_min(1e-9)).clamp(0, 1)
    if colors.shape[1] < 3:
        colors = torch.nn.functional.pad(colors, (0, 3 - colors.shape[1]))
    return colors.reshape(count, height, width, 3).numpy()


def plot_depth_map(axis: "Axes", depth: np.ndarray, limits: tuple[float, float] | None = None) -> None:
    """Show a depth map in meters; unknown depth (0) stays white."""
    low, high = limits or (None, None)
    shown = axis.imshow(np.ma.masked_less_equal(depth, 0), cmap="turbo", vmin=low, vmax=high)
    axis.figure.colorbar(shown, ax=axis, fraction=0.035, pad=0.01).ax.tick_params(labelsize=6)


def to_picture(image: Tensor) -> np.ndarray:
    """Convert an image tensor [3, H, W] in 0..1 to an array [H, W, 3] for display."""
    return image.detach().float().clamp(0, 1).permute(1, 2, 0).cpu().numpy()


def panels(rows: int, columns: int, width: float = 1.25, height: float = 1.0) -> "tuple[Figure, list[list[Axes]]]":
    """Make a figure of rows x columns panels without ticks; width and height are relative to the default panel."""
    figure = Figure(figsize=(_INCHES * columns * width, _INCHES * rows * height), layout="constrained", dpi=100)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    return figure, axes.tolist()


def named_figures(plotted: object, label: str) -> dict[str, Figure]:
    """Return what a plugin's `plot` returned, under `<label>/<name>`.

    Args:
        plotted: figures by name.
        label: label of the plugin in the recipe.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(plotted, Mapping):
        raise UserError(f"plot returned {type(plotted).__name__}, expected a dict of matplotlib figures by name")
    for name, figure in plotted.items():
        if not isinstance(figure, Figure):
            raise UserError(f"plot returned {type(figure).__name__} as {name!r}, expected a matplotlib figure")
    return {f"{label}/{name}": figure for name, figure in plotted.items()}


def render(figure: Figure) -> np.ndarray:
    """Return a figure as an array [H, W, 3] of bytes."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _hue(position: float) -> tuple[float, float, float]:
    import colorsys

    return colorsys.hsv_to_rgb(position, 0.9, 0.95)
