"""Sparse residual U-Nets of the MinkUNet family, with the parameter names and shapes of MinkowskiEngine's example."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prior3d.sparse.convolution import Convolution, TransposedConvolution
from prior3d.sparse.modules import BatchNorm, ReLU, concatenate
from prior3d.sparse.tensor import MapKey, SparseTensor

_DEPTH = 4
_LEAST_CHANNELS = 4


class BasicBlock(nn.Module):
    """Two 3^3 convolutions with a residual connection, projected if the number of channels changes."""

    def __init__(self, in_channels: int, out_channels: int, *, engine: str = "auto") -> None:
        """Set the sizes."""
        super().__init__()
        self.conv1 = Convolution(in_channels, out_channels, 3, engine=engine)
        self.norm1 = BatchNorm(out_channels)
        self.conv2 = Convolution(out_channels, out_channels, 3, engine=engine)
        self.norm2 = BatchNorm(out_channels)
        self.relu = ReLU()
        self.downsample = None
        if in_channels != out_channels:
            project = Convolution(in_channels, out_channels, 1, engine=engine)
            self.downsample = nn.Sequential(project, BatchNorm(out_channels))

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Transform the features; the voxels stay."""
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class MinkUNet(nn.Module):
    """Residual U-Net over voxels: a stem, four halvings, four doublings with concatenated skips, a linear head.

    The output has a row per input voxel, in the input's order.

    Reference: Choy, Gwak, Savarese, "4D Spatio-Temporal ConvNets", 2019, arXiv:1904.08755, and the example network of
    its MinkowskiEngine. The 3D branch of Hou et al., "Pri3D", 2021, arXiv:2104.11225, is `mink_unet34c`. One difference
    is the initial spread of 1^3 kernels: here the true fan-out, while MinkowskiEngine uses their fan-in as fan-out.

    Args:
        in_channels: channels of the input features.
        out_channels: channels of the output features.
        planes: channels of the four stages down and the four stages up.
        layers: number of residual blocks in each of these eight stages.
        stem_channels: channels of the stem.
        stem_kernel: kernel size of the stem.
        engine: `auto` or the name of a convolution engine.

    Raises:
        ValueError: if there are not eight stages.
        UserError: if the engine is not available.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        planes: Sequence[int],
        layers: Sequence[int],
        stem_channels: int = 32,
        stem_kernel: int = 5,
        engine: str = "auto",
    ) -> None:
        super().__init__()
        if len(planes) != 2 * _DEPTH or len(layers) != 2 * _DEPTH:
            raise ValueError(f"expected {2 * _DEPTH} planes and layers, got {len(planes)} and {len(layers)}")
        self.conv0p1s1 = Convolution(in_channels, stem_channels, stem_kernel, engine=engine)
        self.bn0 = BatchNorm(stem_channels)
        self.relu = ReLU()
        self._down = [f"conv{i + 1}p{2**i}s2" for i in range(_DEPTH)]
        self._up = [f"convtr{i + _DEPTH}p{2 ** (_DEPTH - i)}s2" for i in range(_DEPTH)]
        channels, skips = stem_channels, []
        for i, name in enumerate(self._down, start=1):
            skips.append(channels)
            self.add_module(name, Convolution(channels, channels, 2, stride=2, engine=engine))
            self.add_module(f"bn{i}", BatchNorm(channels))
            self.add_module(f"block{i}", _stage(channels, planes[i - 1], layers[i - 1], engine))
            channels = planes[i - 1]
        for i, name in enumerate(self._up, start=_DEPTH):
            self.add_module(name, TransposedConvolution(channels, planes[i], 2, stride=2, engine=engine))
            self.add_module(f"bntr{i}", BatchNorm(planes[i]))
            self.add_module(f"block{i + 1}", _stage(planes[i] + skips.pop(), planes[i], layers[i], engine))
            channels = planes[i]
        self.final = Convolution(channels, out_channels, 1, bias=True, engine=engine)
        self._initialize()
        self._counters: list[Tensor] = []
        for module in self.modules():
            if isinstance(module, BatchNorm):
                module.counters = self._counters

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Return features [N, out_channels] on the input's voxels."""
        self._counters.clear()
        x.manager.prepare(x.stride, [2 ** (i + 1) for i in range(_DEPTH)])
        x = self.relu(self.bn0(self.conv0p1s1(x)))
        skips = []
        for i, name in enumerate(self._down, start=1):
            skips.append(x)
            x = self.relu(getattr(self, f"bn{i}")(getattr(self, name)(x)))
            x = getattr(self, f"block{i}")(x)
        for i, name in enumerate(self._up, start=_DEPTH):
            x = self.relu(getattr(self, f"bntr{i}")(getattr(self, name)(x)))
            x = getattr(self, f"block{i + 1}")(concatenate([x, skips.pop()]))
        if self._counters:
            with torch.no_grad():
                torch._foreach_add_(self._counters, 1)
            self._counters.clear()
        return self.final(x)

    def kernel_maps(self, stride: int = 1) -> list[MapKey]:
        """Return the kernel maps that a pass over voxels of this stride reads, in order of first use."""
        found = [(stride, stride, self.conv0p1s1.kernel_size, 1)]
        for _ in range(_DEPTH):
            found += [(stride, stride * 2, 2, 1), (stride * 2, stride * 2, 3, 1)]
            stride *= 2
        return list(dict.fromkeys([*found, (found[0][0], found[0][0], 3, 1)]))

    def _initialize(self) -> None:
        """Draw kernels with variance 2 / fan-out; transposed convolutions and biases keep their uniform draw."""
        for module in self.modules():
            if isinstance(module, Convolution):
                fan_out = module.kernel_size**3 * module.kernel.shape[-1]
                nn.init.normal_(module.kernel, std=(2 / fan_out) ** 0.5)


def _stage(in_channels: int, out_channels: int, blocks: int, engine: str) -> nn.Sequential:
    channels = [in_channels] + [out_channels] * blocks
    return nn.Sequential(*(BasicBlock(channels[i], out_channels, engine=engine) for i in range(blocks)))


def mink_unet_small(in_channels: int, out_channels: int, *, width: float = 1.0, engine: str = "auto") -> MinkUNet:
    """Make a light U-Net for demonstrations on a CPU: 0.9 M parameters, 3^3 stem, one block per stage.

    Args:
        in_channels: channels of the input features.
        out_channels: channels of the output features.
        width: factor on the channels of the stem and of all stages.
        engine: `auto` or the name of a convolution engine.

    >>> sum(parameter.numel() for parameter in mink_unet_small(1, 32).parameters())
    862960
    """
    planes = (16, 32, 48, 64, 48, 32, 32, 32)
    return _mink_unet(in_channels, out_channels, planes, (1,) * 8, 16, 3, width, engine)


def mink_unet34c(in_channels: int, out_channels: int, *, width: float = 1.0, engine: str = "auto") -> MinkUNet:
    """Make MinkUNet34C, the network of Pri3D's 3D branch: 37.9 M parameters from 3 to 96 channels.

    Args:
        in_channels: channels of the input features.
        out_channels: channels of the output features.
        width: factor on the channels of the stem and of all stages.
        engine: `auto` or the name of a convolution engine.

    >>> mink_unet34c(3, 96, width=0.25).conv0p1s1
    Convolution(3 -> 8, kernel_size=5, stride=1, dilation=1)
    """
    planes = (32, 64, 128, 256, 256, 128, 96, 96)
    return _mink_unet(in_channels, out_channels, planes, (2, 3, 4, 6, 2, 2, 2, 2), 32, 5, width, engine)


def _mink_unet(
    in_channels: int,
    out_channels: int,
    planes: Sequence[int],
    layers: Sequence[int],
    stem_channels: int,
    stem_kernel: int,
    width: float,
    engine: str,
) -> MinkUNet:
    stem, *planes = (max(_LEAST_CHANNELS, round(count * width)) for count in (stem_channels, *planes))
    return MinkUNet(
        in_channels,
        out_channels,
        planes=planes,
        layers=layers,
        stem_channels=stem,
        stem_kernel=stem_kernel,
        engine=engine,
    )
