"""Multinomial logistic regression on frozen vectors: convex, so the result depends on no seed or schedule."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from prior3d.geometry import full_precision
from prior3d.probes.features import Standardization
from prior3d.randomness import generator

VectorsOf = Callable[[Tensor], Tensor]
"""Function from rows [n] to vectors [n, C] float32, all on one device."""

PENALTIES = (1.0, 0.1, 0.01, 1e-3, 1e-4, 1e-5)
"""Penalties for `choose_penalty` to choose from, strongest first."""

_ROWS = 8192
"""Number of vectors moved to the device at a time; memory does not grow with the data."""

_HELD_IN = 0.2
"""Share of the training images that a penalty is chosen on."""

_ITERATIONS = 200


@dataclass(frozen=True)
class LogisticRegression:
    """A fitted classifier: standardized channels, one linear map.

    Attributes:
        standardize: Standardization of the channels.
        weight: Weight [K, C].
        bias: Bias [K].
    """

    standardize: Standardization
    weight: Tensor
    bias: Tensor

    def logits(self, vectors: Tensor) -> Tensor:
        """Return logits [n, K] of vectors [n, C]."""
        with full_precision(vectors.device):
            return self.standardize(vectors.float()) @ self.weight.T + self.bias

    def predict(self, take: VectorsOf, count: int) -> Tensor:
        """Return the class of each of `count` vectors, [count] int64 on the CPU."""
        return torch.cat([self.logits(take(rows)).argmax(1).cpu() for rows in torch.arange(count).split(_ROWS)])


def fit_logistic(
    take: VectorsOf,
    labels: Tensor,
    classes: int,
    penalty: float,
    rows: Tensor | None = None,
    start: LogisticRegression | None = None,
) -> LogisticRegression:
    """Minimize the mean cross-entropy plus penalty / 2 times the sum of squared weights.

    Equals scikit-learn's `LogisticRegression(C=1 / (penalty * N))` on standardized channels.

    Args:
        take: Function that returns the vectors.
        labels: Labels [N] int64, on the CPU.
        classes: Number of classes, K.
        penalty: Penalty on the squared weights, not negative; the bias has none.
        rows: Rows to fit to; None for all.
        start: Initial solution, fitted to the same rows; it changes the time, not the result.
    """
    rows = torch.arange(len(labels)) if rows is None else rows
    chunks = rows.split(_ROWS)
    standardize = start.standardize if start else _standardization(take, chunks)
    mean = standardize.mean
    weight = (start.weight.clone() if start else mean.new_zeros(classes, len(mean))).requires_grad_(True)
    bias = (start.bias.clone() if start else mean.new_zeros(classes)).requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=_ITERATIONS, tolerance_grad=1e-6, tolerance_change=1e-10, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = 0.5 * penalty * weight.square().sum()
        loss.backward()
        for chunk in chunks:
            logits = standardize(take(chunk)) @ weight.T + bias
            part = F.cross_entropy(logits, labels[chunk].to(logits.device), reduction="sum") / len(rows)
            part.backward()
            loss = loss.detach() + part.detach()
        return loss

    with full_precision(mean.device), torch.enable_grad():
        optimizer.step(closure)
    return LogisticRegression(standardize, weight.detach(), bias.detach())


def choose_penalty(take: VectorsOf, labels: Tensor, classes: int, penalties: Sequence[float] = PENALTIES) -> float:
    """Return the penalty with the lowest cross-entropy on a fifth of the training images, fitted to the others.

    Args:
        take: Function that returns the vectors.
        labels: Labels [N] int64, on the CPU.
        classes: Number of classes, K.
        penalties: Penalties to choose from, strongest first.
    """
    order = torch.randperm(len(labels), generator=generator("logistic", "penalty"))
    held_in, rest = order.split(
        [max(1, round(_HELD_IN * len(order))), len(order) - max(1, round(_HELD_IN * len(order)))]
    )
    losses, fitted = [], None
    for penalty in penalties:
        fitted = fit_logistic(take, labels, classes, penalty, rest.sort().values, fitted)
        losses.append(
            sum(
                float(F.cross_entropy(fitted.logits(take(rows)), labels[rows].to(fitted.bias.device), reduction="sum"))
                for rows in held_in.split(_ROWS)
            )
        )
        if losses[-1] > 1.2 * min(losses):  # weaker ones only fit noise
            break
    return penalties[losses.index(min(losses))]


def _standardization(take: VectorsOf, chunks: Sequence[Tensor]) -> Standardization:
    count = sum(map(len, chunks))
    mean = sum(take(chunk).double().sum(0) for chunk in chunks) / count
    std = (sum((take(chunk).double() - mean).square().sum(0) for chunk in chunks) / count).sqrt()
    return Standardization.of(mean, std)
