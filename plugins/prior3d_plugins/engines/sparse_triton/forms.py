"""This engine's forms of a kernel map: output rows in tiles of similar neighborhoods, and pairs in pieces."""

import functools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from prior3d.launching import blocks
from prior3d.sparse import KernelMap
from prior3d_plugins.engines.sparse_triton import kernels

TILES = (64, 128, 256)
"""Sizes of tiles, in rows; the largest is a multiple of the others."""

_BLOCK = 256
_BITS = 63
"""Bits of a code that orders rows; larger kernels share bits."""

_LEAST_PIECE = 512
"""Pairs below which a piece is not worth a program."""


class Tiles:
    """Output rows sorted by their sets of occupied offsets, so that a tile of rows skips the offsets it lacks.

    Args:
        table: [K, padded] int32 input row at each place, -1 for none.
        order: [N_out] int32 output row at each place.
        lists: for each size of `TILES`, what `of` returns, if it is known.
    """

    def __init__(self, table: Tensor, order: Tensor, *lists: Tensor) -> None:
        self.table, self.order = table, order
        self._lists = dict(zip(TILES, zip(lists[::2], lists[1::2], strict=True), strict=False))

    def of(self, tile: int) -> tuple[Tensor, Tensor]:
        """Return what tiles of this size need; it is made on first use.

        Returns:
            [tiles, 1 + K] int32, the number of offsets of each tile, then the offsets; and [tiles] int32, the tiles
            with most offsets first: the longest must not start last.
        """
        if tile not in self._lists:
            self._lists[tile] = self._list(tile)
        return self._lists[tile]

    def tensors(self) -> list[Tensor]:
        """Return everything as tensors, which travel through `torch.compile`: `Tiles(*tensors)` is the same."""
        return [self.table, self.order, *(tensor for tile in TILES for tensor in self.of(tile))]

    def _list(self, tile: int) -> tuple[Tensor, Tensor]:
        (size, padded), rows = self.table.shape, self.order.shape[0]
        count = blocks(rows, tile)
        offsets = torch.empty(count, 1 + size, dtype=torch.int32, device=self.table.device)
        if rows:
            kernels.list_offsets[(count,)](self.table, offsets, padded, size, TILE=tile)
        if count <= multiprocessors(offsets.device):  # all of them start at once
            return offsets, torch.arange(count, dtype=torch.int32, device=offsets.device)
        return offsets, offsets[:, 0].argsort(descending=True).int()


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
    padded = blocks(rows, TILES[-1]) * TILES[-1]
    table = torch.empty(size, padded, dtype=torch.int32, device=device)
    if rows:
        kernels.fill_table[(padded // TILES[-1],)](neighbors, order, table, rows, padded, size, BLOCK=TILES[-1])
    return Tiles(table, order)


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
    kernels.row_codes[(blocks(rows, _BLOCK),)](
        neighbors, bits, codes if near is None else near, codes, rows, size, HAS_NEAR=near is not None, BLOCK=_BLOCK
    )
    order = codes.argsort(stable=True)
    return (order if near is None else near[order]).int()


def _make_pairs(kernel_map: KernelMap) -> Pairs:
    return Pairs(*kernel_map.short_rows, torch.tensor(kernel_map.counts))


def pieces_of(counts: Tensor, device: torch.device, programs: int) -> Pieces:
    """Cut pairs into pieces whose sums fill the device, if `programs` programs share each piece.

    The cut decides in which order a gradient is summed. It follows from the sizes and the number of multiprocessors,
    never from a timing: a GPU repeats its sums, and a GPU of another size may round otherwise.
    """
    numbers = tuple(counts.tolist())
    wanted = sum(numbers) * programs // (4 * multiprocessors(device))
    return _cut(numbers, max(_LEAST_PIECE, 1 << max(0, wanted - 1).bit_length()), device)


@functools.lru_cache(maxsize=256)
def _cut(counts: tuple[int, ...], length: int, device: torch.device) -> Pieces:
    number = np.asarray(counts, dtype=np.int64)
    pieces = -(-number // length)
    ends, offset = pieces.cumsum(), np.repeat(np.arange(len(number)), pieces)
    within = (np.arange(len(offset)) - (ends - pieces)[offset]) * length
    start = (number.cumsum() - number)[offset]
    limits = np.stack([start + within, start + np.minimum(within + length, number[offset]), np.arange(len(offset))], 1)
    # Pairs of every offset follow the rows, so pieces at one height read the same rows: side by side, from the cache.
    limits = limits[np.argsort(within / number[offset], kind="stable")]
    space = -(-limits.size // 4) * 4  # `ends` at a multiple of 16 bytes: one form of the kernel for all of them
    both = torch.from_numpy(np.concatenate([np.resize(limits, space), ends]).astype(np.int32))
    if device.type == "cuda":  # one copy, for which the host does not wait
        both = both.pin_memory().to(device, non_blocking=True)
    return Pieces(both[: limits.size].view(-1, 3), both[space:])


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Return how many programs run at once; a small number where Triton is interpreted."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
