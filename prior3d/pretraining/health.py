"""Health of a training: collapse of the features, losses that diverge or never act, agreement of the priors."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F

from prior3d.contracts.prior import Prior
from prior3d.errors import UserError
from prior3d.geometry import full_precision
from prior3d.pretraining.objective import JointObjective, Losses, Maps

PATIENCE = 5
"""Consecutive steps without a finite loss that end a training; a single one may leave the weights unchanged."""

IDLE_PATIENCE = 100
"""Steps from the start with exactly zero loss of every prior that end a training."""

_CELLS = 1024
"""Number of cells to sample: enough to estimate a rank, few enough for every log line."""

_NEVER = torch.iinfo(torch.int64).max


@torch.no_grad()
def feature_health(maps: Maps) -> dict[str, Tensor]:
    """Return spread and effective rank of the features of one pass.

    Returns:
        `spread`: standard deviation of unit-length features over cells, times sqrt(C): about 1 for directions that are
            uniform on the sphere, 0 when all cells are equal.
        `effective_rank`: exp of the entropy of the normalized singular values (Roy and Vetterli, 2007), at most C.
        Both are NaN if features are not finite: a logged value never ends a training.
    """
    feature = maps.dense if maps.dense is not None else next(iter(maps.encoder.values()))
    with full_precision(feature.device):  # eigenvalue decomposition does not support bf16
        return _health(feature.detach().float())


def _health(feature: Tensor) -> dict[str, Tensor]:
    channels = feature.shape[1]
    rows = feature.movedim(1, -1).reshape(-1, channels)
    rows = F.normalize(rows[:: max(1, len(rows) // _CELLS)], dim=1)
    spread = rows.std(0).pow(2).mean().sqrt() * channels**0.5
    values = _variances(torch.cov(rows.T)).sqrt()
    shares = values / values.sum().clamp_min(1e-12)
    entropy = -(shares * shares.clamp_min(1e-12).log()).sum()
    return {"spread": spread, "effective_rank": entropy.exp()}


def _variances(covariance: Tensor) -> Tensor:
    """Return the eigenvalues [C] of a covariance [C, C]; NaN if they cannot be computed."""
    if covariance.isfinite().all():
        try:
            return torch.linalg.eigvalsh(covariance).clamp_min(0)
        except torch.linalg.LinAlgError:  # the algorithm fails for some matrices with very many equal eigenvalues
            pass
    return covariance.new_full((len(covariance),), torch.nan)


def compare_gradients(losses: Losses, maps: Mapping[int, Tensor], objective: JointObjective) -> dict[str, Tensor]:
    """Return the gradient norm of each weighted loss and the cosine of each pair, at the encoder's maps.

    Gradients are taken at the maps, not at the parameters: this needs no second pass through the backbone and gives
    nearly the same cosines. Two priors that encode different images share no map; their cosine is meaningless and left
    out.

    Args:
        losses: losses of this step, before its backward pass; the graph is kept.
        maps: stride to flat map of the one backbone pass.
        objective: defines which images each prior encodes.

    Returns:
        `norm/<label>` and `cosine/<label>/<label>`, float32 scalars.
    """
    tensors = [tensor for tensor in maps.values() if tensor.requires_grad]
    if not tensors:
        return {}
    gradients = {}
    for label, loss in losses.weighted.items():
        parts = torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True)
        gradients[label] = [part.float() for part in _zeros_for_none(parts, tensors)]
    norms = {label: _dot(gradient, gradient).sqrt() for label, gradient in gradients.items()}
    result = {f"norm/{label}": norm for label, norm in norms.items()}
    for first, second in combinations(gradients, 2):
        if set(objective.priors[first].encodes) & set(objective.priors[second].encodes):
            scale = (norms[first] * norms[second]).clamp_min(1e-20)
            result[f"cosine/{first}/{second}"] = _dot(gradients[first], gradients[second]) / scale
    return result


def _zeros_for_none(parts: tuple[Tensor | None, ...], tensors: list[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(tensor) if part is None else part for part, tensor in zip(parts, tensors, strict=True)]


def _dot(first: list[Tensor], second: list[Tensor]) -> Tensor:
    return sum((a * b).sum() for a, b in zip(first, second, strict=True))


_PENDING = 256
"""Number of batches whose losses are kept on the device until they are read all at once."""


class Divergence:
    """Monitor of the losses of all priors; it waits for the device only when queried, and changes nothing.

    Args:
        labels: labels of the priors.
    """

    def __init__(self, labels: Iterable[str]) -> None:
        self._labels = tuple(labels)
        self._since = [_NEVER] * len(self._labels)
        self._pending: list[tuple[int, Tensor]] = []

    def see(self, step: int, losses: Tensor) -> None:
        """Record the losses of one step, [labels]; launches nothing. The tensor must not change afterwards."""
        self._pending.append((step, losses))
        if len(self._pending) >= _PENDING:
            self._read()

    def has_lasted(self, step: int) -> bool:
        """Whether some prior's loss has not been finite for many steps up to this one."""
        self._read()
        return step - min(self._since, default=_NEVER) + 1 >= PATIENCE

    def error(self, step: int) -> UserError:
        """Return the error for the user: the priors whose losses diverged first, and the step."""
        self._read()
        first = min(self._since)
        labels = [label for label, since in zip(self._labels, self._since, strict=True) if since == first]
        if first == _NEVER:  # it diverged on another rank
            return UserError(f"a loss is not finite at step {step}: {_ADVICE}", "optim.lr")
        others = f" (and of {', '.join(labels[1:])})" if labels[1:] else ""
        return UserError(f"its loss{others} has not been finite since step {first}: {_ADVICE}", f"priors.{labels[0]}")

    def _read(self) -> None:
        if not self._pending:
            return
        finite = torch.stack([losses for _, losses in self._pending]).isfinite().tolist()
        for (step, _), row in zip(self._pending, finite, strict=True):
            self._since = [_NEVER if good else min(since, step) for since, good in zip(self._since, row, strict=True)]
        self._pending.clear()


class Activity:
    """Record of the priors that have acted, that is, whose loss was not exactly 0 in at least one step.

    A prior returns exactly 0 if a batch has nothing for it to learn from, or before it is prepared.

    Args:
        labels: labels of the priors.
    """

    def __init__(self, labels: Iterable[str]) -> None:
        self.labels = tuple(labels)
        self._acted = torch.zeros(len(self.labels), dtype=torch.bool)
        self._pending: list[Tensor] = []

    def see(self, losses: Tensor) -> None:
        """Record the losses of one batch, [labels]; mostly launches nothing, and never waits for the device.

        The tensor must not change afterwards.
        """
        self._pending.append(losses)
        if len(self._pending) >= _PENDING:
            self._merge()

    @property
    def acted(self) -> Tensor:
        """Whether each prior has acted, [labels] bool."""
        self._merge()
        return self._acted

    def _merge(self) -> None:
        if self._pending:
            seen = (torch.stack(self._pending) != 0).any(0)
            self._acted = self._acted.to(seen.device, non_blocking=True) | seen
            self._pending.clear()

    def idle(self) -> list[str]:
        """Return the labels of the priors whose loss has been 0 so far."""
        return [label for label, acted in zip(self.labels, self.acted.tolist(), strict=True) if not acted]

    def restore(self, idle: Sequence[str]) -> None:
        """Restore the state that `idle` returned."""
        self._acted = torch.tensor([label not in idle for label in self.labels])
        self._pending.clear()


def nothing_to_learn(priors: Mapping[str, Prior], steps: int) -> UserError:
    """Return the error for a training in which the loss of every prior was exactly 0.

    Args:
        priors: label to prior.
        steps: number of such steps.
    """
    label, prior = next(iter(priors.items()))
    others = f" (and of {', '.join(list(priors)[1:])})" if len(priors) > 1 else ""
    fields = ", ".join(prior.needs or prior.encodes)
    return UserError(
        f"its loss{others} was exactly 0 in each of {steps} steps: there is nothing to learn. The data hold nothing"
        f" that it can use ({fields}: all unknown?), or its options exclude everything",
        f"priors.{label}",
    )


def check_finite(weights: Mapping[str, Tensor]) -> None:
    """Raise UserError if trained weights are not finite and therefore unusable."""
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise UserError(f"the trained weights are not finite ({name}, for example): {_ADVICE}", "optim.lr")


_ADVICE = "the training has diverged; start again with a lower optim.lr, a longer optim.warmup or data without NaN"
