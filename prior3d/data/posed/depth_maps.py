"""Depth maps of a scene in memory, in half the bytes where that is exact, and brought to one size."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_MILLIMETERS = np.float32(1000)


class DepthMaps(Sequence[Tensor]):
    """Depth maps [H, W] of one scene, float32 meters; whole millimeters, which most sensors measure, take two bytes.

    What is kept is checked for each map: reading returns the very numbers that were added.

    >>> maps = DepthMaps()
    >>> maps.append(np.array([[1.5, 0.123]], np.float32))
    >>> maps[0], maps.bytes
    (tensor([[1.5000, 0.1230]]), 4)
    """

    def __init__(self) -> None:
        self._maps: list[np.ndarray] = []

    def append(self, depth: np.ndarray) -> None:
        """Add a map [H, W] in meters."""
        depth = np.ascontiguousarray(depth, np.float32)
        with np.errstate(invalid="ignore"):  # what is no millimeter is found below
            codes = np.rint(depth * _MILLIMETERS).astype(np.uint16)
        self._maps.append(codes if np.array_equal(codes / _MILLIMETERS, depth) else depth)

    def __len__(self) -> int:
        return len(self._maps)

    def __getitem__(self, index: int) -> Tensor:
        kept = self._maps[index]
        return torch.from_numpy(kept / _MILLIMETERS if kept.dtype == np.uint16 else kept)

    @property
    def sizes(self) -> dict[tuple[int, int], int]:
        """Number of maps by their height and width."""
        return dict(Counter(kept.shape for kept in self._maps))

    @property
    def bytes(self) -> int:
        """Bytes that all maps take."""
        return sum(kept.nbytes for kept in self._maps)


def at_one_size(maps: DepthMaps, intrinsics: Sequence[Tensor]) -> tuple[DepthMaps, Sequence[Tensor]]:
    """Return maps of one size and their intrinsics: the size of most maps; of equally many, the largest.

    The others are resampled to it over their whole field of view, also from portrait to landscape: their pixels then
    are not square, which geometry does not mind. Each pixel takes the nearest value.

    Args:
        maps: Depth maps of any sizes.
        intrinsics: A matrix [3, 3] for each map, in its pixels.
    """
    sizes = maps.sizes
    if len(sizes) < 2:
        return maps, intrinsics
    size = max(sizes, key=lambda one: (sizes[one], one[0] * one[1], one))
    resampled, scaled = DepthMaps(), []
    for depth, matrix in zip(maps, intrinsics, strict=True):
        row, column = (
            ((torch.arange(new) + 0.5) * (old / new)).long() for new, old in zip(size, depth.shape, strict=True)
        )
        resampled.append(depth[row[:, None], column].numpy())
        ratio = torch.tensor([size[1] / depth.shape[1], size[0] / depth.shape[0], 1.0], dtype=matrix.dtype)
        scaled.append(ratio[:, None] * matrix)
    return resampled, scaled
