"""Nearest neighbors by matrix products in plain torch."""

import torch
from torch import Tensor

from prior3d import NeighborEngine
from prior3d.geometry import full_precision

_CHUNK = 2**26
"""Maximum number of similarities in memory."""


class NeighborsTorch(NeighborEngine):
    """All products, in chunks of queries, in full float32, on any device."""

    def obstacle(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return None: this engine runs wherever torch runs."""
        return None

    def nearest(self, memory: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """See `NeighborEngine.nearest`."""
        with full_precision(memory.device):
            found = [
                (chunk @ memory.T).topk(k, dim=1)
                for chunk in queries.split(max(_CHUNK // len(memory), 1))  # an empty tensor splits into one empty chunk
            ]
        return torch.cat([top.values for top in found]), torch.cat([top.indices for top in found])
