"""Solid textures: a colour for every point of space, so that edges and corners continue and no surface is unwrapped."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prior3d.data.synthetic_rooms.primitives import dot

PERIODS = (0.12, 0.9)
"""Metres between which the periods of patterns are drawn, evenly in their logarithm."""

_WAVES = 8


@dataclass(frozen=True)
class Texture:
    """A pattern of two colours in a frame of its own.

    Attributes:
        family: name of the pattern, a key of `FAMILIES`.
        pattern_from_world: [3, 4] affine map; one unit in pattern space is one period.
        colours: [2, 3] RGB, 0..1.
        waves: [_WAVES, 4] directions and phases of the smooth waves that patterns are made of or warped by.
    """

    family: str
    pattern_from_world: np.ndarray
    colours: np.ndarray
    waves: np.ndarray

    def colour(self, points: Tensor, footprint: Tensor) -> Tensor:
        """Return the colours [3, N] at points of the world.

        Args:
            points: [3, N] metres.
            footprint: [N] metres, the width of a pixel at the point: what is finer is averaged out.
        """
        affine = points.new_tensor(self.pattern_from_world)
        period = float(np.linalg.norm(self.pattern_from_world[:, :3], axis=1).max())
        local = affine[:, :3] @ points + affine[:, 3:]
        share = FAMILIES[self.family](local, footprint * period, points.new_tensor(self.waves))
        low, high = points.new_tensor(self.colours)[:, :, None]
        return low + (high - low) * share


def draw_texture(
    rng: np.random.Generator, families: tuple[str, ...] | None = None, world_from_piece: np.ndarray | None = None
) -> Texture:
    """Draw a texture of one of the given families, or of any; nothing else about the thing it covers is known here.

    Args:
        rng: source of randomness.
        families: names of patterns.
        world_from_piece: [4, 4] pose of the thing it covers, whose axes the pattern follows; the world's by default.
    """
    names = families or tuple(FAMILIES)
    world_from_piece = np.eye(4) if world_from_piece is None else world_from_piece
    turn = rng.uniform(0, 2 * math.pi) if rng.random() < 0.3 else rng.integers(2) * math.pi / 2
    cosine, sine = math.cos(turn), math.sin(turn)
    pattern_from_piece = np.eye(4)
    pattern_from_piece[:2, :2] = [[cosine, -sine], [sine, cosine]]
    pattern_from_piece[:3] /= np.exp(rng.uniform(*np.log(PERIODS)))  # period in metres
    pattern_from_piece[:3, 3] = rng.uniform(0, 1, 3)
    return Texture(
        family=names[rng.integers(len(names))],
        pattern_from_world=(pattern_from_piece @ np.linalg.inv(world_from_piece))[:3],
        colours=rng.uniform(0, 1, (2, 3)),
        waves=np.concatenate([rng.normal(0, 1, (_WAVES, 3)), rng.uniform(0, 1, (_WAVES, 1))], axis=1),
    )


def _sine(turns: Tensor) -> Tensor:
    return torch.sin(2 * math.pi * turns)


def _square(turns: Tensor, footprint: Tensor) -> Tensor:
    """Return a square wave from -1 to 1, its edges as soft as a pixel is wide, fading where pixels are too coarse."""
    return (_sine(turns) / (2 * math.pi * footprint).clamp(min=0.02)).clamp(-1, 1)


def _smooth(points: Tensor, waves: Tensor, footprint: Tensor) -> Tensor:
    """Return a smooth field, mostly within -1 to 1: a few plane waves of random direction."""
    field = torch.zeros_like(points[0])
    for wave in waves:
        length = float(wave[:3].norm())
        fade = torch.exp(-(length * footprint * 2).square())
        field += _sine(dot(wave[:3], points) + wave[3]) * fade
    return field / math.sqrt(len(waves) / 2) / 1.5


def _blotches(points: Tensor, footprint: Tensor, waves: Tensor) -> Tensor:
    return (_smooth(points, waves, footprint) * 0.5 + 0.5).clamp(0, 1)


def _checker(points: Tensor, footprint: Tensor, waves: Tensor) -> Tensor:
    return _square(points[0], footprint) * _square(points[1], footprint) * _square(points[2], footprint) * 0.5 + 0.5


def _stripes(points: Tensor, footprint: Tensor, waves: Tensor) -> Tensor:
    return _square(points[0] + points[2] * waves[0, 3].round(), footprint) * 0.5 + 0.5


def _bricks(points: Tensor, footprint: Tensor, waves: Tensor) -> Tensor:
    row = (points[2] * 2).floor()
    column = (points[0] + points[1] + row * 0.5).floor()
    shade = _sine(row * 0.37 + column * 0.61 + waves[0, 3]) * 0.25 + 0.65
    joints = torch.minimum(_distance(points[2] * 2) / 2, _distance(points[0] + points[1] + row * 0.5))
    return shade * (joints / (footprint + 0.04)).clamp(0, 1)


def _distance(turns: Tensor) -> Tensor:
    """Return the distance to the nearest whole number."""
    return (turns - turns.round()).abs()


def _grain(points: Tensor, footprint: Tensor, waves: Tensor) -> Tensor:
    warp = _smooth(points * 0.5, waves[:4], footprint)
    rings = _sine(points[0] * 2 + warp * 0.8) * torch.exp(-(footprint * 4).square())
    return (rings * 0.35 + warp * 0.3 + 0.5).clamp(0, 1)


def _dots(points: Tensor, footprint: Tensor, waves: Tensor) -> Tensor:
    squared = sum(_distance(axis).square() for axis in points)
    return ((squared.sqrt() - 0.33) / footprint.clamp(min=0.02) + 0.5).clamp(0, 1)


def _speckle(points: Tensor, footprint: Tensor, waves: Tensor) -> Tensor:
    field = _smooth(points * 2.5, waves, footprint * 2.5) + _smooth(points, waves.flip(0), footprint) * 0.6
    return (field * 0.9 + 0.5).clamp(0, 1)


FAMILIES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "blotches": _blotches,
    "checker": _checker,
    "stripes": _stripes,
    "bricks": _bricks,
    "grain": _grain,
    "dots": _dots,
    "speckle": _speckle,
}
"""By name: points [3, N] in periods, a pixel's width [N] in periods, waves -> share of the second colour [N]."""
