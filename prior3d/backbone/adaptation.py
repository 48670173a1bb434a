"""Choice of the parts of a backbone that train: all, the encoder's last blocks or stages, or only the decoder."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prior3d.backbone.backbone import Backbone
from prior3d.backbone.encoder import Encoder
from prior3d.errors import UserError

Train = Literal["full", "last_n", "frozen"]
"""Part of the encoder that trains."""


def set_trainable(backbone: Backbone, train: Train, last_n: int, reads: Iterable[str]) -> str:
    """Choose which parameters train, and freeze those that do not affect any read features.

    An unread parameter (an unused decoder, the norm before a classifier) gets no gradient. This breaks
    DistributedDataParallel at the second step and lets weight decay erode pre-trained weights.

    Args:
        backbone: changed in place.
        train: full, last_n (the last n blocks of a ViT, the last n stages of others) or frozen (encoder only).
        last_n: the n of last_n.
        reads: features that are read: any of encoder, dense, pooled.

    Returns:
        One line that describes what trains, with numbers of parameters.

    Raises:
        UserError: the encoder has fewer than n blocks or stages.
    """
    backbone.requires_grad_(True)
    encoder, which = backbone.encoder, ""
    if train == "frozen":
        encoder.requires_grad_(False)
    elif train == "last_n":
        groups = parameter_groups(encoder)
        units = "blocks" if encoder.isotropic else "stages"
        if last_n > len(groups):
            raise UserError(f"{encoder.name} has {len(groups)} {units}, fewer than {last_n}", "last_n")
        encoder.requires_grad_(False)
        for group in groups[-last_n:]:
            for parameter in group.values():
                parameter.requires_grad_(True)
        which = f" (the last {last_n} of its {len(groups)} {units})"
    _freeze_unread(backbone, reads)
    return _summary(backbone, which)


def parameter_groups(encoder: Encoder) -> list[dict[str, nn.Parameter]]:
    """Return the parameters of each block of a ViT, or of each stage of a pyramid, first to last, by name.

    The graph of a forward pass determines the groups: a group has the parameters that its map depends on and no earlier
    map does. The first group includes the stem, the last everything after it, such as the final norm. All parameters
    must require gradients.

    >>> encoder = Encoder("test_convnext").fit((64, 64))
    >>> [next(iter(group)) for group in parameter_groups(encoder)]
    ['stem.0.weight', 'stages.1.downsample.0.weight', 'stages.2.downsample.0.weight', 'stages.3.downsample.0.weight']
    """
    was_training = encoder.training
    encoder.eval()  # the test image must not change the running statistics
    with torch.enable_grad():
        maps = encoder.every_map(_probe_image(encoder))
    encoder.train(was_training)
    visited: set[object] = set()
    reached = [_leaves([one], visited) for one in maps]
    left = dict(encoder.model.named_parameters())
    groups = []
    for leaves in reached:
        groups.append({name: parameter for name, parameter in left.items() if id(parameter) in leaves})
        left = {name: parameter for name, parameter in left.items() if id(parameter) not in leaves}
    groups = [group for group in groups if group]
    groups[-1] |= left
    return groups


def refuse_single_values(backbone: Backbone, reads: Iterable[str]) -> None:
    """Reject steps of a single image if a BatchNorm layer would see one value per channel.

    Args:
        backbone: the backbone, after `set_trainable`.
        reads: features that are read.

    Raises:
        UserError: there is such a layer; the message has the first one, and the key is `batch_size`.
    """
    was_training = backbone.training
    backbone.train()
    layers = [
        (name, layer) for name, layer in backbone.named_modules() if isinstance(layer, _BatchNorm) and layer.training
    ]
    backbone.eval()
    single: list[str] = []
    hooks = [layer.register_forward_pre_hook(_note_single_values(name, single)) for name, layer in layers]
    with torch.no_grad():
        backbone(torch.zeros(1, 3, *backbone.size), reads)
    for hook in hooks:
        hook.remove()
    backbone.train(was_training)
    if single:
        height, width = backbone.size
        raise UserError(
            f"with one image of {height} x {width} pixels per step, the BatchNorm layer {single[0]} gets one value per"
            " channel and cannot normalize it; use 2 images or more, or larger ones",
            "batch_size",
        )


def _note_single_values(name: str, single: list[str]) -> object:
    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].numel() == inputs[0].shape[1]:
            single.append(name)

    return note


def _freeze_unread(backbone: Backbone, reads: Iterable[str]) -> None:
    was_training = backbone.training
    backbone.eval()
    with torch.enable_grad():
        maps = backbone(_probe_image(backbone.encoder), reads)
    backbone.train(was_training)
    read = [*(maps.encoder.values() if "encoder" in reads else ()), maps.dense, maps.pooled]
    reached = _leaves([tensor for tensor in read if tensor is not None], set())
    if reached:
        for parameter in backbone.parameters():
            parameter.requires_grad_(parameter.requires_grad and id(parameter) in reached)


def _probe_image(encoder: Encoder) -> Tensor:
    return torch.zeros(1, 3, *encoder.layout.probe_size, device=encoder.mean.device)


def _leaves(tensors: Iterable[Tensor], visited: set[object]) -> set[int]:
    """Return the ids of the parameters that tensors were computed from, through graph nodes not visited before."""
    found = set()
    pending = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    while pending:
        node = pending.pop()
        if node in visited:
            continue
        visited.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        pending += [before for before, _ in node.next_functions if before is not None]
    return found


def _summary(backbone: Backbone, which: str) -> str:
    parts = [(f"{backbone.encoder.name}{which}", backbone.encoder)]
    parts += [("the decoder", backbone.decoder)] if backbone.decoder is not None else []
    counts = [(name, _count(module, True), _count(module, False)) for name, module in parts]
    said = [f"{trains / 1e6:.2f} of {of / 1e6:.2f} M parameters of {name}" for name, trains, of in counts if trains]
    return f"trains: {', '.join(said) or 'nothing of the backbone'}"


def _count(module: nn.Module, only_what_trains: bool) -> int:
    return sum(one.numel() for one in module.parameters() if one.requires_grad or not only_what_trains)
