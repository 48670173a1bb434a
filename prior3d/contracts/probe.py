"""The contract of a probe: what it measures about a frozen model, and against which controls.

A probe's file imports from `prior3d` and from `prior3d.probes`, which holds the building blocks of probes: frozen
features, linear heads, logistic regression, neighbors, labels, figures.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from prior3d.contracts.dataset import Dataset
from prior3d.contracts.scores import Metrics, Scores, Totals, by_group
from prior3d.errors import DoesNotFit, UserError

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure
    from torch import Tensor, nn

__all__ = [
    "DoesNotFit",
    "Measured",
    "MeasuredData",
    "MeasuredModel",
    "Metrics",
    "Part",
    "Probe",
    "Scores",
    "Totals",
    "bounds_of",
    "by_group",
    "measured",
    "metrics_of",
]

Part = Literal["train", "held_out"]
"""Parts of the data: the one that heads are fitted to, and the one that they are measured on."""

FeatureKind = Literal["dense", "encoder", "pooled"]
"""dense: the decoder's map, or else the encoder's last map. encoder: all of the encoder's maps, resized to one stride
and concatenated, without the decoder. pooled: one vector per image."""


class MeasuredModel(Protocol):
    """The frozen model that a probe measures; `prior3d.probes.FrozenModel` implements it.

    Attributes:
        device: device of the model; images must be on it.
        classify: function from images [N, 3, H, W] in 0..1 to the logits of the checkpoint's own classifier, if it has
            one.
    """

    device: "torch.device"
    classify: Any

    def read(self, images: "Tensor", kind: FeatureKind = "dense") -> "tuple[Tensor, ...]":
        """Return the features of images [N, 3, H, W] in 0..1, one part per backbone."""
        ...

    def trainable(self) -> "list[nn.Module]":
        """Return copies of the backbones with all parameters trainable."""
        ...


class MeasuredData(Protocol):
    """The data that a probe measures on; `prior3d.probes.ProbeData` implements it.

    Attributes:
        parts: the datasets.
        frames: scene and frame of each image of a part, in order.
        size: height and width of the images, pixels.
    """

    parts: Mapping[Part, Dataset]
    frames: Mapping[Part, Sequence[tuple[int, int]]]
    size: tuple[int, int]

    def groups(self, part: Part) -> "tuple[list[str], Tensor]":
        """Return the names of the groups and the group [N] of each image: scenes if there are several, else images."""
        ...

    def batches(self, part: Part, fields: frozenset[str], batch: int = 32) -> "Iterator[dict[str, Tensor]]":
        """Yield batches of fields [n, ...] of the images of a part, in order."""
        ...

    def field(self, part: Part, name: str) -> Any:
        """Return one field of all images of a part, an array [N, ...] with `take(rows, device)`."""
        ...

    def features(self, model: MeasuredModel, part: Part, kind: FeatureKind = "dense") -> tuple[Any, ...]:
        """Return the features of a model for all images of a part, one array [N, C, h, w] or [N, C] per backbone."""
        ...

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """Return a value that a probe reads or computes once for all models on this data."""
        ...


@dataclass(frozen=True)
class Measured:
    """Result of a measurement: scores and, if the probe makes figures, the data to plot them.

    Attributes:
        scores: the scores that are stored and compared.
        shown: data that `Probe.plot` needs for this model, such as its predictions for a few images; small, on the CPU.
    """

    scores: Scores
    shown: Any = None


class Probe(ABC):
    """A measurement of a frozen model; subclasses take typed keyword options, which define the schema of their section.

    A probe keeps no state between measurements: `measure` returns everything that `plot` needs.

    Errors that a user can fix are `UserError` with the name of an option of the probe, with `data`, or with an option
    of the data such as `data.root`.

    Attributes:
        contract: version of this contract. A plugin that sets the number it was written for is refused, in one line, by
            a prior3d with another number.
        needs: fields the data must provide; "a|b" means that either one is enough.
        trains: whether it fits anything to the labels of the data's training part (a head, a memory of neighbors).
        views: views per sample that the data is prepared for; 2 if the probe reads the mined pairs.
        lower_is_better: metrics for which lower values are better.
        bounds: smallest and largest possible value of a metric, or of all metrics whose names share a prefix; others
            are unbounded.
        seeded: whether the result depends on the seed, for example because a head is initialized or labels are chosen.
        needs_classifier: whether it needs the classifier that came with a model's weights; concatenated models, which
            have no common classifier, are then left out.
        meanings: a metric, or a prefix of several metrics, to a line that explains it to readers.
    """

    contract: ClassVar[int] = 1
    needs: tuple[str, ...] = ("image",)
    trains: bool = False
    views: int = 1
    lower_is_better: frozenset[str] = frozenset()
    bounds: Mapping[str, tuple[float, float]] = MappingProxyType({})
    seeded: bool = False
    needs_classifier: bool = False
    meanings: Mapping[str, str] = MappingProxyType({})

    @abstractmethod
    def measure(self, model: MeasuredModel, data: MeasuredData, seed: int = 0) -> Scores | Measured:
        """Measure a model; equal seeds give the same choices for every model.

        Args:
            model: the frozen model; it must not be changed.
            data: data to measure on; it caches features and labels once they are read.
            seed: seed of everything random in the measurement.

        Returns:
            The scores, together with the data for `plot` if the probe makes figures.
        """

    @abstractmethod
    def summarize(self, total: Totals) -> Metrics:
        """Compute the metrics from statistics summed over groups."""

    def check(self, backbone: "nn.Module", trains: bool = False) -> None:
        """Reject a model that cannot be measured, before any measurement starts.

        Args:
            backbone: the `prior3d.backbone.Backbone` to measure.
            trains: whether its encoder is trained before the measurement.

        Raises:
            UserError: the model does not fit; the key is the name of the probe's option that conflicts.
        """
        return

    def check_data(self, parts: Mapping[Part, Dataset]) -> None:
        """Reject data that have the required fields but are useless to this probe; no data are read.

        Args:
            parts: the datasets it would be measured on, not prepared yet.

        Raises:
            DoesNotFit: the data do not fit; the key is that of the data, such as `data.root`. The probe is then left
                out unless the user asked for it by name.
            UserError: an option of the probe is wrong by itself.
        """
        return

    def files(self) -> Sequence[Path]:
        """Return the files it reads in addition to its data; the probe measures again when they change."""
        return ()

    def controls(self, data: MeasuredData) -> Mapping[str, Scores]:
        """Measure baselines that need no model (a constant guess, position, raw pixels), by name of the control.

        A model that is no better than a control has learned nothing that this probe can measure; the report states
        this.
        """
        return {}

    def plot(
        self, models: Mapping[str, MeasuredModel], data: MeasuredData, shown: Mapping[str, Any]
    ) -> "Mapping[str, Figure]":
        """Return figures, by name, that compare what the models get right and wrong on the same images.

        Args:
            models: models by name, in the order of the columns.
            data: the data they were measured on.
            shown: by model name, the `shown` data that `measure` returned; with several seeds, that of the first seed.
        """
        return {}


def measured(found: Scores | Measured) -> Measured:
    """Return the result of a probe's `measure` as a `Measured`.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(found, Scores | Measured):
        kind = type(found).__name__
        raise UserError(f"measure returned {kind}, expected Scores, as by_group makes them, or Measured")
    return found if isinstance(found, Measured) else Measured(found)


def bounds_of(probe: Probe, metric: str) -> tuple[float, float]:
    """Return the smallest and largest possible value of a metric, infinite where the probe declares none.

    Args:
        probe: the probe.
        metric: full name of one of its metrics.
    """
    declared = [bounds for begin, bounds in probe.bounds.items() if metric.startswith(begin)]
    return max((low for low, _ in declared), default=-math.inf), min((high for _, high in declared), default=math.inf)


def metrics_of(probe: Probe, scores: Scores | Measured | Sequence[Scores]) -> dict[str, float]:
    """Return a probe's metrics, averaged over seeds if there are several.

    Raises:
        UserError: the probe's `summarize` returned no mapping.
    """
    several = [measured(scores).scores] if isinstance(scores, Scores | Measured) else list(scores)
    found = [probe.summarize(one.total()) for one in several]
    if not isinstance(found[0], Mapping):
        kind = type(probe).__name__
        raise UserError(f"{kind}.summarize returned {type(found[0]).__name__}, expected a dict of metrics by name")
    return {name: sum(metrics[name] for metrics in found) / len(found) for name in found[0]}
