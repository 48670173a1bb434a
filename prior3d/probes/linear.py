"""Linear heads on frozen feature maps: standardized channels, then one linear map; trained on batches of images."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prior3d.backbone.optimization import cosine_fall, warm_up
from prior3d.geometry import full_precision
from prior3d.probes.features import FrozenMaps, Standardization, evenly_spaced
from prior3d.randomness import generator

_STATISTICS_IMAGES = 512
"""Number of training images, evenly spaced, for the mean and spread that standardize the channels."""

_WEIGHT_DECAY = 1e-3
_INITIAL = 0.01
"""Standard deviation of the initial weights."""

_WARMUP = 0.05
"""Share of the steps in which the learning rate rises."""


@dataclass(frozen=True)
class Schedule:
    """How a head is trained: AdamW with a learning rate that rises briefly and then falls to 0 along a cosine.

    Attributes:
        steps: Optimizer steps.
        batch: Images per step.
        lr: Highest learning rate for features of up to 64 channels. With C channels it is 64 / C times that, since a
            step of Adam moves a sum over C channels by up to C times as much as each of its weights.
    """

    steps: int
    batch: int
    lr: float

    def at(self, step: int, channels: int) -> float:
        """Return the learning rate of a step."""
        warmup = _WARMUP * self.steps
        falling = cosine_fall(max(step - warmup, 0), self.steps - warmup)
        return self.lr * min(1.0, 64 / channels) * warm_up(step, warmup) * falling


class LinearHead(nn.Module):
    """Standardized channels to outputs, cell by cell: batch normalization and a 1 x 1 convolution.

    The normalization has no scale and shift, which the linear map makes superfluous. Its statistics are those of the
    training part, computed once: batches of a few images would only add noise.

    Args:
        standardization: Standardization of the channels.
        bias: Initial outputs [K] of the linear map per cell.
        activate: Function from these outputs [n, h, w, K] to the prediction of each cell, [n, h, w, *].
    """

    def __init__(self, standardization: Standardization, bias: Tensor, activate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        mean = standardization.mean
        self.register_buffer("mean", mean)
        self.register_buffer("scale", standardization.scale)
        self.weight = nn.Parameter(torch.zeros(len(bias), len(mean), device=mean.device))
        self.bias = nn.Parameter(bias.detach().clone().float().to(mean.device))
        self.activate = activate

    def forward(self, features: Tensor) -> Tensor:
        """Predict from features [n, C, h, w], on their grid."""
        with full_precision(features.device):
            cells = (features.movedim(1, -1) - self.mean) * self.scale
            return self.activate(F.linear(cells, self.weight, self.bias)).movedim(-1, 1)


@dataclass(frozen=True)
class Fitting:
    """Target and loss of a head.

    Attributes:
        name: Name of the probe; with the seed it sets initial weights and order, the same for every model.
        bias: Initial outputs [K] of the linear map, before it has seen a feature: the right values on average. Starting
            far from them costs more steps than the rest of the training.
        truth: Function from rows [n] of training images to labels [n, ..., H, W], on the device of the features.
        loss: Function from predictions [n, *, h', w'] and labels [n, ..., h', w'] to a scalar.
        activate: See `LinearHead`.
    """

    name: str
    bias: Tensor
    truth: Callable[[Tensor], Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    activate: Callable[[Tensor], Tensor] = nn.Identity()  # noqa: RUF009  (it has no state)

    def fit(self, features: FrozenMaps, schedule: Schedule, seed: int) -> LinearHead:
        """Train a head on features of the training part; nothing else gets a gradient.

        The loss uses about two pixels per cell and axis, different ones in each step. A prediction interpolated between
        cells has no finer detail, and upsampling it to all pixels would take most of the time.
        """
        with full_precision(features.device):
            head = LinearHead(_standardization(features), self.bias, self.activate)
            with torch.no_grad():
                start = torch.randn(head.weight.shape, generator=generator(self.name, "head", seed))
                head.weight.copy_(_INITIAL * start)
            optimizer = torch.optim.AdamW(head.parameters(), lr=schedule.lr, weight_decay=_WEIGHT_DECAY)
            choice = generator(self.name, "order", seed)
            with torch.enable_grad():
                for step, rows in enumerate(_order(len(features), schedule, choice)):
                    optimizer.param_groups[0]["lr"] = schedule.at(step, features.channels)
                    optimizer.zero_grad(set_to_none=True)
                    self._loss(head(features.take(rows)), self.truth(rows), choice).backward()
                    optimizer.step()
        return head.requires_grad_(False)

    def _loss(self, predicted: Tensor, truth: Tensor, choice: torch.Generator) -> Tensor:
        spacing = [max(1, round(whole / cells / 2)) for whole, cells in _sides(truth, predicted)]
        y, x = (
            torch.arange(int(torch.randint(apart, (), generator=choice)), side, apart, device=truth.device)
            for side, apart in zip(truth.shape[-2:], spacing, strict=True)
        )
        return self.loss(at_pixels(predicted, truth.shape[-2:], y, x), truth[..., y, :][..., x])


def upsample(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps [n, K, h, w] to the size of the labels, bilinearly."""
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)


def at_pixels(maps: Tensor, size: Sequence[int], y: Tensor, x: Tensor) -> Tensor:
    """Upsample maps [n, K, h, w] to a size, but only its rows `y` and columns `x`: [n, K, len(y), len(x)]."""
    down, across = (
        # Weight of each cell in a pixel: products, unlike samplers, add up in the same order every time on a GPU.
        F.interpolate(torch.eye(cells, device=maps.device)[None], side, mode="linear", align_corners=False)[0].T[chosen]
        for cells, side, chosen in zip(maps.shape[-2:], size, (y, x), strict=True)
    )
    return down @ maps @ across.T


def _sides(truth: Tensor, predicted: Tensor) -> Iterator[tuple[int, int]]:
    return zip(truth.shape[-2:], predicted.shape[-2:], strict=True)


@torch.no_grad()
def _standardization(features: FrozenMaps) -> Standardization:
    rows = evenly_spaced(len(features), _STATISTICS_IMAGES)
    total, squares = torch.zeros(2, features.channels, dtype=torch.float64, device=features.device)
    for chosen in rows.split(32):
        maps = features.take(chosen).double()
        total += maps.sum((0, 2, 3))
        squares += maps.square().sum((0, 2, 3))
    cells = len(rows) * features.size[0] * features.size[1]
    mean = total / cells
    return Standardization.of(mean, (squares / cells - mean.square()).clamp_min(0).sqrt())


def _order(images: int, schedule: Schedule, choice: torch.Generator) -> Iterator[Tensor]:
    """Yield the rows of each step: all images in a new order, again and again."""
    batch = min(schedule.batch, images)
    epochs = -(-schedule.steps * batch // images)
    order = torch.cat([torch.randperm(images, generator=choice) for _ in range(epochs)])
    yield from order[: schedule.steps * batch].split(batch)
