"""A sparse engine: the sum over the offsets, as it is written down."""

import torch

from prior3d import SparseEngine


class Loops(SparseEngine):
    """One matrix product for each offset, summed in single precision or better; never taken by `auto`."""

    rank = -1

    def __init__(self):
        self.calls = 0

    def obstacle(self, device, dtype):
        return None

    def convolve(self, features, weight, kernel_map):
        self.calls += 1
        exact = torch.promote_types(features.dtype, torch.float32)
        out = torch.zeros(kernel_map.out_size, weight.shape[-1], dtype=exact, device=features.device)
        for (rows, into), kernel in zip(kernel_map.pairs, weight, strict=True):
            out = out.index_add(0, into, features[rows].to(exact) @ kernel.to(exact))
        return out.to(features.dtype)
