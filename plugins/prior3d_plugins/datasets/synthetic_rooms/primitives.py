"""Boxes, cylinders and spheres, and their exact intersections with rays: one primitive at a time, all rays at once.

Each primitive is the unit cube, cylinder or ball scaled by its half sizes. So a ray is transformed into unit space,
where the distance along it stays the same. Rays are [3, N] planes rather than [N, 3] rows: several times faster.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

NEAR = 0.02
"""Meters along the optical axis; nothing nearer is visible."""

_PARALLEL = 1e-12


@dataclass(frozen=True)
class Primitive:
    """A solid in the frame of the piece of furniture it belongs to (z up, meters).

    Attributes:
        shape: Shape that `half` scales: a cube, an upright cylinder or a ball.
        center: Position x, y, z in meters.
        half: Half sizes along x, y, z in meters.
        material: Index of the piece's material that it is made of, from 0.
    """

    shape: Literal["box", "cylinder", "sphere"]
    center: tuple[float, float, float]
    half: tuple[float, float, float]
    material: int = 0


def intersect(primitive: Primitive, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find where rays enter a primitive.

    Args:
        primitive: The solid.
        origins: Ray origins [3, N], meters, outside the solid.
        directions: Ray directions [3, N] of any length.

    Returns:
        The distance [N] in lengths of `directions`, inf where a ray misses, and the ray in unit space: origin and
        direction [3, N], as `unit_normals` needs them.
    """
    half = origins.new_tensor(primitive.half)[:, None]
    origins = (origins - origins.new_tensor(primitive.center)[:, None]) / half
    directions = directions / half
    enter, leave = _INTERVALS[primitive.shape](origins, directions)
    return torch.where((enter < leave) & (enter > NEAR), enter, torch.inf), origins, directions


def unit_normals(primitive: Primitive, points: Tensor) -> Tensor:
    """Return the outward normals [3, N], of length 1 in the piece's frame, at surface points [3, N] in unit space."""
    x, y, z = points
    zero = torch.zeros_like(x)
    if primitive.shape == "sphere":
        normals = points
    elif primitive.shape == "box":
        normals = facing(points)
    else:
        cap = z.abs() >= (x * x + y * y).sqrt()
        normals = torch.stack([torch.where(cap, zero, x), torch.where(cap, zero, y), torch.where(cap, z.sign(), zero)])
    normals = normals / points.new_tensor(primitive.half)[:, None]
    return normals / dot(normals, normals).sqrt()


def facing(points: Tensor) -> Tensor:
    """Return the outward normals [3, N] of the cube from -1 to 1 at points [3, N] on it."""
    x, y, z = points.abs()
    on_x = x >= torch.maximum(y, z)
    on_y = ~on_x & (y >= z)
    return torch.stack([on_x, on_y, ~(on_x | on_y)]) * points.sign()


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the dot products [N] of vectors [3, N]; the library's reductions are slow over such a short dimension."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def slabs(origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Return where rays enter and leave the cube from -1 to 1, or the intersection of one slab per row."""
    inverse = 1 / torch.where(directions.abs() < _PARALLEL, _PARALLEL, directions)
    middle, reach = -origins * inverse, inverse.abs()
    enter, leave = middle - reach, middle + reach
    nearest, farthest = enter[0], leave[0]
    for row in range(1, len(enter)):
        nearest, farthest = torch.maximum(nearest, enter[row]), torch.minimum(farthest, leave[row])
    return nearest, farthest


def _round(origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Return where rays enter and leave the unit ball (3 rows) or the endless unit cylinder (2 rows)."""
    square = (directions * directions).sum(0).clamp(min=_PARALLEL)
    closest = -(origins * directions).sum(0) / square
    # From the point of closest approach: the textbook form loses its digits far from a small ball.
    offset = origins + closest * directions
    reach = ((1 - (offset * offset).sum(0)) / square).sqrt()  # nan where the ray misses, and nan compares false
    return closest - reach, closest + reach


def _cylinder(origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    side_enter, side_leave = _round(origins[:2], directions[:2])
    cap_enter, cap_leave = slabs(origins[2:], directions[2:])
    return torch.maximum(side_enter, cap_enter), torch.minimum(side_leave, cap_leave)


_INTERVALS = {"box": slabs, "sphere": _round, "cylinder": _cylinder}
