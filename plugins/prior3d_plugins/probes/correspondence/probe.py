"""Multi-view matching: whether nearest features in two views show the same 3D point, and how alike they are."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from torch.nn import functional as F

from prior3d import Dataset, DoesNotFit, Measured, Metrics, Part, Probe, Scores, Totals, by_group
from prior3d.data.posed import PosedDataset
from prior3d.geometry import full_precision
from prior3d.probes import FrozenMaps, FrozenModel, MapKind, ProbeData, resize
from prior3d.randomness import generator
from prior3d_plugins.probes.correspondence.matching import (
    THRESHOLDS,
    DescribedPair,
    Matches,
    features_at,
    match_cells,
    match_pixels,
)
from prior3d_plugins.probes.correspondence.view_pairs import (
    VIEW_ANGLE_BINS_DEG,
    ViewPair,
    cell_centers,
    choose_pairs,
    read_views,
    share_points,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BINS = [f"{low:g}-{high:g} deg" for low, high in VIEW_ANGLE_BINS_DEG]
_DISTANCE_RATIO = "feature distance ratio"
_TINY = 1e-12
"""Added to distances so that features that are the same everywhere have a ratio of 1."""

Describe = Callable[[Tensor], Tensor]
"""Function from rows [n] of the held-out images to feature maps [n, C, h, w], on the device."""

JudgedMatches = tuple[Tensor, Tensor, Tensor]
"""Matches of a pair: pixels [M, 2] in the first view, pixels [M, 2] in the second, and whether each is right [M]."""


class Correspondence(Probe):
    """Recall of matches between two views, and similarity of one point's features; without labels, by view angle.

    Feature maps of all models are resampled to one grid of cells. The probe takes cells of the first view whose 3D
    point is visible in the second view, and finds the nearest feature (cosine) among ALL cells of the second. A match
    is right if the center of that cell lies within `pixels` of the point's projection. Angles are those between the
    optical axes.

    The feature distance ratio measures how consistent features are. It is the mean distance (1 - cosine) between the
    features of one point in two views, over that between a point and another, random point of the same pair. 0 means
    the same feature in all views; 1 means a feature that does not depend on the point. Features of the second view are
    read at the point's projection, bilinearly.

    Args:
        features: Which features to probe: the map of the backbone's decoder, or that of its encoder alone.
        pixels: Radius within which a match is right, pixels at the run's image size.
        pairs_per_bin: View pairs per bin of view angle, chosen once for all models.
        points: Cells of the first view to match per pair.
        cell: Side of the cells, pixels.
        patch: Side of the raw RGB patches of the control, pixels.
        detail: Also measure Probe3D's thresholds and report all metrics by angle: recall within 1, 2 and 5 cm in 3D and
            within 5, 10 and 20 pixels of an image scaled to 480 rows. The candidates are then all pixels of known
            depth, with bilinearly interpolated features, and all cells are matched; this takes far longer.
            `right pixel` is the value of these recalls if every point were found at the pixel it projects to, the limit
            that image size and depth set.
        surest: With `detail`, also report recall for this share of the cells, visible or not: those whose nearest
            feature is nearest by far (ratio test).

    Reference:
        Probe3D's ScanNet and NAVI correspondence (El Banani et al., 2024, arXiv 2404.08636). There only the 1000
        surest matches of a pair count. Here the main metrics are over all visible points, which no model can choose,
        and pairs are balanced over angles. Probe3D uses the angle of the relative rotation.
    """

    needs = ("image", "depth", "intrinsics", "world_from_camera")
    views = 2
    lower_is_better = frozenset(f"{_DISTANCE_RATIO}, {name}" for name in ("all", *_BINS))
    bounds = MappingProxyType({"recall@": (0, 1), _DISTANCE_RATIO: (0, math.inf), "cosine": (-1, 1)})
    meanings = MappingProxyType(
        {
            "recall@": "share of points whose nearest feature in the other view lies this close to the right place",
            _DISTANCE_RATIO: "how far apart features of one point are in two views, over those of two points",
            "cosine, same point": "mean similarity of the features of one point in two views",
            "cosine, other point": "mean similarity of the features of two points",
        }
    )

    def __init__(
        self,
        *,
        features: MapKind = "dense",
        pixels: Annotated[float, Gt(0)] = 6.0,
        pairs_per_bin: Annotated[int, Ge(1), Le(10**6)] = 40,
        points: Annotated[int, Ge(1), Le(10**6)] = 200,
        cell: Annotated[int, Ge(1), Le(1024)] = 4,
        patch: Annotated[int, Ge(1), Le(1024)] = 12,
        detail: bool = False,
        surest: Annotated[float, Gt(0), Le(1)] = 0.2,
    ) -> None:
        self.features: MapKind = features
        self.pixels = pixels
        self.pairs_per_bin = pairs_per_bin
        self.points = points
        self.cell = cell
        self.patch = patch
        self.detail = detail
        self.surest = surest

    def measure(self, model: FrozenModel, data: ProbeData, seed: int = 0) -> Measured:
        """Return counts of points and of those found, and summed feature distances, by bin of view angle."""
        features = FrozenMaps(model, data, "held_out", self.features)
        return self._score(data, lambda rows: features.take(rows, unit_length=True), model.device)

    def check_data(self, parts: Mapping[Part, Dataset]) -> None:
        """Refuse data without pairs of views; see `Probe.check_data`."""
        held_out = parts["held_out"]
        if not isinstance(held_out, PosedDataset):
            raise DoesNotFit(f"needs pairs of posed views, and {type(held_out).__name__} has none", "data")

    def summarize(self, total: Totals) -> Metrics:
        """Return recall (0..1), overall and by view angle, and the feature distance ratio; all metrics with detail."""
        same, other, points = (total[name] for name in ("distance, same", "distance, other", "points"))
        metrics = _by_bin(f"recall@{self.pixels:g}px", total["found"], points)
        ratios = _by_bin(_DISTANCE_RATIO, same + _TINY * points, other + _TINY * points)
        if not self.detail:
            return metrics | {f"{_DISTANCE_RATIO}, all": ratios[f"{_DISTANCE_RATIO}, all"]}
        metrics |= ratios
        metrics["cosine, same point"] = 1 - float(same.sum() / points.sum())
        metrics["cosine, other point"] = 1 - float(other.sum() / points.sum())
        for index, threshold in enumerate(THRESHOLDS if "precise, found" in total else ()):
            metrics |= _by_bin(f"recall@{threshold}", total["precise, found"][:, index], total["precise, points"])
            for name, kind in (("surest", f"surest {100 * self.surest:g} %"), ("right", "right pixel")):
                found = total[f"{name}, found"][:, index].sum() / total[f"{name}, points"].sum()
                metrics[f"recall@{threshold}, {kind}"] = float(found)
        return metrics

    def controls(self, data: ProbeData) -> Mapping[str, Scores]:
        """Return the scores of raw RGB patches and of position alone."""
        images, device = data.field("held_out", "image"), torch.device("cpu")

        def patches(rows: Tensor) -> Tensor:
            return _patches(images.take(rows).float() / 255, self.cell, self.patch)

        def positions(rows: Tensor) -> Tensor:
            return _positions(self._grid(data.size)).expand(len(rows), -1, -1, -1)

        return {
            "raw patches": self._score(data, patches, device).scores,
            "position": self._score(data, positions, device).scores,
        }

    def plot(
        self, models: Mapping[str, FrozenModel], data: ProbeData, shown: Mapping[str, list[JudgedMatches]]
    ) -> "dict[str, Figure]":
        """Plot the matches of one pair per bin of view angle; right ones are green, wrong ones red."""
        from prior3d.figures import plot_judged_matches

        pairs = [pair for _, pair in _first_of_each_bin(choose_pairs(data, self.pairs_per_bin))]
        images = data.field("held_out", "image")
        pictures = [images.take(torch.tensor(pair.rows)).float() / 255 for pair in pairs]
        titles = [f"{pair.angle_deg:.0f} degrees apart" for pair in pairs]
        return {"matches": plot_judged_matches(pictures, {name: shown[name] for name in models}, titles)}

    def _score(self, data: ProbeData, describe: Describe, device: torch.device) -> Measured:
        pairs = choose_pairs(data, self.pairs_per_bin)
        found = []
        with full_precision(device):
            for order, pair in enumerate(pairs):
                described = self._describe(data, pair, describe, device)
                matches = self._match(described, order)
                found.append((matches, self._count(described, matches)))
        bins = F.one_hot(torch.tensor([pair.bin for pair in pairs]), len(_BINS)).double()
        statistics = {}
        for name in found[0][1]:
            values = torch.stack([counts[name] for _, counts in found]).double().cpu()  # [P] or [P, thresholds]
            statistics[name] = torch.einsum("pb,p...->pb...", bins, values)
        names, group_of = data.groups("held_out")
        scores = by_group(names, group_of[torch.tensor([pair.rows[0] for pair in pairs])], statistics)
        return Measured(scores, [self._judge(found[order][0]) for order, _ in _first_of_each_bin(pairs)])

    def _judge(self, matches: Matches) -> JudgedMatches:
        return matches.cells.cpu(), matches.found.cpu(), (matches.error <= self.pixels).cpu()

    def _grid(self, size: tuple[int, int]) -> tuple[int, int]:
        return -(-size[0] // self.cell), -(-size[1] // self.cell)

    def _describe(self, data: ProbeData, pair: ViewPair, describe: Describe, device: torch.device) -> DescribedPair:
        grid = self._grid(data.size)
        maps = F.normalize(resize(describe(torch.tensor(pair.rows)), grid), dim=1)
        a, b = read_views(data, pair.rows, device)
        return DescribedPair(a, b, share_points(a, b, cell_centers(data.size, grid, device)), maps)

    def _match(self, pair: DescribedPair, order: int) -> Matches:
        visible = pair.shared.visible.nonzero()[:, 0]
        drawn = torch.randperm(len(visible), generator=generator("correspondence", order))[: self.points]
        return match_cells(pair, visible[drawn.to(visible.device)])

    def _count(self, pair: DescribedPair, matches: Matches) -> dict[str, Tensor]:
        first = features_at(pair.maps[0], matches.cells, pair.a.size)
        second = features_at(pair.maps[1], matches.target, pair.b.size)
        counts = {
            "points": torch.tensor(len(first)),
            "found": (matches.error <= self.pixels).sum(),
            "distance, same": _distances(first, second).sum(),
            "distance, other": _distances(first, second.roll(1, 0)).sum(),  # points are in random order
        }
        return counts | match_pixels(pair, self.surest) if self.detail else counts


def _first_of_each_bin(pairs: list[ViewPair]) -> list[tuple[int, ViewPair]]:
    """Return the index and the first pair of each bin of view angle that has one."""
    first: dict[int, tuple[int, ViewPair]] = {}
    for order, pair in enumerate(pairs):
        first.setdefault(pair.bin, (order, pair))
    return [first[index] for index in sorted(first)]


def _distances(first: Tensor, second: Tensor) -> Tensor:
    """Return 1 - cosine [M] of unit vectors [M, C], in a form that keeps the digits of small values."""
    return (first - second).square().sum(1) / 2


def _by_bin(name: str, numerator: Tensor, denominator: Tensor) -> dict[str, float]:
    metrics = {f"{name}, all": float(numerator.sum() / denominator.sum())}
    measured = [index for index in range(len(_BINS)) if denominator[index] > 0]
    return metrics | {f"{name}, {_BINS[index]}": float(numerator[index] / denominator[index]) for index in measured}


def _patches(images: Tensor, cell: int, side: int) -> Tensor:
    """Return the pixels of the patch [side, side] around each cell, as channels.

    Images are padded right and at the bottom to whole cells, as encoders pad them: cell i begins at pixel `cell * i`.
    """
    height, width = images.shape[-2:]
    before = (side - cell) // 2
    after = side - cell - before
    padded = F.pad(images, (before, after - width % -cell, before, after - height % -cell), mode="replicate")
    return F.unfold(padded, side, stride=cell).unflatten(2, (-(-height // cell), -(-width // cell)))


def _positions(grid: tuple[int, int]) -> Tensor:
    """Return features [1, 3, h, w] whose cosine is highest for the same place in the image."""
    row, column = torch.meshgrid(*((torch.arange(count) + 0.5) / count for count in grid), indexing="ij")
    # On a sphere around (0, 0, 1), near enough to flat that nearest by cosine is nearest in the plane.
    return torch.stack([row, column, torch.full_like(row, 100.0)])[None]
