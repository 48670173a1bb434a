"""Contrastive losses between matching rows, and the choice of rows so that no true match counts as a negative."""

import importlib
import logging
from functools import cache
from types import ModuleType
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from prior3d.geometry import full_precision, working_dtype
from prior3d.losses.exclusion import Exclusion
from prior3d.losses.infonce_tiled import tiled_row_losses, unit_rows

_log = logging.getLogger(__name__)

PLAIN_PAIRS = 2**22
"""Up to so many pairs of rows, all logits are kept; beyond, they are made in tiles, and again for the gradients."""


def point_info_nce(queries: Tensor, keys: Tensor, temperature: float, symmetric: bool = True) -> Tensor:
    """Pull each query toward its key and away from all other keys (PointInfoNCE).

    It is the mean over rows of `logsumexp_j(q_i . k_j / temperature) - q_i . k_i / temperature`.

    Args:
        queries: [N, C] features; row i matches row i of the keys; L2-normalized here.
        keys: [N, C] features, L2-normalized here.
        temperature: divisor of the cosines, above 0.
        symmetric: average with the same loss from keys to queries.

    Returns:
        Scalar, float32 (float64 if given). Zero vectors give finite values and gradients.

    Raises:
        ValueError: if shapes differ, there are no rows, or the temperature is not above 0.

    Reference:
        Hou et al., Pri3D, 2021, arXiv 2104.11225, after Xie et al., PointContrast, 2020, arXiv 2007.10985. Symmetric
        by default, as in the code of Pri3D; unlike there, zero vectors do not become NaN.

    >>> features = torch.eye(4)
    >>> round(point_info_nce(features, features, temperature=0.1).item(), 4)
    0.0001
    """
    if queries.dim() != 2 or queries.shape != keys.shape:
        raise ValueError(
            f"expected queries and keys of one shape [N, C], got {list(queries.shape)} and {list(keys.shape)}"
        )
    if len(queries) == 0:
        raise ValueError("expected at least one matching row, got none")
    valid = torch.ones(1, len(queries), dtype=torch.bool, device=queries.device)
    return masked_point_info_nce(queries[None], keys[None], valid, temperature, symmetric)


def masked_point_info_nce(
    queries: Tensor,
    keys: Tensor,
    valid: Tensor,
    temperature: float,
    symmetric: bool = True,
    negatives: Literal["pair", "batch"] = "pair",
    exclude: Exclusion | Tensor | None = None,
) -> Tensor:
    """Compute PointInfoNCE for a batch in fixed shapes, without waiting for the device.

    Up to `PLAIN_PAIRS` pairs (2,048 rows), all logits are kept. Beyond, the memory is O(N): see `infonce_tiled`.

    Args:
        queries: [G, N, C] features, one group per view pair; row i matches row i of the keys; L2-normalized here.
        keys: [G, N, C] features, L2-normalized here.
        valid: [G, N] bool; other slots are neither positives nor negatives, whatever they hold.
        temperature: divisor of the cosines, above 0.
        symmetric: average with the same loss from keys to queries.
        negatives: `pair`: the other keys of the same group; `batch`: the other keys of all groups.
        exclude: pairs of query i and key j that must not count as negatives because they may show the same point:
            where their points lie, or a mask, [G, N, N] bool for `pair`, [G * N, G * N] bool for `batch`. A row's own
            key always counts.

    Returns:
        Scalar, float32 (float64 if given). `pair`: the mean over groups with valid rows of the mean over their valid
        rows; `batch`: the mean over all valid rows. Exactly 0 without any valid row, and connected to the graph.

    Raises:
        ValueError: if shapes do not fit, `negatives` is unknown, or the temperature is not above 0.

    >>> features, valid = torch.eye(4).expand(2, 4, 4), torch.tensor([[True, True, True, False], [False] * 4])
    >>> round(masked_point_info_nce(features, features, valid, temperature=0.1).item(), 4)
    0.0001
    """
    _check_groups(queries, keys, valid, temperature)
    if negatives not in ("pair", "batch"):
        raise ValueError(f"expected negatives to be 'pair' or 'batch', got {negatives!r}")
    if isinstance(exclude, Exclusion):
        _check_exclusion(exclude, valid)
    if negatives == "batch":
        queries, keys, valid = queries.flatten(0, 1)[None], keys.flatten(0, 1)[None], valid.flatten()[None]
        if exclude is not None:
            exclude = exclude.as_one_group() if isinstance(exclude, Exclusion) else exclude[None]
    pairs = (*valid.shape, valid.shape[1])
    if isinstance(exclude, Tensor) and exclude.shape != pairs:
        raise ValueError(f"expected exclude to cover {list(pairs)} pairs, got {list(exclude.shape)}")
    if valid.numel() == 0:
        # An empty sum, not a product with 0, which would turn an inf elsewhere into a NaN.
        return (queries.flatten()[:0].sum() + keys.flatten()[:0].sum()).to(working_dtype(queries))
    losses = _row_losses(queries, keys, valid, temperature, symmetric, exclude)
    rows = valid.sum(-1)
    loss = torch.where(valid, losses, 0.0).sum(-1) / rows.clamp(min=1)
    return loss.sum() / (rows > 0).sum().clamp(min=1)


def gather_negatives(keys: Tensor) -> Tensor:
    """Gather rows of all ranks, with gradient; a single process gets its own rows back.

    Args:
        keys: [N, ...], the same shape on every rank. Masks can be gathered too.

    Returns:
        [ranks * N, ...] in rank order. The gradient sums the gradients of all ranks' losses for this rank's rows; with
        the averaging of DDP, the result is the gradient of the mean loss.

    >>> gather_negatives(torch.eye(2)).shape
    torch.Size([2, 2])
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return keys
    if not keys.is_floating_point():
        return _GatherRanks.apply(keys.float()).to(keys.dtype)  # exact up to 2**24; not every backend gathers bool
    return _GatherRanks.apply(keys)


@torch.no_grad()
def sample_one_per_cell(
    cells_a: Tensor,
    cells_b: Tensor,
    valid: Tensor,
    count: int,
    *,
    num_cells_a: int,
    num_cells_b: int,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Pick random matches, no feature cell of either view twice; fixed shapes, no wait for the device.

    Two matches that share a cell would be each other's negative although they have the same feature. In each of three
    rounds, a match is taken if it is the first, in random order, of its cell in a and then of its cell in b. Few cells
    then remain that another match could still have used.

    Args:
        cells_a: [B, N] int64 cell of each match in view a.
        cells_b: [B, N] int64 cell of each match in view b.
        valid: [B, N] bool, slots that hold a match.
        count: maximum number of matches per batch entry.
        num_cells_a: cells of a feature map of view a (h * w).
        num_cells_b: cells of a feature map of view b.
        generator: generator on the tensors' device; the global one if None.

    Returns:
        [B, count] int64 index into the N matches and [B, count] bool valid; valid ones first, in random order.

    Reference:
        Hou et al., Pri3D, 2021, arXiv 2104.11225. Its code samples pixels first and maps them to cells after, so
        samples of one cell become false negatives; here no cell occurs twice.

    >>> cells_a, cells_b = torch.tensor([[0, 0, 1]]), torch.tensor([[0, 1, 2]])  # the first two share a cell of a
    >>> valid = torch.ones(1, 3, dtype=torch.bool)
    >>> _, picked = sample_one_per_cell(cells_a, cells_b, valid, 3, num_cells_a=2, num_cells_b=3)
    >>> picked
    tensor([[ True,  True, False]])
    """
    if cells_a.dim() != 2 or not cells_a.shape == cells_b.shape == valid.shape:
        shapes = [list(tensor.shape) for tensor in (cells_a, cells_b, valid)]
        raise ValueError(f"expected cells_a, cells_b and valid of one shape [B, N], got {shapes}")
    if count < 0:
        raise ValueError(f"expected count >= 0, got {count}")
    slots = cells_a.shape[1]
    taken_last = torch.iinfo(torch.int64).max
    # The slot number makes every priority unique: equal priorities would let two matches into one cell.
    high = 2**62 // max(slots, 1)
    priority = torch.randint(high, cells_a.shape, device=cells_a.device, generator=generator) * slots
    priority = priority + torch.arange(slots, device=cells_a.device)
    cells = [(torch.where(valid, cells_a, 0), num_cells_a), (torch.where(valid, cells_b, 0), num_cells_b)]

    picked = torch.zeros_like(valid)
    free = valid
    for _ in range(3):
        first = free
        for cell, num_cells in cells:
            candidate = torch.where(first, priority, taken_last)
            best = candidate.new_full((len(cell), num_cells), taken_last).scatter_reduce(1, cell, candidate, "amin")
            first = first & (best.gather(1, cell) == priority)
        picked = picked | first
        for cell, num_cells in cells:
            used = torch.zeros(len(cell), num_cells, dtype=torch.int64, device=cell.device)
            free = free & (used.scatter_reduce(1, cell, first.long(), "amax").gather(1, cell) == 0)
    order, index = torch.where(picked, priority, taken_last).topk(min(count, slots), dim=1, largest=False)
    padding = (0, count - min(count, slots))
    return tuple(torch.nn.functional.pad(tensor, padding) for tensor in (index, order < taken_last))


def _row_losses(
    queries: Tensor,
    keys: Tensor,
    valid: Tensor,
    temperature: float,
    symmetric: bool,
    exclude: Exclusion | Tensor | None,
) -> Tensor:
    """Return the loss [G, N] of each row; what slots that are not valid get has no meaning."""
    many = valid.numel() * valid.shape[1] > PLAIN_PAIRS
    rounded = _products_under_autocast(queries.device)
    if many and (kernels := _kernels_for(queries, keys, exclude)):
        return kernels.fused_row_losses(queries, keys, valid, temperature, symmetric, exclude, rounded)
    with full_precision(queries.device):
        queries, keys = (unit_rows(torch.where(valid[..., None], rows, 0.0)) for rows in (queries, keys))
        if not many:
            return _plain_row_losses(queries, keys, valid, temperature, symmetric, exclude)
        return tiled_row_losses(queries, keys, valid, temperature, symmetric, exclude, rounded)


def _plain_row_losses(
    queries: Tensor,
    keys: Tensor,
    valid: Tensor,
    temperature: float,
    symmetric: bool,
    exclude: Exclusion | Tensor | None,
) -> Tensor:
    logits = _Product.apply(queries, keys) / temperature
    positive = logits.diagonal(dim1=-2, dim2=-1)
    # The diagonal always counts: a row of only -inf would have a NaN gradient.
    counted = _counted_pairs(valid, exclude.mask() if isinstance(exclude, Exclusion) else exclude)
    logits = logits.masked_fill(~counted, -torch.inf)
    loss = logits.logsumexp(dim=-1) - positive
    if symmetric:
        loss = (loss + logits.logsumexp(dim=-2) - positive) / 2
    return loss


def _kernels_for(queries: Tensor, keys: Tensor, exclude: Exclusion | Tensor | None) -> ModuleType | None:
    """Return the module of fused kernels if they support the device, the types, the channels and the exclusion."""
    if queries.device.type != "cuda" or torch.version.hip or torch.cuda.get_device_capability(queries.device) < (8, 0):
        return None
    if working_dtype(queries, keys) != torch.float32 or isinstance(exclude, Tensor):
        return None
    kernels = _triton()
    return kernels if kernels and queries.shape[2] <= kernels.MAX_CHANNELS else None


@cache
def _triton() -> ModuleType | None:
    """Return the module of fused kernels, imported at first need; log one line if Triton is missing."""
    try:
        importlib.import_module("triton")
    except ImportError:
        _log.warning("Triton is not installed: PointInfoNCE of many rows runs in plain torch, several times slower")
        return None
    return importlib.import_module("prior3d.losses.infonce_triton")


def _products_under_autocast(device: torch.device) -> torch.dtype | None:
    """Return bfloat16 under its autocast, else None; in float16, most weights of many rows would become 0."""
    if not torch.is_autocast_enabled(device.type):
        return None
    dtype = torch.get_autocast_dtype(device.type)
    return dtype if dtype == torch.bfloat16 else None


class _Product(torch.autograd.Function):
    """Return queries [G, N, C] times keys [G, M, C] transposed, in full precision in the backward pass too."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, queries: Tensor, keys: Tensor) -> Tensor:
        ctx.save_for_backward(queries, keys)
        with full_precision(queries.device):
            return queries @ keys.mT

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        queries, keys = ctx.saved_tensors
        with full_precision(gradient.device):
            return gradient @ keys, gradient.mT @ queries


class _GatherRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, keys: Tensor) -> Tensor:
        gathered = [torch.empty_like(keys, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, keys.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def _counted_pairs(valid: Tensor, exclude: Tensor | None) -> Tensor:
    """Return the pairs [G, N, N] that enter a sum: both slots valid and not excluded, or the row's own key."""
    counted = valid[:, :, None] & valid[:, None, :]
    if exclude is not None:
        counted = counted & ~exclude
    return counted | torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device)


def _check_groups(queries: Tensor, keys: Tensor, valid: Tensor, temperature: float) -> None:
    if queries.dim() != 3 or queries.shape != keys.shape or queries.shape[:2] != valid.shape:
        shapes = [list(tensor.shape) for tensor in (queries, keys, valid)]
        raise ValueError(f"expected queries and keys [G, N, C] and valid [G, N], got {shapes}")
    if valid.dtype != torch.bool:
        raise ValueError(f"expected valid of bool, got {valid.dtype}")
    if not temperature > 0:
        raise ValueError(f"expected temperature > 0, got {temperature}")


def _check_exclusion(exclude: Exclusion, valid: Tensor) -> None:
    if exclude.points.shape != (*valid.shape, 3):
        raise ValueError(f"expected points {[*valid.shape, 3]}, got {list(exclude.points.shape)}")
    if exclude.scene is not None and exclude.scene.shape != valid.shape:
        raise ValueError(f"expected scene {list(valid.shape)}, got {list(exclude.scene.shape)}")
