"""Nearest neighbors with FAISS, on the CPU, or on CUDA if the installed FAISS supports it."""

import functools
import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from prior3d import NeighborEngine

_MOST_ON_GPU = 2048
"""Maximum number of neighbors per query in FAISS's CUDA kernels."""


class NeighborsFaiss(NeighborEngine):
    """Exact nearest neighbors with FAISS's flat index of inner products.

    Reference:
        Johnson, Douze and Jegou, Billion-scale similarity search with GPUs, 2017, arXiv 1702.08734.
    """

    rank = 10

    def obstacle(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return what is missing on this device, or None."""
        if device.type not in ("cpu", "cuda"):
            return f"FAISS runs on the CPU and on CUDA devices, not on {device.type}: take engine torch"
        faiss = _faiss()
        if faiss is None:
            return f"FAISS is not installed: pip install {'faiss-cpu' if device.type == 'cpu' else 'faiss-gpu-cu12'}"
        if device.type == "cuda" and not _gpus(faiss):
            return "the installed FAISS is built for the CPU alone: pip uninstall faiss-cpu; pip install faiss-gpu-cu12"
        return None

    def nearest(self, memory: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """See `NeighborEngine.nearest`; at most 2048 neighbors on CUDA."""
        faiss = _faiss()
        index = faiss.IndexFlatIP(memory.shape[1])
        if memory.device.type == "cuda":
            if k > _MOST_ON_GPU:
                raise ValueError(f"expected at most {_MOST_ON_GPU} neighbors from FAISS on CUDA, got {k}")
            device = memory.device.index or 0
            index = faiss.index_cpu_to_gpu(_resources(device), device, index)
        else:
            # FAISS's default is all cores, even if torch was given fewer
            faiss.omp_set_num_threads(torch.get_num_threads())
        index.add(memory.cpu().contiguous().numpy())
        similarities, rows = index.search(queries.cpu().contiguous().numpy(), k)
        return torch.from_numpy(similarities).to(memory.device), torch.from_numpy(rows).to(memory.device)


def _faiss() -> ModuleType | None:
    try:
        return importlib.import_module("faiss")
    except ImportError:
        return None


def _gpus(faiss: ModuleType) -> int:
    count = getattr(faiss, "get_num_gpus", None)  # CPU-only builds may lack it
    return count() if count else 0


@functools.cache
def _resources(device: int) -> Any:
    """Return FAISS's scratch memory on a device, made once because it takes hundreds of megabytes."""
    return _faiss().StandardGpuResources()
