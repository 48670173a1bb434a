"""Contrastive losses between matching rows (PointInfoNCE)."""

import importlib
import logging
from functools import cache
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

from prior3d.geometry import full_precision, working_dtype
from prior3d.losses.exclusion import Exclusion
from prior3d.losses.infonce_tiled import tiled_row_losses, unit_rows

_log = logging.getLogger(__name__)

PLAIN_PAIRS = 2**22
"""Up to so many pairs of rows over all groups, 4.2 million, all logits are kept in float32 at least.

Beyond, logits are made in tiles, and again for the gradients, and their products follow autocast to bfloat16. So a
larger batch of equal groups can change the precision.
"""

FUSED_FLOAT32 = False
"""Whether products of float32 take the fused Triton kernels on CUDA, as products of bfloat16 do.

On an H200, 65,536 rows of 128 channels take 312 ms in them and 224 ms in tiles in torch; in bfloat16, 19 and 218 ms.
"""


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

    Up to 4.2 million pairs of rows over all groups (`PLAIN_PAIRS`), all logits are kept, in float32 at least. Beyond,
    memory is O(N), see `infonce_tiled`, and products of matrices follow autocast to bfloat16; sums stay float32.

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
    if many and (rounded or FUSED_FLOAT32) and (kernels := _kernels_for(queries, keys, exclude)):
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
    if queries.device.type != "cuda" or torch.version.hip:
        return None
    if torch.cuda.get_device_capability(queries.device) < (8, 0):
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
