"""Sparse convolution as one differentiable operation, in eager mode and for `torch.compile`."""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from prior3d.sparse import KernelMap
from prior3d_plugins.engines.sparse_triton.forms import Pairs, Tiles, pairs_of, tiles_of
from prior3d_plugins.engines.sparse_triton.products import gather, weight_gradient

_ONCE = (
    "engine sparse/triton is differentiable once: its gradients have no gradients of their own; "
    "compute the loss without create_graph=True"
)


def convolve(features: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
    """Convolve with the forms of a kernel map, made on first use."""
    if torch.compiler.is_compiling():
        return torch.ops.prior3d_sparse_triton.convolve(features, weight, *plain_arguments(kernel_map, features.dtype))
    return _Convolve.apply(features, weight, kernel_map, product_precision(features.dtype))


def product_precision(dtype: torch.dtype) -> str:
    """Return the precision of products, `ieee` or `tf32`: for float32, what the user chose for matrix products."""
    if dtype != torch.float32:
        return "tf32"  # matrix units; half precision is multiplied exactly
    # Since torch 2.9 the setting is the backend's own; some releases refuse to read the global one once it is used.
    own = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
    allowed = own == "tf32" if own is not None and own != "none" else torch.backends.cuda.matmul.allow_tf32
    return "tf32" if allowed else "ieee"


class _Convolve(torch.autograd.Function):
    """The eager form: tiles of the transposed map and pairs are made in the backward pass, if they are needed."""

    @staticmethod
    def forward(ctx: FunctionCtx, features: Tensor, weight: Tensor, kernel_map: KernelMap, precision: str) -> Tensor:
        ctx.save_for_backward(features, weight)
        ctx.kernel_map, ctx.precision = kernel_map, precision
        return gather(features, weight, tiles_of(kernel_map), False, precision)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        features, weight = ctx.saved_tensors
        find = _Gradients.apply if torch.is_grad_enabled() else _gradients_of
        gradients = find(gradient, features, weight, ctx.kernel_map, ctx.precision, *ctx.needs_input_grad[:2])
        return *gradients, None, None


def _gradients_of(
    gradient: Tensor,
    features: Tensor,
    weight: Tensor,
    kernel_map: KernelMap,
    precision: str,
    needs_features: bool,
    needs_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    gradient = gradient.contiguous()
    of_features = of_weight = None
    if needs_features:
        # The transposed map of a mirrored one is the map itself with its offsets in reverse.
        tiles = tiles_of(kernel_map if kernel_map.mirrored else kernel_map.transposed)
        of_features = gather(gradient, weight.transpose(1, 2), tiles, kernel_map.mirrored, precision)
    if needs_weight:
        of_weight = weight_gradient(features, gradient, pairs_of(kernel_map), precision)
    return of_features, of_weight


class _Gradients(torch.autograd.Function):
    """The gradients as a node of their own, for a caller that keeps the graph: it says why it ends here."""

    @staticmethod
    def forward(ctx: FunctionCtx, *arguments: object) -> tuple[Tensor | None, Tensor | None]:
        return _gradients_of(*arguments)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[None, ...]:
        raise RuntimeError(_ONCE)


# For torch.compile: the same on tensors alone, opaque to the compiler.

_LIBRARY = torch.library.Library("prior3d_sparse_triton", "DEF")
_LIBRARY.define(
    "convolve(Tensor features, Tensor weight, Tensor[] tiles, Tensor[] back, Tensor[] pairs, bool mirrored, "
    "str precision) -> Tensor"
)
_LIBRARY.define(
    "gradients(Tensor gradient, Tensor features, Tensor weight, Tensor[] back, Tensor[] pairs, bool mirrored, "
    "str precision) -> (Tensor, Tensor)"
)


@torch.compiler.disable
def plain_arguments(
    kernel_map: KernelMap, dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor], list[Tensor], bool, str]:
    """Return what the operation reads of a map and of the settings, as plain values; the compiler skips this."""
    tiles = tiles_of(kernel_map)
    back = tiles if kernel_map.mirrored else tiles_of(kernel_map.transposed)
    pairs = pairs_of(kernel_map)
    return tiles.tensors(), back.tensors(), list(pairs), kernel_map.mirrored, product_precision(dtype)


def _convolve(
    features: Tensor,
    weight: Tensor,
    tiles: list[Tensor],
    back: list[Tensor],
    pairs: list[Tensor],
    mirrored: bool,
    precision: str,
) -> Tensor:
    return gather(features, weight, Tiles(*tiles), False, precision)


def _gradients(
    gradient: Tensor,
    features: Tensor,
    weight: Tensor,
    back: list[Tensor],
    pairs: list[Tensor],
    mirrored: bool,
    precision: str,
) -> tuple[Tensor, Tensor]:
    gradient = gradient.contiguous()
    of_features = gather(gradient, weight.transpose(1, 2), Tiles(*back), mirrored, precision)
    return of_features, weight_gradient(features, gradient, Pairs(*pairs), precision).contiguous()


for _name, _run in {"convolve": _convolve, "gradients": _gradients}.items():
    _LIBRARY.impl(_name, _run, "CompositeExplicitAutograd")


@torch.library.register_fake("prior3d_sparse_triton::convolve", lib=_LIBRARY)
def _convolved_shape(features: Tensor, weight: Tensor, tiles: list[Tensor], *others: object) -> Tensor:
    return features.new_empty(len(tiles[1]), weight.shape[2])


@torch.library.register_fake("prior3d_sparse_triton::gradients", lib=_LIBRARY)
def _gradient_shapes(gradient: Tensor, features: Tensor, weight: Tensor, *others: object) -> tuple[Tensor, Tensor]:
    return features.new_empty(features.shape), weight.new_empty(weight.shape)


def _keep(ctx: FunctionCtx, inputs: tuple, output: Tensor) -> None:
    features, weight, _, back, pairs, ctx.mirrored, ctx.precision = inputs
    ctx.lengths = len(back), len(pairs)
    ctx.save_for_backward(features, weight, *back, *pairs)


def _backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
    features, weight, *forms = ctx.saved_tensors
    back, pairs = ctx.lengths
    gradients = torch.ops.prior3d_sparse_triton.gradients(
        gradient, features, weight, forms[:back], forms[back:], ctx.mirrored, ctx.precision
    )
    return *gradients, [None] * back, [None] * back, [None] * pairs, None, None


def _refuse(ctx: FunctionCtx, *gradients: Tensor) -> None:
    raise RuntimeError(_ONCE)


torch.library.register_autograd("prior3d_sparse_triton::convolve", _backward, setup_context=_keep, lib=_LIBRARY)
torch.library.register_autograd("prior3d_sparse_triton::gradients", _refuse, lib=_LIBRARY)
