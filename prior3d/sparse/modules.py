"""Layers that keep the voxels, or only join or drop some: normalization, ReLU, concatenation, pruning."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prior3d.geometry import working_dtype
from prior3d.sparse.coordinates import coordinate_map
from prior3d.sparse.tensor import CoordinateManager, SparseTensor


class BatchNorm(nn.Module):
    """Batch normalization over all voxels of the batch: torch's BatchNorm1d, as attribute `bn` as in MinkowskiEngine.

    A single voxel (a small chunk at a coarse stride) has no variance to estimate. In training, torch would raise an
    error; this layer uses the running statistics instead. Synchronized normalization keeps torch's behavior.

    >>> from prior3d.sparse import SparseTensor
    >>> coordinates = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0], [0, 5, 0, 0]], dtype=torch.int32)
    >>> x = SparseTensor(torch.tensor([[1.0], [2.0], [3.0]]), coordinates)
    >>> BatchNorm(1)(x).features.mean().abs().item() < 1e-6
    True
    """

    def __init__(self, channels: int, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        """Set the channels, the epsilon of the variance and the momentum of the running statistics."""
        super().__init__()
        self.bn = nn.BatchNorm1d(channels, eps=eps, momentum=momentum)
        self.counters: list[Tensor] | None = None
        """Where a network collects the counters of batches that it raises all at once; None: raised here."""

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Normalize each channel."""
        bn = self.bn
        if len(x) < 2 and not isinstance(bn, nn.SyncBatchNorm):
            out = F.batch_norm(x.features, bn.running_mean, bn.running_var, bn.weight, bn.bias, False, 0.0, bn.eps)
            return x.with_features(out)
        plain = type(bn) is nn.BatchNorm1d and bn.momentum is not None and bn.num_batches_tracked is not None
        if self.counters is None or not bn.training or not plain:
            return x.with_features(bn(x.features))
        self.counters.append(bn.num_batches_tracked)
        mean, variance = bn.running_mean, bn.running_var
        out = F.batch_norm(x.features, mean, variance, bn.weight, bn.bias, True, bn.momentum, bn.eps)
        return x.with_features(out)


class InstanceNorm(nn.Module):
    """Instance normalization over the voxels of each batch item, with biased variance, in at least float32.

    >>> from prior3d.sparse import SparseTensor
    >>> coordinates = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0], [0, 5, 0, 0]], dtype=torch.int32)
    >>> x = SparseTensor(torch.tensor([[1.0], [2.0], [3.0]]), coordinates)
    >>> InstanceNorm(1)(x).features.mean().abs().item() < 1e-6
    True
    """

    def __init__(self, channels: int, *, eps: float = 1e-8) -> None:
        """Set the channels and the epsilon of the variance."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, channels))
        self.bias = nn.Parameter(torch.zeros(1, channels))
        self.eps = eps

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Normalize each channel of each item."""
        features = x.features.to(working_dtype(x.features))
        items = x.batch_index
        centered = features - mean_per_item(features, items, x.batch_size)[items]
        variance = mean_per_item(centered.square(), items, x.batch_size)
        out = centered * (variance + self.eps).rsqrt()[items] * self.weight + self.bias
        return x.with_features(out.to(x.features.dtype))


class ReLU(nn.Module):
    """Rectified linear unit on the features.

    >>> from prior3d.sparse import SparseTensor
    >>> coordinates = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0], [0, 5, 0, 0]], dtype=torch.int32)
    >>> x = SparseTensor(torch.tensor([[1.0], [2.0], [3.0]]), coordinates)
    >>> ReLU()(x.with_features(-x.features)).features.tolist()
    [[0.0], [0.0], [0.0]]
    """

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Set negative features to zero."""
        return x.with_features(F.relu(x.features))


def mean_per_item(features: Tensor, items: Tensor, batch_size: int) -> Tensor:
    """Return the mean of the rows [N, C] of each batch item: [B, C], zero for an item without voxels."""
    count = features.new_zeros(batch_size, 1).index_add(0, items, features.new_ones(len(items), 1))
    total = features.new_zeros(batch_size, features.shape[1]).index_add(0, items, features)
    return total / count.clamp(min=1)


def concatenate(tensors: Sequence[SparseTensor]) -> SparseTensor:
    """Stack the channels of tensors that live on the same voxels.

    Raises:
        ValueError: if the tensors live on different voxels, or there are none.

    >>> from prior3d.sparse import SparseTensor
    >>> coordinates = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0], [0, 5, 0, 0]], dtype=torch.int32)
    >>> x = SparseTensor(torch.tensor([[1.0], [2.0], [3.0]]), coordinates)
    >>> concatenate([x, x]).features.shape
    torch.Size([3, 2])
    """
    if not tensors:
        raise ValueError("expected at least one sparse tensor, got none")
    first = tensors[0]
    return first.with_features(torch.cat([first.aligned(t).features for t in tensors], dim=1))


def prune(x: SparseTensor, keep: Tensor) -> SparseTensor:
    """Keep the voxels where `keep` [N] is true, in their order, under a new coordinate manager.

    Raises:
        ValueError: if `keep` is not one boolean per voxel.

    >>> from prior3d.sparse import SparseTensor
    >>> coordinates = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0], [0, 5, 0, 0]], dtype=torch.int32)
    >>> x = SparseTensor(torch.tensor([[1.0], [2.0], [3.0]]), coordinates)
    >>> prune(x, torch.tensor([True, False, True])).features.tolist()
    [[1.0], [3.0]]
    """
    if keep.dtype != torch.bool or keep.shape != (len(x),):
        raise ValueError(f"expected a boolean mask [{len(x)}], got {keep.dtype} {list(keep.shape)}")
    level = coordinate_map(x.coordinates[keep], x.stride, x.batch_size)
    return SparseTensor(x.features[keep], stride=x.stride, manager=CoordinateManager(level))
