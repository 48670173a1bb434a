"""Mapping from the 1000 classes of ImageNet to the 16 everyday classes of the cue-conflict images."""

from collections.abc import Mapping

import torch
from torch import Tensor

IMAGENET_CLASSES = 1000


def _members(*spans: int | tuple[int, int], without: tuple[int, ...] = ()) -> tuple[int, ...]:
    indices = [i for span in spans for i in (range(span[0], span[1] + 1) if isinstance(span, tuple) else [span])]
    return tuple(index for index in indices if index not in without)


SIXTEEN_CLASSES: Mapping[str, tuple[int, ...]] = {
    "airplane": _members(404),
    "bear": _members((294, 297)),
    "bicycle": _members(444, 671),
    "bird": _members((8, 24), (80, 100), (127, 145), without=(9, 17, 21, 84, 85, 86, 97, 134)),
    "boat": _members(472, 554, 625, 814, 914),
    "bottle": _members(440, 720, 737, 898, 899, 901, 907),
    "car": _members(436, 511, 817),
    "cat": _members((281, 286)),
    "chair": _members(423, 559, 765, 857),
    "clock": _members(409, 530, 892),
    "dog": _members((152, 268), without=(192, 204, 227, 242, 251, 258, 260, 264)),
    "elephant": _members(385, 386),
    "keyboard": _members(508, 878),
    "knife": _members(499),
    "oven": _members(766),
    "truck": _members(555, 569, 656, 675, 717, 734, 864, 867),
}
"""Maps each of the 16 classes to its ImageNet classes: positions of WordNet ids in the sorted list of ILSVRC 2012.

A 1000-way head orders its outputs the same way. The authors of the sets left out by hand the kinds whose name also
means something else: kite, drake, crane, boxer.

Reference:
    Geirhos et al., Generalisation in humans and deep neural networks, 2018, arXiv 1808.08750 (16-class-ImageNet).
"""


def sixteen_from_imagenet(logits: Tensor) -> Tensor:
    """Return, for each of the 16 classes, the mean probability of its ImageNet classes, [N, 16], in sorted order.

    It is a mean, not a sum: there are 109 classes of dogs and one of knives, so a sum would favor dogs.

    Args:
        logits: Logits [N, 1000].

    Reference:
        Geirhos et al., 2019, arXiv 1811.12231: the same aggregation.
    """
    if logits.dim() != 2 or logits.shape[1] != IMAGENET_CLASSES:
        raise ValueError(f"expected logits [N, {IMAGENET_CLASSES}], got {list(logits.shape)}")
    return logits.double().softmax(1) @ _averaging().to(logits.device)


def sixteen_of_imagenet() -> Tensor:
    """Return, for each ImageNet class, which of the 16 classes it belongs to, [1000] int64, -1 for none."""
    found = torch.full((IMAGENET_CLASSES,), -1)
    for index, members in enumerate(SIXTEEN_CLASSES.values()):
        found[list(members)] = index
    return found


def _averaging() -> Tensor:
    matrix = torch.zeros(IMAGENET_CLASSES, len(SIXTEEN_CLASSES), dtype=torch.float64)
    for index, members in enumerate(SIXTEEN_CLASSES.values()):
        matrix[list(members), index] = 1 / len(members)
    return matrix
