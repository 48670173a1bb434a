"""Metric depth from frozen features: a linear head over depth bins."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from prior3d import Measured, Metrics, Part, Probe, Scores, Totals, UserError, by_group
from prior3d.losses import gradient_loss, scale_invariant_loss
from prior3d.probes import (
    Fitting,
    FrozenMaps,
    FrozenModel,
    LinearHead,
    MapKind,
    ProbeData,
    Schedule,
    images_shown,
    plot_depths,
    rows_shown,
    upsample,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_METRICS = {"RMSE m": "rmse", "AbsRel": "absolute relative", "log10": "log10", "delta1": "within 1.25"}


class Depth(Probe):
    """How much frozen features know about metric depth: the errors of a linear head over depth bins.

    The linear map gives one number for each of `bins` depths, evenly spaced from `min_depth` to `max_depth`. The
    predicted depth is their mean, weighted by the softmax of the numbers. It is upsampled bilinearly to the size of the
    truth and trained with the scale-invariant logarithmic loss and the gradient loss. It is scored without median
    scaling, flipping or cropping. Pixels whose true depth is unknown or out of range do not count. All metrics are
    computed by image and averaged over images, the convention since Eigen et al.; so RMSE is a mean of roots, not the
    root over all pixels. The control guesses the mean depth of the training part everywhere. Figures show all depths of
    an image in the range of its true depths; predictions beyond that range take the color of its nearer end, in figures
    only.

    Args:
        features: Which features to probe: the map of the backbone's decoder, or that of its encoder alone.
        min_depth: Depth of the nearest bin, meters.
        max_depth: Depth of the farthest bin, meters; farther pixels do not count.
        bins: Number of depth bins.
        gradient_weight: Weight of the gradient loss, which is added to the scale-invariant loss.
        steps: Optimizer steps of the head.
        batch: Images per step.
        lr: Highest learning rate of the head, for up to 64 channels (see `Schedule`).

    Raises:
        ValueError: The depth range is empty.

    Reference:
        Bins after AdaBins (Bhat et al., 2020, arXiv 2011.14141) with fixed, uniform centers; losses and 256 bins as in
        DINOv2 (Oquab et al., 2023, arXiv 2304.07193), which normalizes rectified numbers linearly. With the softmax, in
        contrast, no bin dies, and the head can express a depth that is linear in the features. Protocol of the metrics:
        Eigen et al., 2014, arXiv 1406.2283, without its crop.
    """

    needs = ("image", "depth")
    trains = True
    lower_is_better = frozenset({"RMSE m", "AbsRel", "log10"})
    seeded = True
    bounds = MappingProxyType(dict.fromkeys(("RMSE m", "AbsRel", "log10"), (0, math.inf)) | {"delta1": (0, 1)})
    meanings = MappingProxyType(
        {
            "RMSE m": "root of the mean squared error, meters",
            "AbsRel": "mean error as a share of the true depth",
            "log10": "mean error of the decimal logarithm: errors in factors, near and far alike",
            "delta1": "share of pixels within a factor of 1.25 of the true depth",
        }
    )

    def __init__(
        self,
        *,
        features: MapKind = "dense",
        min_depth: Annotated[float, Gt(0)] = 0.1,
        max_depth: Annotated[float, Gt(0)] = 10.0,
        bins: Annotated[int, Ge(2), Le(10**5)] = 256,
        gradient_weight: Annotated[float, Ge(0)] = 0.5,
        steps: Annotated[int, Ge(1), Le(10**7)] = 300,
        batch: Annotated[int, Ge(1), Le(10**5)] = 8,
        lr: Annotated[float, Gt(0)] = 0.01,
    ) -> None:
        if not min_depth < max_depth:
            raise ValueError(f"expected min_depth below max_depth, got {min_depth:g} and {max_depth:g}")
        self.features = features
        self.range = (min_depth, max_depth)
        self.bins = bins
        self._centers = torch.linspace(min_depth, max_depth, bins)
        self.gradient_weight = gradient_weight
        self.schedule = Schedule(steps, batch, lr)

    def measure(self, model: FrozenModel, data: ProbeData, seed: int = 0) -> Measured:
        """Return the number of images counted and the sums of their metrics, [G] each."""
        usual = (self._pixels_by_bin(data, "train") + 1).double().log()
        self._pixels_by_bin(data, "held_out")
        train = FrozenMaps(model, data, "train", self.features)
        held_out = FrozenMaps(model, data, "held_out", self.features)
        depth = data.field("train", "depth")
        fitting = Fitting("depth", usual, lambda rows: depth.take(rows, model.device), self._loss, self._expect)
        head = fitting.fit(train, self.schedule, seed)
        errors = self._score(head, held_out, data)
        size = data.field("held_out", "depth").shape[-2:]
        shown = upsample(head(held_out.take(rows_shown(data))), size)[:, 0].half().cpu()
        return Measured(by_group(*data.groups("held_out"), errors), shown)

    def summarize(self, total: Totals) -> Metrics:
        """Return means over images: RMSE in meters, relative error, log10 error, share within a factor of 1.25."""
        return {name: float(total[statistic] / total["images"]) for name, statistic in _METRICS.items()}

    def controls(self, data: ProbeData) -> Mapping[str, Scores]:
        """Return the scores of guessing the mean depth of the training part everywhere."""
        for part in ("train", "held_out"):
            self._pixels_by_bin(data, part)
        depth, total, count = data.field("train", "depth"), 0.0, 0
        for rows in torch.arange(len(depth)).split(64):
            values = depth.take(rows)
            known = values[self._known(values)]
            total, count = total + float(known.sum(dtype=torch.float64)), count + len(known)
        depth = data.field("held_out", "depth")
        errors = []
        for rows in torch.arange(len(depth)).split(64):
            truth = depth.take(rows)
            guess = torch.full(truth.shape, total / count, dtype=torch.float64)
            errors.append(depth_errors(guess, truth, self._known(truth)))
        found = {name: torch.cat([batch[name] for batch in errors]) for name in errors[0]}
        return {"constant guess": by_group(*data.groups("held_out"), found)}

    def plot(
        self, models: Mapping[str, FrozenModel], data: ProbeData, shown: Mapping[str, Tensor]
    ) -> "dict[str, Figure]":
        """Plot the depth that the heads predict, in the range of the true depth."""
        truth = data.field("held_out", "depth").take(rows_shown(data))
        return {"depth": plot_depths(images_shown(data), truth, {name: shown[name] for name in models})}

    def _expect(self, numbers: Tensor) -> Tensor:
        return numbers.softmax(-1) @ self._centers.to(numbers.device)[:, None]

    def _loss(self, predicted: Tensor, truth: Tensor) -> Tensor:
        known = self._known(truth)
        log_ratio = predicted[:, 0].log() - torch.where(known, truth, 1.0).log()
        loss = scale_invariant_loss(log_ratio, known)
        return loss + self.gradient_weight * gradient_loss(log_ratio, known)

    def _known(self, truth: Tensor) -> Tensor:
        return (truth >= self.range[0]) & (truth <= self.range[1])

    @torch.no_grad()
    def _score(self, head: LinearHead, held_out: FrozenMaps, data: ProbeData) -> dict[str, Tensor]:
        depth = data.field("held_out", "depth")
        size = depth.shape[-2:]
        cells = held_out.size[0] * held_out.size[1]
        errors = []
        for rows in held_out.batches(max(self.bins * cells, size[0] * size[1])):
            truth = depth.take(rows, held_out.device)
            predicted = upsample(head(held_out.take(rows)), size)[:, 0]
            errors.append(depth_errors(predicted, truth, self._known(truth)))
        return {name: torch.cat([batch[name] for batch in errors]) for name in errors[0]}

    def _pixels_by_bin(self, data: ProbeData, part: Part) -> Tensor:
        """Count the pixels of a part nearest to each bin, [bins]; raise UserError if there are none."""
        depth = data.field(part, "depth")
        edges = (self._centers[1:] + self._centers[:-1]) / 2
        counts = torch.zeros(self.bins, dtype=torch.int64)
        low, high = math.inf, 0.0
        for rows in torch.arange(len(depth)).split(64):
            values = depth.take(rows)
            counts += torch.bincount(torch.bucketize(values[self._known(values)], edges), minlength=self.bins)
            measured = values[values > 0]
            if len(measured):
                low, high = min(low, float(measured.min())), max(high, float(measured.max()))
        if not counts.any():
            found = f"it runs from {low:g} to {high:g} m" if high else "all of it is unknown"
            raise UserError(
                f"the {data.parts[part].spec.split} split has no depth from {self.range[0]:g} to {self.range[1]:g} m,"
                f" {found}: check the data's unit, min_depth and max_depth",
                "data",
            )
        return counts


def depth_errors(predicted: Tensor, truth: Tensor, known: Tensor) -> dict[str, Tensor]:
    """Return each image's errors over its known pixels, and whether it has any: a dict of name to [n] float64.

    Args:
        predicted: Predicted depth [n, H, W], meters, above 0.
        truth: True depth [n, H, W], meters.
        known: Mask [n, H, W] bool of the pixels that count.
    """
    count = known.flatten(1).sum(1)
    truth = torch.where(known, truth, 1.0).double()
    predicted = torch.where(known, predicted, 1.0).double()

    def mean(values: Tensor) -> Tensor:
        return torch.where(known, values, 0).flatten(1).sum(1) / count.clamp_min(1)

    ratio = predicted / truth
    return {
        "images": (count > 0).double(),
        "rmse": mean((predicted - truth).square()).sqrt(),
        "absolute relative": mean((predicted - truth).abs() / truth),
        "log10": mean(ratio.log10().abs()),
        "within 1.25": mean((torch.maximum(ratio, 1 / ratio) < 1.25).double()),
    }
