"""Engines: who computes a sparse convolution, given features, weight and kernel map. Chosen by name or by `auto`."""

import logging
from functools import cache
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from prior3d.sparse.kernel_map import KernelMap

_LOG = logging.getLogger(__name__)
_NOT_BUILT_IN = ("spconv", "minkowski")


class Engine(Protocol):
    """What a convolution engine must offer; `register_engine` makes it choosable by name."""

    name: str

    def supports(self, device: torch.device) -> bool:
        """Whether `auto` may choose this engine for tensors on `device`."""
        ...

    def convolve(self, features: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
        """Sum over offsets k of features[in_k] @ weight[k] into rows out_k, differentiable in features and weight.

        Args:
            features: [N_in, C_in].
            weight: [K, C_in, C_out], of the features' dtype.
            kernel_map: pairs per offset.

        Returns:
            [N_out, C_out]; zero where an output has no pair.
        """
        ...


class TorchEngine:
    """Gather, matrix product, scatter, offset by offset, in plain torch: the reference, on any device."""

    name = "torch"

    def supports(self, device: torch.device) -> bool:
        """True: it runs wherever torch does."""
        return True

    def convolve(self, features: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
        """See `Engine.convolve`; half-precision products are summed over offsets in float32."""
        return _GatherMultiplyScatter.apply(features, weight, kernel_map)


class _GatherMultiplyScatter(torch.autograd.Function):
    """One node for all offsets: autograd through 27 gathers, products and scatters would keep every gathered copy.

    Rows are unique within an offset and offsets follow each other, so the sums are reproducible on every device.
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
        dtype = torch.promote_types(features.dtype, torch.float32)
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
    """Sum of features[in_k] @ weight[k] over offsets, accumulated in at least float32."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    if kernel_map.identity is None:
        out = features.new_zeros(kernel_map.out_size, weight.shape[2], dtype=dtype)
    else:
        out = torch.mm(features, weight[kernel_map.identity]).to(dtype)
    for k, (in_rows, out_rows) in enumerate(kernel_map.pairs):
        if k != kernel_map.identity and len(in_rows):
            out.index_add_(0, out_rows, torch.mm(features.index_select(0, in_rows), weight[k]).to(dtype))
    return out


_ENGINES: dict[str, Engine] = {}


def register_engine(engine: Engine) -> None:
    """Make an engine choosable by its name; `auto` prefers the latest registered one that supports the device.

    Raises:
        ValueError: if the name is taken or reserved.
    """
    if engine.name in _ENGINES or engine.name == "auto":
        raise ValueError(f"expected a new engine name, got '{engine.name}'")
    _ENGINES[engine.name] = engine


def available_engines() -> tuple[str, ...]:
    """Names that `select_engine` can serve, beside `auto`."""
    return tuple(_ENGINES)


def check_engine(name: str) -> str:
    """The name itself, if it can be had.

    Raises:
        ValueError: if it is unknown, or known but not available here.
    """
    if name == "auto" or name in _ENGINES:
        return name
    choices = ", ".join(["auto", *_ENGINES])
    if name in _NOT_BUILT_IN:
        raise ValueError(
            f"sparse engine '{name}' is not available: this version of prior3d has no adapter for it; choose one of "
            f"{choices}, or register an adapter with prior3d.sparse.register_engine"
        )
    raise ValueError(f"expected a sparse engine among {choices}, got '{name}'")


def select_engine(name: str, device: torch.device) -> Engine:
    """Engine of that name; `auto` takes the best one for the device and logs its choice once.

    Raises:
        ValueError: if the name is unknown or the engine is not available; nothing else is chosen in its place.
    """
    if check_engine(name) != "auto":
        return _ENGINES[name]
    engine = next(engine for engine in reversed(_ENGINES.values()) if engine.supports(device))
    _log_once(device.type, engine.name)
    return engine


@cache
def _log_once(device_type: str, engine_name: str) -> None:
    _LOG.info("sparse convolution on %s: engine '%s'", device_type, engine_name)


register_engine(TorchEngine())
