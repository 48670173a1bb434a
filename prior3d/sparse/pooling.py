"""Pooling over existing voxels: strided maximum, mean and sum, un-pooling, and pooling of whole batch items."""

from typing import Literal

import torch
from torch import Tensor, nn

from prior3d.contracts.kernel_map import KernelMap
from prior3d.geometry import working_dtype
from prior3d.sparse.modules import mean_per_item
from prior3d.sparse.tensor import SparseTensor


class _Pool(nn.Module):
    """A reduction over the existing voxels under a kernel, with the coordinates of a convolution of the same size."""

    def __init__(self, kernel_size: int, *, stride: int = 1, dilation: int = 1) -> None:
        """Set the window's edge, the output's stride and the dilation, in voxels of the finer grid."""
        super().__init__()
        for name, value in {"kernel_size": kernel_size, "stride": stride, "dilation": dilation}.items():
            if value < 1:
                raise ValueError(f"expected {name} of 1 or more, got {value}")
        self.kernel_size, self.stride, self.dilation = kernel_size, stride, dilation

    def extra_repr(self) -> str:
        """Return the sizes, for printing."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, dilation={self.dilation}"

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Reduce to the coarser grid (the same voxels at stride 1)."""
        stride = x.manager.coarser(x.stride, self.stride)
        kernel_map = x.manager.kernel_map(x.stride, stride, self.kernel_size, self.dilation)
        return SparseTensor(self._reduce(x.features, kernel_map), stride=stride, manager=x.manager)

    def _reduce(self, features: Tensor, kernel_map: KernelMap) -> Tensor:
        raise NotImplementedError


class SumPool(_Pool):
    """Sum of the existing voxels under the kernel.

    >>> from prior3d.sparse import SparseTensor
    >>> coordinates = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0], [0, 5, 0, 0]], dtype=torch.int32)
    >>> x = SparseTensor(torch.tensor([[1.0], [2.0], [3.0]]), coordinates)
    >>> SumPool(2, stride=2)(x).features.tolist()
    [[3.0], [3.0]]
    """

    def _reduce(self, features: Tensor, kernel_map: KernelMap) -> Tensor:
        return _sum(features, kernel_map).to(features.dtype)


class AvgPool(_Pool):
    """Mean of the existing voxels under the kernel; absent voxels do not count. Zero if there are none.

    >>> from prior3d.sparse import SparseTensor
    >>> coordinates = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0], [0, 5, 0, 0]], dtype=torch.int32)
    >>> x = SparseTensor(torch.tensor([[1.0], [2.0], [3.0]]), coordinates)
    >>> AvgPool(2, stride=2)(x).features.tolist()
    [[1.5], [3.0]]
    """

    def _reduce(self, features: Tensor, kernel_map: KernelMap) -> Tensor:
        return _mean(features, kernel_map)


class MaxPool(_Pool):
    """Maximum of the existing voxels under the kernel. Zero if there are none.

    Differs from MinkowskiEngine: tied voxels share the gradient equally; there, an arbitrary one gets all of it.

    >>> from prior3d.sparse import SparseTensor
    >>> coordinates = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0], [0, 5, 0, 0]], dtype=torch.int32)
    >>> x = SparseTensor(torch.tensor([[1.0], [2.0], [3.0]]), coordinates)
    >>> MaxPool(2, stride=2)(x).features.tolist()
    [[2.0], [3.0]]
    """

    def _reduce(self, features: Tensor, kernel_map: KernelMap) -> Tensor:
        return _maximum(features.index_select(0, kernel_map.in_rows), kernel_map.out_rows, kernel_map.out_size)


class AvgUnpool(_Pool):
    """Un-pool to the manager's finer level, or to every reached cell: the mean of the coarse voxels that reach it.

    If the window is as large as the stride, every voxel gets a copy of its cell.

    >>> from prior3d.sparse import SparseTensor
    >>> coordinates = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0], [0, 5, 0, 0]], dtype=torch.int32)
    >>> x = SparseTensor(torch.tensor([[1.0], [2.0], [3.0]]), coordinates)
    >>> AvgUnpool(2, stride=2)(AvgPool(2, stride=2)(x)).features.tolist()
    [[1.5], [1.5], [3.0]]
    """

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Spread the features to the finer grid."""
        manager, stride, kernel_map = x.manager.finer(x.stride, self.stride, self.kernel_size, self.dilation)
        return SparseTensor(_mean(x.features, kernel_map), stride=stride, manager=manager)


class GlobalPool(nn.Module):
    """Pool each batch item to one row: a plain [B, C] tensor, row b for item b, zero for an item without voxels.

    Differs from MinkowskiEngine, which returns a sparse tensor of stride 0 and fails on items without voxels.

    >>> from prior3d.sparse import SparseTensor
    >>> coordinates = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0], [0, 5, 0, 0]], dtype=torch.int32)
    >>> x = SparseTensor(torch.tensor([[1.0], [2.0], [3.0]]), coordinates)
    >>> GlobalPool("mean")(x).tolist()
    [[2.0]]
    """

    def __init__(self, mode: Literal["mean", "max", "sum"] = "mean") -> None:
        """Set the reduction.

        Raises:
            ValueError: if the mode is unknown.
        """
        super().__init__()
        if mode not in ("mean", "max", "sum"):
            raise ValueError(f"expected mode mean, max or sum, got '{mode}'")
        self.mode = mode

    def forward(self, x: SparseTensor) -> Tensor:
        """Return pooled features [B, C]."""
        if self.mode == "max":
            return _maximum(x.features, x.batch_index, x.batch_size)
        wide = x.features.to(working_dtype(x.features))
        if self.mode == "mean":
            return mean_per_item(wide, x.batch_index, x.batch_size).to(x.features.dtype)
        total = wide.new_zeros(x.batch_size, wide.shape[1]).index_add(0, x.batch_index, wide)
        return total.to(x.features.dtype)


def _sum(features: Tensor, kernel_map: KernelMap) -> Tensor:
    """Return sums [N_out, C], in at least float32."""
    features = features.to(working_dtype(features))
    zeros = features.new_zeros(kernel_map.out_size, features.shape[1])
    return zeros.index_add(0, kernel_map.out_rows, features.index_select(0, kernel_map.in_rows))


def _mean(features: Tensor, kernel_map: KernelMap) -> Tensor:
    total = _sum(features, kernel_map)
    ones = total.new_ones(len(kernel_map.out_rows), 1)
    count = total.new_zeros(kernel_map.out_size, 1).index_add(0, kernel_map.out_rows, ones)
    return (total / count.clamp(min=1)).to(features.dtype)


def _maximum(features: Tensor, groups: Tensor, size: int) -> Tensor:
    """Return the maximum of the rows [P, C] of each group, zero for an empty group."""
    # Not zeros with include_self=False: torch's gradient would count them as ties of a maximum of 0 (as after ReLU).
    lowest = features.new_full((size, features.shape[1]), -torch.inf)
    out = lowest.scatter_reduce(0, groups[:, None].expand_as(features), features, "amax")
    return out.masked_fill(out == -torch.inf, 0)
