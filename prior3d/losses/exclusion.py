"""Pairs of rows that must not count as negatives, given by where their points lie instead of by a mask."""

from typing import NamedTuple

import torch
from torch import Tensor


class Exclusion(NamedTuple):
    """Rows of one scene whose points lie within a radius of each other; they may show the same point.

    A mask of all pairs of N rows has N * N entries. This has N, and gives any part of the mask.

    Attributes:
        points: [G, N, 3] point of each row in meters, in one frame per scene; NaN is near nothing.
        radius: distance in meters below which two points count as the same.
        scene: [G, N] integer scene of each row; None if all rows show one scene.

    >>> points = torch.tensor([[[0.0, 0, 0], [0, 0, 0.1], [0, 0, 5]]])
    >>> Exclusion(points, radius=0.2).mask()[0]
    tensor([[ True,  True, False],
            [ True,  True, False],
            [False, False,  True]])
    """

    points: Tensor
    radius: float
    scene: Tensor | None = None

    def mask(
        self,
        groups: slice = slice(None),
        rows: slice = slice(None),
        columns: slice = slice(None),
    ) -> Tensor:
        """Return the mask [G, N, N] of excluded pairs, or a part of it.

        Args:
            groups: groups of the part.
            rows: queries of the part.
            columns: keys of the part.

        >>> Exclusion(torch.zeros(2, 5, 3), radius=0.1).mask(slice(1), slice(2), slice(3)).shape
        torch.Size([1, 2, 3])
        """
        points, other = self.points[groups, rows], self.points[groups, columns]
        # Not by matrix products: TF32 and cancellation would cost centimeters.
        near = torch.cdist(points, other, compute_mode="donot_use_mm_for_euclid_dist") < self.radius
        if self.scene is None:
            return near
        return near & (self.scene[groups, rows, None] == self.scene[groups, None, columns])

    def as_one_group(self) -> "Exclusion":
        """Return the same rows as one group [1, G * N], so that pairs across groups are excluded too.

        >>> Exclusion(torch.zeros(2, 5, 3), radius=0.1).as_one_group().points.shape
        torch.Size([1, 10, 3])
        """
        scene = None if self.scene is None else self.scene.flatten()[None]
        return Exclusion(self.points.flatten(0, 1)[None], self.radius, scene)
