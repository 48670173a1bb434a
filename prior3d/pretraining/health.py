"""How a training is doing: collapse of the features, losses that are lost or never act, how the priors get along."""

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
"""Steps in a row without a finite loss that end a training; a single one may leave the weights as they were."""

IDLE_PATIENCE = 100
"""Steps in a row in which the loss of every prior is exactly 0 that end a training."""

_CELLS = 1024
"""Cells looked at; enough for a rank, little enough for every log line."""

_NEVER = torch.iinfo(torch.int64).max


@torch.no_grad()
def feature_health(maps: Maps) -> dict[str, Tensor]:
    """Return spread and effective rank of the features one pass gave.

    Returns:
        `spread`: standard deviation of unit-length features over cells, times sqrt(C): about 1 for directions that are
            uniform on the sphere, 0 when all cells are equal.
        `effective_rank`: exp of the entropy of the normalized singular values (Roy and Vetterli, 2007), at most C.
        Both are NaN where features are not finite: a figure that is logged never ends a training.
    """
    feature = maps.dense if maps.dense is not None else next(iter(maps.encoder.values()))
    with full_precision(feature.device):  # there is no eigenvalue decomposition in bf16
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
    """Return the eigenvalues [C] of a covariance [C, C], NaN where there are none."""
    if covariance.isfinite().all():
        try:
            return torch.linalg.eigvalsh(covariance).clamp_min(0)
        except torch.linalg.LinAlgError:  # the algorithm gives up on some matrices of very many equal eigenvalues
            pass
    return covariance.new_full((len(covariance),), torch.nan)


def compare_gradients(losses: Losses, maps: Mapping[int, Tensor], objective: JointObjective) -> dict[str, Tensor]:
    """Return the norm of each weighted loss's gradient and the cosine between each two, at the encoder's maps.

    Taken at the maps and not at the parameters: no second pass through the backbone, at nearly the same cosines. Two
    priors that encode different images have no map in common; their cosine says nothing and is left out.

    Args:
        losses: of this step, before its backward pass; the graph is kept.
        maps: stride to flat map of the one backbone pass.
        objective: says which images each prior encodes.

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


class Divergence:
    """Watches the losses of all priors; waits for the device only when it is asked, and changes nothing."""

    def __init__(self) -> None:
        self._labels: tuple[str, ...] = ()
        self._since = torch.empty(0)

    def see(self, step: int, losses: Mapping[str, Tensor]) -> None:
        """Take note of the losses of one step, label to scalar."""
        finite = torch.stack([loss.detach().float() for loss in losses.values()]).isfinite()
        if not self._labels:
            self._labels = tuple(losses)
            self._since = torch.full_like(finite, _NEVER, dtype=torch.int64)
        self._since = torch.where(finite, _NEVER, self._since.clamp_max(step))

    def has_lasted(self, step: int) -> bool:
        """Whether, at this step, some prior's loss has not been finite for long."""
        return bool(self._labels) and step - int(self._since.min()) + 1 >= PATIENCE

    def error(self, step: int) -> UserError:
        """Return what to tell the user: the priors whose losses went first, and when."""
        first = int(self._since.min())
        labels = [label for label, since in zip(self._labels, self._since.tolist(), strict=True) if since == first]
        if first == _NEVER:  # on another rank
            return UserError(f"some loss is not finite at step {step}: {_ADVICE}", "optim.lr")
        others = f" (and of {', '.join(labels[1:])})" if labels[1:] else ""
        return UserError(f"its loss{others} is not finite since step {first}: {_ADVICE}", f"priors.{labels[0]}")


class Activity:
    """Remembers which priors have acted: whose loss was other than exactly 0 in at least one step.

    A prior returns exactly 0 where a batch holds nothing for it to learn from, or before it is prepared.

    Args:
        labels: of the priors.
    """

    def __init__(self, labels: Iterable[str]) -> None:
        self.labels = tuple(labels)
        self.acted = torch.zeros(len(self.labels), dtype=torch.bool)

    def see(self, losses: Mapping[str, Tensor]) -> None:
        """Take note of the losses of one batch, label to scalar; does not wait for the device."""
        values = torch.stack([losses[label].detach().float() for label in self.labels])
        self.acted = self.acted.to(values.device) | (values != 0)

    def idle(self) -> list[str]:
        """Return the labels of the priors whose loss has been 0 so far."""
        return [label for label, acted in zip(self.labels, self.acted.tolist(), strict=True) if not acted]

    def restore(self, idle: Sequence[str]) -> None:
        """Go on from what `idle` returned."""
        self.acted = torch.tensor([label not in idle for label in self.labels])


def nothing_to_learn(priors: Mapping[str, Prior], steps: int) -> UserError:
    """Return the error of a training in which the loss of every prior was exactly 0.

    Args:
        priors: label to prior.
        steps: in which that was so.
    """
    label, prior = next(iter(priors.items()))
    others = f" (and of {', '.join(list(priors)[1:])})" if len(priors) > 1 else ""
    fields = ", ".join(prior.needs or prior.encodes)
    return UserError(
        f"its loss{others} was exactly 0 in each of {steps} steps: there is nothing to learn. The data hold nothing"
        f" that it can use ({fields}: all unknown?), or its options rule all of it out",
        f"priors.{label}",
    )


def check_finite(weights: Mapping[str, Tensor]) -> None:
    """Raise UserError where trained weights are not finite: nobody can use them."""
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise UserError(f"the trained weights are not finite, {name} for one: {_ADVICE}", "optim.lr")


_ADVICE = "the training has diverged; start again with a lower optim.lr, a longer optim.warmup or data without NaN"
