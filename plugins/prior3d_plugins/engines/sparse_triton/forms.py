"""This engine's forms of a kernel map: output rows in tiles of similar neighborhoods, and pairs in pieces."""

import functools
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from prior3d.sparse import KernelMap
from prior3d_plugins.engines.sparse_triton import kernels

TILES = (64, 128, 256)
"""Sizes of tiles, in rows; the largest is a multiple of the others."""

_BLOCK = 256
_BITS = 63
"""Bits of a code that orders rows; larger kernels share bits."""

_LEAST_PIECE = 512
"""Pairs below which a piece is not worth a program."""


class Tiles(NamedTuple):
    """Output rows sorted by their sets of occupied offsets, so that a tile of rows skips the offsets it lacks.

    The fields are tensors alone: they travel through `torch.compile` as they are.
    """

    table: Tensor  # [K, padded] int32 input row at each place, -1 for none
    order: Tensor  # [N_out] int32 output row at each place
    offsets_64: Tensor  # [tiles, 1 + K] int32 number of offsets of each tile, then the offsets
    by_work_64: Tensor  # [tiles] int32 tiles with most offsets first: the longest must not start last
    offsets_128: Tensor
    by_work_128: Tensor
    offsets_256: Tensor
    by_work_256: Tensor

    def of(self, tile: int) -> tuple[Tensor, Tensor]:
        """Return the lists of offsets of tiles of this size, and the tiles by work."""
        first = 2 + 2 * TILES.index(tile)
        return self[first], self[first + 1]


class Pairs(NamedTuple):
    """Pairs of rows, offset by offset, and how many each offset has."""

    in_rows: Tensor  # [P] int32
    out_rows: Tensor  # [P] int32
    counts: Tensor  # [K] int64 on the host


class Pieces(NamedTuple):
    """Pairs cut into pieces of one offset each."""

    limits: Tensor  # [pieces, 3] int32 first pair, one past the last, and the place of the piece among all
    ends: Tensor  # [K] int32 one past the last piece of each offset


def tiles_of(kernel_map: KernelMap) -> Tiles:
    """Return the tiles of a map, made once for it."""
    return kernel_map.cached("sparse/triton/tiles", _make_tiles)


def pairs_of(kernel_map: KernelMap) -> Pairs:
    """Return the pairs of a map as this engine reads them, made once for it."""
    return kernel_map.cached("sparse/triton/pairs", _make_pairs)


def _make_tiles(kernel_map: KernelMap) -> Tiles:
    neighbors = kernel_map.neighbors().contiguous()
    (size, rows), device = neighbors.shape, neighbors.device
    order = _by_code(neighbors, kernel_map.near)
    padded = triton.cdiv(rows, TILES[-1]) * TILES[-1]
    table = torch.empty(size, padded, dtype=torch.int32, device=device)
    if rows:
        kernels.fill_table[(padded // TILES[-1],)](neighbors, order, table, rows, padded, size, BLOCK=TILES[-1])
    lists = []
    for tile in TILES:
        count = triton.cdiv(rows, tile)
        offsets = torch.empty(count, 1 + size, dtype=torch.int32, device=device)
        if rows:
            kernels.list_offsets[(count,)](table, offsets, padded, size, TILE=tile)
        lists += [offsets, offsets[:, 0].argsort(descending=True).int()]
    return Tiles(table, order, *lists)


def _by_code(neighbors: Tensor, near: Tensor | None) -> Tensor:
    """Return the output rows [N] int32 by the Gray code of their offsets; rows of one code stay near each other."""
    size, rows = neighbors.shape
    if size == 1 or rows == 0:
        return torch.arange(rows, dtype=torch.int32, device=neighbors.device)
    # The rarest offset decides first: it is what fewest tiles should contain.
    bits = (neighbors >= 0).sum(1).argsort(descending=True, stable=True).argsort()
    if size > _BITS:
        bits = bits * _BITS // size
    codes = torch.empty(rows, dtype=torch.long, device=neighbors.device)
    kernels.row_codes[(triton.cdiv(rows, _BLOCK),)](
        neighbors, bits, codes if near is None else near, codes, rows, size, HAS_NEAR=near is not None, BLOCK=_BLOCK
    )
    order = codes.argsort(stable=True)
    return (order if near is None else near[order]).int()


def _make_pairs(kernel_map: KernelMap) -> Pairs:
    return Pairs(kernel_map.in_rows.int(), kernel_map.out_rows.int(), torch.tensor(kernel_map.counts))


def pieces_of(counts: Tensor, device: torch.device, blocks: int) -> Pieces:
    """Cut pairs into pieces whose sums fill the device, if each piece is shared by `blocks` programs.

    The cut decides in which order a gradient is summed. It follows from the sizes and the number of multiprocessors,
    never from a timing: a GPU repeats its sums, and a GPU of another size may round otherwise.
    """
    counts = tuple(counts.tolist())
    wanted = sum(counts) * blocks // (4 * multiprocessors(device))
    return _cut(counts, max(_LEAST_PIECE, triton.next_power_of_2(wanted)), device)


@functools.lru_cache(maxsize=256)
def _cut(counts: tuple[int, ...], length: int, device: torch.device) -> Pieces:
    limits, ends, start = [], [], 0
    for count in counts:
        for first in range(0, count, length):
            piece = (start + first, start + min(first + length, count), len(limits))
            limits.append((first / count, piece))
        start += count
        ends.append(len(limits))
    # Pairs of every offset follow the rows, so pieces at one height read the same rows: side by side, from the cache.
    flat = [number for _, piece in sorted(limits) for number in piece]
    both = torch.tensor([*flat, *ends], dtype=torch.int32)
    if device.type == "cuda":  # one copy, for which the host does not wait
        both = both.pin_memory().to(device, non_blocking=True)
    return Pieces(both[: len(flat)].view(-1, 3), both[len(flat) :])


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Return how many programs run at once; a small number where Triton is interpreted."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
