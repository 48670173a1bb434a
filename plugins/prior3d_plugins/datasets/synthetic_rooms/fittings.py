"""Shelves, cabinets, lamps, plants and small things: each function draws one variant."""

from itertools import pairwise

import numpy as np

from prior3d_plugins.datasets.synthetic_rooms.design import Primitives, Triple, ball, box, legs, post
from prior3d_plugins.datasets.synthetic_rooms.primitives import Primitive


def _books(rng: np.random.Generator, low: Triple, high: Triple) -> list[Primitive]:
    """Fill part of a shelf's compartment with three blocks of books."""
    shares = np.cumsum(rng.uniform((0.0, 0.12, 0.12, 0.12), (0.2, 0.26, 0.26, 0.26)))
    edges = low[0] + (high[0] - low[0]) * shares
    tops = low[2] + (high[2] - low[2]) * rng.uniform(0.5, 0.95, 3)
    blocks = zip(edges[:-1], edges[1:], tops, strict=True)
    return [box((a, low[1], low[2]), (b, high[1], top), 1 + number % 2) for number, (a, b, top) in enumerate(blocks)]


def _shelf_boards(rng: np.random.Generator) -> Primitives:
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


def _shelf_posts(rng: np.random.Generator) -> Primitives:
    w, d, h = rng.uniform((0.6, 0.3, 1.0), (1.1, 0.42, 1.7))
    x, y, levels = w / 2, d / 2, np.linspace(0.15, h - 0.05, int(rng.integers(3, 5)))
    posts = [post(a, b, 0, h, 0.025, 3) for a in (-x + 0.03, x - 0.03) for b in (-y + 0.03, y - 0.03)]
    boards = [box((-x, -y, z - 0.02), (x, y, z + 0.02)) for z in levels]
    books = [
        book for z in levels for book in _books(rng, (-x + 0.08, -y + 0.03, z + 0.02), (x - 0.08, y - 0.05, z + 0.3))
    ]
    return [*posts, *boards, *books]


def _cabinet_doors(rng: np.random.Generator) -> Primitives:
    w, d, h = rng.uniform((0.8, 0.4, 0.8), (1.4, 0.55, 2.0))
    x, y, count = w / 2, d / 2 - 0.05, int(rng.integers(2, 4))
    edges = np.linspace(-x, x, count + 1)
    doors = [box((a + 0.02, y, 0.12), (b - 0.02, y + 0.025, h - 0.05), 1) for a, b in pairwise(edges)]
    knobs = [ball((b - 0.08, y + 0.045, h * 0.55), (0.025, 0.025, 0.025), 2) for b in edges[1:]]
    return [box((-x, -d / 2, 0), (x, y, h)), *doors, *knobs]


def _cabinet_drawers(rng: np.random.Generator) -> Primitives:
    w, d, h = rng.uniform((0.7, 0.4, 0.7), (1.2, 0.55, 1.1))
    x, y, edges = w / 2, d / 2 - 0.05, np.linspace(0.1, h - 0.04, int(rng.integers(4, 6)))
    levels = list(pairwise(edges))
    fronts = [box((-x + 0.03, y, a + 0.01), (x - 0.03, y + 0.025, b - 0.01), 1) for a, b in levels]
    grips = [box((-0.1, y + 0.02, (a + b) / 2), (0.1, y + 0.05, (a + b) / 2 + 0.025), 2) for a, b in levels]
    body = box((-x, -d / 2, 0.08), (x, y, h))
    return [body, *fronts, *grips, *legs(w, d - 0.1, 0.08, 0.06)]


def _shelf_cubes(rng: np.random.Generator) -> Primitives:
    side, d = rng.uniform((0.34, 0.3), (0.42, 0.38))
    columns, rows = int(rng.integers(2, 4)), int(rng.integers(3, 5))
    x, y, t = columns * side / 2, d / 2, 0.025
    uprights = [box((a - t, -y, 0), (a + t, y, rows * side + t)) for a in np.linspace(-x, x, columns + 1)]
    boards = [box((-x, -y, z), (x, y, z + 0.04)) for z in np.arange(rows + 1) * side]
    things = [box((-x, -y - 0.02, 0), (x, -y, rows * side + t), 3)]
    for number, (column, row) in enumerate(np.ndindex(columns, rows)):
        a, z, half = (column + 0.5) * side - x, row * side + 0.04, side * 0.38
        basket = box((a - half, -y + 0.04, z), (a + half, y - 0.02, z + side * rng.uniform(0.4, 0.75)), 1)
        jar = post(a, 0, z, z + side * rng.uniform(0.3, 0.6), half * 0.6, 2)
        if number < 2 or rng.random() < 0.75:
            things.append((basket, jar)[number % 2])
    return [*uprights, *boards, *things]


def _cabinet_sideboard(rng: np.random.Generator) -> Primitives:
    w, d, h = rng.uniform((1.3, 0.4, 0.65), (1.8, 0.5, 0.85))
    x, y, foot = w / 2, d / 2 - 0.05, rng.uniform(0.18, 0.28)
    body, top = (
        box((-x, -d / 2, foot), (x, y - 0.03, h - 0.04)),
        box((-x - 0.03, -d / 2, h - 0.04), (x + 0.03, y, h), 2),
    )
    doors = [
        box((a + 0.04, y - 0.04, foot + 0.06), (b - 0.04, y, h - 0.1), 1) for a, b in pairwise(np.linspace(-x, x, 4))
    ]
    feet = [post(a, b, 0, foot, 0.03, 2) for a in (-x + 0.12, x - 0.12) for b in (-d / 2 + 0.06, y - 0.08)]
    return [body, top, *doors, *feet]


def _lamp_shade(rng: np.random.Generator) -> Primitives:
    r, h = rng.uniform((0.16, 1.3), (0.26, 1.75))
    shade = post(0, 0, h - 0.32, h, r, 1)
    return [post(0, 0, 0, 0.04, r * 0.8), post(0, 0, 0, h - 0.3, 0.025), shade]


def _lamp_globe(rng: np.random.Generator) -> Primitives:
    r, h = rng.uniform((0.15, 1.2), (0.22, 1.6))
    globe = ball((0, 0, h - r), (r, r, r), 1)
    return [box((-r, -r, 0), (r, r, 0.05)), post(0, 0, 0, h - 2 * r, 0.03), globe]


def _lamp_arc(rng: np.random.Generator) -> Primitives:
    r, h, reach = rng.uniform((0.14, 1.45, 0.5), (0.2, 1.8, 0.75))
    arm = box((-0.02, -0.02, h - 0.04), (reach, 0.02, h))
    shade = ball((reach, 0, h - 0.2), (r, r, r * 0.7), 1)
    return [post(0, 0, 0, 0.05, 0.17), post(0, 0, 0, h, 0.022), arm, post(reach, 0, h - 0.2, h, 0.012), shade]


def _lamp_column(rng: np.random.Generator) -> Primitives:
    r, h = rng.uniform((0.11, 0.9), (0.16, 1.4))
    rings = [post(0, 0, z, z + 0.03, r + 0.015) for z in (0.08, h * 0.4, h * 0.7, h - 0.03)]
    feet = [post(r * 0.7 * a, r * 0.7 * b, 0, 0.08, 0.02) for a in (-1, 1) for b in (-1, 1)]
    return [post(0, 0, 0.08, h, r, 1), *rings, *feet]


def _plant_leaves(rng: np.random.Generator) -> Primitives:
    r, pot = rng.uniform((0.14, 0.25), (0.2, 0.4))
    turns = np.arange(5) * 2 * np.pi / 5 + rng.uniform(0, 1)
    leaves = [
        ball((r * np.cos(a), r * np.sin(a), pot + rng.uniform(0.15, 0.5)), tuple(rng.uniform(0.1, 0.22, 3)), 1)
        for a in turns
    ]
    return [post(0, 0, 0, pot, r), post(0, 0, pot, pot + 0.4, 0.03), *leaves]


def _plant_columns(rng: np.random.Generator) -> Primitives:
    r, pot = rng.uniform((0.15, 0.2), (0.22, 0.35))
    heights = rng.uniform(0.2, 0.45, 3)
    columns = [
        ball((x, y, pot + z * 0.8), (0.08, 0.08, z), 1)
        for (x, y), z in zip([(-0.08, 0.0), (0.07, 0.06), (0.05, -0.07)], heights, strict=True)
    ]
    return [box((-r, -r, 0), (r, r, pot)), *columns]


def _plant_tiers(rng: np.random.Generator) -> Primitives:
    r, pot, reach = rng.uniform((0.14, 0.22, 0.24), (0.2, 0.32, 0.34))
    heights = pot + rng.uniform((0.25, 0.5, 0.72), (0.35, 0.62, 0.9))
    shifts = rng.uniform(-0.06, 0.06, (3, 2))
    tiers = [
        ball((x, y, z), (reach * share, reach * share, 0.1), 1)
        for (x, y), z, share in zip(shifts, heights, (1.0, 0.75, 0.5), strict=True)
    ]
    return [post(0, 0, 0, pot, r), post(0, 0, pot, heights[-1], 0.035, 2), *tiers]


def _plant_grass(rng: np.random.Generator) -> Primitives:
    r, pot = rng.uniform((0.14, 0.3), (0.2, 0.5))
    turns = np.arange(8) * 2 * np.pi / 8 + rng.uniform(0, 1)
    heights, away = rng.uniform(0.16, 0.32, 8), r * rng.uniform(0.2, 0.9, 8)
    blades = [
        ball((d * np.cos(a), d * np.sin(a), pot + z * 0.8), (0.05, 0.05, z), 1)
        for a, z, d in zip(turns, heights, away, strict=True)
    ]
    return [box((-r, -r, 0), (r, r, pot)), box((-r - 0.02, -r - 0.02, pot - 0.05), (r + 0.02, r + 0.02, pot)), *blades]


def _clutter_boxes(rng: np.random.Generator) -> Primitives:
    w, d, h = rng.uniform((0.2, 0.15, 0.08), (0.4, 0.3, 0.25))
    top = rng.uniform(0.5, 0.8)
    boxes = [
        box((-w / 2, -d / 2, 0), (w / 2, d / 2, h)),
        box((-w * top / 2, -d * top / 2, h), (w * 0.3, d * 0.3, h * 1.6), 1),
    ]
    return boxes


def _clutter_ball(rng: np.random.Generator) -> Primitives:
    r = rng.uniform(0.1, 0.2)
    return [ball((0, 0, r), (r, r, r))]


def _clutter_vase(rng: np.random.Generator) -> Primitives:
    r, h = rng.uniform((0.08, 0.14), (0.14, 0.22))
    return [ball((0, 0, h * 0.6), (r, r, h * 0.6)), post(0, 0, h, h * 1.7, r * 0.45, 1)]


def _clutter_bottles(rng: np.random.Generator) -> Primitives:
    bottles: Primitives = []
    for number, (x, y) in enumerate([(-0.11, -0.03), (0.0, 0.06), (0.11, -0.02)]):
        r, h = rng.uniform((0.035, 0.1), (0.05, 0.24))
        bottles += [post(x, y, 0, h, r, number % 2), post(x, y, h, h + 0.05, r * 0.4, 1)]
    return bottles


VARIANTS = {
    "shelf": {"boards": _shelf_boards, "posts": _shelf_posts, "cubes": _shelf_cubes},
    "cabinet": {"doors": _cabinet_doors, "drawers": _cabinet_drawers, "sideboard": _cabinet_sideboard},
    "lamp": {"shade": _lamp_shade, "globe": _lamp_globe, "arc": _lamp_arc, "column": _lamp_column},
    "plant": {"leaves": _plant_leaves, "columns": _plant_columns, "tiers": _plant_tiers, "grass": _plant_grass},
    "clutter": {"boxes": _clutter_boxes, "ball": _clutter_ball, "vase": _clutter_vase, "bottles": _clutter_bottles},
}
"""Dict from kind to variant to the function that draws it."""
