"""Designs of furniture, and the few shapes that all are made of.

A design has its own frame: meters, z up from the floor, its back toward -y.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from prior3d_plugins.datasets.synthetic_rooms.primitives import Primitive

Triple = tuple[float, float, float]

Primitives = list[Primitive]
"""Return type of the functions that draw a design."""


@dataclass(frozen=True)
class Design:
    """A piece of furniture that has no place yet.

    Attributes:
        kind: Name of its class.
        primitives: Solids that it is made of.
    """

    kind: str
    primitives: tuple[Primitive, ...]

    @property
    def materials(self) -> int:
        """Number of materials."""
        return 1 + max(primitive.material for primitive in self.primitives)

    @cached_property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest x, y, z of its primitives, meters."""
        centers = np.array([primitive.center for primitive in self.primitives])
        halves = np.array([primitive.half for primitive in self.primitives])
        return (centers - halves).min(0), (centers + halves).max(0)


def box(low: Triple, high: Triple, material: int = 0) -> Primitive:
    """Return the box between two corners, meters."""
    center = tuple((a + b) / 2 for a, b in zip(low, high, strict=True))
    return Primitive("box", center, tuple((b - a) / 2 for a, b in zip(low, high, strict=True)), material)


def post(x: float, y: float, low: float, high: float, radius: float, material: int = 0) -> Primitive:
    """Return the upright cylinder at (x, y) between two heights, meters."""
    return Primitive("cylinder", (x, y, (low + high) / 2), (radius, radius, (high - low) / 2), material)


def ball(center: Triple, half: Triple, material: int = 0) -> Primitive:
    """Return the ellipsoid with the given half sizes, meters."""
    return Primitive("sphere", center, half, material)


def legs(width: float, depth: float, height: float, thickness: float, material: int = 0) -> list[Primitive]:
    """Return four square legs under the corners of a plate, meters."""
    x, y, t = width / 2, depth / 2, thickness
    corners = [(-x, -y), (x - t, -y), (-x, y - t), (x - t, y - t)]
    return [box((a, b, 0.0), (a + t, b + t, height), material) for a, b in corners]
