"""Multi-view matching: is the nearest feature in another view that of the same 3D point?"""

from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor
from torch.nn import functional as F

from prior3d.data.augmentation import assemble
from prior3d.data.pairs import ANGLE_BINS_DEG, angle_bin
from prior3d.data.posed import PosedDataset
from prior3d.geometry import project, unproject_pixels
from prior3d.probes.models import FrozenModel, concatenate
from prior3d.probes.probe import Probe
from prior3d.probes.probe_data import ProbeData
from prior3d.probes.scores import Metrics, Scores, Totals, by_group
from prior3d.randomness import generator

_BATCH = 16
"""Images encoded at a time."""

_FIELDS = frozenset({"image", "depth", "intrinsics", "world_from_camera"})


class Correspondence(Probe):
    """Recall of matches between two views, label-free, by view angle.

    For cells of the first view whose 3D point is visible in the second, the nearest feature (cosine) among ALL cells of
    the second is looked up; it counts if its centre lies within `pixels` of where the point projects. Angles are those
    between the optical axes.

    Args:
        pixels: radius within which a match counts, pixels at the run's image size.
        pairs_per_bin: view pairs measured per bin of view angle, chosen once for all models.
        points: cells of the first view that are looked up per pair.
        patch: side of the raw RGB patches of the control, pixels.

    Reference:
        After Probe3D's ScanNet correspondence (El Banani et al., 2024, arXiv 2404.08636); here recall is over all
        visible points rather than over the most confident matches, and pairs are balanced over angles.
    """

    needs = ("image", "depth", "intrinsics", "world_from_camera")
    views = 2

    def __init__(
        self,
        *,
        pixels: Annotated[float, Gt(0)] = 6.0,
        pairs_per_bin: Annotated[int, Ge(1)] = 40,
        points: Annotated[int, Ge(1)] = 200,
        patch: Annotated[int, Ge(1)] = 12,
    ) -> None:
        self.pixels = pixels
        self.pairs_per_bin = pairs_per_bin
        self.points = points
        self.patch = patch

    def measure(self, model: FrozenModel, data: ProbeData, seed: int = 0) -> Scores:
        """Return counts of points and of those found, by bin of view angle."""

        def describe(images: Tensor) -> Tensor:
            return concatenate(model.read(images.to(model.device)), unit_length=True).float().cpu()

        return self._recall(data.parts["held_out"], describe)

    def summarise(self, total: Totals) -> Metrics:
        """Return recall (0..1) overall and per bin of view angle."""
        found, points = total["found"], total["points"]
        rows = {"all": (found.sum(), points.sum())}
        rows |= {name: (found[i], points[i]) for i, name in enumerate(_bin_names()) if points[i] > 0}
        return {f"recall@{self.pixels:g}px, {name}": float(hit / of) for name, (hit, of) in rows.items()}

    def controls(self, data: ProbeData) -> Mapping[str, Scores]:
        """Return the recall of raw RGB patches and of position alone."""
        return {
            "raw patches": self._recall(data.parts["held_out"], self._raw_patches),
            "position": self._recall(data.parts["held_out"], _positions),
        }

    def _recall(self, data: PosedDataset, describe: Callable[[Tensor], Tensor]) -> Scores:
        chosen = self._choose_pairs(data)
        found, points = torch.zeros(2, len(chosen), len(ANGLE_BINS_DEG))
        views = _Views(data, describe, {(scene, frame) for scene, *pair, _ in chosen for frame in pair})
        for order, (scene, first, second, bin_index) in enumerate(chosen):
            hit = self._hits(views, (scene, first), (scene, second), generator("correspondence", order))
            found[order, bin_index], points[order, bin_index] = hit.sum(), len(hit)
        scenes = torch.tensor([scene for scene, *_ in chosen])
        return by_group(data.scenes, scenes, {"found": found, "points": points})

    def _choose_pairs(self, data: PosedDataset) -> list[tuple[int, int, int, int]]:
        by_bin: list[list[tuple[int, int, int, int]]] = [[] for _ in _bin_names()]
        for scene in range(len(data.scenes)):
            table = data.pairs(scene)
            rows = zip(table.first.tolist(), table.second.tolist(), table.angle_deg.tolist(), strict=True)
            for first, second, angle in rows:
                by_bin[angle_bin(angle)].append((scene, first, second, angle_bin(angle)))
        chosen = []
        for index, pairs in enumerate(by_bin):
            order = torch.randperm(len(pairs), generator=generator("correspondence pairs", index))
            chosen += [pairs[position] for position in order[: self.pairs_per_bin].tolist()]
        return chosen

    def _hits(self, views: "_Views", a: tuple[int, int], b: tuple[int, int], choice: torch.Generator) -> Tensor:
        first, second = views.geometry[a], views.geometry[b]
        features_a, features_b = views.features[a], views.features[b]
        cells = _cell_centres(features_a, first["depth"])
        known = _at(first["depth"], cells)
        points = unproject_pixels(cells, known, first["intrinsics"], first["world_from_camera"])
        target, depth = project(points, second["intrinsics"], second["world_from_camera"])
        visible = (known > 0) & _sees(second["depth"], target, depth)
        candidates = visible.nonzero()[:, 0]
        candidates = candidates[torch.randperm(len(candidates), generator=choice)[: self.points]]
        similarity = features_a.flatten(1).T[candidates] @ features_b.flatten(1)
        found = _cell_centres(features_b, second["depth"])[similarity.argmax(1)]
        return ((found - target[candidates]).norm(dim=1) <= self.pixels).float()

    def _raw_patches(self, images: Tensor) -> Tensor:
        stride, margin = 4, (self.patch - 4) // 2
        padded = F.pad(images, (margin, self.patch - 4 - margin) * 2, mode="replicate")
        height, width = (side // stride for side in images.shape[-2:])
        return F.unfold(padded, self.patch, stride=stride).unflatten(2, (height, width))


class _Views:
    """Geometry and unit-length features of the frames that some pair uses, each decoded and encoded once."""

    def __init__(self, data: PosedDataset, describe: Callable[[Tensor], Tensor], frames: set[tuple[int, int]]) -> None:
        self.geometry: dict[tuple[int, int], dict[str, Tensor]] = {}
        self.features: dict[tuple[int, int], Tensor] = {}
        keys = sorted(frames)
        for start in range(0, len(keys), _BATCH):
            batch = keys[start : start + _BATCH]
            images = []
            for key in batch:
                sample = assemble([data.load(*key, _FIELDS)], data.spec.size, None, _FIELDS, generator("none"))
                images.append(sample["image"][0].float() / 255)
                self.geometry[key] = {name: sample[name][0] for name in _FIELDS - {"image"}}
            features = F.normalize(describe(torch.stack(images)), dim=1)
            self.features.update(zip(batch, features, strict=True))


def _positions(images: Tensor) -> Tensor:
    """Features whose cosine is highest for the same place in the image."""
    count, _, height, width = images.shape
    rows = (torch.arange(height // 4) + 0.5) / (height // 4)
    columns = (torch.arange(width // 4) + 0.5) / (width // 4)
    row, column = torch.meshgrid(rows, columns, indexing="ij")
    # On a sphere around (0, 0, 1), near enough to be flat: nearest by cosine is nearest in the plane.
    return torch.stack([row, column, torch.full_like(row, 100.0)]).expand(count, -1, -1, -1)


def _bin_names() -> list[str]:
    return [f"{low:g}-{high:g} deg" for low, high in ANGLE_BINS_DEG]


def _cell_centres(features: Tensor, depth: Tensor) -> Tensor:
    """Centres [h * w, 2] of feature cells in image pixels."""
    rows, columns = features.shape[-2:]
    y = (torch.arange(rows) + 0.5) * depth.shape[0] / rows
    x = (torch.arange(columns) + 0.5) * depth.shape[1] / columns
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 2)


def _at(depth: Tensor, pixels: Tensor) -> Tensor:
    height, width = depth.shape
    x, y = pixels.floor().long().unbind(-1)
    return depth[y.clamp(0, height - 1), x.clamp(0, width - 1)]


def _sees(depth: Tensor, pixels: Tensor, expected: Tensor) -> Tensor:
    """Whether points at `pixels` and `expected` depth are what a view with this depth map sees there."""
    height, width = depth.shape
    inside = (pixels >= 0).all(-1) & (pixels[:, 0] < width) & (pixels[:, 1] < height) & (expected > 0)
    measured = _at(depth, pixels)
    return inside & (measured > 0) & ((measured - expected).abs() <= (0.05 * expected).clamp_min(0.05))
