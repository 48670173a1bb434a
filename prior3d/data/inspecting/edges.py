"""Edges of depth against edges of color: whether depth is registered, and whether color is of the same moment."""

from collections.abc import Sequence

import numpy as np

from prior3d.data.posed.plausibility import PosedDepth

_JUMP = 0.08
"""Change of log depth between near pixels that counts as an edge."""

_REACH = 2
"""Pixels between the two sides of an edge of depth: sensors leave a gap there."""

_FEWEST = 40


def depth_edges(depth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows [N] and columns [N] of the edges of a depth map [h, w]; 0 is unknown and makes no edge."""
    edge = np.zeros(depth.shape, bool)
    log = np.log(np.where(depth > 0, depth, np.nan))
    with np.errstate(invalid="ignore"):
        edge[:, 1:-1] |= np.abs(log[:, _REACH:] - log[:, :-_REACH]) > _JUMP
        edge[1:-1] |= np.abs(log[_REACH:] - log[:-_REACH]) > _JUMP
    return np.nonzero(edge)


def color_edges(gray: np.ndarray) -> np.ndarray:
    """Return the rank [h, w], 0 to 1, of each pixel's gradient within its frame: evenly spread without agreement."""
    down, right = np.gradient(gray)
    strength = np.hypot(down, right).ravel()
    rank = np.empty(len(strength), np.float32)
    rank[np.argsort(strength, kind="stable")] = np.linspace(0, 1, len(strength), dtype=np.float32)
    return rank.reshape(gray.shape)


def agreement(
    edges: Sequence[tuple[np.ndarray, np.ndarray]],
    ranks: Sequence[np.ndarray],
    offset: tuple[int, int] = (0, 0),
    zoom: float = 1.0,
) -> float:
    """Return the mean rank of color edges at edges of depth that are moved by an offset; about 0.5 means none.

    Args:
        edges: Rows and columns of each frame's depth edges.
        ranks: Strength [h, w] of each frame's color edges, see `color_edges`.
        offset: Pixels down and right from an edge of depth to its edge of color.
        zoom: Factor on the distance from the center of the image.
    """
    total, count = 0.0, 0
    for (rows, columns), rank in zip(edges, ranks, strict=True):
        height, width = rank.shape
        y = np.rint((rows - height / 2) * zoom + height / 2 + offset[0]).astype(int)
        x = np.rint((columns - width / 2) * zoom + width / 2 + offset[1]).astype(int)
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        total += float(rank[y[inside], x[inside]].sum())
        count += int(inside.sum())
    return total / count if count >= _FEWEST else 0.0


def of_frames(frames: Sequence[PosedDepth]) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[np.ndarray]]:
    """Return the depth edges and the color edges of frames."""
    return [depth_edges(frame.depth) for frame in frames], [color_edges(frame.gray) for frame in frames]
