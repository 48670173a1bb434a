"""Re-estimation of BatchNorm statistics: what makes features of two models comparable.

A freshly made model normalizes with mean 0 and variance 1, a trained one with a moving average that lags behind its
weights. Both are replaced by the statistics of the same training images before anything is measured.

Some published weights have their statistics folded into the convolutions: mean 0 and variance 1 are then what the
weights were made for, and other statistics would destroy the model: they are not re-estimated, and `refuse_folded` lets
nobody train them before `unfold_batch_norm` has given them statistics. See `is_folded`.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prior3d.errors import UserError


def reestimate_batch_norm(model: nn.Module, forward: Callable[[Tensor], object], batches: Iterable[Tensor]) -> int:
    """Replace the running statistics of every BatchNorm layer by the average over batches of images.

    Layers whose statistics are folded into their weights keep them, and so do layers that `forward` does not run.

    Args:
        model: changed in place; left in evaluation mode.
        forward: called with each batch; must run the layers of `model`.
        batches: images [N, 3, H, W] in 0..1, on the model's device; not read at all if there is no such layer.

    Returns:
        The number of layers that were re-estimated.
    """
    model.eval()
    layers = [layer for layer in _layers(model) if not is_folded(layer)]
    if not layers:
        return 0
    kept = [{name: value.clone() for name, value in layer.named_buffers()} for layer in layers]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain average over all batches
        layer.train()
    with torch.no_grad():
        for images in batches:
            forward(images)
    done = 0
    for layer, momentum, buffers in zip(layers, momenta, kept, strict=True):
        layer.momentum = momentum
        if layer.num_batches_tracked == 0:
            for name, value in layer.named_buffers():
                value.copy_(buffers[name])
        else:
            done += 1
    model.eval()
    return done


def has_statistics(model: nn.Module, folded: bool = False) -> bool:
    """Whether a model has BatchNorm layers whose statistics can be re-estimated.

    Args:
        model: which.
        folded: count layers whose statistics are folded, too: training gives them new ones.
    """
    return any(folded or not is_folded(layer) for layer in _layers(model))


def is_folded(layer: nn.Module) -> bool:
    """Whether a BatchNorm layer never saw an image and yet has a scale and shift that nobody starts with.

    Such weights come from conversions for inference, which fold the statistics into the convolution before.
    """
    if not isinstance(layer, _BatchNorm) or not layer.affine or not layer.track_running_stats:
        return False
    if layer.num_batches_tracked > 0 or (layer.running_mean != 0).any() or (layer.running_var != 1).any():
        return False
    return bool((layer.bias != 0).any() or ((layer.weight != 1) & (layer.weight != 0)).any())


def refuse_folded(model: nn.Module, name: str, key: str | None = None, all_train: bool = False) -> None:
    """Refuse to train layers whose statistics are folded: the batch's own would destroy the model at the first step.

    Args:
        model: its layers train that have a parameter which requires a gradient.
        name: what messages call it.
        key: of the recipe, which names these weights.
        all_train: every layer will train, whatever requires a gradient now.

    Raises:
        UserError: with the first such layer.
    """
    for path, layer in model.named_modules():
        if is_folded(layer) and (all_train or any(parameter.requires_grad for parameter in layer.parameters())):
            or_else = "" if all_train else ", or leave the encoder frozen"
            raise UserError(
                f"the statistics of {path} of {name}, a BatchNorm layer, are folded into the weights, as conversions"
                " for inference do: training would normalise by those of each batch and destroy the model at its first"
                f" step; unfold them with tools/unfold_batch_norm.py"
                f" (prior3d.backbone.batch_norm.unfold_batch_norm){or_else}",
                key,
            )


def unfold_batch_norm(model: nn.Module, forward: Callable[[Tensor], object], batches: Iterable[Tensor]) -> int:
    """Give layers with folded statistics those of some images, and undo their effect by scale and shift.

    In evaluation mode the model computes what it did before; in training mode, where a folded model breaks down at the
    first step, it computes nearly that.

    Args:
        model: changed in place; left in evaluation mode.
        forward: called with each batch; must run the layers of `model`.
        batches: images [N, 3, H, W] in 0..1, on the model's device, such as the weights were trained on.

    Returns:
        The number of layers that were unfolded.
    """
    model.eval()
    moments = {layer: _Moments(layer) for layer in _layers(model) if is_folded(layer)}
    if not moments:
        return 0
    hooks = [layer.register_forward_pre_hook(seen.add) for layer, seen in moments.items()]
    with torch.no_grad():
        for images in batches:
            forward(images)
    for hook in hooks:
        hook.remove()
    return sum(seen.put_in(layer) for layer, seen in moments.items())


class _Moments:
    """Sums over images and places of what enters a layer, by channel, in float64."""

    def __init__(self, layer: _BatchNorm) -> None:
        self.total = torch.zeros_like(layer.running_mean, dtype=torch.float64)
        self.squares = self.total.clone()
        self.count = self.batches = 0

    def add(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].double().transpose(0, 1).flatten(1)
        self.total += values.sum(1)
        self.squares += values.square().sum(1)
        self.count += values.shape[1]
        self.batches += 1

    @torch.no_grad()
    def put_in(self, layer: _BatchNorm) -> bool:
        if not self.batches:
            return False
        mean = self.total / self.count
        variance = (self.squares / self.count - mean.square()).clamp_min(0)
        scale = layer.weight.double() / (1 + layer.eps) ** 0.5
        layer.bias.add_((scale * mean).to(layer.bias))
        layer.weight.copy_(scale * (variance + layer.eps).sqrt())
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(variance)
        layer.num_batches_tracked.fill_(self.batches)
        return True


def _layers(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
