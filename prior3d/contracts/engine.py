"""The contract of an engine: one numerical job on one kind of device, equal to the torch engine within rounding."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from prior3d.contracts.kernel_map import KernelMap
from prior3d.contracts.splatting import Gaussians, SplatOperator

__all__ = ["Engine", "Gaussians", "KernelMap", "NeighbourEngine", "SparseEngine", "SplatEngine", "SplatOperator"]


class Engine(ABC):
    """What all engines share; derive from one of the classes below, which say what the job is.

    An engine is found by its entry point in the group `prior3d.engines`, or in a plugin file of a recipe. Its name is
    `<job>/<name>`; recipes and functions that have only one job write `<name>`. The constructor takes nothing, and one
    instance serves the whole process. Its module is imported when `auto` compares the engines of its job: import what
    may be missing inside the methods.

    Attributes:
        job: sparse, splat or neighbours.
        rank: `auto` takes the highest-ranked engine without an obstacle; equal ranks go by name. The torch engines,
            which run everywhere, have 0.
        deterministic: whether equal inputs give equal bytes, gradients included.
    """

    contract: ClassVar[int] = 1
    job: ClassVar[str]
    rank: ClassVar[int] = 0
    deterministic: ClassVar[bool] = True

    @abstractmethod
    def obstacle(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return why this engine cannot run on tensors of a device and type, with what to install; None if it can.

        Args:
            device: of the tensors.
            dtype: of the tensors, as the job's method gets them.

        Returns:
            A clause such as "gsplat is not installed: pip install gsplat".
        """


class SparseEngine(Engine):
    """Computes a sparse convolution, given features, weight and kernel map."""

    job = "sparse"

    @abstractmethod
    def convolve(self, features: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
        """Sum features[in_k] @ weight[k] into rows out_k over the offsets k, differentiable in features and weight.

        Sums run in float32 at least, whatever the features' dtype.

        Args:
            features: [N_in, C_in], of any strides.
            weight: [K, C_in, C_out], of the features' dtype.
            kernel_map: pairs per offset; `kernel_map.cached(key, make)` keeps this engine's own form of it.

        Returns:
            [N_out, C_out] of the features' dtype; zero where an output has no pair.
        """


class SplatEngine(Engine):
    """Renders values of Gaussians in the conventions of `prior3d.splat.rasterize`."""

    job = "splat"

    @abstractmethod
    def rasterize(
        self,
        gaussians: Gaussians,  # float32 or float64
        values: Tensor,  # [N, C]
        intrinsics: Tensor,  # [V, 3, 3] pixels
        world_from_camera: Tensor,  # [V, 4, 4] rigid, OpenCV axes, metres
        size: tuple[int, int],
        background: Tensor,  # [C]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Render views, differentiable once in the Gaussians, the values and the background.

        Args:
            gaussians: what to render.
            values: per Gaussian, any number of channels.
            intrinsics: of `size`.
            world_from_camera: poses.
            size: (height, width) in pixels.
            background: value behind everything.

        Returns:
            Values [V, C, H, W], expected depth [V, H, W] in metres and alpha [V, H, W].
        """

    def operator(
        self,
        gaussians: Gaussians,
        intrinsics: Tensor,  # [V, 3, 3]
        world_from_camera: Tensor,  # [V, 4, 4]
        size: tuple[int, int],
        grid: tuple[int, int] | None,
    ) -> SplatOperator | None:
        """Return the linear map from values to maps of these views; arguments as of `prior3d.splat.view_operator`.

        By default None: it is made from `rasterize` and its gradient.
        """
        return None


class NeighbourEngine(Engine):
    """Finds exact nearest neighbours by inner product."""

    job = "neighbours"

    @abstractmethod
    def nearest(self, memory: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Find the rows of a memory with the largest inner products with each query.

        Args:
            memory: [M, C] float32, M >= k, of any strides.
            queries: [Q, C] float32, on the same device.
            k: how many, at least 1.

        Returns:
            similarities [Q, k] float32, falling along each row, and rows of the memory [Q, k] int64, on that device.
        """
