"""Surface normals from frozen features: a linear head to three components."""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from torch.nn import functional as F

from prior3d import Dataset, DoesNotFit, Measured, Metrics, Part, Probe, Scores, Totals, UserError, by_group
from prior3d.geometry import normals_from_depth
from prior3d.probes import (
    Fitting,
    FrozenMaps,
    FrozenModel,
    MapKind,
    ProbeData,
    Schedule,
    images_shown,
    plot_normals,
    rows_shown,
    upsample,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WITHIN_DEG = (11.25, 22.5, 30.0)
_BINS = 360
"""Bins of the histogram of angles from 0 to 180 degrees; the median is computed from it."""

NormalsOf = Callable[[Tensor], Tensor]
"""Function from rows [n] to normals [n, 3, H, W], 0 where unknown."""


class Normals(Probe):
    """How much frozen features know about surface normals: the angles between a linear head's and the true normals.

    The linear map gives three numbers per cell. They are upsampled bilinearly to the size of the truth and then scaled
    to unit length. The loss is one minus the cosine. If the data has no normals, the probe computes them from depth
    (`normals_from_depth`). All metrics are over all known pixels of all images together. The control guesses the mean
    normal of the training part everywhere.

    Args:
        features: Which features to probe: the map of the backbone's decoder, or that of its encoder alone.
        edge: Relative jump in depth across which no normal is computed; unused if the data has normals.
        steps: Optimizer steps of the head.
        batch: Images per step.
        lr: Highest learning rate of the head, for up to 64 channels (see `Schedule`).

    Reference:
        After Probe3D (El Banani et al., 2024, arXiv 2404.08636), which trains a deeper head on several layers with an
        uncertainty-aware loss; metrics as in Fouhey et al., 2013.
    """

    needs = ("image", "normals|depth")
    trains = True
    lower_is_better = frozenset({"mean deg", "median deg"})
    seeded = True
    bounds = MappingProxyType({"mean deg": (0, 180), "median deg": (0, 180), "under": (0, 1)})
    meanings = MappingProxyType(
        {
            "mean deg": "mean angle between predicted and true normals, degrees",
            "median deg": "median of that angle, degrees",
            "under": "share of pixels whose angle is below this",
        }
    )

    def __init__(
        self,
        *,
        features: MapKind = "dense",
        edge: Annotated[float, Gt(0)] = 0.05,
        steps: Annotated[int, Ge(1), Le(10**7)] = 300,
        batch: Annotated[int, Ge(1), Le(10**5)] = 8,
        lr: Annotated[float, Gt(0)] = 0.05,
    ) -> None:
        self.features = features
        self.edge = edge
        self.schedule = Schedule(steps, batch, lr)

    def measure(self, model: FrozenModel, data: ProbeData, seed: int = 0) -> Measured:
        """Return pixel counts, sums of angles, counts below each threshold and angle histograms, [G, ...] each."""
        truth = {part: self._truth(data, part, model.device) for part in ("train", "held_out")}
        mean = _mean(truth["train"], data, "train")
        _mean(truth["held_out"], data, "held_out")
        train = FrozenMaps(model, data, "train", self.features)
        held_out = FrozenMaps(model, data, "held_out", self.features)
        head = Fitting("normals", mean, truth["train"], _loss).fit(train, self.schedule, seed)

        def predict(rows: Tensor) -> Tensor:
            return upsample(head(held_out.take(rows)), data.size)

        batches = held_out.batches(16 * data.size[0] * data.size[1])
        errors = _score(predict, batches, truth["held_out"])
        shown = F.normalize(predict(rows_shown(data)), dim=1).half().cpu()
        return Measured(by_group(*data.groups("held_out"), errors), shown)

    def check_data(self, parts: Mapping[Part, Dataset]) -> None:
        """Refuse depth without intrinsics where there are no normals; see `Probe.check_data`."""
        for dataset in parts.values():
            if not {"normals", "intrinsics"} & dataset.provides:
                raise DoesNotFit("the data has no normals, and no intrinsics to compute them from depth", "data")

    def summarize(self, total: Totals) -> Metrics:
        """Return the mean and median angle in degrees, and the shares of pixels (0..1) below 11.25, 22.5 and 30."""
        pixels = total["pixels"]
        shares = {
            f"under {limit:g} deg": float(count / pixels)
            for limit, count in zip(_WITHIN_DEG, total["within"], strict=True)
        }
        return {"mean deg": float(total["degrees"] / pixels), "median deg": _median(total["histogram"]), **shares}

    def controls(self, data: ProbeData) -> Mapping[str, Scores]:
        """Return the scores of guessing the mean normal of the training part everywhere."""
        truth = {part: self._truth(data, part, torch.device("cpu")) for part in ("train", "held_out")}
        mean = _mean(truth["train"], data, "train").float()
        _mean(truth["held_out"], data, "held_out")
        batches = torch.arange(len(data.frames["held_out"])).split(32)
        errors = _score(lambda rows: mean.expand(len(rows), *data.size, 3).movedim(-1, 1), batches, truth["held_out"])
        return {"constant guess": by_group(*data.groups("held_out"), errors)}

    def plot(
        self, models: Mapping[str, FrozenModel], data: ProbeData, shown: Mapping[str, Tensor]
    ) -> "dict[str, Figure]":
        """Plot the normals that the heads predict."""
        truth = self._truth(data, "held_out", torch.device("cpu"))(rows_shown(data))
        return {"normals": plot_normals(images_shown(data), truth, {name: shown[name] for name in models})}

    def _truth(self, data: ProbeData, part: Part, device: torch.device) -> NormalsOf:
        if "normals" in data.parts[part].provides:
            normals = data.field(part, "normals")
            return lambda rows: normals.take(rows, device).float()
        depth, intrinsics = data.field(part, "depth"), data.field(part, "intrinsics")
        return lambda rows: normals_from_depth(depth.take(rows, device), intrinsics.take(rows, device), self.edge)


def angle_deg(predicted: Tensor, truth: Tensor) -> Tensor:
    """Return the angles between vectors in degrees.

    Args:
        predicted: Vectors [n, 3, ...] of any length; the angle of a zero vector is 90 degrees.
        truth: Vectors [n, 3, ...] of any length.
    """
    predicted, truth = F.normalize(predicted.float(), dim=1), F.normalize(truth.float(), dim=1)
    # The arc cosine loses half its digits near 0 and 180 degrees.
    sine = torch.linalg.cross(predicted, truth, dim=1).norm(dim=1)
    cosine = (predicted * truth).sum(1)
    return torch.where((sine == 0) & (cosine == 0), 90.0, torch.rad2deg(torch.atan2(sine, cosine)))


def _known(truth: Tensor) -> Tensor:
    return (truth != 0).any(1)


def _loss(predicted: Tensor, truth: Tensor) -> Tensor:
    known = _known(truth)
    distance = 1 - F.cosine_similarity(predicted, truth, dim=1, eps=1e-4)
    return (distance * known).sum() / known.sum().clamp_min(1)


def _mean(truth: NormalsOf, data: ProbeData, part: Part) -> Tensor:
    """Return the mean normal of a part, [3]; raise UserError if no normal is known."""
    total, count = torch.zeros(3, dtype=torch.float64), 0
    for rows in torch.arange(len(data.frames[part])).split(32):
        normals = truth(rows)
        total += normals.sum((0, 2, 3), dtype=torch.float64).cpu()
        count += int(_known(normals).sum())
    if not count:
        raise UserError(f"the {data.parts[part].spec.split} split has no pixel with a known normal", "data")
    return total / count


@torch.no_grad()
def _score(predict: NormalsOf, batches: Iterable[Tensor], truth: NormalsOf) -> dict[str, Tensor]:
    errors: dict[str, list[Tensor]] = {"pixels": [], "degrees": [], "within": [], "histogram": []}
    for rows in batches:
        normals = truth(rows)
        known = _known(normals)
        angles = angle_deg(predict(rows), normals)
        errors["pixels"].append(known.flatten(1).sum(1))
        errors["degrees"].append(torch.where(known, angles, 0).flatten(1).sum(1, dtype=torch.float64))
        under = (angles[..., None] < torch.tensor(_WITHIN_DEG, device=angles.device)) & known[..., None]
        errors["within"].append(under.flatten(1, 2).sum(1))
        errors["histogram"].append(_histogram(angles, known))
    return {name: torch.cat(parts) for name, parts in errors.items()}


def _histogram(angles: Tensor, known: Tensor) -> Tensor:
    bins = (angles * (_BINS / 180)).long().clamp(0, _BINS - 1)
    first = _BINS * torch.arange(len(angles), device=angles.device)[:, None, None]
    return torch.bincount((first + bins)[known], minlength=_BINS * len(angles)).view(len(angles), _BINS)


def _median(histogram: Tensor) -> float:
    """Return the median angle, assuming that pixels spread evenly within each bin of half a degree."""
    below = histogram.double().cumsum(0)
    half = below[-1] / 2
    index = int((below >= half).nonzero()[0])
    inside = float((half - (below[index] - histogram[index])) / histogram[index])
    return (index + inside) * 180 / _BINS
