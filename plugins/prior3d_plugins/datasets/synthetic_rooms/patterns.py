"""Patterns of the textures: the share of the second color at points of pattern space, where one unit is a period."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from prior3d_plugins.datasets.synthetic_rooms.primitives import dot


def _sine(turns: Tensor) -> Tensor:
    return torch.sin(2 * math.pi * turns)


def _square(turns: Tensor, footprint: Tensor) -> Tensor:
    """Return a square wave from -1 to 1, with edges as soft as a pixel is wide; it fades if pixels are too coarse."""
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


def _marble(points: Tensor, footprint: Tensor, waves: Tensor) -> Tensor:
    bend = _smooth(points * 0.7, waves, footprint * 0.7)
    vein = 1 - _sine(dot(waves[0, :3].sign(), points) * 0.5 + bend * 0.6).abs()
    return (vein.square() * torch.exp(-(footprint * 3).square()) + bend * 0.15 + 0.1).clamp(0, 1)


def _plaid(points: Tensor, footprint: Tensor, waves: Tensor) -> Tensor:
    bands = sum(_square(axis, footprint) + 0.7 * _square(axis * 3 + 0.25, footprint * 3) for axis in points)
    return bands / 10.2 + 0.5


def _chevron(points: Tensor, footprint: Tensor, waves: Tensor) -> Tensor:
    x, y, z = points
    return _square(z + x - y + 3 * _distance(x + y), footprint * 3) * 0.5 + 0.5


def _weave(points: Tensor, footprint: Tensor, waves: Tensor) -> Tensor:
    x, y, z = points
    over = _square(x + z, footprint) * _square(y - z, footprint) * 0.5 + 0.5
    strands = over * _sine((x + z) * 3) + (1 - over) * _sine((y - z) * 3)
    return (strands * 0.45 * torch.exp(-(footprint * 4).square()) + over * 0.3 + 0.35).clamp(0, 1)


def _terrazzo(points: Tensor, footprint: Tensor, waves: Tensor) -> Tensor:
    cell = (points * 1.5).floor()
    draw = _sine(cell[0] * 0.37 + cell[1] * 0.61 + cell[2] * 0.23 + waves[0, 3])
    size = 0.3 + 0.16 * draw
    within = points * 1.5 - cell - 0.5 + draw * 0.1
    off = (within[0].abs() ** 3 + within[1].abs() ** 3 + within[2].abs() ** 3) ** (1 / 3)
    chip = ((size - off) / (footprint * 1.5).clamp(min=0.02) + 0.5).clamp(0, 1)
    return chip * (0.7 + 0.3 * _sine(draw * 2)) / (1 + footprint.square())


FAMILIES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "blotches": _blotches,
    "grain": _grain,
    "marble": _marble,
    "checker": _checker,
    "plaid": _plaid,
    "bricks": _bricks,
    "stripes": _stripes,
    "chevron": _chevron,
    "weave": _weave,
    "speckle": _speckle,
    "terrazzo": _terrazzo,
    "dots": _dots,
}
"""By name: points [3, N] in periods, a pixel's width [N] in periods, waves -> share of the second color [N].

Every three in a row are of one kind (cloudy, gridded, striped, spotted): dealt one by one to three splits, they give
each split one of every kind.
"""
