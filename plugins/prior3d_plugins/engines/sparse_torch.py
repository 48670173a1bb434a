"""Sparse convolution in plain torch."""

import torch
from torch import Tensor

from prior3d import SparseEngine
from prior3d.sparse import KernelMap, convolve


class SparseTorch(SparseEngine):
    """Gather, matrix product and scatter for each offset: the reference, on any device."""

    def obstacle(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return None: this engine runs wherever torch runs."""
        return None

    def convolve(self, features: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
        """See `SparseEngine.convolve`."""
        return convolve(features, weight, kernel_map)
