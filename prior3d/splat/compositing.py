"""Front-to-back compositing over tiles: weights = alpha x transmittance, and weighted sums."""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from prior3d.geometry import full_precision
from prior3d.splat.projection import ALPHA_THRESHOLD, MAX_ALPHA, MIN_TRANSMITTANCE
from prior3d.splat.tiles import TileBatch, TileLists, tile_batches

MIN_EXPONENT = -16.0  # far below the alpha threshold; smaller exponents give denormal numbers, which are slow on CPUs


def tile_weights(pixels: Tensor, conics: Tensor, opacities: Tensor, batch: TileBatch, lists: TileLists) -> Tensor:
    """Compute the compositing weights of a batch of tiles.

    Args:
        pixels: [T, K, 2] centers of the batch's Gaussians
        conics: [T, K, 3] inverse covariances
        opacities: [T, K] opacities of the Gaussians
        batch: the tiles, and their padding.
        lists: the lists that the batch was taken from.

    Returns:
        [T, tile_size^2, K] alpha x transmittance
    """
    side = lists.tile_size
    corners = torch.stack([batch.tiles % lists.columns, batch.tiles // lists.columns], -1) * side
    centers = torch.arange(side, device=pixels.device, dtype=pixels.dtype) + 0.5
    dx = corners[:, :1, None] + centers[:, None] - pixels[:, None, :, 0]  # [T, side, K]
    dy = corners[:, 1:, None] + centers[:, None] - pixels[:, None, :, 1]
    xx, xy, yy = (component[:, None] for component in conics.unbind(-1))
    exponent = (-0.5 * xx * dx * dx)[:, None] + (-0.5 * yy * dy * dy)[:, :, None] - (xy * dy)[:, :, None] * dx[:, None]
    falloff = exponent.clamp(min=MIN_EXPONENT).exp()
    alpha = (opacities[:, None, None] * falloff).clamp(max=MAX_ALPHA).flatten(1, 2)
    # a positive exponent is rounding at the center of a needle; gsplat drops it too
    drawn = (alpha >= ALPHA_THRESHOLD) & (exponent.flatten(1, 2) <= 0) & batch.valid[:, None]
    alpha = torch.where(drawn, alpha, 0.0)
    transmittance = (1 - alpha).cumprod(-1)  # behind each Gaussian
    before = torch.nn.functional.pad(transmittance[..., :-1], (1, 0), value=1.0)
    return alpha * before * (transmittance > MIN_TRANSMITTANCE)


class Composite(torch.autograd.Function):
    """Sum of weights x values over each pixel's Gaussians, and the sum of weights.

    The backward pass recomputes each batch instead of keeping it: memory is that of one batch and the images.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, pixels: Tensor, conics: Tensor, opacities: Tensor, values: Tensor, lists: TileLists
    ) -> tuple[Tensor, Tensor]:
        """Composite values.

        Args:
            ctx: context of autograd.
            pixels: [N, 2] centers
            conics: [N, 3] inverse covariances
            opacities: [N] opacities of the Gaussians
            values: [N, C] values to composite
            lists: Gaussians of the tiles.

        Returns:
            [tiles, tile_size^2, C] composited values and [tiles, tile_size^2] alpha
        """
        ctx.save_for_backward(pixels, conics, opacities, values)
        ctx.lists = lists
        shape = (lists.rows * lists.columns, lists.tile_size**2)
        sums, alphas = values.new_zeros(*shape, values.shape[1]), values.new_zeros(shape)
        with full_precision(values.device):
            for batch in tile_batches(lists, values.shape[1]):
                gathered = (tensor[batch.gaussians] for tensor in (pixels, conics, opacities))
                weights = tile_weights(*gathered, batch, lists)
                sums[batch.tiles] = weights @ values[batch.gaussians]
                alphas[batch.tiles] = weights.sum(-1)
        return sums, alphas

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_sums: Tensor, grad_alphas: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of the first four inputs, batch by batch.

        Args:
            ctx: context of autograd.
            grad_sums: [tiles, tile_size^2, C] gradient of the composited values
            grad_alphas: [tiles, tile_size^2] gradient of alpha

        Returns:
            One gradient for each input of `forward`.
        """
        inputs, lists = ctx.saved_tensors, ctx.lists
        totals = [torch.zeros_like(tensor) for tensor in inputs]
        with full_precision(grad_sums.device):
            for batch in tile_batches(lists, grad_sums.shape[-1]):
                with torch.enable_grad():
                    gathered = [tensor[batch.gaussians].requires_grad_() for tensor in inputs]
                    weights = tile_weights(*gathered[:3], batch, lists)
                    outputs = (weights @ gathered[3], weights.sum(-1))
                grads = torch.autograd.grad(outputs, gathered, (grad_sums[batch.tiles], grad_alphas[batch.tiles]))
                for total, grad in zip(totals, grads, strict=True):
                    total.index_add_(0, batch.gaussians.flatten(), grad.flatten(0, 1))
        return (*totals, None)
