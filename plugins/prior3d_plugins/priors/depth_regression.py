"""Depth regression: a linear head on the dense features predicts metric depth, as in all scripts of Pri3D."""

import math
from collections.abc import Mapping
from typing import Annotated

import torch
from annotated_types import Gt
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from prior3d import BackboneSpec, Batch, Features, Prior
from prior3d.figures import plot_depth


class DepthRegression(Prior):
    """Mean of three terms between predicted and measured depth: value, gradient and surface normal.

    The predicted depth at a pixel is `focal length / image width x exp(linear head)`. A crop scales the apparent size
    of objects and the focal length by the same factor, so the quantity that the network predicts stays the same.

    Args:
        backbone: specification of the features.
        alpha: error in meters from which the loss grows more slowly than linearly.
        initial_depth: depth in meters that the head predicts before training; about the middle of the data's range.

    Reference:
        Hu et al., Revisiting Single Image Depth Estimation, WACV 2019, arXiv 1803.08673: the loss that Pri3D's scripts
        (Hou et al., 2021, arXiv 2104.11225) add to their contrastive losses. Differences: the loss is shifted by
        log(alpha), so a perfect prediction gives 0; unknown depth (and its neighbors, for gradients and normals) is
        masked, not learned; the comparison is on the feature grid, where depth is picked at the cell centers and never
        interpolated.
    """

    needs = ("image", "depth", "intrinsics")
    reads = frozenset({"dense"})
    capturable = True

    def __init__(
        self,
        backbone: BackboneSpec,
        *,
        alpha: Annotated[float, Gt(0)] = 0.5,
        initial_depth: Annotated[float, Gt(0)] = 2.5,
    ) -> None:
        super().__init__(backbone)
        self.alpha = alpha
        self.head = nn.Conv2d(backbone.dense_channels, 1, 1)
        nn.init.constant_(self.head.bias, math.log(initial_depth))

    def forward(self, batch: Batch, features: Mapping[str, Features]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its three terms."""
        predicted, target = self._predict(batch, features["image"].dense), self._target(batch)
        known = target > 0
        terms = {
            "value": _masked_mean(self._log_error(predicted - target), known),
            **self._shape_terms(predicted, target, known),
        }
        return sum(terms.values()) / 3, terms

    def plot(self, batch: Batch, features: Mapping[str, Features]) -> dict[str, Figure]:
        """Plot predicted and measured depth of the first views side by side."""
        predicted, target = self._predict(batch, features["image"].dense), self._target(batch)
        images = batch["image"].flatten(0, 1)
        return {"depth": plot_depth(images[:3], predicted[:3, 0], target[:3, 0])}

    def _predict(self, batch: Batch, dense: Tensor) -> Tensor:
        """Return depth [N, 1, h, w] in meters, N = B V."""
        with torch.autocast(dense.device.type, enabled=False):
            logarithm = self.head(dense.flatten(0, 1).float()).clamp(-5.0, 5.0)
            focal = batch["intrinsics"].float().flatten(0, 1)[:, 0, 0] / self.backbone.size[1]
            return logarithm.exp() * focal[:, None, None, None]

    def _target(self, batch: Batch) -> Tensor:
        return F.interpolate(
            batch["depth"].float().flatten(0, 1)[:, None], self.backbone.dense_size, mode="nearest-exact"
        )

    def _shape_terms(self, predicted: Tensor, target: Tensor, known: Tensor) -> dict[str, Tensor]:
        inner = -F.max_pool2d(-known.float(), 3, stride=1)  # 1 where all 3 x 3 neighbors are known
        slope, true_slope = _sobel(predicted), _sobel(target)
        gradient = self._log_error(slope - true_slope).sum(1, keepdim=True)
        ones = torch.ones_like(slope[:, :1])
        cosine = F.cosine_similarity(torch.cat([-slope, ones], 1), torch.cat([-true_slope, ones], 1), dim=1)
        return {
            "gradient": _masked_mean(gradient, inner > 0),
            "normal": _masked_mean((1 - cosine)[:, None], inner > 0),
        }

    def _log_error(self, error: Tensor) -> Tensor:
        return torch.log1p(error.abs() / self.alpha)


def _sobel(depth: Tensor) -> Tensor:
    """Return the slope [N, 2, h - 2, w - 2] along x and y, in meters per cell, of depth [N, 1, h, w]."""
    # Made on the device: a copy from the host would wait for it.
    across, smooth = torch.arange(-1, 2, device=depth.device), 2 - torch.arange(-1, 2, device=depth.device).abs()
    along_x = (smooth[:, None] * across).to(depth) / 8
    return F.conv2d(depth, torch.stack([along_x, along_x.T])[:, None])


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, 0).sum() / mask.sum().clamp_min(1)
