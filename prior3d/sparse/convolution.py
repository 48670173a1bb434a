"""Convolution modules: submanifold, strided, transposed, generative; weights in MinkowskiEngine's layout and names."""

import math

import torch
from torch import Tensor, nn

from prior3d.contracts.kernel_map import KernelMap
from prior3d.registry.engines import EngineChoice
from prior3d.sparse.tensor import SparseTensor


class _ConvolutionBase(nn.Module):
    """Weight `kernel` [K^3, C_in, C_out] (offsets: first spatial axis fastest) and `bias` [1, C_out]."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        dilation: int,
        bias: bool,
        engine: str,
    ) -> None:
        super().__init__()
        for name, value in {"kernel_size": kernel_size, "stride": stride, "dilation": dilation}.items():
            if value < 1:
                raise ValueError(f"expected {name} of 1 or more, got {value}")
        self.kernel_size, self.stride, self.dilation = kernel_size, stride, dilation
        self.engine = EngineChoice("sparse", engine)
        shape = (in_channels, out_channels) if self.is_linear else (kernel_size**3, in_channels, out_channels)
        self.kernel = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(1, out_channels)) if bias else None
        self.reset_parameters()

    @property
    def is_linear(self) -> bool:
        """Whether this is a plain matrix product per voxel (kernel and stride 1), with a weight of two axes."""
        return self.kernel_size == 1 and self.stride == 1

    def _fan(self) -> int:
        """Number of channels that sets the range of the initial weights."""
        return self.kernel.shape[-2]

    def reset_parameters(self) -> None:
        """Draw kernel and bias from U(-1/sqrt(n), 1/sqrt(n)), where n is K^3 times the fan."""
        bound = 1 / math.sqrt(self.kernel_size**3 * self._fan())
        for parameter in filter(lambda p: p is not None, (self.kernel, self.bias)):
            nn.init.uniform_(parameter, -bound, bound)

    def extra_repr(self) -> str:
        """Return the sizes, for printing."""
        return (
            f"{self.kernel.shape[-2]} -> {self.kernel.shape[-1]}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, dilation={self.dilation}"
        )

    def _convolve(self, features: Tensor, kernel_map: KernelMap | None) -> Tensor:
        if features.shape[1] != self.kernel.shape[-2]:
            raise ValueError(f"expected {self.kernel.shape[-2]} channels, got {features.shape[1]}")
        if kernel_map is None:
            out = features @ self.kernel
        else:
            # Autocast does not look inside an autograd.Function, so the casts are here.
            device, kernel = features.device, self.kernel
            if torch.is_autocast_enabled(device.type) and features.dtype != torch.float64:
                dtype = torch.get_autocast_dtype(device.type)
                features, kernel = features.to(dtype), kernel.to(dtype)
            out = self.engine.on(device, features.dtype).convolve(features, kernel, kernel_map)
        return out if self.bias is None else out + self.bias.to(out.dtype)


class Convolution(_ConvolutionBase):
    """Sparse convolution: submanifold at stride 1 (outputs are the inputs' voxels), else to the coarser grid.

    out[u] = sum_k in[u + offset_k * dilation * in_stride] @ kernel[k]. Odd kernels are centered, even ones run from 0
    to K-1. The voxels of a strided output are the unique floor cells of the input, for every kernel size.

    Reference: Choy, Gwak, Savarese, "4D Spatio-Temporal ConvNets", 2019, arXiv:1904.08755. Conventions, parameter
    names and initial ranges are those of its MinkowskiEngine; coordinates are divided as integers, not as float32.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: edge of the cubic kernel, in voxels of the input.
        stride: ratio of the output's voxel edge to the input's.
        dilation: spacing of the taps, in voxels of the input.
        bias: whether to add a bias.
        engine: `auto` or the name of an engine.

    Raises:
        ValueError: if a size is below 1.
        UserError: if the engine is not available.

    >>> coordinates = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0], [0, 5, 0, 0]], dtype=torch.int32)
    >>> x = SparseTensor(torch.rand(3, 8), coordinates)
    >>> Convolution(8, 4, 3)(x).features.shape
    torch.Size([3, 4])
    >>> coarse = Convolution(8, 4, 2, stride=2)(x)
    >>> coarse.coordinates.tolist()
    [[0, 0, 0, 0], [0, 4, 0, 0]]
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = False,
        engine: str = "auto",
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, dilation, bias, engine)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Convolve; the manager of `x` caches output coordinates and kernel map."""
        if self.is_linear:
            return x.with_features(self._convolve(x.features, None))
        stride = x.manager.coarser(x.stride, self.stride)
        kernel_map = x.manager.kernel_map(x.stride, stride, self.kernel_size, self.dilation)
        return SparseTensor(self._convolve(x.features, kernel_map), stride=stride, manager=x.manager)


class TransposedConvolution(_ConvolutionBase):
    """Sparse transposed convolution: the exact in/out swap of the strided one, to the finer grid.

    The output uses the manager's level at the finer stride (a U-Net's way back up). If there is none, or with
    `generative`, it has every cell that the kernel reaches.

    Reference: Choy, Gwak, Savarese, "4D Spatio-Temporal ConvNets", 2019, arXiv:1904.08755.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: edge of the cubic kernel, in voxels of the output.
        stride: ratio of the input's voxel edge to the output's.
        dilation: spacing of the taps, in voxels of the output.
        bias: whether to add a bias.
        generative: make new voxels even if the manager has a level at the finer stride.
        engine: `auto` or the name of an engine.

    Raises:
        ValueError: if a size is below 1.
        UserError: if the engine is not available.

    >>> coordinates = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0], [0, 5, 0, 0]], dtype=torch.int32)
    >>> x = SparseTensor(torch.rand(3, 8), coordinates)
    >>> coarse = Convolution(8, 4, 2, stride=2)(x)
    >>> TransposedConvolution(4, 8, 2, stride=2)(coarse).features.shape
    torch.Size([3, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = False,
        generative: bool = False,
        engine: str = "auto",
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, dilation, bias, engine)
        self.generative = generative

    def _fan(self) -> int:
        return self.kernel.shape[-1]

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Convolve; see the class for the voxels of the output."""
        if self.is_linear:
            return x.with_features(self._convolve(x.features, None))
        manager, stride, kernel_map = x.manager.finer(
            x.stride, self.stride, self.kernel_size, self.dilation, fresh=self.generative
        )
        return SparseTensor(self._convolve(x.features, kernel_map), stride=stride, manager=manager)
