"""Exact nearest neighbours of features and the votes they cast, with FAISS."""

from typing import Literal

import torch
from torch import Tensor

from prior3d.errors import UserError
from prior3d.geometry import full_precision

Engine = Literal["auto", "faiss", "torch"]
"""auto: FAISS, but `torch` for features on a CUDA device where the installed FAISS has no GPU support."""

_CHUNK = 2**26
"""Similarities the engine `torch` holds at a time."""


def nearest(memory: Tensor, queries: Tensor, k: int, engine: Engine = "auto") -> tuple[Tensor, Tensor]:
    """Find the rows of a memory with the largest inner products with each query; exact.

    Args:
        memory: [M, C], on the device of the queries; of unit length where cosines are meant.
        queries: [Q, C].
        k: neighbours per query; fewer are found where the memory is smaller.
        engine: what searches; both give the same neighbours, but for ties.

    Returns:
        similarities [Q, k] float32, falling along each row, and rows of the memory [Q, k] int64, on the same device.

    Raises:
        ValueError: shapes that do not fit, an empty memory or k below 1.
        UserError: FAISS is needed and not installed.
    """
    if memory.dim() != 2 or queries.dim() != 2 or memory.shape[1] != queries.shape[1]:
        raise ValueError(f"expected [M, C] and [Q, C], got {list(memory.shape)} and {list(queries.shape)}")
    if k < 1 or len(memory) == 0:
        raise ValueError(f"expected k of 1 or more and a memory, got k = {k} and {len(memory)} rows")
    memory, queries, k = memory.detach().float(), queries.detach().float(), min(k, len(memory))
    on_gpu = memory.device.type == "cuda"
    if engine == "torch" or (engine == "auto" and on_gpu and not _faiss_gpus()):
        return _by_products(memory, queries, k)
    return _by_faiss(memory, queries, k)


def vote(similarities: Tensor, labels: Tensor, classes: int, temperature: float = 0.07) -> Tensor:
    """Let neighbours vote for their class, the more similar ones with more weight.

    Args:
        similarities: [Q, k].
        labels: class of each neighbour, [Q, k] int64 in 0..classes - 1.
        classes: how many there are.
        temperature: the weights are the softmax of similarities over it.

    Returns:
        [Q, classes] float32, rows sum to 1.

    Reference:
        Wu et al., 2018, arXiv 1805.01978; temperature as in DINO (Caron et al., 2021, arXiv 2104.14294). Theirs are not
        normalised per query, which changes no winner.
    """
    weights = (similarities.float() / temperature).softmax(1)
    return weights.new_zeros(len(weights), classes).scatter_add_(1, labels, weights)


def _by_products(memory: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    with full_precision(memory.device):
        found = [
            (chunk @ memory.T).topk(k, dim=1)
            for chunk in queries.split(max(_CHUNK // len(memory), 1))  # an empty tensor splits into one empty chunk
        ]
    return torch.cat([top.values for top in found]), torch.cat([top.indices for top in found])


def _by_faiss(memory: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    faiss = _faiss()
    faiss.omp_set_num_threads(torch.get_num_threads())  # its own default is all cores, also where torch was told fewer
    index = faiss.IndexFlatIP(memory.shape[1])
    if memory.device.type == "cuda" and _faiss_gpus():
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), memory.device.index or 0, index)
    index.add(memory.cpu().contiguous().numpy())
    similarities, rows = index.search(queries.cpu().contiguous().numpy(), k)
    return torch.from_numpy(similarities).to(memory.device), torch.from_numpy(rows).to(memory.device)


def _faiss_gpus() -> int:
    count = getattr(_faiss(), "get_num_gpus", None)  # builds for the CPU alone may lack it
    return count() if count else 0


def _faiss():  # noqa: ANN202  (a module)
    try:
        import faiss
    except ImportError as error:
        raise UserError("nearest neighbours are found with FAISS: pip install faiss-cpu (or faiss-gpu)") from error
    return faiss
