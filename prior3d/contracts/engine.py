"""The contract of an engine: one numerical job on one kind of device, equal to the torch engine within rounding."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from prior3d.contracts.kernel_map import KernelMap
from prior3d.contracts.splatting import Gaussians, SplatOperator

__all__ = ["Engine", "Gaussians", "KernelMap", "NeighborEngine", "SparseEngine", "SplatEngine", "SplatOperator"]


class Engine(ABC):
    """Base class of all engines; derive from one of the classes below, which define the job.

    An engine is found by its entry point in the group `prior3d.engines`, or in a plugin file of a recipe. Its name is
    `<job>/<name>`; recipes and functions that have only one job write `<name>`. The constructor takes no arguments, and
    one instance serves the whole process. The module is imported when `auto` compares the engines of a job, so import
    optional packages inside the methods.

    Attributes:
        contract: version of this contract. A plugin that sets the number it was written for is refused, in one line, by
            a prior3d with another number.
        job: sparse, splat or neighbors.
        rank: `auto` picks the highest-ranked engine without an obstacle; equal ranks are ordered by name. The torch
            engines, which run everywhere, have rank 0.
        deterministic: whether equal inputs give equal bytes, gradients included.
    """

    contract: ClassVar[int] = 1
    job: ClassVar[str]
    rank: ClassVar[int] = 0
    deterministic: ClassVar[bool] = True

    @abstractmethod
    def obstacle(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return why this engine cannot run on a device and dtype, and what to install; None if it can run.

        Args:
            device: of the tensors.
            dtype: of the tensors, as the job's method receives them.

        Returns:
            A clause such as "gsplat is not installed: pip install gsplat".
        """


class SparseEngine(Engine):
    """An engine that computes a sparse convolution from features, weight and kernel map."""

    job = "sparse"

    @abstractmethod
    def convolve(self, features: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
        """Sum features[in_k] @ weight[k] into rows out_k over all offsets k, differentiable in features and weight.

        Sums use float32 or wider, for every dtype of the features.

        Args:
            features: [N_in, C_in], of any strides.
            weight: [K, C_in, C_out], of the features' dtype.
            kernel_map: pairs per offset; `kernel_map.cached(key, make)` stores this engine's own form of the map.

        Returns:
            [N_out, C_out] of the features' dtype; zero where an output has no pair.
        """


class SplatEngine(Engine):
    """An engine that renders values of Gaussians with the conventions of `prior3d.splat.rasterize`.

    Attributes:
        views_at_once: number of views that one operator should hold, where views are streamed; more than 1 if several
            cameras in one call are faster.
    """

    job = "splat"
    views_at_once = 1

    @abstractmethod
    def rasterize(
        self,
        gaussians: Gaussians,  # float32 or float64
        values: Tensor,  # [N, C]
        intrinsics: Tensor,  # [V, 3, 3] pixels
        world_from_camera: Tensor,  # [V, 4, 4] rigid, OpenCV axes, meters
        size: tuple[int, int],
        background: Tensor,  # [C]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Render views, differentiable once in the Gaussians, the values and the background.

        Args:
            gaussians: the Gaussians to render.
            values: values per Gaussian, any number of channels.
            intrinsics: cameras for images of `size`.
            world_from_camera: camera poses.
            size: (height, width) in pixels.
            background: value behind everything.

        Returns:
            Values [V, C, H, W], expected depth [V, H, W] in meters and alpha [V, H, W].
        """

    def operator(
        self,
        gaussians: Gaussians,
        intrinsics: Tensor,  # [V, 3, 3]
        world_from_camera: Tensor,  # [V, 4, 4]
        size: tuple[int, int],
        grid: tuple[int, int] | None,
    ) -> SplatOperator | None:
        """Return the linear map from values to maps of these views; arguments as in `prior3d.splat.view_operator`.

        The default returns None: the caller then builds the map from `rasterize` and its gradient.
        """
        return None

    def render_scenes(
        self,
        scenes: Sequence[Gaussians],
        values: Sequence[Tensor],  # [N, C] of each scene
        views: Sequence[int],
        intrinsics: Tensor,  # [V, 3, 3]
        world_from_camera: Tensor,  # [V, 4, 4]
        size: tuple[int, int],
        grid: tuple[int, int] | None,
    ) -> Tensor | None:
        """Sum the values of several scenes into cells in one call; arguments as in `prior3d.splat.render_scenes`.

        The default returns None: the caller then renders one view after the other.
        """
        return None


class NeighborEngine(Engine):
    """An engine that finds exact nearest neighbors by inner product."""

    job = "neighbors"

    @abstractmethod
    def nearest(self, memory: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Find the rows of a memory with the largest inner products with each query.

        Args:
            memory: [M, C] float32, M >= k, of any strides.
            queries: [Q, C] float32, on the same device.
            k: number of neighbors, at least 1.

        Returns:
            similarities [Q, k] float32, decreasing along each row, and rows of the memory [Q, k] int64, on the same
            device.
        """
