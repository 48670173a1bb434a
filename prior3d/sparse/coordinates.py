"""One level of a voxel grid: its occupied cells in a fixed row order, and the sorted order for lookups."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

Cell = tuple[int, int, int]
_MAX_KEY = 2**63 - 1


@dataclass(frozen=True)
class KeyBox:
    """A box of grid cells; every cell of every batch item inside it has a unique int64 key.

    Keys grow with (batch, z, y, x), x fastest, so a move by an offset adds one constant to every key: shifted queries
    stay sorted, and the cells of one kernel row are adjacent. Cells outside the box would alias.
    """

    low: Cell
    size: Cell

    @classmethod
    def around(cls, bounds: Sequence[tuple[Cell, Cell]], batch_size: int, margin: int) -> "KeyBox":
        """Return the box of all given inclusive (low, high) cell bounds, with `margin` spare cells on every side.

        Raises:
            ValueError: if the box has more cells than int64 can number.
        """
        low = tuple(min(b[0][axis] for b in bounds) - margin for axis in range(3))
        size = tuple(max(b[1][axis] for b in bounds) + margin + 1 - low[axis] for axis in range(3))
        # Two spare batch items: interpolation queries items just before and after the existing ones.
        if (batch_size + 2) * size[0] * size[1] * size[2] > _MAX_KEY:
            raise ValueError(f"expected coordinates within 2^63 cells, got {batch_size} items of {size} cells")
        return cls(low, size)

    def keys(self, cells: Tensor) -> Tensor:
        """Return the keys [N] of integer cells [N, 4] (batch, x, y, z)."""
        batch, x, y, z = cells.unbind(1)
        key = (batch.long() * self.size[2] + (z - self.low[2])) * self.size[1]
        return (key + (y - self.low[1])) * self.size[0] + (x - self.low[0])

    def shift(self, offset: Sequence[int]) -> int:
        """Return the constant that a move by `offset` (x, y, z) cells adds to every key."""
        return (offset[2] * self.size[1] + offset[1]) * self.size[0] + offset[0]


@dataclass(frozen=True, eq=False)
class CoordinateMap:
    """Unique voxel coordinates of one grid level, in the row order of its features.

    Coordinates are in units of the finest grid; at stride s they are multiples of s. `low` and `high` are inclusive
    bounds over all batch items, kept on the host, so lookups need no synchronization.
    """

    coordinates: Tensor  # [N, 4] int32: batch, x, y, z
    stride: int
    low: Cell
    high: Cell
    batch_size: int
    sorted_order: Tensor | None  # [N] rows by (batch, z, y, x); None if the rows already are in that order
    curved: bool = False  # rows follow a Z-order curve, and `order` is found when it is needed

    @cached_property
    def order(self) -> Tensor | None:
        """Rows [N] by (batch, z, y, x); None if they already are in that order."""
        return packed_keys(self.coordinates)[0].argsort() if self.curved else self.sorted_order

    @property
    def near(self) -> Tensor | None:
        """Rows [N] in an order that keeps near voxels together; None if they already are."""
        return None if self.curved else self.sorted_order

    def __len__(self) -> int:
        """Number of occupied voxels."""
        return len(self.coordinates)

    def bounds(self, unit: int) -> tuple[Cell, Cell]:
        """Return inclusive (low, high) bounds in cells of `unit` finest voxels."""
        return tuple(c // unit for c in self.low), tuple(c // unit for c in self.high)

    def sorted_cells(self, unit: int) -> Tensor:
        """Return cells [N, 4] int64 in units of `unit` finest voxels, by (batch, z, y, x)."""
        cells = (self.coordinates if self.order is None else self.coordinates[self.order]).long()
        return _to_cells(cells, unit)

    def rows(self, sorted_rows: Tensor) -> Tensor:
        """Return the row numbers of voxels at given places in the sorted order."""
        return sorted_rows.long() if self.order is None else self.order[sorted_rows]

    def coarser(self, factor: int) -> "CoordinateMap":
        """Return the cells of a grid `factor` times coarser: the unique floors of coordinates, for any kernel size."""
        stride = self.stride * factor
        return self._unique(_to_cells(self.coordinates.long(), stride), stride)

    def finer(self, factor: int, offsets: Tensor) -> "CoordinateMap":
        """Return every cell of a grid `factor` times finer that `offsets` [K, 3] reach from a voxel (generative)."""
        stride = self.stride // factor
        cells = _to_cells(self.coordinates.long(), stride).repeat(len(offsets), 1)
        cells[:, 1:] += offsets.to(cells).repeat_interleave(len(self), dim=0)
        return self._unique(cells, stride, margin=int(offsets.abs().max()))

    def _unique(self, cells: Tensor, stride: int, margin: int = 0) -> "CoordinateMap":
        order, first = self._sorted(cells, stride, margin)
        return self._of(cells[order[first]], stride, margin)

    def _sorted(self, cells: Tensor, stride: int, margin: int) -> tuple[Tensor, Tensor]:
        """Return the order of cells by (batch, z, y, x), and which of them are the first of their kind."""
        low, high = self.bounds(stride)
        box = KeyBox.around([(low, high)], self.batch_size, margin)
        keys, order = box.keys(cells).sort()
        first = torch.ones_like(keys, dtype=torch.bool)
        first[1:] = keys[1:] != keys[:-1]
        return order, first

    def _of(self, cells: Tensor, stride: int, margin: int) -> "CoordinateMap":
        """Return the map of unique sorted cells, whose tensor it takes over."""
        cells[:, 1:] *= stride
        low, high = self.bounds(stride)
        low, high = (tuple((c + m) * stride for c in side) for side, m in ((low, -margin), (high, margin)))
        return CoordinateMap(cells.int(), stride, low, high, self.batch_size, None)


def coarsen(level: CoordinateMap, factors: Sequence[int]) -> list[CoordinateMap]:
    """Return the grids of several factors that `CoordinateMap.coarser` makes, with one host synchronization in all.

    On a GPU that is faster than one by one: there, each number of cells has to reach the host first.
    """
    strides = [level.stride * factor for factor in factors]
    cells = [_to_cells(level.coordinates.long(), stride) for stride in strides]
    found = [level._sorted(own, stride, 0) for own, stride in zip(cells, strides, strict=True)]
    sizes = torch.stack([first.sum() for _, first in found]).tolist()
    # With the sizes known, no selection synchronizes once more.
    firsts = [torch.nonzero_static(first, size=size)[:, 0] for (_, first), size in zip(found, sizes, strict=True)]
    return [
        level._of(own[order[first]], stride, 0)
        for own, stride, (order, _), first in zip(cells, strides, found, firsts, strict=True)
    ]


def coordinate_map(coordinates: Tensor, stride: int = 1, batch_size: int | None = None) -> CoordinateMap:
    """Check and sort voxel coordinates, with the only host synchronization of a new sparse tensor.

    Args:
        coordinates: [N, 4] int32 voxels (batch, x, y, z) in units of the finest grid, unique; negative ones are legal.
        stride: edge of one voxel in units of the finest grid; every coordinate is a multiple of it.
        batch_size: number of batch items, needed if the last ones may be empty; None infers it from the coordinates.

    Raises:
        ValueError: if the shape or dtype is wrong, or there are duplicates, negative batch indices, or coordinates off
            the grid.
    """
    if coordinates.ndim != 2 or coordinates.shape[1] != 4 or coordinates.dtype != torch.int32:
        raise ValueError(f"expected int32 coordinates [N, 4], got {coordinates.dtype} {list(coordinates.shape)}")
    if len(coordinates) == 0:
        return CoordinateMap(coordinates, stride, (0, 0, 0), (0, 0, 0), batch_size or 0, None)
    keys, low, high = packed_keys(coordinates)
    keys, order = keys.sort()
    duplicates = (keys[1:] == keys[:-1]).sum()
    off_grid = (coordinates[:, 1:] % stride != 0).any()
    *bounds, duplicates, off_grid = torch.cat([low, high, torch.stack([duplicates, off_grid.long()])]).tolist()
    items = bounds[4] + 1
    if bounds[0] < 0:
        raise ValueError(f"expected batch indices of 0 or more in the first column, got {bounds[0]}")
    if batch_size is not None and items > batch_size:
        raise ValueError(f"expected batch indices below batch_size {batch_size}, got {items - 1}")
    if off_grid:
        raise ValueError(f"expected coordinates that are multiples of the stride {stride}, got others")
    low, high = tuple(bounds[1:4]), tuple(bounds[5:8])
    KeyBox.around([(low, high)], items, 0)  # before `duplicates` is trusted: keys of an oversized box alias
    if duplicates:
        raise ValueError(f"expected unique coordinates, got {duplicates} duplicates (see merge_duplicates)")
    return CoordinateMap(coordinates, stride, low, high, batch_size or items, order)


def to_host(values: Tensor) -> Callable[[], list[int]]:
    """Start to copy a small tensor to the host; return a function that waits for the copy and returns its values.

    >>> to_host(torch.tensor([1, 2]))()
    [1, 2]
    """
    if values.device.type != "cuda":
        return values.tolist
    copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    copy.copy_(values, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(values.device))

    def read() -> list[int]:
        arrived.synchronize()
        return copy.tolist()

    return read


def to_device(values: Sequence[int], device: torch.device) -> Tensor:
    """Return numbers [N] int64 on a device; the host does not wait for a GPU that still has work to do.

    >>> to_device([1, 2], torch.device("cpu"))
    tensor([1, 2])
    """
    if device.type != "cuda":
        return torch.tensor(values, device=device)
    return torch.tensor(values, pin_memory=True).to(device, non_blocking=True)


def packed_keys(coordinates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return keys [N] that order coordinates [N, 4] by (batch, z, y, x), without sending their bounds to the host.

    Returns:
        The keys, and the inclusive bounds low [4] and high [4], all int64. If the bounding box has 2^63 cells or more,
        the keys are not distinct; the caller checks that with `KeyBox.around` once the bounds are on the host.
    """
    low, high = (c.long() for c in coordinates.aminmax(dim=0))
    size = high - low + 1
    batch, x, y, z = (coordinates - low).unbind(1)
    return ((batch * size[3] + z) * size[2] + y) * size[1] + x, low, high


def _to_cells(coordinates: Tensor, unit: int) -> Tensor:
    """Divide the spatial columns by integer floor division: exact for any int32, where float32 fails above 2^24."""
    if unit != 1:
        coordinates = torch.cat([coordinates[:, :1], coordinates[:, 1:].div(unit, rounding_mode="floor")], dim=1)
    return coordinates
