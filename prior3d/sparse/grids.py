"""Voxel grids of packed points on a GPU, with all levels and kernel maps of a network, at one wait for the device.

The same voxels and pairs as `sparse_quantize`, `SparseTensor` and `build_kernel_map` give, in another order of rows:
along a Z-order curve. One sort then serves every level, and near rows hold near voxels.
"""

import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from prior3d.contracts.kernel_map import KernelMap
from prior3d.sparse.coordinates import CoordinateMap, to_host
from prior3d.sparse.kernel_map import kernel_offsets
from prior3d.sparse.tensor import CoordinateManager, MapKey

_BLOCK = 256
_KEY_BITS = 62
_MOST_BITS = 20
"""Bits of one coordinate; 21 would be the most that a key can hold."""

_FIELDS = 5
"""Fields of a slot before its counts of earlier slots by level."""


def grids_in_one_pass(device: torch.device) -> bool:
    """Return whether `start_grid` works on a device: on CUDA with Triton.

    >>> grids_in_one_pass(torch.device("cpu"))
    False
    """
    return device.type == "cuda" and torch.version.hip is None and _has_triton()


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def start_grid(
    cells: Tensor,
    items: Tensor,
    batch_size: int,
    maps: Sequence[MapKey] = (),
    *,
    centers: Tensor | None = None,
    most: int | None = None,
) -> "PendingGrid":
    """Start to make the voxels of packed points and the kernel maps between their levels; nothing waits.

    Args:
        cells: [N, 3] int32 voxel of each point; negative ones are legal.
        items: [N] int32 batch item of each point; negative for a point that does not count.
        batch_size: number of batch items.
        maps: kernel maps to make, as `MinkUNet.kernel_maps` lists them; strides are powers of two.
        centers: [B, 3] float32 position in each item, in voxels, with `most`.
        most: maximum number of voxels per item; those nearest to its center stay.
    """
    from prior3d.sparse import grid_kernels as kernels

    device, count = cells.device, len(cells)
    plan = _plan(tuple(maps), device)
    bits = min(_MOST_BITS, (_KEY_BITS - batch_size.bit_length()) // 3)
    box = KeyRange(bits, 1 << (bits - 1), plan.margin)
    limited = most is not None and count > most
    capacity = min(count, batch_size * most) if limited else count
    blocks = _blocks(count)
    # One buffer of all numbers that the host reads: sizes of levels, pairs of each offset, points outside the box.
    numbers = torch.zeros(plan.levels + len(plan.counted) + 1, dtype=torch.int32, device=device)
    voxels = torch.empty(plan.levels, max(capacity, 1), dtype=torch.int64, device=device)
    coordinates = torch.empty(plan.levels, max(capacity, 1), 4, dtype=torch.int32, device=device)
    if count == 0:
        empty = torch.empty(0, dtype=torch.int64, device=device)
        return PendingGrid(plan, box, batch_size, (empty, empty, empty), voxels, coordinates, numbers)
    keys = torch.empty(count, dtype=torch.int64, device=device)
    kernels.cell_keys[(blocks,)](cells, items, keys, numbers[-1:], count, box.half, box.margin, BITS=bits, BLOCK=_BLOCK)
    keys, order = keys.sort()
    limits = centers
    if limited:
        limits = torch.empty(batch_size, 2, dtype=torch.int32, device=device)
        steps = count.bit_length()
        kernels.limit_items[(batch_size,)](
            keys, centers, limits, count, most, box.half, steps, BITS=bits, BLOCK=4 * _BLOCK, enable_fp_fusion=False
        )
    marks = torch.empty(count, dtype=torch.int32, device=device)
    spare = marks if centers is None else centers
    kernels.mark_voxels[(blocks,)](
        keys,
        spare,
        limits if limited else spare,
        marks,
        count,
        box.half,
        LIMITED=limited,
        BITS=bits,
        BLOCK=_BLOCK,
        enable_fp_fusion=False,  # both kernels compare the same distances, to the last bit
    )
    running = marks.cumsum(0, dtype=torch.int32)
    kernels.write_voxels[(blocks,)](
        keys, marks, running, voxels, coordinates, numbers, count, box.half, BITS=bits, BLOCK=_BLOCK
    )
    blocks = _blocks(capacity)
    if plan.levels > 1:
        marks = torch.empty((plan.levels - 1) * capacity, dtype=torch.int32, device=device)
        grid = (blocks, plan.levels - 1)
        kernels.mark_cells[grid](voxels, numbers, marks, capacity, BLOCK=_BLOCK)
        kernels.write_cells[grid](
            voxels,
            marks,
            marks.cumsum(0, dtype=torch.int32),
            coordinates,
            numbers,
            capacity,
            box.half,
            BITS=bits,
            BLOCK=_BLOCK,
        )
    if len(plan.counted):
        kernels.count_pairs[(blocks, len(plan.counted))](
            voxels,
            numbers,
            plan.counted,
            numbers[plan.levels :],
            capacity,
            capacity.bit_length(),
            WIDTH=plan.counted.shape[1],
            BITS=bits,
            BLOCK=_BLOCK,
        )
    return PendingGrid(plan, box, batch_size, (keys, order, running), voxels, coordinates, numbers)


class KeyRange(NamedTuple):
    """Cells that have a key: `bits` for each axis, shifted by `half`; none lies within `margin` of the border."""

    bits: int
    half: int
    margin: int


class PointGrid(NamedTuple):
    """Voxels of packed points.

    Attributes:
        manager: levels and kernel maps; level 1 has a row per voxel.
        batch_size: number of batch items.
        box: what keys mean.
        keys: [M] int64 sorted key of each voxel.
        points: keys of the points [N] int64 sorted, the point of each [N] int64, running numbers of voxels [N] int32.
    """

    manager: CoordinateManager
    batch_size: int
    box: KeyRange
    keys: Tensor
    points: tuple[Tensor, Tensor, Tensor]

    @property
    def coordinates(self) -> Tensor:
        """Voxels [M, 4] int32: batch, x, y, z."""
        return self.manager.levels[1].coordinates

    def rows_of_points(self) -> Tensor:
        """Return the voxel [N] int64 of each point; M for a point without one."""
        from prior3d.sparse import grid_kernels as kernels

        keys, order, running = self.points
        rows = torch.empty_like(order)
        kernels.rows_of_points[(_blocks(len(keys)),)](
            keys, order, running, self.keys, rows, len(keys), len(self.keys), BLOCK=_BLOCK
        )
        return rows

    def nearest(self, positions: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """Find the voxel that holds each position or, if that one is not occupied, the nearest of the 26 around it.

        Args:
            positions: [Q, 3] float32, in voxels.
            items: [Q] int64 batch item of each.

        Returns:
            [Q] int64 row of the voxel, -1 for none, and [Q] bool whether it holds the position.
        """
        from prior3d.sparse import grid_kernels as kernels

        rows = torch.empty(len(positions), dtype=torch.int64, device=positions.device)
        inside = torch.empty(len(positions), dtype=torch.int8, device=positions.device)
        if len(positions):
            kernels.nearest_voxels[(_blocks(len(positions), 128),)](
                self.keys,
                positions.contiguous(),
                items.contiguous(),
                rows,
                inside,
                len(positions),
                len(self.keys),
                self.box.half,
                self.box.margin,
                len(self.keys).bit_length(),
                BITS=self.box.bits,
                BLOCK=128,
            )
        return rows, inside.view(torch.bool)


class PendingGrid:
    """A grid whose sizes are on their way to the host."""

    def __init__(
        self,
        plan: "_Plan",
        box: KeyRange,
        batch_size: int,
        points: tuple[Tensor, Tensor, Tensor],
        voxels: Tensor,
        coordinates: Tensor,
        numbers: Tensor,
    ) -> None:
        self._plan, self._box, self._batch_size, self._points = plan, box, batch_size, points
        self._voxels, self._coordinates, self._numbers = voxels, coordinates, numbers
        self._read = to_host(numbers)

    def finish(self) -> PointGrid | None:
        """Wait for the sizes, and make the kernel maps; None if there is no voxel.

        Raises:
            ValueError: if points are not finite or too far from the middle of their item.
        """
        plan, box = self._plan, self._box
        *numbers, outside = self._read()
        if outside:
            reach = box.half - box.margin
            raise ValueError(f"expected finite points within {reach} voxels of the origin, got {outside} others")
        sizes, counts = numbers[: plan.levels], numbers[plan.levels :]
        if sizes[0] == 0:
            return None
        low, high = (-box.half,) * 3, (box.half - 1,) * 3
        levels = {
            2**i: CoordinateMap(self._coordinates[i, :size], 2**i, low, high, self._batch_size, None, curved=True)
            for i, size in enumerate(sizes)
        }
        maps = self._kernel_maps(sizes, counts)
        manager = CoordinateManager.of(levels, maps)
        return PointGrid(manager, self._batch_size, box, self._voxels[0, : sizes[0]], self._points)

    def _kernel_maps(self, sizes: list[int], counts: list[int]) -> dict[MapKey, KernelMap]:
        from prior3d.sparse import grid_kernels as kernels

        plan = self._plan
        if not plan.maps:
            return {}
        starts = [0]
        for level in plan.targets:
            starts.append(starts[-1] + sizes[level])
        tables = torch.empty(starts[-1], dtype=torch.int32, device=self._voxels.device)
        kernels.fill_tables[(_blocks(max(sizes)), len(plan.slots))](
            self._voxels,
            self._numbers,
            plan.slots,
            tables,
            self._voxels.shape[1],
            max(sizes).bit_length(),
            LEVELS=plan.levels,
            WIDTH=plan.slots.shape[1],
            BITS=self._box.bits,
            BLOCK=_BLOCK,
        )
        lists = _Lists(plan, self._numbers, sizes, tables[: starts[plan.forward]])
        made, first_pair = {}, 0
        for key, parts in plan.maps.items():
            in_size, out_size = sizes[parts.source], sizes[parts.target]
            own = counts[parts.counted]
            if parts.mirrored:
                own = [*own, in_size, *reversed(own)]
            pairs = slice(first_pair, first_pair + sum(own))
            first_pair = pairs.stop
            lists.total = pairs.stop
            made[key] = KernelMap.deferred(
                functools.partial(lists.pairs, pairs, tuple(own)),
                _table(tables, starts, parts.table, out_size),
                parts.size,
                in_size,
                out_size,
                parts.identity,
                mirrored=parts.mirrored,
                back=None if parts.back is None else _table(tables, starts, parts.back, in_size),
            )
        return made


def _table(tables: Tensor, starts: list[int], slots: slice, rows: int) -> Callable[[], Tensor]:
    table = tables[starts[slots.start] : starts[slots.stop]].view(-1, rows)
    return lambda: table


class _Lists:
    """The pairs of all maps, listed together when those of the first are asked for."""

    def __init__(self, plan: "_Plan", numbers: Tensor, sizes: list[int], tables: Tensor) -> None:
        self._plan, self._numbers, self._sizes, self._tables = plan, numbers, sizes, tables
        self._rows: tuple[Tensor, Tensor] | None = None
        self.total = 0

    def pairs(self, own: slice, counts: tuple[int, ...]) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """Return input rows and output rows [P] int32 of one map, and the pairs of each offset."""
        if self._rows is None:
            self._rows = self._list()
            self._tables = None
        return *(rows[own] for rows in self._rows), counts

    def _list(self) -> tuple[Tensor, Tensor]:
        from prior3d.sparse import grid_kernels as kernels

        plan, device = self._plan, self._tables.device
        rows = torch.empty(2, max(self.total, 1), dtype=torch.int32, device=device)
        running = (self._tables >= 0).cumsum(0, dtype=torch.int32)
        kernels.list_pairs[(_blocks(max(self._sizes)), plan.forward)](
            self._numbers,
            plan.slots,
            self._tables,
            running,
            rows[0],
            rows[1],
            LEVELS=plan.levels,
            WIDTH=plan.slots.shape[1],
            BLOCK=_BLOCK,
        )
        return rows[0], rows[1]


class _Parts(NamedTuple):
    """Where one map's numbers are: of its counted offsets, its table, and the table of the transposed map."""

    source: int
    target: int
    size: int
    identity: int | None
    mirrored: bool
    counted: slice
    table: slice
    back: slice | None


class _Plan(NamedTuple):
    """What the kernels do for a list of maps; one per list and device.

    A slot is one offset between two levels: source, target, offset x, y, z, then the number of earlier slots that write
    rows of each level. `counted` leaves out what mirrors or transposes another slot.
    """

    levels: int
    margin: int
    maps: dict[MapKey, _Parts]
    counted: Tensor  # [S, 5] int32
    slots: Tensor  # [S', 5 + levels] int32
    targets: list[int]
    forward: int
    """Number of slots before those of transposed maps."""


@functools.lru_cache(maxsize=32)
def _plan(maps: tuple[MapKey, ...], device: torch.device) -> _Plan:
    levels = 1 + max((key[1].bit_length() - 1 for key in maps), default=0)
    counted, slots, back, found, reach = [], [], [], {}, 0
    for key in dict.fromkeys(maps):
        fine, coarse, kernel_size, dilation = key
        source, target = fine.bit_length() - 1, coarse.bit_length() - 1
        if fine != 1 << source or coarse != 1 << target or target < source:
            raise ValueError(f"expected strides that are powers of two, the finer one first, got {fine} and {coarse}")
        offsets = (kernel_offsets(kernel_size) * dilation).tolist()
        reach = max(reach, max(abs(o) for offset in offsets for o in offset) * fine)
        mirrored = source == target and kernel_size % 2 == 1
        identity = (len(offsets) // 2 if kernel_size % 2 else 0) if source == target else None
        own = [(source, target, *offset) for offset in offsets]
        places = slice(len(counted), len(counted) + (len(own) // 2 if mirrored else len(own)))
        table = slice(len(slots), len(slots) + len(own))
        counted += own[: len(own) // 2] if mirrored else own
        slots += own
        transposed = None
        if not mirrored:
            transposed = slice(len(back), len(back) + len(own))
            back += [(target, source, *(-o for o in offset)) for offset in offsets]
        found[key] = _Parts(source, target, len(own), identity, mirrored, places, table, transposed)
    forward = len(slots)
    slots += back
    for key, parts in found.items():
        if parts.back is not None:
            moved = slice(parts.back.start + forward, parts.back.stop + forward)
            found[key] = parts._replace(back=moved)
    targets = [slot[1] for slot in slots]
    earlier, rows = [0] * levels, []
    for slot in slots:
        rows.append([*slot, *earlier])
        earlier[slot[1]] += 1
    # A multiple of the coarsest cell, so that halving the box leaves whole cells.
    margin = (reach // 2 ** (levels - 1) + 2) * 2 ** (levels - 1)

    def table(values: list, width: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int32).view(-1, width).to(device)

    return _Plan(levels, margin, found, table(counted, _FIELDS), table(rows, _FIELDS + levels), targets, forward)


def _blocks(count: int, block: int = _BLOCK) -> int:
    return -(-count // block)
