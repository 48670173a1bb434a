"""Re-estimation of BatchNorm statistics, which makes the features of two models comparable.

A new model normalizes with mean 0 and variance 1, a trained one with a moving average that lags behind its weights.
Before any measurement, both are replaced by the statistics of the same training images.

Some published weights have their statistics folded into the convolutions. Such weights expect mean 0 and variance 1,
and other statistics would destroy the model. These layers are not re-estimated, and `refuse_folded` rejects training
them before `unfold_batch_norm` has given them statistics. See `is_folded`.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prior3d.errors import UserError


def reestimate_batch_norm(model: nn.Module, forward: Callable[[Tensor], object], batches: Iterable[Tensor]) -> int:
    """Replace the running statistics of every BatchNorm layer by the average over batches of images.

    Layers with folded statistics, and layers that `forward` does not run, keep their statistics.

    Args:
        model: changed in place; left in evaluation mode.
        forward: called with each batch; must run the layers of `model`.
        batches: images [N, 3, H, W] in 0..1, on the model's device; not read if there is no such layer.

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
        model: the model.
        folded: also count layers with folded statistics: training gives them new statistics.
    """
    return any(folded or not is_folded(layer) for layer in _layers(model))


def is_folded(layer: nn.Module) -> bool:
    """Whether a BatchNorm layer has initial statistics but a scale and shift that are not initial values.

    Such weights come from conversions for inference, which fold the statistics into the preceding convolution.
    """
    if not isinstance(layer, _BatchNorm) or not layer.affine or not layer.track_running_stats:
        return False
    if layer.num_batches_tracked > 0 or (layer.running_mean != 0).any() or (layer.running_var != 1).any():
        return False
    return bool((layer.bias != 0).any() or ((layer.weight != 1) & (layer.weight != 0)).any())


def refuse_folded(model: nn.Module, name: str, key: str | None = None, all_train: bool = False) -> None:
    """Reject training of layers with folded statistics: batch statistics would destroy the model at the first step.

    Args:
        model: the model; its layers with a parameter that requires a gradient are trained.
        name: name of the model in messages.
        key: key of the recipe that names these weights.
        all_train: assume that every layer is trained, even if its parameters do not require gradients now.

    Raises:
        UserError: there is such a layer; the message has the first one.
    """
    for path, layer in model.named_modules():
        if is_folded(layer) and (all_train or any(parameter.requires_grad for parameter in layer.parameters())):
            or_else = "" if all_train else ", or leave the encoder frozen"
            raise UserError(
                f"the statistics of the BatchNorm layer {path} of {name} are folded into the weights, as conversions"
                " for inference do: training would normalize by those of each batch and destroy the model in its first"
                f" step; unfold them with tools/unfold_batch_norm.py"
                f" (prior3d.backbone.batch_norm.unfold_batch_norm){or_else}",
                key,
            )


def unfold_batch_norm(model: nn.Module, forward: Callable[[Tensor], object], batches: Iterable[Tensor]) -> int:
    """Give layers with folded statistics those of some images, and compensate with scale and shift.

    In evaluation mode the model's output does not change. In training mode, in which a folded model breaks down at the
    first step, the output is nearly the same.

    Args:
        model: changed in place; left in evaluation mode.
        forward: called with each batch; must run the layers of `model`.
        batches: images [N, 3, H, W] in 0..1, on the model's device, similar to those that the weights were trained on.

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
    """Sums of a layer's input over images and positions, per channel, in float64."""

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
