"""Doors, windows and pictures on walls: each function draws one variant, its back at y = 0."""

import numpy as np

from prior3d_plugins.datasets.synthetic_rooms.design import Primitives, ball, box, post
from prior3d_plugins.datasets.synthetic_rooms.primitives import Primitive


def _door_frame(x: float, h: float) -> list[Primitive]:
    """Return the frame around a door leaf from -x to x, h meters high."""
    jambs = [box((a, 0, 0), (a + 0.08, 0.06, h + 0.08), 1) for a in (-x - 0.08, x)]
    return [*jambs, box((-x, 0, h), (x, 0.06, h + 0.08), 1)]


def _door_plain(rng: np.random.Generator) -> Primitives:
    w, h = rng.uniform((0.8, 1.95), (1.0, 2.1))
    x = w / 2
    knob = ball((x * 0.8, 0.07, 1.0), (0.035, 0.035, 0.035), 1)
    return [box((-x, 0, 0), (x, 0.03, h)), *_door_frame(x, h), knob]


def _door_panelled(rng: np.random.Generator) -> Primitives:
    w, h = rng.uniform((0.8, 1.95), (1.0, 2.1))
    x, gap, middle = w / 2, 0.1, rng.uniform(0.85, 1.1)
    panels = [
        box((a + gap / 2, 0.03, low + gap / 2), (a + x - gap / 2, 0.055, high - gap / 2), 2)
        for a in (-x, 0.0)
        for low, high in ((0.1, middle), (middle, h - 0.05))
    ]
    handle = box((x * 0.62, 0.05, middle - 0.02), (x * 0.92, 0.09, middle + 0.02), 1)
    return [box((-x, 0, 0), (x, 0.03, h)), *_door_frame(x, h), *panels, handle]


def _door_glazed(rng: np.random.Generator) -> Primitives:
    w, h = rng.uniform((1.2, 1.95), (1.5, 2.1))
    x, foot = w / 2, rng.uniform(0.25, 0.5)
    leaves: Primitives = []
    for low, high in ((-x, -0.01), (0.01, x)):
        stiles = [box((a, 0, 0), (a + 0.1, 0.04, h)) for a in (low, high - 0.1)]
        rails = [box((low, 0, a), (high, 0.04, b)) for a, b in ((0, foot), (h * 0.6, h * 0.6 + 0.06), (h - 0.12, h))]
        leaves += [*stiles, *rails, box((low, 0, 0.1), (high, 0.02, h - 0.05), 2)]
    grips = [post(a, 0.06, 0.9, 1.2, 0.015, 1) for a in (-0.06, 0.06)]
    return [*leaves, *_door_frame(x, h), *grips]


def _window_two_panes(rng: np.random.Generator) -> Primitives:
    w, h = rng.uniform((0.9, 0.8), (1.6, 1.2))
    x = w / 2
    uprights = [box((a - 0.04, 0, 0), (a + 0.04, 0.07, h), 1) for a in (-x, 0.0, x)]
    rails = [box((-x, 0, z - 0.04), (x, 0.07, z + 0.04), 1) for z in (0.04, h - 0.04)]
    sill = box((-x - 0.1, 0, -0.04), (x + 0.1, 0.18, 0), 1)
    return [box((-x, 0, 0), (x, 0.015, h)), *uprights, *rails, sill]


def _window_lattice(rng: np.random.Generator) -> Primitives:
    w, h = rng.uniform((0.8, 0.9), (1.3, 1.2))
    x, columns, rows = w / 2, int(rng.integers(3, 5)), int(rng.integers(3, 5))
    uprights = [box((a - 0.02, 0, 0), (a + 0.02, 0.05, h), 1) for a in np.linspace(-x, x, columns + 1)]
    rails = [box((-x, 0, z - 0.02), (x, 0.05, z + 0.02), 1) for z in np.linspace(0.02, h - 0.02, rows + 1)]
    shutters = [box((a, 0, -0.03), (a + x * 0.55, 0.03, h + 0.03), 2) for a in (-x * 1.55 - 0.03, x + 0.03)]
    return [box((-x, 0, 0), (x, 0.015, h)), *uprights, *rails, *shutters]


def _window_curtains(rng: np.random.Generator) -> Primitives:
    w, h = rng.uniform((0.9, 0.8), (1.4, 1.1))
    x, width, folds = w / 2, rng.uniform(0.25, 0.4), 5
    places = (np.arange(folds) + 0.5) * width / folds
    curtains = [
        post(side * (x + 0.12 - place), 0.09, -0.3, h + 0.07, width / folds * 0.6, 2)
        for side in (-1, 1)
        for place in places
    ]
    frame = [box((a - 0.04, 0, 0), (a + 0.04, 0.05, h), 1) for a in (-x, x)]
    frame += [box((-x, 0, z - 0.04), (x, 0.05, z + 0.04), 1) for z in (0.04, h - 0.04)]
    rod = box((-x - 0.2, 0.075, h + 0.07), (x + 0.2, 0.105, h + 0.1), 1)
    return [box((-x, 0, 0), (x, 0.015, h)), *frame, rod, *curtains]


def _picture_framed(rng: np.random.Generator) -> Primitives:
    w, h = rng.uniform(0.35, 1.0, 2)
    frame = box((-w / 2, 0, 0), (w / 2, 0.04, h))
    return [frame, box((-w / 2 + 0.06, 0.02, 0.06), (w / 2 - 0.06, 0.05, h - 0.06), 1)]


def _picture_oval(rng: np.random.Generator) -> Primitives:
    r, h = rng.uniform(0.18, 0.42, 2)
    return [ball((0, 0.02, h), (r, 0.02, h)), ball((0, 0.03, h), (r * 0.82, 0.025, h * 0.82), 1)]


def _picture_triptych(rng: np.random.Generator) -> Primitives:
    w, h, gap = rng.uniform((0.2, 0.4, 0.04), (0.34, 0.8, 0.09))
    lift = rng.uniform(0.0, 0.12)
    return [
        box((a - w / 2, 0, z), (a + w / 2, 0.035, z + h), number % 2)
        for number, (a, z) in enumerate([(-w - gap, 0.0), (0.0, lift), (w + gap, 0.0)])
    ]


VARIANTS = {
    "door": {"plain": _door_plain, "panelled": _door_panelled, "glazed": _door_glazed},
    "window": {"two_panes": _window_two_panes, "lattice": _window_lattice, "curtains": _window_curtains},
    "picture": {"framed": _picture_framed, "oval": _picture_oval, "triptych": _picture_triptych},
}
"""Dict from kind to variant to the function that draws it."""
