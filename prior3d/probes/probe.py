"""The contract of a probe: what it measures of a frozen model, and against which controls."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prior3d.data.dataset import Dataset, Split

Metrics = Mapping[str, float]
"""Metric name, unit included, to value; higher is better unless the probe says otherwise."""


@dataclass(frozen=True)
class FrozenModel:
    """A model as probes see it: images [N, 3, H, W] in 0..1 to dense features [N, C, h, w].

    Attributes:
        encode: the function; runs without gradients, on `device`.
        device: where images have to be.
    """

    encode: Callable[[Tensor], Tensor]
    device: str


class Probe(ABC):
    """A measurement; subclasses take typed keyword options, which are the schema of the recipe's section.

    Attributes:
        needs: fields the data must provide.
        split: the part of the data it is measured on, kept apart from training.
        views: views per sample the data is prepared for; 2 where it reads the mined pairs.
    """

    contract: ClassVar[int] = 1
    needs: tuple[str, ...] = ("image",)
    split: Split = "test"
    views: int = 1

    @abstractmethod
    def measure(self, model: FrozenModel, data: Dataset) -> Metrics:
        """Measure a model on prepared data; the same choices are made for every model."""

    def controls(self, data: Dataset) -> Mapping[str, Metrics]:
        """Measure what needs no model at all (position, raw pixels), by name of the control."""
        return {}
