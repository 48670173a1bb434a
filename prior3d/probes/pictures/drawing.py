"""Figures of several models' features: a row for each image, the image first, then a column for each model."""

import colorsys
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from prior3d.figures import to_picture
from prior3d.probes.models import FrozenModel, Kind
from prior3d.probes.pictures.matched_clusters import MatchedClusters, fit_matched_clusters
from prior3d.probes.pictures.sampling import check_sizes, encode, sample_features
from prior3d.probes.pictures.shared_axes import SharedAxes, fit_shared_axes

Maps = Mapping[str, Sequence[Tensor]]
"""By model, the features [C, h, w] of each image."""

_WIDTH = 2.8
"""Inches of a panel."""

_TEXT, _DPI = 9, 120

_DISTINCT = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#222222")
"""Told apart also by colour-blind readers."""


@torch.no_grad()
def draw_pca(models: Mapping[str, FrozenModel], images: Tensor, kind: Kind = "dense") -> Figure:
    """Draw images and the features of models as colours of ONE basis, fitted to all models and images together.

    Beneath each model: the share of its variance that the three colours show, and how far they agree with the first's.

    Args:
        models: title to model; their channels and strides may differ.
        images: [N, 3, H, W] in 0..1.
        kind: which features: dense or encoder.
    """
    check_sizes(models, {tuple(images.shape[-2:])})
    maps = read_maps(models, images, kind)
    return pca_figure(images, maps, fit_shared_axes(sample_features(maps)))


@torch.no_grad()
def draw_clusters(
    models: Mapping[str, FrozenModel], images: Tensor, k: int = 6, seed: int = 0, kind: Kind = "dense"
) -> Figure:
    """Draw images and the clusters of each model's features, in the colours of the first model's clusters.

    Args:
        models: title to model; their channels and strides may differ.
        images: [N, 3, H, W] in 0..1.
        k: clusters of each model, over all images.
        seed: of k-means.
        kind: which features: dense or encoder.
    """
    check_sizes(models, {tuple(images.shape[-2:])})
    maps = read_maps(models, images, kind)
    return cluster_figure(images, maps, fit_matched_clusters(sample_features(maps), k, seed))


def read_maps(models: Mapping[str, FrozenModel], images: Sequence[Tensor] | Tensor, kind: Kind) -> dict:
    """Return by model the features [C, h, w] of each image [3, H, W]."""
    if not models or not len(images):
        raise ValueError(f"expected models and images, got {len(models)} and {len(images)}")
    return {name: [encode(model, image, kind) for image in images] for name, model in models.items()}


def pca_figure(images: Sequence[Tensor] | Tensor, maps: Maps, axes: SharedAxes, names: Sequence[str] = ()) -> Figure:
    """Draw features in the colours of axes that are known; `names` of images stand beside them."""
    first = next(iter(maps))
    beneath = {
        name: f"shows {axes.shares[name]:.0%} of its variance"
        + ("" if name == first else f"\ncolours as in {first}: r = {axes.agreement[name]:.2f}")
        for name in maps
    }
    pictures = {name: [axes.colours(name, features) for features in own] for name, own in maps.items()}
    title = "three principal axes" + (" shared by all columns" if len(maps) > 1 else "")
    return _grid(title, images, pictures, beneath, names)


def cluster_figure(
    images: Sequence[Tensor] | Tensor, maps: Maps, clusters: MatchedClusters, names: Sequence[str] = ()
) -> Figure:
    """Draw the clusters of features; `names` of images stand beside them."""
    first = next(iter(maps))
    palette = _palette(len(clusters.centres[first]))
    beneath = {name: "" if name == first else f"{clusters.agreement[name]:.0%} coloured as in {first}" for name in maps}
    pictures = {name: [palette[clusters.labels(name, features)] for features in own] for name, own in maps.items()}
    title = f"{len(palette)} clusters" + (" of each model, colours matched by overlap" if len(maps) > 1 else "")
    return _grid(title, images, pictures, beneath, names)


def _grid(
    title: str,
    images: Sequence[Tensor] | Tensor,
    pictures: Mapping[str, Sequence[np.ndarray]],
    beneath: Mapping[str, str],
    names: Sequence[str],
) -> Figure:
    heights = [_WIDTH * image.shape[-2] / image.shape[-1] for image in images]
    lines = 3.5 + max(text.count("\n") + bool(text) for text in beneath.values())
    size = ((_WIDTH + 0.06) * (1 + len(pictures)) + 0.2, sum(heights) + 0.06 * len(heights) + 0.17 * lines)
    figure = Figure(figsize=size, layout="constrained", dpi=_DPI)
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
    figure.suptitle(title, fontsize=_TEXT)
    panels = figure.subplots(len(heights), 1 + len(pictures), squeeze=False, height_ratios=heights)
    for row, image in enumerate(images):
        extent = (0, image.shape[-1], image.shape[-2], 0)
        panels[row][0].imshow(to_picture(image), extent=extent)
        for panel, own in zip(panels[row][1:], pictures.values(), strict=True):
            # Cells as they are: smoothing would invent a resolution that the features do not have.
            panel.imshow(own[row], extent=extent, interpolation="nearest")
        if names:
            panels[row][0].set_ylabel(names[row], fontsize=_TEXT - 2)
    for panel in panels.flat:
        panel.set_xticks([])
        panel.set_yticks([])
        panel.spines[:].set_visible(False)
    for panel, name in zip(panels[0], ("image", *pictures), strict=True):
        panel.set_title(name, fontsize=_TEXT)
    for panel, name in zip(panels[-1][1:], pictures, strict=True):
        panel.set_xlabel(beneath[name], fontsize=_TEXT - 1)
    return figure


def _palette(count: int) -> np.ndarray:
    """Return colours [count, 3]."""
    if count <= len(_DISTINCT):
        return np.array([[int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)] for code in _DISTINCT[:count]])
    return np.array([colorsys.hsv_to_rgb(i / count, 0.85 if i % 2 else 0.5, 0.9) for i in range(count)])
