"""Nearest features between two views of known geometry: between cells, and precisely, between all pixels."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from prior3d.geometry import pixel_centers
from prior3d_plugins.probes.correspondence.view_pairs import PosedView, SharedPoints, cell_centers

CENTIMETERS = (1, 2, 5)
PIXELS = (5, 10, 20)
ROWS = 480
"""Image height that `PIXELS` refer to, as in Probe3D's ScanNet: errors in other images are scaled to it."""

THRESHOLDS = (*(f"{limit}cm" for limit in CENTIMETERS), *(f"{limit}px of {ROWS} rows" for limit in PIXELS))
"""Thresholds of `match_pixels`."""

_SIMILARITIES = 2**24
"""Number of values held at a time: 64 MiB."""


@dataclass(frozen=True)
class DescribedPair:
    """Two views with their features.

    Attributes:
        a: View that sees the points.
        b: View to find them in.
        shared: Points of `a` and their positions in `b`.
        maps: Features [2, C, h, w] of both views, of unit length along the channels.
    """

    a: PosedView
    b: PosedView
    shared: SharedPoints
    maps: Tensor


@dataclass(frozen=True)
class Matches:
    """Points of one view, and the positions of their nearest features in the other view.

    Attributes:
        cells: Pixels [M, 2] of the first view.
        target: True positions [M, 2] in the second view, pixels.
        found: Positions [M, 2] of the nearest features in the second view, pixels.
    """

    cells: Tensor
    target: Tensor
    found: Tensor

    @property
    def error(self) -> Tensor:
        """Distance [M] between target and found, pixels."""
        return (self.found - self.target).norm(dim=1)


def features_at(maps: Tensor, pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Read one map [C, h, w] at pixels [M, 2] of an image of `size`, bilinearly: unit-length features [M, C]."""
    scale = torch.tensor([2 / size[1], 2 / size[0]], device=pixels.device)
    where = (pixels * scale - 1)[None, None]
    found = F.grid_sample(maps[None], where, mode="bilinear", padding_mode="border", align_corners=False)
    return F.normalize(found[0, :, 0].T, dim=1)


def match_cells(pair: DescribedPair, chosen: Tensor) -> Matches:
    """Search all cells of the second view for points.

    Args:
        pair: Pair of views; its first map has the cells where the points are seen.
        chosen: Indices [M] of points.
    """
    cells, target = pair.shared.cells[chosen], pair.shared.target[chosen]
    centers = cell_centers(pair.b.size, tuple(pair.maps.shape[-2:]), pair.maps.device)
    similarity = features_at(pair.maps[0], cells, pair.a.size) @ pair.maps[1].flatten(1)
    return Matches(cells, target, centers[similarity.argmax(1)])


def match_pixels(pair: DescribedPair, surest: float) -> dict[str, Tensor]:
    """Search all pixels of known depth of the second view for all points, with features interpolated bilinearly.

    Returns:
        `precise`, `surest` and `right`, each with `found`, the number of points within each of `THRESHOLDS`, and
        `points`, the number of points. `precise` is of the visible points. `surest` is of that share of all points
        whose nearest feature is nearest by far (ratio of the distances of the nearest two). `right` is of the visible
        points if each were found at the right pixel; its only errors are those of pixels and depth.
    """
    shared = pair.shared
    known = pair.b.depth.flatten() > 0
    if known.sum() < 2:
        known = torch.ones_like(known)  # a view that has lost its depth has no visible points either: all are wrong
    candidates = pixel_centers(*pair.b.size, device=known.device)[known]
    dense = F.interpolate(pair.maps[1:], pair.b.size, mode="bilinear", align_corners=False)[0].flatten(1)
    index, sureness = _nearest(
        features_at(pair.maps[0], shared.cells, pair.a.size), F.normalize(dense[:, known], dim=0)
    )
    within = _within(pair, candidates[index])
    sure = sureness.topk(round(surest * len(sureness))).indices
    right = _within(pair, shared.target.nan_to_num(posinf=0).floor() + 0.5)
    counts = {"precise": within[shared.visible], "surest": within[sure], "right": right[shared.visible]}
    found = {f"{name}, found": hits.sum(0) for name, hits in counts.items()}
    return found | {f"{name}, points": torch.tensor(len(hits)) for name, hits in counts.items()}


def _nearest(queries: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest candidate [C, n] to each query [M, C], and 1 - the ratio of its distance to the second's."""
    indices, sureness = [], []
    for part in queries.split(max(1, _SIMILARITIES // max(candidates.shape[1], 1))):
        similarity, index = (part @ candidates).topk(2, dim=1)
        first, second = (1 - similarity).clamp_min(1e-9).unbind(1)
        indices.append(index[:, 0])
        sureness.append(1 - first / second)
    return torch.cat(indices), torch.cat(sureness)


def _within(pair: DescribedPair, found: Tensor) -> Tensor:
    """Return whether pixels [M, 2] of the second view are within each threshold of the points: [M, T]."""
    off_cm = 100 * (pair.b.points_at(found) - pair.shared.points).norm(dim=1)
    off_pixels = (found - pair.shared.target).norm(dim=1) * ROWS / pair.b.size[0]
    return torch.stack([*(off_cm <= limit for limit in CENTIMETERS), *(off_pixels <= limit for limit in PIXELS)], 1)
