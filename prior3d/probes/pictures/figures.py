"""Figures of several models' features: a row per image with the image first, then a column per model."""

import colorsys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from math import lcm

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from prior3d.contracts.probe import FeatureKind
from prior3d.errors import UserError
from prior3d.figures import to_picture
from prior3d.probes.measuring import size_problem
from prior3d.probes.models import FrozenModel, concatenate
from prior3d.probes.pictures.matched_clusters import MatchedClusters, fit_matched_clusters
from prior3d.probes.pictures.shared_axes import SharedAxes, fit_shared_axes
from prior3d.randomness import generator

MapsByModel = Mapping[str, Sequence[Tensor]]
"""By model, the features [C, h, w] of each image."""

PLACES = 2048
"""Number of pixels, over all images, that axes and clusters are fitted to. More would not change the figures, and the
work grows with the cube of this number."""

_WIDTH = 2.8
"""Width of a panel, inches."""

_TEXT, _DPI = 9, 120

_DISTINCT = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#222222")
"""Colors that color-blind readers can distinguish, too."""


@torch.no_grad()
def plot_pca(models: Mapping[str, FrozenModel], images: Tensor, kind: FeatureKind = "dense") -> Figure:
    """Plot images and the features of models as colors of ONE basis, fitted to all models and images together.

    Below each model: the share of its variance that the three colors show, and how well they agree with the first's.

    Args:
        models: Dict from title to model; channels and strides may differ.
        images: Images [N, 3, H, W] in 0..1.
        kind: Type of features: dense or encoder.
    """
    check_sizes(models, {tuple(images.shape[-2:])})
    maps = read_maps(models, images, kind)
    return pca_figure(images, maps, fit_shared_axes(sample_features(maps)))


@torch.no_grad()
def plot_clusters(
    models: Mapping[str, FrozenModel], images: Tensor, k: int = 6, seed: int = 0, kind: FeatureKind = "dense"
) -> Figure:
    """Plot images and the clusters of each model's features, in the colors of the first model's clusters.

    Args:
        models: Dict from title to model; channels and strides may differ.
        images: Images [N, 3, H, W] in 0..1.
        k: Number of clusters per model, over all images.
        seed: Seed of k-means.
        kind: Type of features: dense or encoder.
    """
    check_sizes(models, {tuple(images.shape[-2:])})
    maps = read_maps(models, images, kind)
    return cluster_figure(images, maps, fit_matched_clusters(sample_features(maps), k, seed))


def read_maps(models: Mapping[str, FrozenModel], images: Sequence[Tensor] | Tensor, kind: FeatureKind) -> dict:
    """Return, by model, the features [C, h, w] of each image [3, H, W]."""
    if not models or not len(images):
        raise ValueError(f"expected models and images, got {len(models)} and {len(images)}")
    return {name: [encode(model, image, kind) for image in images] for name, model in models.items()}


def pca_figure(
    images: Sequence[Tensor] | Tensor, maps: MapsByModel, axes: SharedAxes, names: Sequence[str] = ()
) -> Figure:
    """Plot features in the colors of given axes; `names` label the images."""
    first = next(iter(maps))
    beneath = {
        name: f"shows {axes.shares[name]:.0%} of its variance"
        + ("" if name == first else f"\ncolors as in {first}: r = {axes.agreement[name]:.2f}")
        for name in maps
    }
    pictures = {name: [axes.colors(name, features) for features in own] for name, own in maps.items()}
    title = "three principal axes" + (" shared by all columns" if len(maps) > 1 else "")
    return _grid(title, images, pictures, beneath, names)


def cluster_figure(
    images: Sequence[Tensor] | Tensor, maps: MapsByModel, clusters: MatchedClusters, names: Sequence[str] = ()
) -> Figure:
    """Plot the clusters of features; `names` label the images."""
    first = next(iter(maps))
    palette = _palette(len(clusters.centers[first]))
    beneath = {name: "" if name == first else f"{clusters.agreement[name]:.0%} colored as in {first}" for name in maps}
    pictures = {name: [palette[clusters.labels(name, features)] for features in own] for name, own in maps.items()}
    title = f"{len(palette)} clusters" + (" of each model, colors matched by overlap" if len(maps) > 1 else "")
    return _grid(title, images, pictures, beneath, names)


def _grid(
    title: str,
    images: Sequence[Tensor] | Tensor,
    pictures: Mapping[str, Sequence[np.ndarray]],
    beneath: Mapping[str, str],
    names: Sequence[str],
) -> Figure:
    heights = [_WIDTH * image.shape[-2] / image.shape[-1] for image in images]
    beneath = {name: _wrapped(text, _WIDTH, _TEXT - 1) for name, text in beneath.items()}
    titles = [_wrapped(name, _WIDTH, _TEXT) for name in ("image", *pictures)]
    lines = 3.5 + max(text.count("\n") + bool(text) for text in beneath.values())
    lines += max(text.count("\n") for text in titles)
    size = ((_WIDTH + 0.06) * (1 + len(pictures)) + 0.2, sum(heights) + 0.06 * len(heights) + 0.17 * lines)
    figure = Figure(figsize=size, layout="constrained", dpi=_DPI)
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
    figure.suptitle(title, fontsize=_TEXT)
    panels = figure.subplots(len(heights), 1 + len(pictures), squeeze=False, height_ratios=heights)
    for row, image in enumerate(images):
        extent = (0, image.shape[-1], image.shape[-2], 0)
        panels[row][0].imshow(to_picture(image), extent=extent)
        for panel, own in zip(panels[row][1:], pictures.values(), strict=True):
            # Plot cells without interpolation: smoothing would invent a resolution that the features do not have.
            panel.imshow(own[row], extent=extent, interpolation="nearest")
        if names:
            panels[row][0].set_ylabel(_wrapped(names[row], heights[row], _TEXT - 2), fontsize=_TEXT - 2)
    for panel in panels.flat:
        panel.set_xticks([])
        panel.set_yticks([])
        panel.spines[:].set_visible(False)
    for panel, title in zip(panels[0], titles, strict=True):
        panel.set_title(title, fontsize=_TEXT)
    for panel, name in zip(panels[-1][1:], pictures, strict=True):
        panel.set_xlabel(beneath[name], fontsize=_TEXT - 1)
    return figure


def _wrapped(text: str, inches: float, points: int) -> str:
    """Return a text in lines that fit, at any length: no part of a name is cut off."""
    width = max(8, int(inches * 72 / (0.6 * points)))
    return "\n".join(piece for line in text.split("\n") for piece in textwrap.wrap(line, width))


def _palette(count: int) -> np.ndarray:
    """Return colors [count, 3]."""
    if count <= len(_DISTINCT):
        return np.array([[int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)] for code in _DISTINCT[:count]])
    return np.array([colorsys.hsv_to_rgb(i / count, 0.85 if i % 2 else 0.5, 0.9) for i in range(count)])


def check_sizes(models: Mapping[str, FrozenModel], sizes: Iterable[tuple[int, int]]) -> None:
    """Raise UserError if a model cannot take images of one of these sizes, height and width in pixels."""
    sizes = list(sizes)
    for model in models.values():
        for size in {_whole_cells(model, size) for size in sizes}:
            for backbone in model.backbones:
                if problem := size_problem(backbone, size):
                    raise UserError(problem)  # no key: the error is not about a recipe


def encode(model: FrozenModel, image: Tensor, kind: FeatureKind) -> Tensor:
    """Return the features [C, h, w] of an image [3, H, W] in 0..1, in float32 on the CPU.

    The image is resized to the nearest whole number of the model's cells, so the map covers it exactly.

    Raises:
        UserError: The features are not finite.
    """
    if kind == "pooled":
        raise ValueError("expected features with a place, dense or encoder, got pooled")
    size = _whole_cells(model, tuple(image.shape[-2:]))
    image = image.to(model.device)[None].float()
    if tuple(image.shape[-2:]) != size:
        image = F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)
    parts = model.read(image, kind)
    features = concatenate(parts, unit_length=len(parts) > 1)[0].float().cpu()
    if not features.isfinite().all():
        raise UserError(f"the features of {model.backbones[0].encoder.name} are not finite")
    return features


def sample_places(images: int) -> Tensor:
    """Return places [images, P, 2] as shares of height and width, 0..1, the same for all models."""
    return torch.rand(images, -(-PLACES // images), 2, generator=generator("pictures", images))


def read_places(features: Tensor, places: Tensor) -> Tensor:
    """Return the features [P, C] of the cells of a map [C, h, w] that contain places [P, 2]."""
    size = torch.tensor(features.shape[1:])
    rows, columns = torch.minimum((places * size).long(), size - 1).unbind(1)
    return features[:, rows, columns].T


def sample_features(
    maps: Mapping[str, Sequence[Tensor]],  # by model, a map [C, h, w] for each image
) -> dict[str, Tensor]:
    """Return, by model, the features [R, C] at the same places of the same images."""
    places = sample_places(len(next(iter(maps.values()))))
    return {
        name: torch.cat([read_places(features, here) for features, here in zip(own, places, strict=True)])
        for name, own in maps.items()
    }


def _whole_cells(model: FrozenModel, size: tuple[int, int]) -> tuple[int, int]:
    # The coarsest map's cell: encoders pad to it, and the padded border would be part of the figure.
    cell = lcm(*(max(backbone.spec.encoder_channels) for backbone in model.backbones))
    return tuple(max(round(side / cell), 1) * cell for side in size)
