"""Exact nearest neighbors of features and their votes."""

import torch
from torch import Tensor

from prior3d.registry.engines import choose


def nearest(memory: Tensor, queries: Tensor, k: int, engine: str = "auto") -> tuple[Tensor, Tensor]:
    """Find the rows of a memory with the largest inner products with each query; exact.

    Args:
        memory: Vectors [M, C], on the device of the queries; scale them to unit length to compare by cosine.
        queries: Vectors [Q, C].
        k: Neighbors per query; a smaller memory gives fewer.
        engine: Search engine: `auto`, or the name of an engine of the job `neighbors`, for example `faiss` or `torch`.
            All give the same neighbors, except for ties.

    Returns:
        Similarities [Q, k] float32, descending in each row, and rows of the memory [Q, k] int64, on the same device.

    Raises:
        ValueError: Shapes do not fit, the memory is empty, or k is below 1.
        UserError: The engine is not available.

    >>> memory = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> nearest(memory, torch.tensor([[0.6, 0.8]]), 1, "torch")[1].tolist()
    [[1]]
    """
    if memory.dim() != 2 or queries.dim() != 2 or memory.shape[1] != queries.shape[1]:
        raise ValueError(f"expected [M, C] and [Q, C], got {list(memory.shape)} and {list(queries.shape)}")
    if k < 1 or len(memory) == 0:
        raise ValueError(f"expected k of 1 or more and a memory, got k = {k} and {len(memory)} rows")
    memory, queries, k = memory.detach().float(), queries.detach().float(), min(k, len(memory))
    return choose("neighbors", engine, memory.device, torch.float32).nearest(memory, queries, k)


def vote(similarities: Tensor, labels: Tensor, classes: int, temperature: float = 0.07) -> Tensor:
    """Let neighbors vote for their class, the more similar ones with more weight.

    Args:
        similarities: Similarities [Q, k].
        labels: Class of each neighbor, [Q, k] int64 in 0..classes - 1.
        classes: Number of classes.
        temperature: The weights are the softmax of similarities / temperature.

    Returns:
        Votes [Q, classes] float32; each row sums to 1.

    Reference:
        Wu et al., 2018, arXiv 1805.01978; temperature as in DINO (Caron et al., 2021, arXiv 2104.14294). They do not
        normalize per query, which changes no winner.
    """
    weights = (similarities.float() / temperature).softmax(1)
    return weights.new_zeros(len(weights), classes).scatter_add_(1, labels, weights)
