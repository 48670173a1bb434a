"""The classifier that a checkpoint came with, put back on the encoder that was made without it."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prior3d.backbone import Backbone
from prior3d.errors import UserError


class CheckpointClassifier(nn.Module):
    """Images to the logits of a frozen linear classifier on the pooled features of a backbone.

    A copy (`copy.deepcopy`) has a backbone of its own, so that its BatchNorm statistics can be re-estimated.

    Args:
        backbone: gives the pooled features; shared, not copied.
        weight: [K, P].
        bias: [K], or None.
    """

    def __init__(self, backbone: Backbone, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.backbone = backbone
        device = next(backbone.parameters()).device
        self.register_buffer("weight", weight.detach().float().to(device))
        self.register_buffer("bias", None if bias is None else bias.detach().float().to(device))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [N, K] of images [N, 3, H, W] in 0..1."""
        return F.linear(self.backbone(images, ("pooled",)).pooled.float(), self.weight, self.bias)


def checkpoint_classifier(backbone: Backbone, weights: Mapping[str, Tensor]) -> CheckpointClassifier | None:
    """Return the classifier in a timm state dict, on a backbone of the same architecture; None if it holds none.

    The backbone may have been trained further: its classifier stays the one it started with.

    Args:
        backbone: as models are measured: frozen, on its device.
        weights: of the whole model, as `prior3d.weights.read_weights` gives them.

    Raises:
        UserError: the classifier takes other features than the backbone gives.
    """
    classifier = backbone.encoder.model.pretrained_cfg.get("classifier")
    if not isinstance(classifier, str):  # some distilled models have two
        return None
    weight, bias = weights.get(f"{classifier}.weight"), weights.get(f"{classifier}.bias")
    if weight is None:
        return None
    weight = weight.flatten(2).squeeze(2) if weight.dim() == 4 and weight.shape[2:] == (1, 1) else weight
    expected = backbone.spec.pooled_channels
    if weight.dim() != 2 or weight.shape[1] != expected:
        raise UserError(
            f"{classifier}.weight is {list(weight.shape)} and should be [classes, {expected}] for"
            f" {backbone.encoder.name}",
            "backbone.weights",
        )
    with torch.no_grad():
        return CheckpointClassifier(backbone, weight, bias).eval().requires_grad_(False)
