"""Tables, chairs, sofas and beds: each function draws the proportions of one variant."""

from itertools import pairwise

import numpy as np

from prior3d_plugins.datasets.synthetic_rooms.design import Primitives, ball, box, legs, post


def _table_four_legs(rng: np.random.Generator) -> Primitives:
    w, d, h = rng.uniform((0.9, 0.6, 0.68), (1.6, 0.9, 0.8))
    t = rng.uniform(0.05, 0.09)
    top = box((-w / 2, -d / 2, h - 0.05), (w / 2, d / 2, h))
    return [top, *legs(w * 0.96, d * 0.94, h - 0.05, t, 1)]


def _table_pedestal(rng: np.random.Generator) -> Primitives:
    r, h = rng.uniform((0.4, 0.68), (0.65, 0.8))
    top = post(0, 0, h - 0.05, h, r)
    return [top, post(0, 0, 0, h - 0.05, 0.07, 1), post(0, 0, 0, 0.05, r * 0.6, 1)]


def _table_panels(rng: np.random.Generator) -> Primitives:
    w, d, h = rng.uniform((1.0, 0.55, 0.7), (1.5, 0.75, 0.78))
    x, y = w / 2, d / 2
    sides = [box((-x, -y, 0), (-x + 0.05, y, h - 0.05), 1), box((x - 0.4, -y, 0), (x, y, h - 0.05), 1)]
    back = box((-x, -y, h * 0.4), (x, -y + 0.03, h - 0.05), 1)
    return [box((-x, -y, h - 0.05), (x, y, h)), *sides, back]


def _table_trestles(rng: np.random.Generator) -> Primitives:
    w, d, h = rng.uniform((1.2, 0.65, 0.7), (1.8, 0.9, 0.78))
    x, y = w * 0.36, d / 2
    top = box((-w / 2, -y, h - 0.04), (w / 2, y, h))
    bars = [box((a - 0.04, -y * 0.9, z), (a + 0.04, y * 0.9, z + 0.06), 1) for a in (-x, x) for z in (0.0, h - 0.1)]
    uprights = [box((a - 0.04, -0.14, 0.06), (a + 0.04, 0.14, h - 0.1), 1) for a in (-x, x)]
    return [top, *bars, *uprights, box((-x, -0.03, h * 0.35), (x, 0.03, h * 0.35 + 0.1), 1)]


def _chair_four_legs(rng: np.random.Generator) -> Primitives:
    w, h, back = rng.uniform((0.42, 0.42, 0.8), (0.52, 0.5, 1.0))
    x = w / 2
    seat, rest = box((-x, -x, h - 0.06), (x, x, h)), box((-x, -x, h + 0.12), (x, -x + 0.05, back))
    rails = [box((a, -x, h), (a + 0.05, -x + 0.05, h + 0.12), 1) for a in (-x, x - 0.05)]
    return [seat, rest, *rails, *legs(w, w, h - 0.06, 0.05, 1)]


def _chair_slats(rng: np.random.Generator) -> Primitives:
    w, h, back = rng.uniform((0.42, 0.42, 0.85), (0.5, 0.5, 1.05))
    x, count = w / 2, int(rng.integers(3, 5))
    seat = post(0, 0, h - 0.05, h, x)
    places = np.linspace(-x + 0.06, x - 0.06, count)
    slats = [box((a - 0.03, -x, h - 0.02), (a + 0.03, -x + 0.04, back - 0.08), 1) for a in places]
    rail = box((-x, -x, back - 0.1), (x, -x + 0.05, back), 1)
    legs = [post(a, b, 0, h - 0.05, 0.025, 1) for a in (-0.6 * x, 0.6 * x) for b in (-0.6 * x, 0.6 * x)]
    return [seat, *slats, rail, *legs]


def _chair_swivel(rng: np.random.Generator) -> Primitives:
    w, h, back = rng.uniform((0.46, 0.44, 0.9), (0.55, 0.52, 1.1))
    x = w / 2
    seat, rest = box((-x, -x, h - 0.09), (x, x, h)), box((-x * 0.8, -x, h + 0.15), (x * 0.8, -x + 0.08, back))
    feet = [box((-x, -0.03, 0), (x, 0.03, 0.06), 1), box((-0.03, -x, 0), (0.03, x, 0.06), 1)]
    spine = box((-0.04, -x - 0.02, h - 0.05), (0.04, -x + 0.04, h + 0.2), 1)
    return [seat, rest, spine, post(0, 0, 0.03, h - 0.09, 0.035, 1), *feet]


def _chair_shell(rng: np.random.Generator) -> Primitives:
    w, h, back = rng.uniform((0.48, 0.38, 0.72), (0.58, 0.44, 0.85))
    x = w / 2
    seat, rest = ball((0, 0.02, h), (x, x - 0.02, 0.1)), ball((0, -x + 0.08, (h + back) / 2), (x, 0.08, (back - h) / 2))
    arms = [ball((a, 0, h + 0.12), (0.05, x - 0.04, 0.06)) for a in (-x + 0.05, x - 0.05)]
    legs = [post(a * x, b * x, 0, h, 0.02, 1) for a in (-0.65, 0.65) for b in (-0.65, 0.65)]
    return [seat, rest, *arms, *legs]


def _sofa_arms(rng: np.random.Generator) -> Primitives:
    w, d, h = rng.uniform((1.5, 0.8, 0.72), (2.1, 0.95, 0.88))
    x, y, arm, count = w / 2, d / 2, 0.2, int(rng.integers(2, 4))
    base, back = box((-x, -y, 0.06), (x, y, 0.3)), box((-x, -y, 0.3), (x, -y + 0.22, h))
    arms = [box((a, -y, 0.3), (a + arm, y, 0.58)) for a in (-x, x - arm)]
    edges = np.linspace(-x + arm, x - arm, count + 1)
    cushions = [box((a + 0.01, -y + 0.2, 0.3), (b - 0.01, y - 0.02, 0.45), 1) for a, b in pairwise(edges)]
    return [base, back, *arms, *cushions]


def _sofa_bolsters(rng: np.random.Generator) -> Primitives:
    w, d, h = rng.uniform((1.5, 0.75, 0.65), (2.0, 0.9, 0.8))
    x, y = w / 2, d / 2
    seat, back = box((-x, -y, 0.14), (x, y, 0.42)), box((-x, -y, 0.42), (x, -y + 0.15, h))
    bolsters = [ball((a, -y + 0.4, 0.54), (0.13, 0.32, 0.13), 1) for a in (-x + 0.15, x - 0.15)]
    return [seat, back, *bolsters, *legs(w, d, 0.14, 0.07, 1)]


def _sofa_corner(rng: np.random.Generator) -> Primitives:
    w, d, h = rng.uniform((1.7, 0.8, 0.7), (2.2, 0.9, 0.82))
    x, y, lounge, side = w / 2, d / 2, rng.uniform(1.3, 1.6), rng.choice([-1, 1])
    low, high = sorted((side * x, side * (x - 0.8)))
    seat, longer = box((-x, -y, 0.05), (x, y, 0.4)), box((low, y, 0.05), (high, -y + lounge, 0.4))
    back, arm = box((-x, -y, 0.4), (x, -y + 0.2, h)), sorted((-side * x, -side * (x - 0.18)))
    cushions = [ball((a, -y + 0.32, 0.55), (0.24, 0.11, 0.19), 1) for a in np.linspace(-x + 0.45, x - 0.45, 3)]
    return [seat, longer, back, box((arm[0], -y + 0.2, 0.4), (arm[1], y, 0.56)), *cushions]


def _bed_headboard(rng: np.random.Generator) -> Primitives:
    w, d, h = rng.uniform((1.0, 1.9, 0.85), (1.7, 2.1, 1.2))
    x, y = w / 2, d / 2
    frame, board = box((-x, -y, 0.1), (x, y, 0.3)), box((-x, -y, 0), (x, -y + 0.07, h))
    mattress = box((-x + 0.04, -y + 0.08, 0.3), (x - 0.04, y - 0.04, 0.5), 1)
    blanket = box((-x + 0.01, -y + 0.75, 0.28), (x - 0.01, y - 0.02, 0.54), 2)
    pillows = [ball((a, -y + 0.38, 0.55), (0.3, 0.2, 0.1), 1) for a in ([0.0] if w < 1.3 else [-w / 4, w / 4])]
    return [frame, board, mattress, blanket, *pillows, *legs(w, d, 0.1, 0.08)]


def _bed_platform(rng: np.random.Generator) -> Primitives:
    w, d, h = rng.uniform((0.9, 1.9, 0.5), (1.5, 2.1, 0.65))
    x, y = w / 2, d / 2
    body, mattress = (
        box((-x, -y, 0), (x, y, h * 0.6)),
        box((-x + 0.02, -y + 0.02, h * 0.6), (x - 0.02, y - 0.02, h), 1),
    )
    roll = ball((0, -y + 0.22, h + 0.06), (x * 0.8, 0.15, 0.12), 2)
    return [body, mattress, roll, box((-x - 0.01, y - 0.7, h * 0.5), (x + 0.01, y - 0.1, h + 0.02), 2)]


def _bed_posts(rng: np.random.Generator) -> Primitives:
    w, d, h = rng.uniform((1.0, 1.85, 0.75), (1.6, 2.05, 0.95))
    x, y, foot = w / 2, d / 2, h * 0.8
    ends = [(-y + 0.04, h), (y - 0.04, foot)]
    posts = [post(a, b, 0, top, 0.04) for a in (-x + 0.04, x - 0.04) for b, top in ends]
    knobs = [ball((a, b, top + 0.03), (0.06, 0.06, 0.06), 2) for a in (-x + 0.04, x - 0.04) for b, top in ends]
    bars = [box((-x, b - 0.02, z * top - 0.06), (x, b + 0.02, z * top)) for b, top in ends for z in (0.78, 0.97)]
    frame, mattress = box((-x, -y, 0.22), (x, y, 0.34)), box((-x + 0.04, -y + 0.08, 0.34), (x - 0.04, y - 0.08, 0.5), 1)
    pillow = box((-x * 0.7, -y + 0.1, 0.5), (x * 0.7, -y + 0.45, 0.61), 2)
    return [frame, mattress, pillow, *posts, *knobs, *bars, box((-x - 0.01, -0.1, 0.3), (x + 0.01, y * 0.7, 0.52), 2)]


VARIANTS = {
    "table": {
        "four_legs": _table_four_legs,
        "pedestal": _table_pedestal,
        "panels": _table_panels,
        "trestles": _table_trestles,
    },
    "chair": {"four_legs": _chair_four_legs, "slats": _chair_slats, "swivel": _chair_swivel, "shell": _chair_shell},
    "sofa": {"arms": _sofa_arms, "bolsters": _sofa_bolsters, "corner": _sofa_corner},
    "bed": {"headboard": _bed_headboard, "platform": _bed_platform, "posts": _bed_posts},
}
"""Dict from kind to variant to the function that draws it."""
