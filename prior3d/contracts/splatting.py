"""What a splat engine works on and what it makes: Gaussians, and the linear map from them to what views show."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple, Optional

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Gaussians:
    """N Gaussians in the world.

    Attributes:
        means: metres  # [N, 3]
        quaternions: w, x, y, z, rotating the own axes into the world; any length but zero  # [N, 4]
        scales: standard deviations along the own axes, metres  # [N, 3]
        opacities: in [0, 1]  # [N]
        colors: in [0, 1], if images were given  # [N, 3]
        features: if lifted  # [N, C]

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
            The Gaussians there.
        """
        return self._map(lambda tensor: tensor.to(target))

    def __getitem__(self, chosen: Tensor) -> "Gaussians":
        return self._map(lambda tensor: tensor[chosen])

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Gaussians":
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return Gaussians(**{name: None if tensor is None else change(tensor) for name, tensor in tensors.items()})


class Scaled(NamedTuple):
    """An operator over some cells, its weights divided by the roots of what cells show and of what Gaussians are seen.

    Attributes:
        operator: singular values in [0, 1].
        cells: divisors: root of a cell's mass, 0 where the cell is left out  # [V, h, w]
        gaussians: divisors: root of mass + median mass, 0 where a Gaussian is not seen  # [N]
        mass: sum of a Gaussian's weights over the cells  # [N]
    """

    operator: "SplatOperator"
    cells: Tensor
    gaussians: Tensor
    mass: Tensor


class SplatOperator(ABC):
    """The linear map from values on N Gaussians to what V views show of them; without gradients.

    Entry (cell, Gaussian) is the sum over the cell's pixels of alpha x transmittance. Lifting and targets are written
    with these methods alone, so that an engine need not have the entries.

    Attributes:
        views: V.
        count: N, seen or not.
        size: (h, w) of the maps in cells; cells are pixels unless a coarser grid was asked for.
        areas: pixels per cell; its dtype and device are those of all results  # [h, w]
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
            [V, C, h, w]; not divided by anything.
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
        """Sum the weights of each cell over its Gaussians and pixels; alpha, for single pixels.

        Returns:
            [V, h, w].
        """
        return self.render(self.areas.new_ones(self.count, 1))[:, 0]

    def joined(self, others: Sequence["SplatOperator"]) -> Optional["SplatOperator"]:
        """Return one operator over the views of this and others in order, which has `scaled`.

        For engines that hold entries: least squares are then solved on all views at once. By default None: views are
        gone through one by one, and nothing of them is kept.
        """
        return None

    def scaled(self, kept: Tensor) -> Scaled:
        """Return this operator over the kept cells, scaled for least squares; only where `joined` gives an operator.

        Args:
            kept: [V, h, w] bool.
        """
        raise NotImplementedError(f"{type(self).__name__} has joined, but not scaled")
