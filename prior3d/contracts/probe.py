"""The contract of a probe: what it measures of a frozen model, and against which controls."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

from prior3d.contracts.scores import Metrics, Scores, Totals

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from prior3d.backbone import Backbone
    from prior3d.contracts.dataset import Dataset
    from prior3d.probes.models import FrozenModel
    from prior3d.probes.probe_data import Part, ProbeData


class Probe(ABC):
    """A measurement; subclasses take typed keyword options, which are the schema of the recipe's section.

    Attributes:
        needs: fields the data must provide; "a|b" means that either will do.
        trains: whether it fits anything to the labels of the data's training part (a head, a memory of neighbours).
        views: views per sample the data is prepared for; 2 where it reads the mined pairs.
        lower_is_better: metrics of which less is better.
        seeded: whether another seed gives another result, as where a head is initialised or labels are chosen.
        needs_classifier: whether it asks for the classifier that a model's weights came with; models side by side,
            which have none together, are then left out.
        meanings: a metric, or what the names of several begin with, to a line for readers on what it says.
    """

    contract: ClassVar[int] = 1
    needs: tuple[str, ...] = ("image",)
    trains: bool = False
    views: int = 1
    lower_is_better: frozenset[str] = frozenset()
    seeded: bool = False
    needs_classifier: bool = False
    meanings: Mapping[str, str] = MappingProxyType({})

    @abstractmethod
    def measure(self, model: "FrozenModel", data: "ProbeData", seed: int = 0) -> Scores:
        """Measure a model; with equal seeds the same choices are made for every model.

        Args:
            model: never changed.
            data: what it is measured on; features and labels that were read once are kept there.
            seed: of whatever the probe draws.
        """

    @abstractmethod
    def summarise(self, total: Totals) -> Metrics:
        """Return the metrics that follow from statistics summed over groups."""

    def check(self, backbone: "Backbone", trains: bool = False) -> None:
        """Refuse a model that cannot be measured, before anything is.

        Args:
            backbone: one of those that will be measured.
            trains: whether its encoder is trained first.

        Raises:
            UserError: with the name of the probe's option that does not fit.
        """
        return

    def check_data(self, parts: "Mapping[Part, Dataset]") -> None:
        """Refuse data that have the fields and yet say nothing to this probe; none of them is read.

        Args:
            parts: what it would be measured on, not prepared yet.

        Raises:
            UserError: with the key of the data that does not fit, such as `data.root`.
        """
        return

    def files(self) -> Sequence[Path]:
        """Return files it reads beside its data; scores are measured anew when they change."""
        return ()

    def controls(self, data: "ProbeData") -> Mapping[str, Scores]:
        """Measure what needs no model at all (position, raw pixels), by name of the control."""
        return {}

    def draw(self, models: Mapping[str, "FrozenModel"], data: "ProbeData") -> Mapping[str, "Figure"]:
        """Draw what the models get right and wrong, side by side on the same images; by name of the figure."""
        return {}


def metrics_of(probe: Probe, scores: Scores | Sequence[Scores]) -> dict[str, float]:
    """Return a probe's metrics, the mean over seeds where there are several."""
    several = [scores] if isinstance(scores, Scores) else list(scores)
    found = [probe.summarise(one.total()) for one in several]
    return {name: sum(metrics[name] for metrics in found) / len(found) for name in found[0]}
