"""Which parts of a backbone train."""

from collections.abc import Iterable

import torch
from timm.models import group_parameters

from prior3d.backbone.backbone import Backbone

Train = str
"""How much of the encoder trains: full, last_n or frozen."""


def set_trainable(backbone: Backbone, train: Train, last_n: int, reads: Iterable[str]) -> None:
    """Choose which parameters train, and freeze those that no reader's features depend on.

    An unread parameter (a decoder nobody reads, the norm before a classifier) gets no gradient, which breaks
    DistributedDataParallel at the second step and lets weight decay erode pre-trained weights.

    Args:
        backbone: changed in place.
        train: full, last_n (the last n blocks of a ViT, the last n stages of others) or frozen (encoder only).
        last_n: the n of last_n.
        reads: features that are read: any of encoder, dense, pooled.
    """
    backbone.requires_grad_(True)
    if train == "frozen":
        backbone.encoder.requires_grad_(False)
    elif train == "last_n":
        groups = group_parameters(backbone.encoder.model, backbone.encoder.model.group_matcher(coarse=True))
        kept = {name for group in sorted(groups)[-last_n:] for name in groups[group]}
        for name, parameter in backbone.encoder.model.named_parameters():
            parameter.requires_grad_(name in kept)
    _freeze_unread(backbone, reads)


def _freeze_unread(backbone: Backbone, reads: Iterable[str]) -> None:
    was_training = backbone.training
    backbone.eval()  # running statistics must not see the probe image
    with torch.enable_grad():
        maps = backbone(torch.rand(1, 3, *backbone.size), reads)
        read = [*(maps.encoder.values() if "encoder" in reads else ()), maps.dense, maps.pooled]
        total = sum(tensor.float().pow(2).sum() for tensor in read if tensor is not None)
    parameters = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    if total.requires_grad:
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)
    backbone.train(was_training)
