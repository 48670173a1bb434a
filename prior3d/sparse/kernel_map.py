"""Building a kernel map, the lookup that every sparse operation needs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prior3d.contracts.kernel_map import KernelMap, inverted
from prior3d.sparse.coordinates import CoordinateMap, KeyBox, to_device, to_host


def offset_range(kernel_size: int) -> range:
    """Return the offsets along one axis: centered for odd kernels, 0..K-1 for even ones."""
    start = -(kernel_size // 2) if kernel_size % 2 else 0
    return range(start, start + kernel_size)


def kernel_offsets(kernel_size: int) -> Tensor:
    """Return the offsets [K^3, 3] (x, y, z) in the order of kernel weights: first spatial axis fastest.

    >>> kernel_offsets(3).shape, kernel_offsets(2)[1].tolist()
    (torch.Size([27, 3]), [1, 0, 0])
    """
    axis = torch.tensor(list(offset_range(kernel_size)))
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    return torch.stack([x, y, z], dim=-1).reshape(-1, 3)


def build_kernel_map(source: CoordinateMap, target: CoordinateMap, kernel_size: int, dilation: int = 1) -> KernelMap:
    """Pair each target voxel u with the source voxels at u + offset * dilation * source stride.

    The sorted int64 keys of the source are searched for the first cell of each kernel row (along x). The rest of the
    row follows it in the sorted keys, at the cost of one comparison each. If source and target are one map and the
    kernel is odd, half the offsets are looked up and the others mirrored. Nothing waits for the device: the number of
    pairs travels to the host while other work goes on, and is read when the pairs are first used.

    Args:
        source: voxels to read; the finer of the two levels.
        target: voxels to write, at coordinates that are multiples of the source's stride.
        kernel_size: edge of the cubic kernel, in voxels.
        dilation: spacing of the kernel's taps, in voxels of the source.
    """
    size, identity = kernel_size**3, None
    if source is target:
        identity = size // 2 if kernel_size % 2 else 0
    if len(source) == 0 or len(target) == 0:
        none = torch.empty(0, dtype=torch.long, device=source.coordinates.device)
        return KernelMap(none, none, (0,) * size, len(source), len(target), identity)
    mirror = source is target and kernel_size % 2 == 1
    found, hit = _look_up_rows(source, target, kernel_size, dilation, mirror)
    if mirror:
        found, hit = found[: size // 2], hit[: size // 2]
    lookup = _Lookup(source, target, found, hit, to_host(hit.sum(dim=1)), mirror)
    return KernelMap.deferred(
        lookup.pairs,
        lookup.neighbors,
        size,
        len(source),
        len(target),
        identity,
        mirrored=mirror,
        orders=(source.near, target.near),
    )


@dataclass(frozen=True, eq=False)
class _Lookup:
    """Places in the sorted source for each place in the sorted target; half the offsets if the others mirror them."""

    source: CoordinateMap
    target: CoordinateMap
    found: Tensor  # [K', N_out] int32
    hit: Tensor  # [K', N_out] bool
    counts: Callable[[], list[int]]
    mirror: bool

    def pairs(self) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """List the pairs, offset by offset."""
        counts = self.counts()
        # The total is known here: without it, nonzero would synchronize once more.
        place = torch.nonzero_static(self.hit.view(-1), size=sum(counts)).view(-1)
        in_rows = self.source.rows(self.found.view(-1)[place])
        out_rows = self.target.rows(place % len(self.target))
        if self.mirror:
            in_rows, out_rows, counts = _mirrored(in_rows, out_rows, counts, len(self.source))
        return in_rows, out_rows, tuple(counts)

    def neighbors(self) -> Tensor:
        """Return the input row [K, N_out] int32 that meets each output row under each offset, -1 for none."""
        order, found = self.source.order, self.found.clamp(max=len(self.source) - 1)
        rows = found if order is None else order.int()[found]
        rows = rows.masked_fill(~self.hit, -1)
        if self.target.order is not None:
            rows = torch.empty_like(rows).index_copy_(1, self.target.order, rows)
        if self.mirror:
            here = torch.arange(len(self.source), device=rows.device, dtype=torch.int32)
            rows = torch.cat([rows, here[None], inverted(rows, len(self.source)).flip(0)])
        return rows


def _look_up_rows(
    source: CoordinateMap, target: CoordinateMap, kernel_size: int, dilation: int, mirror: bool
) -> tuple[Tensor, Tensor]:
    """Return places [K', N] in the sorted source, and whether the cell is there [K', N], offset by offset."""
    taps = [offset * dilation for offset in offset_range(kernel_size)]
    reach = max(abs(tap) for tap in taps)
    bounds = [source.bounds(source.stride), target.bounds(source.stride)]
    box = KeyBox.around(bounds, max(source.batch_size, target.batch_size), reach)
    keys = box.keys(source.sorted_cells(source.stride))
    queries = box.keys(target.sorted_cells(source.stride))
    row_shifts = [box.shift((taps[0], y, z)) for z in taps for y in taps]
    if mirror:
        row_shifts = row_shifts[: len(row_shifts) // 2 + 1]
    queries = queries + to_device(row_shifts, keys.device)[:, None]  # [rows, N], each row sorted
    ended = torch.cat([keys, keys.new_full((1,), -1)])  # the place past the last key equals no query
    place = torch.searchsorted(keys, queries, out_int32=True)  # places fill K^3 x N cells: half the memory
    places, hits = [], []
    for step, tap in enumerate(taps):
        wanted = queries + (tap - taps[0])
        if dilation > 1 and step > 0:
            place = torch.searchsorted(keys, wanted, out_int32=True)
        hit = ended[place] == wanted
        places.append(place)
        hits.append(hit)
        place = place + hit  # the next cell along x is the next key, or absent
    return torch.stack(places, dim=1).flatten(0, 1), torch.stack(hits, dim=1).flatten(0, 1)


def _mirrored(in_rows: Tensor, out_rows: Tensor, counts: Sequence[int], size: int) -> tuple[Tensor, Tensor, list[int]]:
    """Complete the first half of the offsets with the center and the other half, where inputs and outputs swap."""
    here = torch.arange(size, device=in_rows.device)
    in_half, out_half = in_rows.split(counts), out_rows.split(counts)
    in_rows = torch.cat([in_rows, here, *reversed(out_half)])
    out_rows = torch.cat([out_rows, here, *reversed(in_half)])
    return in_rows, out_rows, [*counts, size, *reversed(counts)]
