"""Sparse convolution with the kernels of spconv, where it is installed."""

import functools
import importlib.util
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from prior3d import SparseEngine, UserError
from prior3d.sparse import KernelMap, convolve

_TOLERANCE = 1e-4
"""Largest error of the check at first use, relative to the largest value."""


class SparseSpconv(SparseEngine):
    """Gather, matrix product and scatter by spconv (2.x) over our kernel maps, in float32 on CUDA.

    It is compared with `sparse/torch` at first use. spconv adds up half precision in half precision, so it gets float32
    alone. `sparse/triton` is faster; take this engine to compare, or where Triton does not run.

    Reference:
        Yan et al., SECOND: Sparsely Embedded Convolutional Detection, Sensors 2018; the package `spconv`.
    """

    rank = -1  # slower than sparse/triton, and its sums are atomic
    deterministic = False

    def obstacle(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return what is missing, or None."""
        if importlib.util.find_spec("spconv") is None:
            return "spconv is not installed: pip install spconv-cu126 (or the one of your CUDA version)"
        if device.type != "cuda":
            return f"spconv runs here on CUDA devices alone, not on {device.type}: take engine sparse/torch"
        if dtype != torch.float32:
            return f"spconv adds {dtype} up in {dtype}: train in float32, or take engine sparse/triton"
        return None

    def convolve(self, features: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
        """See `SparseEngine.convolve`."""
        _check_parity(features.device)
        return _SpconvConvolution.apply(features, weight, kernel_map)


class _SpconvConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, features: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
        pairs, counts = kernel_map.cached("sparse/spconv/pairs", _pairs)
        features, filters = features.contiguous(), _filters(weight)
        ctx.save_for_backward(features, filters, pairs, counts)
        if not _has_work(features, filters, pairs) or not kernel_map.out_size:
            return features.new_zeros(kernel_map.out_size, weight.shape[2])
        return _ops().indice_conv(features, filters, pairs, counts, kernel_map.out_size)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        features, filters, pairs, counts = ctx.saved_tensors
        if not _has_work(features, filters, pairs):
            of_features, of_filters = torch.zeros_like(features), torch.zeros_like(filters)
        else:
            of_features, of_filters = _ops().indice_conv_backward(
                features, filters, gradient.contiguous(), pairs, counts
            )
        return of_features, of_filters.view(filters.shape)[:, :, 0, 0].permute(1, 2, 0), None


def _has_work(features: Tensor, filters: Tensor, pairs: Tensor) -> bool:
    return bool(features.numel() and filters.numel() and pairs.numel())


def _filters(weight: Tensor) -> Tensor:
    """Return a weight [K, C_in, C_out] in spconv's order [C_out, K, 1, 1, C_in]."""
    return weight.permute(2, 0, 1)[:, :, None, None].contiguous()


def _pairs(kernel_map: KernelMap) -> tuple[Tensor, Tensor]:
    """Return pairs [2, K, M] int32 of input and output rows, filled up with -1, and their counts [K] int32."""
    counts = torch.tensor(kernel_map.counts)
    most, device = int(counts.max()) if len(counts) else 0, kernel_map.in_rows.device
    place = torch.cat([torch.arange(count) for count in counts.tolist()]) if len(counts) else counts
    place = place + torch.arange(len(counts)).repeat_interleave(counts) * most
    both = torch.full((2, len(counts) * most), -1, dtype=torch.int32, device=device)
    both[:, place.to(device)] = torch.stack([kernel_map.in_rows, kernel_map.out_rows]).int()
    return both.view(2, len(counts), most), counts.int().to(device)


def _ops() -> Any:
    """Return spconv's operations, with tf32 where torch's own products use it."""
    from spconv import constants
    from spconv.pytorch import ops

    constants.SPCONV_ALLOW_TF32 = torch.get_float32_matmul_precision() != "highest"
    return ops


@functools.cache
def _check_parity(device: torch.device) -> None:
    """Compare a small convolution with plain torch: a build of spconv for another CUDA or GPU may compute anything.

    Raises:
        UserError: if values or gradients differ.
    """
    draws = torch.Generator().manual_seed(0)
    rows = torch.arange(48)
    kernel_map = KernelMap(
        torch.cat([rows, rows[1:]]).to(device), torch.cat([rows, rows[:-1]]).to(device), (48, 47), 48, 48
    )
    inputs = [torch.randn(48, 16, generator=draws), torch.randn(2, 16, 32, generator=draws)]
    found = []
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        for run in (_SpconvConvolution.apply, convolve):
            features, weight = (tensor.to(device).requires_grad_() for tensor in inputs)
            with torch.enable_grad():
                out = run(features, weight, kernel_map)
                found.append((out.detach(), *torch.autograd.grad(out.square().sum(), (features, weight))))
    finally:
        torch.set_float32_matmul_precision(precision)
    for ours, wanted in zip(*found, strict=True):
        error = (ours - wanted).abs().max() / wanted.abs().max()
        if not error <= _TOLERANCE:
            raise UserError(
                f"spconv on this GPU differs from plain torch by {error:.0e} of the largest value: install the spconv "
                "of your CUDA version, or take engine sparse/triton",
                "engine",
            )
