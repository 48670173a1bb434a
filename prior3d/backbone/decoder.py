"""A light decoder from the encoder's maps to one fine map."""

import math
from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F


class Decoder(nn.Module):
    """A light top-down decoder: lateral 1x1 convolutions, bilinear upsampling, one 3x3 smoothing.

    It fuses all encoder maps of stride >= `stride`, and upsamples further if the encoder has no map of that stride. At
    64 channels it has 0.08 M parameters on a ConvNeXt-Atto, 0.10 M on a ResNet-18 and 0.29 M on a ResNet-50; Pri3D's
    has 9.5 M on a ResNet-18 and 152 M on a ResNet-50. Users keep only the encoder, so most of the capacity should be in
    it.

    Reference:
        Lin et al., Feature Pyramid Networks for Object Detection, 2017, arXiv 1612.03144 (top-down pathway; here one
        output level, sums at each level without per-level smoothing).
    """

    def __init__(self, encoder_channels: Mapping[int, int], stride: int, channels: int) -> None:
        super().__init__()
        self.stride = stride
        strides = sorted((s for s in encoder_channels if s >= stride), reverse=True)
        self.laterals = nn.ModuleDict({str(s): nn.Conv2d(encoder_channels[s], channels, 1) for s in strides})
        self.smooth = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, maps: Mapping[int, Tensor], size: tuple[int, int]) -> Tensor:
        """Return the dense map [N, C, ceil(H / stride), ceil(W / stride)] for images of `size` pixels."""
        fused = None
        for stride, lateral in self.laterals.items():  # coarse to fine
            level = lateral(maps[int(stride)])
            fused = level if fused is None else level + _resize(fused, level.shape[-2:])
        target = tuple(math.ceil(side / self.stride) for side in size)
        return self.smooth(_resize(fused, target))


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)
