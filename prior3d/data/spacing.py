"""An even choice among many items."""

import numpy as np


def evenly_chosen(count: int, most: int) -> list[int]:
    """Return the indices of `count` items, or of `most` of them, evenly spaced from the first to the last.

    `prior3d.probes.evenly_spaced` does the same in float32, where a few halves are rounded to the other side.

    >>> evenly_chosen(10, 4), evenly_chosen(3, 4)
    ([0, 3, 6, 9], [0, 1, 2])
    """
    return np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist()
