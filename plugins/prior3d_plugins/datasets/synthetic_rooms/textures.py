"""Solid textures: a colour for every point of space, so that edges and corners continue and no surface is unwrapped."""

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from prior3d_plugins.datasets.synthetic_rooms.patterns import FAMILIES

PERIODS = (0.12, 0.9)
"""Metres between which the periods of patterns are drawn, evenly in their logarithm."""

SHININESS = (6.0, 60.0)
"""Between which the exponents of highlights are drawn, evenly in their logarithm: from wide and dull to small."""

PALETTE_SPREAD = 0.08
"""By how much a channel of a colour differs at most from that of its palette."""

_WAVES = 8


@dataclass(frozen=True)
class Texture:
    """A pattern of two colours in a frame of its own.

    Attributes:
        family: name of the pattern, a key of `FAMILIES`.
        pattern_from_world: [3, 4] affine map; one unit in pattern space is one period.
        colors: [2, 3] RGB, 0..1.
        waves: [_WAVES, 4] directions and phases of the smooth waves that patterns are made of or warped by.
        gloss: 0..1, how much of the lamp is mirrored.
        shininess: exponent of the highlight; the higher, the smaller it is.
    """

    family: str
    pattern_from_world: np.ndarray
    colors: np.ndarray
    waves: np.ndarray
    gloss: float
    shininess: float

    def color(self, points: Tensor, footprint: Tensor) -> Tensor:
        """Return the colours [3, N] at points of the world.

        Args:
            points: [3, N] metres.
            footprint: [N] metres, the width of a pixel at the point: what is finer is averaged out.
        """
        affine = points.new_tensor(self.pattern_from_world)
        period = float(np.linalg.norm(self.pattern_from_world[:, :3], axis=1).max())
        local = affine[:, :3] @ points + affine[:, 3:]
        share = FAMILIES[self.family](local, footprint * period, points.new_tensor(self.waves))
        low, high = points.new_tensor(self.colors)[:, :, None]
        return low + (high - low) * share


def draw_texture(
    rng: np.random.Generator,
    families: tuple[str, ...] | None = None,
    world_from_piece: np.ndarray | None = None,
    palette: np.ndarray | None = None,
) -> Texture:
    """Draw a texture of one of the given families, or of any; nothing else about the thing it covers is known here.

    Args:
        rng: source of randomness.
        families: names of patterns.
        world_from_piece: [4, 4] pose of the thing it covers, whose axes the pattern follows; the world's by default.
        palette: [2, 3] RGB, 0..1, that the two colours lie near; by default they are anything.
    """
    names = families or tuple(FAMILIES)
    world_from_piece = np.eye(4) if world_from_piece is None else world_from_piece
    turn = rng.uniform(0, 2 * math.pi) if rng.random() < 0.3 else rng.integers(2) * math.pi / 2
    cosine, sine = math.cos(turn), math.sin(turn)
    pattern_from_piece = np.eye(4)
    pattern_from_piece[:2, :2] = [[cosine, -sine], [sine, cosine]]
    pattern_from_piece[:3] /= np.exp(rng.uniform(*np.log(PERIODS)))  # period in metres
    pattern_from_piece[:3, 3] = rng.uniform(0, 1, 3)
    colors = rng.uniform(0, 1, (2, 3))
    if palette is not None:
        colors = (palette + PALETTE_SPREAD * (2 * colors - 1)).clip(0, 1)
    return Texture(
        family=names[rng.integers(len(names))],
        pattern_from_world=(pattern_from_piece @ np.linalg.inv(world_from_piece))[:3],
        colors=colors,
        waves=np.concatenate([rng.normal(0, 1, (_WAVES, 3)), rng.uniform(0, 1, (_WAVES, 1))], axis=1),
        gloss=rng.uniform(0, 1),
        shininess=math.exp(rng.uniform(*np.log(SHININESS))),
    )
