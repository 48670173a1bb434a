"""Figures of the heads' predictions: a row per image; columns for the image, the truth and each model."""

import colorsys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from matplotlib.patches import Patch
from torch import Tensor

from prior3d.figures import panels, to_picture
from prior3d.probes.probe_data import ProbeData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_IMAGES = 3
"""Number of rows of a figure."""

_OPACITY = 0.65
_MOST_NAMES = 24
"""Number of classes in the legend, those with the most pixels."""


def rows_shown(data: ProbeData) -> Tensor:
    """Return the rows [n] of the held-out images that figures show, evenly spaced."""
    count = len(data.frames["held_out"])
    shown = min(_IMAGES, count)
    return ((torch.arange(shown) + 0.5) * count / shown).long()


def images_shown(data: ProbeData) -> Tensor:
    """Return the held-out images that figures show, [n, 3, H, W] in 0..1."""
    return data.field("held_out", "image").take(rows_shown(data)).float() / 255


class Panel(NamedTuple):
    """What a column shows for each image, and how."""

    values: Tensor | Sequence[np.ndarray]
    show: "Callable[[Axes, np.ndarray, int], None]"


def plot_side_by_side(images: Tensor, columns: Mapping[str, Panel]) -> "Figure":
    """Plot images with their panels to the right.

    Args:
        images: Images [N, 3, H, W] in 0..1.
        columns: Dict from title to the N panels to show, indexed by row.
    """
    figure, axes = panels(len(images), 1 + len(columns))
    for row, image in enumerate(images):
        axes[row][0].imshow(to_picture(image))
        for axis, panel in zip(axes[row][1:], columns.values(), strict=True):
            panel.show(axis, np.asarray(panel.values[row]), row)
    for axis, title in zip(axes[0], ("image", *columns), strict=True):
        axis.set_title(title, fontsize=9)
    return figure


def plot_classes(
    images: Tensor, truth: Tensor, predicted: Mapping[str, Tensor], names: Sequence[str], ignore: int
) -> "Figure":
    """Plot class maps over the images, with the names of the classes below.

    Args:
        images: Images [N, 3, H, W] in 0..1.
        truth: Class ids [N, H, W].
        predicted: Dict from title to class ids [N, H, W].
        names: Class names, by id; empty to show ids.
        ignore: Class id without a color.
    """
    gray = images.mean(1).clamp(0, 1).numpy()
    colors = class_colors(256)

    def show(axis: "Axes", classes: np.ndarray, row: int) -> None:
        weight = np.where(classes == ignore, 0, _OPACITY)[..., None]
        axis.imshow((1 - weight) * gray[row][..., None] + weight * colors[classes])

    maps = {"truth": truth, **predicted}
    figure = plot_side_by_side(images, {title: Panel(values, show) for title, values in maps.items()})
    counts = torch.stack([torch.bincount(values.flatten().int(), minlength=256) for values in maps.values()]).sum(0)
    counts[ignore] = 0
    most = [index for index in counts.argsort(descending=True)[:_MOST_NAMES].tolist() if counts[index]]
    entries = [Patch(color=colors[index], label=names[index] if names else str(index)) for index in sorted(most)]
    figure.legend(handles=entries, loc="outside lower center", ncols=2 * (1 + len(maps)), fontsize=7, frameon=False)
    return figure


def plot_depths(images: Tensor, truth: Tensor, predicted: Mapping[str, Tensor]) -> "Figure":
    """Plot depth maps in meters, those of one image on one scale, the range of its true depth.

    Predictions beyond that range have the color of its end; the figure says so.

    Args:
        images: Images [N, 3, H, W] in 0..1.
        truth: Depth [N, H, W], meters, 0 = unknown.
        predicted: Dict from title to depth [N, H, W], meters.
    """
    limits = [(float(d[d > 0].min()), float(d[d > 0].max())) if (d > 0).any() else (0.0, 1.0) for d in truth]

    def show(axis: "Axes", depth: np.ndarray, row: int) -> None:
        low, high = limits[row]
        axis.imshow(np.ma.masked_less_equal(depth, 0), cmap="turbo", vmin=low, vmax=high)

    maps = {"truth": truth.float(), **{title: values.float() for title, values in predicted.items()}}
    figure = plot_side_by_side(images, {title: Panel(values, show) for title, values in maps.items()})
    columns, axes = 1 + len(maps), list(figure.axes)
    for row in range(len(images)):
        shown = axes[row * columns + 1].images[0]
        bar = figure.colorbar(
            shown, ax=axes[row * columns : (row + 1) * columns], fraction=0.02, pad=0.005, extend="both"
        )
        bar.ax.tick_params(labelsize=7)
        bar.set_label("depth, m; clipped to the truth's range", fontsize=7)
    return figure


def plot_normals(images: Tensor, truth: Tensor, predicted: Mapping[str, Tensor]) -> "Figure":
    """Plot normals as colors: red to the right, green up, blue toward the camera; unknown ones white.

    Args:
        images: Images [N, 3, H, W] in 0..1.
        truth: Normals [N, 3, H, W] in camera axes (x right, y down, z forward), 0 = unknown.
        predicted: Dict from title to normals [N, 3, H, W].
    """

    def show(axis: "Axes", normals: np.ndarray, row: int) -> None:
        colors = 0.5 + 0.5 * normals.transpose(1, 2, 0) * (1, -1, -1)
        axis.imshow(np.where((normals == 0).all(0)[..., None], 1.0, colors.clip(0, 1)))

    maps = {"truth": truth.float(), **{title: values.float() for title, values in predicted.items()}}
    return plot_side_by_side(images, {title: Panel(values, show) for title, values in maps.items()})


def class_colors(count: int) -> np.ndarray:
    """Return colors [count, 3] in 0..1 that differ most between neighboring ids."""
    golden = 0.618034
    rows = [
        colorsys.hsv_to_rgb(index * golden % 1, (0.85, 0.5, 0.7)[index // 3 % 3], (0.95, 0.65, 0.8)[index % 3])
        for index in range(count)
    ]
    return np.array(rows)
