"""Multinomial logistic regression on frozen vectors: convex, so that nothing depends on a seed or a schedule."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from prior3d.geometry import full_precision
from prior3d.probes.features import Standardization
from prior3d.randomness import generator

Take = Callable[[Tensor], Tensor]
"""Rows [n] to vectors [n, C] float32, all on one device."""

PENALTIES = (1.0, 0.1, 0.01, 1e-3, 1e-4, 1e-5)
"""Penalties one of which `choose_penalty` takes, strongest first."""

_ROWS = 8192
"""Vectors moved to the device at a time; the memory used does not grow with the data."""

_HELD_IN = 0.2
"""Share of the training images that a penalty is chosen on."""

_ITERATIONS = 200


@dataclass(frozen=True)
class LogisticRegression:
    """A fitted classifier: standardised channels, one linear map.

    Attributes:
        standardize: the channels.
        weight: [K, C].
        bias: [K].
    """

    standardize: Standardization
    weight: Tensor
    bias: Tensor

    def logits(self, vectors: Tensor) -> Tensor:
        """Return logits [n, K] of vectors [n, C]."""
        with full_precision(vectors.device):
            return self.standardize(vectors.float()) @ self.weight.T + self.bias

    def predict(self, take: Take, count: int) -> Tensor:
        """Return the class of each of `count` vectors, [count] int64 on the CPU."""
        return torch.cat([self.logits(take(rows)).argmax(1).cpu() for rows in torch.arange(count).split(_ROWS)])


def fit_logistic(
    take: Take,
    labels: Tensor,
    classes: int,
    penalty: float,
    rows: Tensor | None = None,
    start: LogisticRegression | None = None,
) -> LogisticRegression:
    """Minimise the mean cross-entropy plus penalty / 2 times the sum of squared weights.

    Equals scikit-learn's `LogisticRegression(C=1 / (penalty * N))` on standardised channels.

    Args:
        take: gives the vectors.
        labels: [N] int64, on the CPU.
        classes: K.
        penalty: not negative; the bias is free of it.
        rows: those to fit to; None for all.
        start: where to begin; the result does not depend on it, the time does. Fitted to the same rows.
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


def choose_penalty(take: Take, labels: Tensor, classes: int, penalties: Sequence[float] = PENALTIES) -> float:
    """Return the penalty with the least cross-entropy on a fifth of the training images, fitted to the others.

    Args:
        take: gives the vectors.
        labels: [N] int64, on the CPU.
        classes: K.
        penalties: to choose from, strongest first.
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
        if losses[-1] > 1.2 * min(losses):  # weaker ones only fit what is noise here
            break
    return penalties[losses.index(min(losses))]


def _standardization(take: Take, chunks: Sequence[Tensor]) -> Standardization:
    count = sum(map(len, chunks))
    mean = sum(take(chunk).double().sum(0) for chunk in chunks) / count
    std = (sum((take(chunk).double() - mean).square().sum(0) for chunk in chunks) / count).sqrt()
    return Standardization.of(mean, std)
