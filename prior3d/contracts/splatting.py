"""Input and output of splat engines: Gaussians, and the linear map from their values to maps of views."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple, Optional

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Gaussians:
    """N Gaussians in world coordinates.

    Attributes:
        means: meters  # [N, 3]
        quaternions: w, x, y, z, rotating the Gaussian's axes into the world; any nonzero length  # [N, 4]
        scales: standard deviations along the Gaussian's axes, meters  # [N, 3]
        opacities: in [0, 1]  # [N]
        colors: in [0, 1], only if images were given  # [N, 3]
        features: only if lifted  # [N, C]

    >>> one = Gaussians(torch.zeros(1, 3), torch.tensor([[1.0, 0, 0, 0]]), torch.ones(1, 3), torch.ones(1))
    >>> len(one), one.features is None
    (1, True)
    """

    means: Tensor
    quaternions: Tensor
    scales: Tensor
    opacities: Tensor
    colors: Tensor | None = None
    features: Tensor | None = None

    def __post_init__(self) -> None:
        count = len(self.means)
        expected = {"means": (count, 3), "quaternions": (count, 4), "scales": (count, 3), "opacities": (count,)}
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"expected {name} {list(shape)}, got {list(getattr(self, name).shape)}")

    def __len__(self) -> int:
        return len(self.means)

    def to(self, target: torch.device | torch.dtype | str) -> "Gaussians":
        """Move or convert every tensor.

        Args:
            target: device or floating-point type.

        Returns:
            The moved or converted Gaussians.
        """
        return self._map(lambda tensor: tensor.to(target))

    def __getitem__(self, chosen: Tensor) -> "Gaussians":
        return self._map(lambda tensor: tensor[chosen])

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Gaussians":
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return Gaussians(**{name: None if tensor is None else change(tensor) for name, tensor in tensors.items()})


class Scaled(NamedTuple):
    """An operator over some cells, with weights divided by the square roots of cell masses and Gaussian masses.

    Attributes:
        operator: singular values in [0, 1].
        cells: divisors: square root of a cell's mass, 0 if the cell is left out  # [V, h, w]
        gaussians: divisors: square root of mass + median mass, 0 if no view sees the Gaussian  # [N]
        mass: sum of a Gaussian's weights over the cells  # [N]
    """

    operator: "SplatOperator"
    cells: Tensor
    gaussians: Tensor
    mass: Tensor


class SplatOperator(ABC):
    """The linear map from values of N Gaussians to maps of V views; without gradients.

    Entry (cell, Gaussian) is the sum over the cell's pixels of alpha x transmittance. Lifting and targets use only
    these methods, so an engine need not store the entries.

    Attributes:
        views: number of views, V.
        count: number of Gaussians, N, including those that no view sees.
        size: (h, w) of the maps in cells; a cell is a pixel unless a coarser grid was requested.
        areas: pixels per cell; all results have its dtype and device  # [h, w]
    """

    views: int
    count: int
    size: tuple[int, int]
    areas: Tensor

    @abstractmethod
    def render(self, values: Tensor) -> Tensor:
        """Sum the values of the Gaussians into cells.

        Args:
            values: [N, C].

        Returns:
            [V, C, h, w], not normalized.
        """

    @abstractmethod
    def gather(self, maps: Tensor) -> Tensor:
        """Sum the maps onto the Gaussians: the transpose of `render`, its vector-Jacobian product.

        Args:
            maps: [V, C, h, w].

        Returns:
            [N, C].
        """

    @abstractmethod
    def seen(self) -> Tensor:
        """Sum the weights of each Gaussian over the pixels of each view.

        Returns:
            [V, N] pixels.
        """

    def mass(self) -> Tensor:
        """Sum the weights of each cell over its Gaussians and pixels; for cells of one pixel this is alpha.

        Returns:
            [V, h, w].
        """
        return self.render(self.areas.new_ones(self.count, 1))[:, 0]

    def joined(self, others: Sequence["SplatOperator"]) -> Optional["SplatOperator"]:
        """Return one operator over the views of this and other operators, in order, that implements `scaled`.

        It is for engines that store the entries: least squares are then solved on all views at once. The default
        returns None: views are processed one by one, and nothing of them is kept.
        """
        return None

    def scaled(self, kept: Tensor) -> Scaled:
        """Return this operator over the kept cells, scaled for least squares; needed only if `joined` is.

        Args:
            kept: [V, h, w] bool.
        """
        raise NotImplementedError(f"{type(self).__name__} has joined, but not scaled")
