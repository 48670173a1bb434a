"""Semantic segmentation from frozen features: a linear head and nearest neighbors."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from prior3d import IGNORE_CLASS, Measured, Metrics, Probe, Scores, Totals, UserError, by_group
from prior3d.probes import (
    Fitting,
    FrozenMaps,
    FrozenModel,
    MapKind,
    ProbeData,
    Schedule,
    class_frequency,
    count_hits,
    counted,
    cross_entropy,
    images_shown,
    mean_iou,
    nearest,
    plot_classes,
    rows_shown,
    score_constant,
    upsample,
    vote,
)
from prior3d.randomness import generator

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Predict = Callable[[Tensor], Tensor]
"""Function from rows [n] of held-out images to class scores [n, K, h, w] on the grid of the features."""


class Segmentation(Probe):
    """How much frozen features know about semantic classes: mean IoU of a linear head and of nearest neighbors.

    The head (see `LinearHead`) is trained on the training images with cross-entropy. Its logits are upsampled
    bilinearly to the labels, in training and in scoring. The neighbors come from a memory of training cells: the same
    number from each image, at random places, each with the class at its center. Their votes are upsampled like the
    logits. Pixels of class 255 do not count. Mean IoU is over the classes that occur in the truth or in the prediction,
    from all pixels of all images together.

    Args:
        features: Which features to probe: the map of the backbone's decoder, or that of its encoder alone.
        steps: Optimizer steps of the head.
        batch: Images per step.
        lr: Highest learning rate of the head, for up to 64 channels (see `Schedule`).
        memory: Number of training cells to search for neighbors; 0 turns k-NN off.
        k: Number of neighbors that vote.
        temperature: Temperature of the votes; a lower one gives the nearest more weight.

    Reference:
        Linear head as in DINOv2 (Oquab et al., 2023, arXiv 2304.07193), without crops and flips and normalized by the
        statistics of the training part instead of a batch's. Neighbors after Balažević et al., 2023, arXiv 2306.01667,
        with an even sample of cells as memory and each cell's center instead of its distribution of classes.
    """

    needs = ("image", "semantic")
    trains = True
    seeded = True
    bounds = MappingProxyType({"mIoU": (0, 1), "pixel accuracy": (0, 1)})
    meanings = MappingProxyType(
        {
            "mIoU": "overlap of predicted and true regions over their union, the mean over classes: 1 is perfect",
            "pixel accuracy": "share of pixels whose class is right; large classes decide",
        }
    )

    def __init__(
        self,
        *,
        features: MapKind = "dense",
        steps: Annotated[int, Ge(1), Le(10**7)] = 300,
        batch: Annotated[int, Ge(1), Le(10**5)] = 8,
        lr: Annotated[float, Gt(0)] = 0.1,
        memory: Annotated[int, Ge(0), Le(10**8)] = 5000,
        k: Annotated[int, Ge(1), Le(10**5)] = 20,
        temperature: Annotated[float, Gt(0)] = 0.07,
    ) -> None:
        self.features = features
        self.schedule = Schedule(steps, batch, lr)
        self.memory = memory
        self.k = k
        self.temperature = temperature

    def measure(self, model: FrozenModel, data: ProbeData, seed: int = 0) -> Measured:
        """Return pixels labeled, and those hit and predicted by each method, by class: [G, K] each."""
        frequency = class_frequency(data)
        classes = len(frequency)
        train = FrozenMaps(model, data, "train", self.features)
        held_out = FrozenMaps(model, data, "held_out", self.features)
        methods = {"linear": self._linear(train, held_out, data, frequency, seed)}
        if self.memory:
            methods["k-NN"] = self._neighbors(train, held_out, data, classes, seed)
        counts = _score(methods, held_out, data, classes)
        size = data.field("held_out", "semantic").shape[-2:]
        shown = upsample(methods["linear"](rows_shown(data)), size).argmax(1).to(torch.uint8).cpu()
        return Measured(by_group(*data.groups("held_out"), counts), shown)

    def summarize(self, total: Totals) -> Metrics:
        """Return the mean IoU (0..1) of both methods and the pixel accuracy of the linear head."""
        found = {
            f"mIoU, {name}": mean_iou(total[f"{name} hits"], total[f"{name} predicted"], total["labelled"])
            for name in ("linear", "k-NN")
            if f"{name} hits" in total
        }
        right = float(total["linear hits"].sum() / total["labelled"].sum())
        return {"mIoU, linear": found.pop("mIoU, linear"), "pixel accuracy, linear": right, **found}

    def controls(self, data: ProbeData) -> Mapping[str, Scores]:
        """Return the scores of guessing the most frequent training class everywhere."""
        frequency = class_frequency(data)
        found = score_constant(data, int(frequency.argmax()), len(frequency))
        counts = {name if name == "labelled" else f"linear {name}": values for name, values in found.items()}
        return {"constant guess": by_group(*data.groups("held_out"), counts)}

    def plot(
        self, models: Mapping[str, FrozenModel], data: ProbeData, shown: Mapping[str, Tensor]
    ) -> "dict[str, Figure]":
        """Plot the classes that the linear heads predict."""
        truth = data.field("held_out", "semantic").take(rows_shown(data))
        predicted = {name: shown[name] for name in models}
        names = data.parts["held_out"].class_names
        return {"segmentation": plot_classes(images_shown(data), truth, predicted, names, IGNORE_CLASS)}

    def _linear(self, train: FrozenMaps, held_out: FrozenMaps, data: ProbeData, pixels: Tensor, seed: int) -> Predict:
        semantic = data.field("train", "semantic")
        usual = (pixels + 1).double().log()
        bias = usual - usual.mean()
        fitting = Fitting("segmentation", bias, lambda rows: semantic.take(rows, train.device), cross_entropy)
        head = fitting.fit(train, self.schedule, seed)
        return lambda rows: head(held_out.take(rows))

    def _neighbors(self, train: FrozenMaps, held_out: FrozenMaps, data: ProbeData, classes: int, seed: int) -> Predict:
        memory, labels = _remember(train, data, self.memory, seed)

        def predict(rows: Tensor) -> Tensor:
            maps = held_out.take(rows, unit_length=True)
            similarities, found = nearest(memory, maps.movedim(1, -1).flatten(0, 2), self.k)
            votes = vote(similarities, labels[found], classes, self.temperature)
            return votes.unflatten(0, (len(maps), *maps.shape[-2:])).movedim(-1, 1)

        return predict


def _remember(train: FrozenMaps, data: ProbeData, most: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return unit-length features of training cells [M, C] and the class at the center of each [M]."""
    semantic, choice = data.field("train", "semantic"), generator("segmentation", "memory", seed)
    height, width = semantic.shape[-2:]
    y = ((torch.arange(train.size[0]) + 0.5) * height / train.size[0]).long()
    x = ((torch.arange(train.size[1]) + 0.5) * width / train.size[1]).long()
    order = torch.randperm(len(train), generator=choice)  # chooses which images give a cell if there are fewer cells
    quota = torch.full((len(train),), most // len(train))
    quota[order[: most % len(train)]] += 1
    kept, labels = [], []
    for rows in quota.nonzero()[:, 0].split(16):
        classes = semantic.take(rows)[:, y][:, :, x].flatten(1)
        drawn = torch.rand(classes.shape, generator=choice).masked_fill(classes == IGNORE_CLASS, -1)
        rank = drawn.argsort(1, descending=True).argsort(1)
        image, cell = ((rank < quota[rows, None]) & (drawn >= 0)).nonzero(as_tuple=True)
        maps = train.take(rows, unit_length=True).flatten(2)
        kept.append(maps[image.to(train.device), :, cell.to(train.device)])
        labels.append(classes[image, cell])
    labels = torch.cat(labels).long()
    if not len(labels):
        raise UserError("no training image has a label at the center of a feature cell: set memory: 0 for no k-NN")
    return torch.cat(kept), labels.to(train.device)


@torch.no_grad()
def _score(methods: Mapping[str, Predict], held_out: FrozenMaps, data: ProbeData, classes: int) -> dict[str, Tensor]:
    """Return pixels labeled, and those hit and predicted by each method, by image and class: [N, K] each."""
    semantic = data.field("held_out", "semantic")
    height, width = semantic.shape[-2:]
    found: dict[str, list[tuple[Tensor, ...]]] = {name: [] for name in methods}
    for rows in held_out.batches(classes * height * width):
        truth = semantic.take(rows, held_out.device).long()
        for name, predict in methods.items():
            predicted = upsample(predict(rows), (height, width)).argmax(1)
            found[name].append(count_hits(predicted, truth, classes))
    counts = {}
    for name, batches in found.items():
        counts |= counted(("labelled", f"{name} hits", f"{name} predicted"), batches)
    return counts
