"""Principal axes shared by models of any channel counts: the same color means the same thing in all of them.

The channels of two models cannot be compared: training may rotate a model's feature space, which changes nothing that a
linear head could read. Pixels can be compared, since every model describes the same ones. So the axes are those of all
models' features concatenated (one long vector per pixel), and a model's figure shows what its OWN channels add to each
shared component. The figure does not change when a model's channels are rotated, scaled or shifted. A model that lacks
a component is gray there. The mean of the models' figures is the shared component itself.

Predicting the shared components from each model's features (regression, CCA) would be misleading: a thousand channels
predict nearly anything, even a component that makes up a millionth of their variance and that no reader would notice.

The limit: if two models have nothing in common, an axis mixes a component of one with another of the other. Their
colors then do not agree (`agreement` near 0), and must be read as two separate figures.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_COLORS = 3
_SHOWN = 0.98
"""Share of the values inside the range of colors."""


@dataclass(frozen=True)
class SharedAxes:
    """Three axes through the feature spaces of several models, and how well they represent each.

    Attributes:
        means: By model, the feature [C] that is shown as gray.
        axes: By model, [C, 3], in units of the color range: a value of -1 or 1 is its end.
        shares: By model, the share of the variance of its features that the three components explain (R2), 0..1.
        agreement: By model, the correlation of its colors with those of the first model, -1..1.

    Reference:
        Multiple factor analysis, Escofier and Pages, Computational Statistics & Data Analysis 18, 1994: each group of
        variables divided by its first singular value, partial scores of each group. Here only the spread of the colors
        is changed, the same for all models.
    """

    means: Mapping[str, Tensor]
    axes: Mapping[str, Tensor]
    shares: Mapping[str, float]
    agreement: Mapping[str, float]

    def colors(self, name: str, features: Tensor) -> np.ndarray:
        """Return the colors [h, w, 3], 0..1, of the features [C, h, w] of a model."""
        values = (features.movedim(0, -1) - self.means[name]) @ self.axes[name]
        return (0.5 + 0.5 * values.clamp(-1, 1)).numpy()


def fit_shared_axes(samples: Mapping[str, Tensor]) -> SharedAxes:
    """Find the shared axes of several models.

    Args:
        samples: By model, the features [R, C] of the same R pixels in the same order; C may differ.
    """
    means = {name: sample.mean(0) for name, sample in samples.items()}
    units = {name: _first_singular_value(sample) for name, sample in samples.items()}
    # Divide so that no model can make up the first shared axis alone, even if it varies in few directions.
    rows = {name: (sample - means[name]) / units[name] for name, sample in samples.items()}
    joint = torch.cat(list(rows.values()), 1)
    values, directions = _principal_directions(joint)
    own = dict(zip(rows, directions.split([row.shape[1] for row in rows.values()]), strict=True))

    shares = {name: float((values * own[name].square().sum(0)).sum()) / _variance(rows[name]) for name in rows}
    partial = {name: len(rows) * rows[name] @ own[name] for name in rows}
    spread = torch.cat(list(partial.values())).abs().quantile(_SHOWN, 0).clamp_min(1e-12)
    axes = {name: len(rows) * own[name] / spread / units[name] for name in rows}
    shown = [(value / spread).clamp(-1, 1).flatten() for value in partial.values()]
    agreement = {name: _correlation(shown[0], other) for name, other in zip(rows, shown, strict=True)}
    return SharedAxes(means, axes, shares, agreement)


def _principal_directions(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest squared singular values [3] of rows [R, C] and their directions [C, 3]; zeros beyond the rank.

    The signs make the scores skew to positive values, so they depend only on the pixels, not on channels.
    """
    values, directions = torch.linalg.eigh(_smaller_gram(rows))  # ascending
    values, directions = values[-_COLORS:].flip(0).clamp_min(0), directions[:, -_COLORS:].flip(1)
    if len(rows) < rows.shape[1]:  # eigenvectors of rows @ rows.T are the scores
        directions = rows.T @ directions / values.sqrt().clamp_min(1e-12)
    known = values > 1e-5 * values[:1]
    values, directions = values * known, directions * known
    skewness = (rows @ directions).pow(3).sum(0)
    directions = directions * torch.where(skewness < 0, -1.0, 1.0)
    missing = _COLORS - len(values)
    return torch.nn.functional.pad(values, (0, missing)), torch.nn.functional.pad(directions, (0, missing))


def _first_singular_value(rows: Tensor) -> Tensor:
    """Return the largest singular value of rows minus their mean, or infinity if all rows are the same."""
    mean = rows.mean(0)
    value = torch.linalg.eigvalsh(_smaller_gram(rows - mean))[-1].clamp_min(0).sqrt()
    rounding = 1e-6 * mean.norm() * len(rows) ** 0.5  # scaled up, rounding would look like structure
    return value if value > rounding else torch.full_like(value, torch.inf)


def _smaller_gram(rows: Tensor) -> Tensor:
    return rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows


def _variance(rows: Tensor) -> float:
    return max(float(rows.square().sum()), 1e-12)


def _correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a - a.mean(), b - b.mean(), dim=0))
