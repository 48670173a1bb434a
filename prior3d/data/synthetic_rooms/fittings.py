"""Shelves, cabinets, lamps, plants, small things, and what is on walls: each function draws one variant."""

from itertools import pairwise

import numpy as np

from prior3d.data.synthetic_rooms.design import Parts, Triple, ball, box, legs, post
from prior3d.data.synthetic_rooms.primitives import Primitive


def _books(rng: np.random.Generator, low: Triple, high: Triple) -> list[Primitive]:
    """Fill part of a shelf's compartment with two or three blocks of books."""
    edges = np.sort(rng.uniform(low[0], high[0], 4))
    tops = low[2] + (high[2] - low[2]) * rng.uniform(0.5, 0.95, 3)
    blocks = zip(edges[:-1], edges[1:], tops, strict=True)
    return [
        box((a, low[1], low[2]), (b, high[1], top), 1 + number % 2)
        for number, (a, b, top) in enumerate(blocks)
        if b - a > 0.04
    ]


def _shelf_boards(rng: np.random.Generator) -> Parts:
    w, d, h = rng.uniform((0.7, 0.26, 1.2), (1.3, 0.38, 2.0))
    x, y, levels = w / 2, d / 2, np.linspace(0.03, h - 0.03, int(rng.integers(4, 6)))
    sides = [box((a, -y, 0), (a + 0.04, y, h)) for a in (-x, x - 0.04)]
    boards = [box((-x, -y, z - 0.02), (x, y, z + 0.02)) for z in levels]
    books = [
        book
        for low, high in zip(levels[:-1] + 0.02, levels[1:] - 0.02, strict=True)
        for book in _books(rng, (-x + 0.05, -y + 0.03, low), (x - 0.05, y - 0.06, high))
    ]
    return [*sides, *boards, box((-x + 0.01, -y, 0), (x - 0.01, -y + 0.02, h), 3), *books]


def _shelf_posts(rng: np.random.Generator) -> Parts:
    w, d, h = rng.uniform((0.6, 0.3, 1.0), (1.1, 0.42, 1.7))
    x, y, levels = w / 2, d / 2, np.linspace(0.15, h - 0.05, int(rng.integers(3, 5)))
    posts = [post(a, b, 0, h, 0.025, 3) for a in (-x + 0.03, x - 0.03) for b in (-y + 0.03, y - 0.03)]
    boards = [box((-x, -y, z - 0.02), (x, y, z + 0.02)) for z in levels]
    books = [
        book for z in levels for book in _books(rng, (-x + 0.08, -y + 0.03, z + 0.02), (x - 0.08, y - 0.05, z + 0.3))
    ]
    return [*posts, *boards, *books]


def _cabinet_doors(rng: np.random.Generator) -> Parts:
    w, d, h = rng.uniform((0.8, 0.4, 0.8), (1.4, 0.55, 2.0))
    x, y, count = w / 2, d / 2 - 0.05, int(rng.integers(2, 4))
    edges = np.linspace(-x, x, count + 1)
    doors = [box((a + 0.02, y, 0.12), (b - 0.02, y + 0.025, h - 0.05), 1) for a, b in pairwise(edges)]
    knobs = [ball((b - 0.08, y + 0.045, h * 0.55), (0.025, 0.025, 0.025), 2) for b in edges[1:]]
    return [box((-x, -d / 2, 0), (x, y, h)), *doors, *knobs]


def _cabinet_drawers(rng: np.random.Generator) -> Parts:
    w, d, h = rng.uniform((0.7, 0.4, 0.7), (1.2, 0.55, 1.1))
    x, y, edges = w / 2, d / 2 - 0.05, np.linspace(0.1, h - 0.04, int(rng.integers(4, 6)))
    levels = list(pairwise(edges))
    fronts = [box((-x + 0.03, y, a + 0.01), (x - 0.03, y + 0.025, b - 0.01), 1) for a, b in levels]
    grips = [box((-0.1, y + 0.02, (a + b) / 2), (0.1, y + 0.05, (a + b) / 2 + 0.025), 2) for a, b in levels]
    body = box((-x, -d / 2, 0.08), (x, y, h))
    return [body, *fronts, *grips, *legs(w, d - 0.1, 0.08, 0.06)]


def _lamp_shade(rng: np.random.Generator) -> Parts:
    r, h = rng.uniform((0.16, 1.3), (0.26, 1.75))
    shade = post(0, 0, h - 0.32, h, r, 1)
    return [post(0, 0, 0, 0.04, r * 0.8), post(0, 0, 0, h - 0.3, 0.025), shade]


def _lamp_globe(rng: np.random.Generator) -> Parts:
    r, h = rng.uniform((0.15, 1.2), (0.22, 1.6))
    globe = ball((0, 0, h - r), (r, r, r), 1)
    return [box((-r, -r, 0), (r, r, 0.05)), post(0, 0, 0, h - 2 * r, 0.03), globe]


def _plant_leaves(rng: np.random.Generator) -> Parts:
    r, pot = rng.uniform((0.14, 0.25), (0.2, 0.4))
    turns = np.arange(5) * 2 * np.pi / 5 + rng.uniform(0, 1)
    leaves = [
        ball((r * np.cos(a), r * np.sin(a), pot + rng.uniform(0.15, 0.5)), tuple(rng.uniform(0.1, 0.22, 3)), 1)
        for a in turns
    ]
    return [post(0, 0, 0, pot, r), post(0, 0, pot, pot + 0.4, 0.03), *leaves]


def _plant_columns(rng: np.random.Generator) -> Parts:
    r, pot = rng.uniform((0.15, 0.2), (0.22, 0.35))
    heights = rng.uniform(0.2, 0.45, 3)
    columns = [
        ball((x, y, pot + z * 0.8), (0.08, 0.08, z), 1)
        for (x, y), z in zip([(-0.08, 0.0), (0.07, 0.06), (0.05, -0.07)], heights, strict=True)
    ]
    return [box((-r, -r, 0), (r, r, pot)), *columns]


def _clutter_boxes(rng: np.random.Generator) -> Parts:
    w, d, h = rng.uniform((0.2, 0.15, 0.08), (0.4, 0.3, 0.25))
    top = rng.uniform(0.5, 0.8)
    boxes = [
        box((-w / 2, -d / 2, 0), (w / 2, d / 2, h)),
        box((-w * top / 2, -d * top / 2, h), (w * 0.3, d * 0.3, h * 1.6), 1),
    ]
    return boxes


def _clutter_ball(rng: np.random.Generator) -> Parts:
    r = rng.uniform(0.1, 0.2)
    return [ball((0, 0, r), (r, r, r))]


def _clutter_vase(rng: np.random.Generator) -> Parts:
    r, h = rng.uniform((0.08, 0.14), (0.14, 0.22))
    return [ball((0, 0, h * 0.6), (r, r, h * 0.6)), post(0, 0, h, h * 1.7, r * 0.45, 1)]


def _door(rng: np.random.Generator) -> Parts:
    w, h = rng.uniform((0.8, 1.95), (1.0, 2.1))
    x = w / 2
    jambs = [box((a, 0, 0), (a + 0.08, 0.06, h + 0.08), 1) for a in (-x - 0.08, x)]
    lintel = box((-x, 0, h), (x, 0.06, h + 0.08), 1)
    return [
        box((-x, 0, 0), (x, 0.03, h)),
        *jambs,
        lintel,
        ball((x * 0.8, 0.07, 1.0), (0.035, 0.035, 0.035), 1),
    ]


def _window(rng: np.random.Generator) -> Parts:
    w, h = rng.uniform((0.9, 0.8), (1.6, 1.2))
    x = w / 2
    uprights = [box((a - 0.04, 0, 0), (a + 0.04, 0.07, h), 1) for a in (-x, 0.0, x)]
    rails = [box((-x, 0, z - 0.04), (x, 0.07, z + 0.04), 1) for z in (0.04, h - 0.04)]
    sill = box((-x - 0.1, 0, -0.04), (x + 0.1, 0.18, 0), 1)
    return [box((-x, 0, 0), (x, 0.015, h)), *uprights, *rails, sill]


def _picture(rng: np.random.Generator) -> Parts:
    w, h = rng.uniform(0.35, 1.0, 2)
    frame = box((-w / 2, 0, 0), (w / 2, 0.04, h))
    return [frame, box((-w / 2 + 0.06, 0.02, 0.06), (w / 2 - 0.06, 0.05, h - 0.06), 1)]


VARIANTS = {
    "shelf": {"boards": _shelf_boards, "posts": _shelf_posts},
    "cabinet": {"doors": _cabinet_doors, "drawers": _cabinet_drawers},
    "lamp": {"shade": _lamp_shade, "globe": _lamp_globe},
    "plant": {"leaves": _plant_leaves, "columns": _plant_columns},
    "clutter": {"boxes": _clutter_boxes, "ball": _clutter_ball, "vase": _clutter_vase},
    "door": {"plain": _door},
    "window": {"two_panes": _window},
    "picture": {"framed": _picture},
}
"""Kind to variant to the function that draws it."""
