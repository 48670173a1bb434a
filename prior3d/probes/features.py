"""Frozen features of one part of the data: maps or vectors, read by row, and the statistics to standardize them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from prior3d.contracts.probe import Part
from prior3d.probes.models import FrozenModel, concatenate
from prior3d.probes.probe_data import Array, ProbeData
from prior3d.randomness import generator

MapKind = Literal["dense", "encoder"]
"""Features with one vector per cell of the image: see `prior3d.contracts.probe.FeatureKind`."""

_NUMBERS = 2**25
"""Largest number of values in a prediction at full resolution: 128 MiB."""

_ROUNDING = 1e-4
"""Half precision has 11 bits: a channel that varies by less than this share of its mean holds only rounding."""


class FrozenVectors:
    """One vector per image, concatenated over backbones; rows are moved to the device.

    Args:
        model: Model with the features.
        data: Data with the images.
        part: Part of the data.
    """

    def __init__(self, model: FrozenModel, data: ProbeData, part: Part) -> None:
        self._hold(model, data.features(model, part, "pooled"))

    def _hold(self, model: FrozenModel, parts: tuple[Array, ...]) -> None:
        self.device = model.device
        self._parts = parts
        self.channels = sum(part.shape[1] for part in parts)

    def __len__(self) -> int:
        return len(self._parts[0])

    def take(self, rows: Tensor, unit_length: bool = False) -> Tensor:
        """Return the features of images, [n, C] or [n, C, h, w], in float32, with unit length per cell if requested.

        Args:
            rows: Images [n] int64.
            unit_length: See `concatenate`.
        """
        return concatenate([part.take(rows, self.device).float() for part in self._parts], unit_length)


class FrozenMaps(FrozenVectors):
    """One map per image, concatenated over backbones; rows are moved to the device.

    Args:
        model: Model with the features.
        data: Data with the images.
        part: Part of the data.
        kind: Type of maps.
    """

    def __init__(self, model: FrozenModel, data: ProbeData, part: Part, kind: MapKind) -> None:
        self._hold(model, data.features(model, part, kind))
        self.size: tuple[int, int] = self._parts[0].shape[-2:]

    def batches(self, numbers_each: int) -> Iterator[Tensor]:
        """Yield the rows of all images in order, in batches that fit in memory at this many numbers per image."""
        yield from torch.arange(len(self)).split(max(1, min(64, _NUMBERS // numbers_each)))


@dataclass(frozen=True)
class Standardization:
    """Channels minus their mean, divided by their spread; constant channels carry no information and become 0.

    Attributes:
        mean: Mean [C] float32.
        scale: Reciprocal [C] float32 of the standard deviation, 0 for a constant channel.
    """

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, mean: Tensor, std: Tensor) -> "Standardization":
        """Return the standardization from mean and standard deviation, [C] each.

        >>> Standardization.of(torch.tensor([1.0, 1.0]), torch.tensor([0.5, 1e-6])).scale
        tensor([2., 0.])
        """
        varies = std > _ROUNDING * mean.abs() + 1e-30
        return cls(mean.float(), torch.where(varies, 1 / std, 0).float())

    def __call__(self, values: Tensor) -> Tensor:
        """Standardize values [..., C]."""
        return (values - self.mean) * self.scale


def evenly_spaced(count: int, most: int) -> Tensor:
    """Return the indices of `count` items, or of `most` of them, evenly spaced from the first to the last.

    >>> evenly_spaced(10, 4).tolist()
    [0, 3, 6, 9]
    """
    return torch.linspace(0, count - 1, min(most, count)).round().long()


def mixed_batches(
    images: Array,
    device: str | torch.device = "cpu",
    *,
    stream: str,
    most: int | None = None,
    size: int = 64,
    even: bool = True,
) -> Iterator[Tensor]:
    """Yield images in random order, since batches of one scene or class vary less than the data does.

    Statistics of BatchNorm layers are averages over batches; they would lose variation that is only between batches.

    Args:
        images: Images [N, 3, H, W] uint8.
        device: Device to move them to.
        stream: Name of the random stream that sets the order.
        most: Largest number of images, evenly spaced; None for all.
        size: Images per batch.
        even: Make batches of equal size, so none has only a few images; otherwise the last one is the rest.
    """
    rows = torch.arange(len(images)) if most is None else evenly_spaced(len(images), most)
    rows = rows[torch.randperm(len(rows), generator=generator(stream))]
    for chosen in rows.tensor_split(max(1, len(rows) // size)) if even else rows.split(size):
        yield images.take(chosen, device).float() / 255
