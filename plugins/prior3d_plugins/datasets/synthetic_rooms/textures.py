"""Solid textures: a color for every point of space, so edges and corners continue and no surface is unwrapped."""

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from prior3d_plugins.datasets.synthetic_rooms.patterns import FAMILIES

PERIODS = (0.12, 0.9)
"""Range of the periods of patterns, meters; drawn log-uniformly."""

SHININESS = (6.0, 60.0)
"""Range of the exponents of highlights, from wide and dull to small; drawn log-uniformly."""

PALETTE_SPREAD = 0.08
"""Largest difference of a color channel from that of its palette."""

_WAVES = 8


@dataclass(frozen=True)
class Texture:
    """A pattern of two colors in its own frame.

    Attributes:
        family: Name of the pattern, a key of `FAMILIES`.
        pattern_from_world: Affine map [3, 4]; one unit in pattern space is one period.
        colors: Colors [2, 3] RGB, 0..1.
        waves: Directions and phases [_WAVES, 4] of the smooth waves that make or warp patterns.
        gloss: How much light of the lamp is reflected, 0..1.
        shininess: Exponent of the highlight; a higher exponent makes it smaller.
    """

    family: str
    pattern_from_world: np.ndarray
    colors: np.ndarray
    waves: np.ndarray
    gloss: float
    shininess: float

    def color(self, points: Tensor, footprint: Tensor) -> Tensor:
        """Return the colors [3, N] at points of the world.

        Args:
            points: Points [3, N], meters.
            footprint: Width [N] of a pixel at the point, meters; finer detail is averaged out.
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
    """Draw a texture of one of the given families, or of any, without information about the thing that it covers.

    Args:
        rng: Source of randomness.
        families: Names of patterns.
        world_from_piece: Pose [4, 4] of the covered thing, whose axes the pattern follows; the world's by default.
        palette: Colors [2, 3] RGB, 0..1, that the two colors are close to; by default they are random.
    """
    names = families or tuple(FAMILIES)
    world_from_piece = np.eye(4) if world_from_piece is None else world_from_piece
    turn = rng.uniform(0, 2 * math.pi) if rng.random() < 0.3 else rng.integers(2) * math.pi / 2
    cosine, sine = math.cos(turn), math.sin(turn)
    pattern_from_piece = np.eye(4)
    pattern_from_piece[:2, :2] = [[cosine, -sine], [sine, cosine]]
    pattern_from_piece[:3] /= np.exp(rng.uniform(*np.log(PERIODS)))  # period in meters
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
