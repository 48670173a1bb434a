"""The collapse meter: whether features still differ from each other, and along how many directions."""

import torch
from torch import Tensor
from torch.nn import functional as F

from prior3d.geometry import full_precision
from prior3d.pretraining.objective import Maps

_CELLS = 1024
"""Cells looked at; enough for a rank, little enough for every log line."""


@torch.no_grad()
def feature_health(maps: Maps) -> dict[str, Tensor]:
    """Return spread and effective rank of the features one pass gave.

    Returns:
        `spread`: standard deviation of unit-length features over cells, times sqrt(C): about 1 for directions that are
            uniform on the sphere, 0 when all cells are equal.
        `effective_rank`: exp of the entropy of the normalised singular values (Roy and Vetterli, 2007), at most C.
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
