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


def search(
    edges: Sequence[tuple[np.ndarray, np.ndarray]],
    ranks: Sequence[np.ndarray],
    zooms: Sequence[float],
    offsets: Sequence[int],
    most: int = 8000,
) -> dict[tuple[float, tuple[int, int]], float]:
    """Return the agreement of frames of one size, by zoom and offset (down, right); empty with too few edges.

    Args:
        edges: Rows and columns of each frame's depth edges.
        ranks: Strength [h, w] of each frame's color edges.
        zooms: Factors to try.
        offsets: Pixels to try, along either axis.
        most: Number of edge pixels to use, evenly chosen.
    """
    count = sum(len(rows) for rows, _ in edges)
    if count < _FEWEST:
        return {}
    step = max(1, count // most)
    rows, columns = (np.concatenate([edge[axis] for edge in edges])[::step] for axis in (0, 1))
    frame = np.concatenate([np.full(len(edge[0]), number) for number, edge in enumerate(edges)])[::step]
    height, width = ranks[0].shape
    pad = max(map(abs, offsets)) + int(max(height, width) * max(abs(zoom - 1) for zoom in zooms)) + 2
    padded = np.pad(np.stack(ranks), ((0, 0), (pad, pad), (pad, pad)), constant_values=np.nan)
    flat, across = padded.ravel(), padded.shape[2]
    found = {}
    for zoom in zooms:
        y = np.rint((rows - height / 2) * zoom + height / 2).astype(int) + pad
        x = np.rint((columns - width / 2) * zoom + width / 2).astype(int) + pad
        start = (frame * padded.shape[1] + y) * across + x
        for down in offsets:
            for right in offsets:
                values = flat[start + (down * across + right)]
                inside = values[~np.isnan(values)]
                found[zoom, (down, right)] = float(inside.mean()) if len(inside) >= _FEWEST else 0.0
    return found


def of_frames(frames: Sequence[PosedDepth]) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[np.ndarray]]:
    """Return the depth edges and the color edges of frames."""
    return [depth_edges(frame.depth) for frame in frames], [color_edges(frame.gray) for frame in frames]
