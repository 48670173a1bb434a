"""Every kind of thing in a room, with its variants.

A variant is a family of shapes: a split can have its own variants, and so known kinds in unseen shapes.
"""

from collections.abc import Callable

import numpy as np

from prior3d_plugins.datasets.synthetic_rooms import fittings, furniture, on_walls
from prior3d_plugins.datasets.synthetic_rooms.design import Design, Primitives

CLASSES = (
    "floor",
    "wall",
    "ceiling",
    "door",
    "window",
    "picture",
    "table",
    "chair",
    "sofa",
    "bed",
    "shelf",
    "cabinet",
    "lamp",
    "plant",
    "clutter",
)
"""Names of the semantic classes, by id."""

VARIANTS: dict[str, dict[str, Callable[[np.random.Generator], Primitives]]] = (
    furniture.VARIANTS | fittings.VARIANTS | on_walls.VARIANTS
)
"""Dict from kind to variant to the function that draws it."""


def draw_design(kind: str, rng: np.random.Generator, variants: tuple[str, ...] | None = None) -> Design:
    """Draw a design of a kind, of one of the given variants or of any."""
    names = variants or tuple(VARIANTS[kind])
    return Design(kind, tuple(VARIANTS[kind][names[rng.integers(len(names))]](rng)))
