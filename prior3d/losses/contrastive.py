"""Contrastive losses between matching rows, and the choice of rows so that no true match counts as a negative."""

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from prior3d.geometry import full_precision, working_dtype

MIN_NORM = 1e-12
"""Vectors shorter than this count as zero: they stay zero and pass gradients on unscaled."""


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
    exclude: Tensor | None = None,
) -> Tensor:
    """Compute PointInfoNCE for a batch in fixed shapes, without waiting for the device.

    Args:
        queries: [G, N, C] features, one group per view pair; row i matches row i of the keys; L2-normalized here.
        keys: [G, N, C] features, L2-normalized here.
        valid: [G, N] bool; other slots are neither positives nor negatives, whatever they hold.
        temperature: divisor of the cosines, above 0.
        symmetric: average with the same loss from keys to queries.
        negatives: `pair`: the other keys of the same group; `batch`: the other keys of all groups.
        exclude: [G, N, N] bool for `pair`, [G * N, G * N] bool for `batch`; True where query i and key j must not count
            as negatives because they may show the same point. A row's own key always counts.

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
    if negatives == "batch":
        queries, keys, valid = queries.flatten(0, 1)[None], keys.flatten(0, 1)[None], valid.flatten()[None]
        exclude = None if exclude is None else exclude[None]
    counted = _counted_pairs(valid, exclude)
    if counted.numel() == 0:
        # An empty sum, not a product with 0, which would turn an inf elsewhere into a NaN.
        return (queries.flatten()[:0].sum() + keys.flatten()[:0].sum()).to(working_dtype(queries))
    with full_precision(queries.device):
        queries, keys = (_normalize(torch.where(valid[..., None], rows, 0.0)) for rows in (queries, keys))
        logits = _Product.apply(queries, keys) / temperature
        positive = logits.diagonal(dim1=-2, dim2=-1)
        # The diagonal always counts: a row of only -inf would have a NaN gradient.
        logits = logits.masked_fill(~counted, -torch.inf)
        loss = logits.logsumexp(dim=-1) - positive
        if symmetric:
            loss = (loss + logits.logsumexp(dim=-2) - positive) / 2
        rows = valid.sum(-1)
        loss = torch.where(valid, loss, 0.0).sum(-1) / rows.clamp(min=1)
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


def _normalize(rows: Tensor) -> Tensor:
    rows = rows.to(working_dtype(rows))
    squared_norm = rows.square().sum(-1, keepdim=True)
    return rows * torch.where(squared_norm > MIN_NORM**2, squared_norm, 1.0).rsqrt()


def _counted_pairs(valid: Tensor, exclude: Tensor | None) -> Tensor:
    """Return the pairs [G, N, N] that enter a sum: both slots valid and not excluded, or the row's own key."""
    counted = valid[:, :, None] & valid[:, None, :]
    if exclude is not None:
        if exclude.shape != counted.shape:
            raise ValueError(f"expected exclude to cover {list(counted.shape)} pairs, got {list(exclude.shape)}")
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
