"""A furnished room, drawn from a seed: its size, the camera's walk, its furniture, and the textures."""

from dataclasses import dataclass

import numpy as np

from prior3d_plugins.datasets.synthetic_rooms.catalog import CLASSES
from prior3d_plugins.datasets.synthetic_rooms.design import Design
from prior3d_plugins.datasets.synthetic_rooms.placement import furnish
from prior3d_plugins.datasets.synthetic_rooms.styles import Style
from prior3d_plugins.datasets.synthetic_rooms.textures import Texture
from prior3d_plugins.datasets.synthetic_rooms.trajectories import Trajectory, draw_trajectory

SURFACES = ("wall", "wall", "wall", "wall", "floor", "ceiling")
"""Classes of the room's surfaces, at the low and the high end of x, y and z."""


@dataclass(frozen=True)
class Piece:
    """A design with a place in the room and textures.

    Attributes:
        design: Its design.
        world_from_piece: Pose [4, 4], a turn about z and a shift in meters.
        textures: One texture per material.
    """

    design: Design
    world_from_piece: np.ndarray
    textures: tuple[Texture, ...]

    @property
    def class_id(self) -> int:
        """Id of its semantic class."""
        return CLASSES.index(self.design.kind)


@dataclass(frozen=True)
class Room:
    """Everything that is rendered.

    Attributes:
        size: Size [3], meters; the room spans from 0 to `size`, z up.
        surfaces: Textures of the walls at x = 0 and x = size, the walls at y = 0 and y = size, floor and ceiling.
        pieces: The furniture.
        light: Position [3] of the lamp, meters.
        trajectory: Path of the camera.
    """

    size: np.ndarray
    surfaces: tuple[Texture, ...]
    pieces: tuple[Piece, ...]
    light: np.ndarray
    trajectory: Trajectory


def draw_room(rng: np.random.Generator, style: Style | None = None) -> Room:
    """Draw a room; unless its style correlates them, textures are independent of the things they cover.

    Args:
        rng: Source of randomness.
        style: What may stand in the room and how it may look; anything by default.
    """
    style = style or Style()
    size = rng.uniform((4.0, 4.0, 2.4), (6.0, 6.0, 2.8))
    trajectory = draw_trajectory(rng, size)
    placed = furnish(rng, size, trajectory, style.variants)
    light = size * rng.uniform((0.3, 0.3, 0.9), (0.7, 0.7, 0.95))
    surfaces = tuple(style.draw_texture(rng, name) for name in SURFACES)
    pieces = [
        Piece(design, pose, tuple(style.draw_texture(rng, design.kind, pose) for _ in range(design.materials)))
        for design, pose in placed
    ]
    return Room(size, surfaces, tuple(pieces), light, trajectory)
