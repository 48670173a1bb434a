"""Optimizer code shared by training and probes: which parameters decay, and the learning-rate schedules."""

import math
from collections.abc import Iterable

from torch import nn


def decaying_groups(parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> list[dict[str, object]]:
    """Return parameter groups in which only matrices and kernels decay, not norms, biases or other vectors.

    Args:
        parameters: parameters with one learning rate.
        lr: their highest learning rate.
        weight_decay: weight decay of matrices and kernels.

    >>> layer = nn.Linear(3, 2)
    >>> [(len(group["params"]), group["weight_decay"]) for group in decaying_groups(layer.parameters(), 0.1, 0.05)]
    [(1, 0.05), (1, 0.0)]
    """
    parameters = list(parameters)
    by_decay = (
        (weight_decay, [parameter for parameter in parameters if parameter.ndim > 1]),
        (0.0, [parameter for parameter in parameters if parameter.ndim <= 1]),
    )
    return [{"params": kept, "lr": lr, "weight_decay": decay} for decay, kept in by_decay if kept]


def warm_up(step: int, steps: float) -> float:
    """Return the learning-rate factor at a step: it rises linearly over the first `steps`, then is 1.

    >>> [warm_up(step, 4) for step in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    return min(1.0, (step + 1) / max(steps, 1))


def cosine_fall(step: float, steps: float) -> float:
    """Return the learning-rate factor at a step: it falls along half a cosine, from 1 to 0 at `steps`.

    >>> [round(cosine_fall(step, 4), 3) for step in range(5)]
    [1.0, 0.854, 0.5, 0.146, 0.0]
    """
    return 0.5 * (1 + math.cos(math.pi * step / max(steps, 1)))
