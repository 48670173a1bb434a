"""Losses that stop being finite: since which step, of which prior, and when that ends the training."""

from collections.abc import Mapping

import torch
from torch import Tensor

from prior3d.errors import UserError

PATIENCE = 5
"""Steps in a row without a finite loss that end a training; a single one may leave the weights as they were."""

_NEVER = torch.iinfo(torch.int64).max


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


def check_finite(weights: Mapping[str, Tensor]) -> None:
    """Raise UserError where trained weights are not finite: nobody can use them."""
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise UserError(f"the trained weights are not finite, {name} for one: {_ADVICE}", "optim.lr")


_ADVICE = "the training has diverged; start it anew with a lower optim.lr, a longer optim.warmup or data without NaN"
