"""The ablation: decode the same tokens directly to RGB and depth maps, without a volume."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels)
        self.steps = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.GELU(), nn.Conv2d(channels, channels, 3, padding=1)
        )

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.steps(self.norm(maps))


class DenseHead(nn.Module):
    """Decode tokens to dense RGB and depth by convolutions, to show what the volume adds.

    Depth lies between the same near and far planes as the volume's. A surface has one depth, so its expected inverse
    depth is `1 / depth`.

    Args:
        token_channels: channels C of the encoder's tokens.
        width: channels at the tokens' resolution, a multiple of 4; halved at each of two upsamplings.
        near: nearest depth.
        far: farthest depth.

    Raises:
        ValueError: if `width` is not a multiple of 4, or `near` is not below `far`.

    Reference:
        In the spirit of the fusion head of Ranftl et al. 2021, arXiv 2103.13413, with one token map instead of four.

    >>> rgb, depth = DenseHead(16, width=8)(torch.rand(2, 16, 3, 4), 12, 16)
    >>> rgb.shape, depth.shape
    (torch.Size([2, 3, 12, 16]), torch.Size([2, 12, 16]))
    """

    def __init__(self, token_channels: int, width: int = 128, near: float = 1.0, far: float = 3.0) -> None:
        super().__init__()
        if width % 4:
            raise ValueError(f"expected a width that 4 divides, got {width}")
        if not 0 < near < far:
            raise ValueError(f"expected 0 < near < far, got near {near} and far {far}")
        self.near, self.far = near, far
        self.tokens_in = nn.Sequential(nn.GroupNorm(1, token_channels), nn.Conv2d(token_channels, width, 1))
        self.stages = nn.ModuleList(_Residual(channels) for channels in (width, width // 2, width // 4))
        self.narrow = nn.ModuleList(nn.Conv2d(channels, channels // 2, 1) for channels in (width, width // 2))
        self.out = nn.Conv2d(width // 4, 4, 1)

    def forward(self, tokens: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Decode tokens to maps.

        Args:
            tokens: [N, C, h, w] encoder map.
            height: height H of the maps in pixels.
            width: width W of the maps in pixels.

        Returns:
            [N, 3, H, W] RGB in 0..1 (up to 0.001 beyond) and [N, H, W] depth between near and far, both float32.
        """
        maps = self.stages[0](self.tokens_in(tokens))
        for narrow, stage in zip(self.narrow, self.stages[1:], strict=True):
            maps = stage(F.interpolate(narrow(maps), scale_factor=2, mode="bilinear"))
        with torch.autocast(device_type=tokens.device.type, enabled=False):
            out = F.interpolate(self.out(maps.float()), size=(height, width), mode="bilinear")
            nearness = torch.sigmoid(out[:, 0])
            depth = 1 / ((1 - nearness) / self.far + nearness / self.near)
            return torch.sigmoid(out[:, 1:]) * 1.002 - 0.001, depth
