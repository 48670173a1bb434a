"""Re-estimation of BatchNorm statistics: what makes features of two models comparable.

A freshly made model normalises with mean 0 and variance 1, a trained one with a moving average that lags behind its
weights. Both are replaced by the statistics of the same training images before anything is measured.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def reestimate_batch_norm(model: nn.Module, forward: Callable[[Tensor], object], batches: Iterable[Tensor]) -> int:
    """Replace the running statistics of every BatchNorm layer by the average over batches of images.

    Args:
        model: changed in place; left in evaluation mode.
        forward: called with each batch; must run the layers of `model`.
        batches: images [N, 3, H, W] in 0..1, on the model's device; not read at all if there is no such layer.

    Returns:
        The number of layers that were re-estimated.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    model.eval()
    if not layers:
        return 0
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain average over all batches
        layer.train()
    with torch.no_grad():
        for images in batches:
            forward(images)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    model.eval()
    return len(layers)
