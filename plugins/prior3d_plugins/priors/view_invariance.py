"""View invariance: pixels of two views that see the same 3D point get the same feature (Pri3D)."""

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from matplotlib.figure import Figure
from torch import Tensor

from prior3d import BackboneSpec, Batch, Features, Prior
from prior3d.figures import plot_matches
from prior3d.geometry import match_views_batched, unproject_pixels, view_angle
from prior3d.losses import (
    CellMatches,
    Exclusion,
    compact,
    gather_negatives,
    gather_pairs,
    kept_fraction,
    masked_point_info_nce,
    sample_cell_matches,
)


class ViewInvariance(Prior):
    """PointInfoNCE between matched pixels of the first view and every other view of a sample.

    Matches are mutual nearest neighbors in 3D among the pixels of two depth maps. Both views see both points.

    Args:
        backbone: specification of the features.
        temperature: softmax temperature; cosine similarities are divided by it.
        points: maximum number of matches sampled per pair of views, at most one per feature cell.
        max_distance: maximum distance in meters between the two 3D points of a match.
        relative_distance: the same limit as a share of the depth, since sensors are less exact far away. The larger of
            the two limits counts.
        negatives: source of the negatives: the same pair of views (`pair`), every pair of the batch (`batch`), or the
            batches of all ranks (`ranks`).
        exclude_radius: radius in meters around the positive's 3D point; features of the same scene inside it are not
            used as negatives. 0 keeps all negatives.
        min_angle: minimum angle in degrees between the optical axes of a pair; pairs below it are skipped.
        max_angle: maximum angle in degrees between the optical axes of a pair; pairs above it are skipped.

    Reference:
        Hou et al., Pri3D: Can 3D Priors Help 2D Representation Learning?, ICCV 2021, arXiv 2104.11225. Differences:
        matches are mutual (there, one-way projections within 5 cm) and sampled after mapping to the feature grid
        (there, before), never with replacement; the temperature there is 0.4.
    """

    needs = ("image", "depth", "intrinsics", "world_from_camera")
    reads = frozenset({"dense"})
    views = 2

    def __init__(
        self,
        backbone: BackboneSpec,
        *,
        temperature: Annotated[float, Gt(0)] = 0.1,
        points: Annotated[int, Ge(2), Le(10**6)] = 384,
        max_distance: Annotated[float, Gt(0)] = 0.05,
        relative_distance: Annotated[float, Ge(0)] = 0.02,
        negatives: Literal["pair", "batch", "ranks"] = "pair",
        exclude_radius: Annotated[float, Ge(0)] = 0.0,
        min_angle: Annotated[float, Ge(0)] = 0.0,
        max_angle: Annotated[float, Gt(0)] = 180.0,
    ) -> None:
        super().__init__(backbone)
        self.temperature = temperature
        self.points = points
        self.max_distance = max_distance
        self.relative_distance = relative_distance
        self.negatives = negatives
        self.exclude_radius = exclude_radius
        self.angles = (min_angle, max_angle)
        if exclude_radius:
            self.needs = (*self.needs, "scene")

    @property
    def capturable(self) -> bool:
        """Whether `forward` can be replayed: not if it gathers other ranks, or reads scenes on the host."""
        return self.negatives != "ranks" and not self.exclude_radius

    def forward(self, batch: Batch, features: Mapping[str, Features]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and the share of filled match slots."""
        dense = features["image"].dense
        match, points, scene = self._labels(batch)
        queries, keys = gather_pairs(dense, match.cells_a, match.cells_b)
        valid, found = match.valid, kept_fraction(match.valid)
        if self.negatives == "ranks":
            queries, keys, valid = gather_negatives(queries), gather_negatives(keys), gather_negatives(valid)
            points, scene = (value if value is None else gather_negatives(value) for value in (points, scene))
        exclude = None
        if points is not None:
            exclude = Exclusion(points, self.exclude_radius, scene[:, None].expand(points.shape[:2]))
        over = "pair" if self.negatives == "pair" else "batch"
        loss = masked_point_info_nce(queries, keys, valid, self.temperature, negatives=over, exclude=exclude)
        return loss, {"matches": found}

    def plot(self, batch: Batch, features: Mapping[str, Features]) -> dict[str, Figure]:
        """Plot the matches of the first sample across its first two views."""
        match = self._sample(batch, slice(1, 2))
        images, valid = batch["image"][0], match.valid[0]
        pixels = (compact(pixels[0], valid) for pixels in (match.pixels_a, match.pixels_b))
        return {"matches": plot_matches(images[0], images[1], *pixels)}

    @torch.no_grad()
    def _labels(self, batch: Batch) -> tuple[CellMatches, Tensor | None, Tensor | None]:
        """Return the sampled matches and, if rows near each other are excluded, their points and scenes."""
        match = self._sample(batch, slice(1, None))
        points, scene = self._points_in_a(batch, match) if self.exclude_radius else (None, None)
        return match, points, scene

    @torch.no_grad()
    def _sample(self, batch: Batch, others: slice) -> CellMatches:
        """Sample matches between the first view and others, G = others * B groups, one other view after the other."""
        pairs = [_pairs(batch[name], others) for name in ("depth", "intrinsics", "world_from_camera")]
        found = match_views_batched(
            *(view for pair in pairs for view in pair),
            max_distance=self.max_distance,
            relative_distance=self.relative_distance,
        )
        valid = found.valid
        if self.angles[0] > 0 or self.angles[1] < 180:
            angle = view_angle(*pairs[2])
            valid = valid & ((angle >= self.angles[0]) & (angle <= self.angles[1]))[:, None]
        return sample_cell_matches(
            found.pixels_a, found.pixels_b, valid, self.backbone.dense_size, self.backbone.dense_stride, self.points
        )

    def _points_in_a(self, batch: Batch, match: CellMatches) -> tuple[Tensor, Tensor]:
        """Return world points [G, N, 3] of the sampled pixels of the first views, in meters, and their scenes [G]."""
        others = slice(1, None)
        depth, intrinsics, poses = (
            _pairs(batch[name], others)[0] for name in ("depth", "intrinsics", "world_from_camera")
        )
        column, row = match.pixels_a.floor().long().unbind(-1)
        at = depth.flatten(1).gather(1, row * depth.shape[-1] + column)
        points = unproject_pixels(match.pixels_a, at, intrinsics, poses)
        scene = batch["scene"].repeat(len(points) // len(batch["scene"]))
        return points, scene.to(points.device, non_blocking=True)


def _pairs(values: Tensor, others: slice) -> tuple[Tensor, Tensor]:
    """Return the values [B, V, ...] of the first views and of others, [others * B, ...]; views of them if V is 2."""
    rest = values[:, others]
    first = values[:, :1].expand_as(rest)
    return first.transpose(0, 1).flatten(0, 1), rest.transpose(0, 1).flatten(0, 1)
