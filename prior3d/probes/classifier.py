"""The frozen classifier of a checkpoint, attached to an encoder that was made without it."""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from prior3d.backbone import Backbone, Encoder
from prior3d.backbone.weights import digest
from prior3d.errors import UserError


class CheckpointClassifier(nn.Module):
    """Images to the logits of a frozen linear classifier on the pooled features of an encoder.

    A copy (`copy.deepcopy`) has its own encoder, so its BatchNorm statistics can be re-estimated.

    Args:
        encoder: Encoder of a backbone, whose decoder is not used; shared, not copied.
        weight: Weight [K, P].
        bias: Bias [K], or None.
    """

    def __init__(self, encoder: Encoder, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.encoder = encoder
        device = next(encoder.parameters()).device
        self.register_buffer("weight", weight.detach().float().to(device))
        self.register_buffer("bias", None if bias is None else bias.detach().float().to(device))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [N, K] of images [N, 3, H, W] in 0..1."""
        return F.linear(self.encoder(images, pooled=True)[1].float(), self.weight, self.bias)


def classifier_digest(backbone: Backbone, weights: Mapping[str, Tensor]) -> str | None:
    """Return a hash of the classifier in a timm state dict, for the keys of its scores; None if it holds none."""
    found = checkpoint_classifier(backbone, weights)
    if found is None:
        return None
    return digest(dict(found.named_buffers(recurse=False)))


def checkpoint_classifier(backbone: Backbone, weights: Mapping[str, Tensor]) -> CheckpointClassifier | None:
    """Return the classifier in a timm state dict, on a backbone of the same architecture; None if it holds none.

    The backbone may have been trained further: its classifier is still the original one.

    Args:
        backbone: Backbone in the state in which models are measured: frozen, on its device.
        weights: Weights of the whole model, from `prior3d.backbone.weights.read_weights`.

    Raises:
        UserError: The classifier needs other features than those of the backbone.
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
    return CheckpointClassifier(backbone.encoder, weight, bias)  # not frozen here: the backbone may be trained next
