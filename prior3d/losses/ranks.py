"""Rows of all ranks, as more negatives of a contrastive loss."""

import torch
import torch.distributed as dist
from torch import Tensor


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
