"""The contract of a probe: what it measures of a frozen model, and against which controls.

A probe's file imports from `prior3d` and from `prior3d.probes`, which holds the parts that probes are made of: frozen
features, linear heads, logistic regression, neighbours, labels, figures.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from prior3d.contracts.dataset import Dataset
from prior3d.contracts.scores import Metrics, Scores, Totals, by_group
from prior3d.errors import DoesNotFit

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
    "by_group",
    "measured",
    "metrics_of",
]

Part = Literal["train", "held_out"]
"""Of the data: what heads are fitted to, and what they are measured on."""

FeatureKind = Literal["dense", "encoder", "pooled"]
"""dense: the decoder's map, or the encoder's last one; encoder: all of the encoder's maps, brought to one stride and
concatenated, no decoder; pooled: one vector per image."""


class MeasuredModel(Protocol):
    """A frozen model as a probe sees it; `prior3d.probes.FrozenModel` is one.

    Attributes:
        device: where it is, and images have to be.
        classify: images [N, 3, H, W] in 0..1 to the logits of the checkpoint's own classifier, if it has one.
    """

    device: "torch.device"
    classify: Any

    def read(self, images: "Tensor", kind: FeatureKind = "dense") -> "tuple[Tensor, ...]":
        """Return the features of images [N, 3, H, W] in 0..1, one part per backbone."""
        ...

    def trainable(self) -> "list[nn.Module]":
        """Return copies of the backbones whose every parameter may be trained."""
        ...


class MeasuredData(Protocol):
    """What a probe is measured on; `prior3d.probes.ProbeData` is it.

    Attributes:
        parts: the datasets.
        frames: scene and frame of each image of a part, in order.
        size: height and width of the images, pixels.
    """

    parts: Mapping[Part, Dataset]
    frames: Mapping[Part, Sequence[tuple[int, int]]]
    size: tuple[int, int]

    def groups(self, part: Part) -> "tuple[list[str], Tensor]":
        """Return names of groups and the group [N] of each image: scenes where there are several, else images."""
        ...

    def batches(self, part: Part, fields: frozenset[str], batch: int = 32) -> "Iterator[dict[str, Tensor]]":
        """Yield fields [n, ...] of the images of a part, in order."""
        ...

    def field(self, part: Part, name: str) -> Any:
        """Return one field of all images of a part, an array [N, ...] with `take(rows, device)`."""
        ...

    def features(self, model: MeasuredModel, part: Part, kind: FeatureKind = "dense") -> tuple[Any, ...]:
        """Return the features of a model for all images of a part, one array [N, C, h, w] or [N, C] per backbone."""
        ...

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what a probe reads or computes once for all models on this data."""
        ...


@dataclass(frozen=True)
class Measured:
    """What a measurement returns beside its scores, where the probe makes figures.

    Attributes:
        scores: what is kept and compared.
        shown: what `Probe.plot` needs to show this model, such as its predictions for a few images; on the CPU, small.
    """

    scores: Scores
    shown: Any = None


class Probe(ABC):
    """A measurement; subclasses take typed keyword options, which are the schema of the recipe's section.

    A probe keeps nothing from one measurement to the next: what `plot` needs, `measure` returns.

    Errors that a user can mend are `UserError` with the name of an option of the probe, or with `data`, or an option
    of the data such as `data.root`.

    Attributes:
        needs: fields the data must provide; "a|b" means that either will do.
        trains: whether it fits anything to the labels of the data's training part (a head, a memory of neighbours).
        views: views per sample the data is prepared for; 2 where it reads the mined pairs.
        lower_is_better: metrics of which less is better.
        bounds: least and greatest possible value of a metric, or of those whose names begin alike; others are free.
        seeded: whether another seed gives another result, as where a head is initialized or labels are chosen.
        needs_classifier: whether it asks for the classifier that a model's weights came with; models side by side,
            which have none together, are then left out.
        meanings: a metric, or what the names of several begin with, to a line for readers on what it says.
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
        """Measure a model; with equal seeds the same choices are made for every model.

        Args:
            model: never changed.
            data: what it is measured on; features and labels that were read once are kept there.
            seed: of whatever the probe draws.

        Returns:
            The scores; with what `plot` shows, if it shows anything.
        """

    @abstractmethod
    def summarise(self, total: Totals) -> Metrics:
        """Return the metrics that follow from statistics summed over groups."""

    def check(self, backbone: "nn.Module", trains: bool = False) -> None:
        """Refuse a model that cannot be measured, before anything is.

        Args:
            backbone: a `prior3d.backbone.Backbone` that will be measured.
            trains: whether its encoder is trained first.

        Raises:
            UserError: with the name of the probe's option that does not fit.
        """
        return

    def check_data(self, parts: Mapping[Part, Dataset]) -> None:
        """Refuse data that have the fields and yet say nothing to this probe; none of them is read.

        Args:
            parts: what it would be measured on, not prepared yet.

        Raises:
            DoesNotFit: with the key of the data that does not fit, such as `data.root`; the probe is then left out
                where nobody asked for it by name.
            UserError: an option of the probe that is wrong by itself.
        """
        return

    def files(self) -> Sequence[Path]:
        """Return files it reads beside its data; it measures again when they change."""
        return ()

    def controls(self, data: MeasuredData) -> Mapping[str, Scores]:
        """Measure what needs no model at all (a constant guess, position, raw pixels), by name of the control.

        A model that is no better than a control has learned nothing that this probe can see, and the report says so.
        """
        return {}

    def plot(
        self, models: Mapping[str, MeasuredModel], data: MeasuredData, shown: Mapping[str, Any]
    ) -> "Mapping[str, Figure]":
        """Plot what the models get right and wrong, side by side on the same images; by name of the figure.

        Args:
            models: by name, in the order of the columns.
            data: what they were measured on.
            shown: by name, what `measure` returned to be shown; of several seeds, the first one's.
        """
        return {}


def measured(found: Scores | Measured) -> Measured:
    """Return what a probe's `measure` returned in its longer form."""
    return found if isinstance(found, Measured) else Measured(found)


def metrics_of(probe: Probe, scores: Scores | Measured | Sequence[Scores]) -> dict[str, float]:
    """Return a probe's metrics, the mean over seeds where there are several."""
    several = [measured(scores).scores] if isinstance(scores, Scores | Measured) else list(scores)
    found = [probe.summarise(one.total()) for one in several]
    return {name: sum(metrics[name] for metrics in found) / len(found) for name in found[0]}
