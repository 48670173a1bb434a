"""Style of a split's rooms: shapes and patterns, either the split's own or shared by all splits; palettes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from prior3d import Split
from prior3d_plugins.datasets.synthetic_rooms.catalog import CLASSES, VARIANTS
from prior3d_plugins.datasets.synthetic_rooms.patterns import FAMILIES
from prior3d_plugins.datasets.synthetic_rooms.textures import Texture, draw_texture

SPLITS: tuple[Split, ...] = ("train", "validation", "test")

CORRELATION = 0.9
"""Probability that a correlated texture is that of its class; otherwise it is random."""

PALETTES: dict[str, tuple[str, str]] = {
    "floor": ("8a5a33", "b98a5a"),
    "wall": ("c9bfa4", "aa9f84"),
    "ceiling": ("d2d4d6", "b4b8bc"),
    "door": ("f0ead8", "a08060"),
    "window": ("a9d4f2", "e9f4fb"),
    "picture": ("b03028", "e8b23a"),
    "table": ("c99a5b", "8e6233"),
    "chair": ("d9722b", "8c3f12"),
    "sofa": ("46618f", "8499bf"),
    "bed": ("d9c7dd", "8f6f9e"),
    "shelf": ("7a4a2c", "3a241a"),
    "cabinet": ("8f9a8c", "5d6a5e"),
    "lamp": ("f3dd6b", "c9a52a"),
    "plant": ("3f7d35", "7fb04f"),
    "clutter": ("c2447e", "3aa6a0"),
}
"""By class: the two colors (RGB, hexadecimal) of things whose texture depends on their class."""


@dataclass(frozen=True)
class Style:
    """What a room may hold and how it may look.

    Attributes:
        variants: Allowed variants of every kind of furniture.
        families: Patterns of textures.
        correlated: Whether family and colors of a texture mostly depend on the class that it covers.
    """

    variants: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {k: tuple(v) for k, v in VARIANTS.items()})
    families: tuple[str, ...] = tuple(FAMILIES)
    correlated: bool = False

    def draw_texture(
        self, rng: np.random.Generator, class_name: str, world_from_piece: np.ndarray | None = None
    ) -> Texture:
        """Draw the texture that covers a thing.

        Args:
            rng: Source of randomness.
            class_name: Class of the thing; used only if the texture depends on it.
            world_from_piece: Pose [4, 4] of the thing; that of the world by default.
        """
        if self.correlated and rng.random() < CORRELATION:
            number = CLASSES.index(class_name)
            family = self.families[number % len(self.families)]
            return draw_texture(rng, (family,), world_from_piece, _palette(class_name))
        return draw_texture(rng, self.families, world_from_piece)


def style_of(
    split: Split, families: Literal["shared", "disjoint"], texture: Literal["independent", "correlated"]
) -> Style:
    """Return the style of a split's rooms; see `SyntheticRooms` for the options."""
    correlated = texture == "correlated"
    if families == "shared":
        return Style(correlated=correlated)
    variants = {kind: deal(tuple(names), split) for kind, names in VARIANTS.items()}
    return Style(variants, deal(tuple(FAMILIES), split), correlated)


def deal(names: Sequence[str], split: Split) -> tuple[str, ...]:
    """Return the names that a split gets when they are dealt one by one to the three splits, "train" first."""
    return tuple(names[SPLITS.index(split) :: len(SPLITS)])


def _palette(class_name: str) -> np.ndarray:
    return np.array([list(bytes.fromhex(color)) for color in PALETTES[class_name]]) / 255
