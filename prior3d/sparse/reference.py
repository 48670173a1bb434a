"""Reference of sparse convolution: gather, matrix product and scatter for each offset, in plain torch."""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from prior3d.contracts.kernel_map import KernelMap
from prior3d.geometry import working_dtype


def convolve(features: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
    """Sum features[in_k] @ weight[k] into rows out_k over the offsets k; differentiable once.

    Half-precision products are summed over the offsets in float32.

    Args:
        features: [N_in, C_in] input features.
        weight: [K, C_in, C_out] in the features' dtype.
        kernel_map: pairs of each offset.

    Returns:
        [N_out, C_out]; zero if an output has no pair.
    """
    return _GatherMultiplyScatter.apply(features, weight, kernel_map)


class _GatherMultiplyScatter(torch.autograd.Function):
    """One node for all offsets: autograd through 27 gathers, products and scatters would keep every gathered copy.

    Rows are unique within an offset and offsets run in sequence, so the sums are reproducible on every device.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, features: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
        ctx.save_for_backward(features, weight)
        ctx.kernel_map = kernel_map
        with torch.autocast(features.device.type, enabled=False):
            return _scatter_products(features, weight, kernel_map).to(features.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_out: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        features, weight = ctx.saved_tensors
        kernel_map, (needs_features, needs_weight, _) = ctx.kernel_map, ctx.needs_input_grad
        dtype = working_dtype(features)
        grad_features = torch.zeros_like(features, dtype=dtype) if needs_features else None
        grad_weight = torch.zeros_like(weight) if needs_weight else None
        with torch.autocast(grad_out.device.type, enabled=False):
            for k, (in_rows, out_rows) in enumerate(kernel_map.pairs):
                if len(in_rows) == 0:
                    continue
                whole = k == kernel_map.identity
                grad = grad_out if whole else grad_out.index_select(0, out_rows)
                if needs_weight:
                    gathered = features if whole else features.index_select(0, in_rows)
                    torch.mm(gathered.mT, grad, out=grad_weight[k])
                if needs_features:
                    part = torch.mm(grad, weight[k].mT).to(dtype)
                    grad_features = grad_features.add_(part) if whole else grad_features.index_add_(0, in_rows, part)
        return None if grad_features is None else grad_features.to(features.dtype), grad_weight, None


def _scatter_products(features: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
    """Return the sum of features[in_k] @ weight[k] over the offsets, accumulated in at least float32."""
    dtype = working_dtype(features)
    if kernel_map.identity is None:
        out = features.new_zeros(kernel_map.out_size, weight.shape[2], dtype=dtype)
    else:
        out = torch.mm(features, weight[kernel_map.identity]).to(dtype)
    for k, (in_rows, out_rows) in enumerate(kernel_map.pairs):
        if k != kernel_map.identity and len(in_rows):
            out.index_add_(0, out_rows, torch.mm(features.index_select(0, in_rows), weight[k]).to(dtype))
    return out
