"""The contract of an engine: one numerical job on one kind of device, equal to the torch engine within rounding."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from prior3d.sparse.kernel_map import KernelMap


class Engine(ABC):
    """What all engines share; derive from one of the classes below, which say what the job is.

    Attributes:
        job: sparse, splat or neighbours; the plugin's name is `<job>/<name>`.
        rank: `auto` takes the highest-ranked engine without an obstacle; equal ranks go by name.
    """

    contract: ClassVar[int] = 1
    job: ClassVar[str]
    rank: ClassVar[int] = 0

    @abstractmethod
    def obstacle(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return why this engine cannot run on tensors of a device and type, with what to install; None if it can."""


class SparseEngine(Engine):
    """Computes a sparse convolution, given features, weight and kernel map."""

    job = "sparse"

    @abstractmethod
    def convolve(self, features: Tensor, weight: Tensor, kernel_map: "KernelMap") -> Tensor:
        """Sum over offsets k of features[in_k] @ weight[k] into rows out_k, differentiable in features and weight.

        Args:
            features: [N_in, C_in].
            weight: [K, C_in, C_out], of the features' dtype.
            kernel_map: pairs per offset; `kernel_map.cached(key, make)` keeps this engine's own form of it.

        Returns:
            [N_out, C_out]; zero where an output has no pair.
        """


class SplatEngine(Engine):
    """Renders values of Gaussians, and gathers maps back onto them."""

    job = "splat"


class NeighbourEngine(Engine):
    """Finds exact nearest neighbours by inner product."""

    job = "neighbours"

    @abstractmethod
    def nearest(self, memory: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Find the rows of a memory [M, C] float32 with the largest inner products with queries [Q, C] float32.

        Returns:
            similarities [Q, k] float32, falling along each row, and rows of the memory [Q, k] int64, on that device.
        """
