"""Tracks: the points of a scene that each frame sees, and the share of them that two frames have in common."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Tracks(NamedTuple):
    """Points of a scene, and which frames see them.

    Attributes:
        points: [N, 3] float64, meters, world axes.
        colors: [N, 3] uint8 RGB; None if they have none.
        seen: For each frame, the rows of the points that it sees, int64, ascending.
    """

    points: np.ndarray
    colors: np.ndarray | None
    seen: Sequence[np.ndarray]

    @classmethod
    def of_observations(
        cls,
        points: np.ndarray,
        colors: np.ndarray | None,
        rows: np.ndarray,
        frames: np.ndarray,
        count: int,
        least: int = 1,
    ) -> "Tracks":
        """Return the tracks of single observations.

        Args:
            points: [N, 3] float64, meters, world axes.
            colors: [N, 3] uint8 RGB, or None.
            rows: [T], the row of the point that was seen.
            frames: [T], the index of the frame that saw it; negative for one that does not count.
            count: Number of frames.
            least: Number of frames that must see a point; others are left out.
        """
        counts = frames >= 0
        both = np.sort(frames[counts].astype(np.int64) * len(points) + rows[counts])  # np.unique takes 7 times as long
        both = both[np.diff(both, prepend=-1) > 0]  # a frame may see a point twice
        frames, rows = np.divmod(both, max(len(points), 1))
        kept = np.bincount(rows, minlength=len(points)) >= least
        frames, rows = frames[kept[rows]], (np.cumsum(kept) - 1)[rows[kept[rows]]]
        ends = np.searchsorted(frames, np.arange(count), "right")
        return cls(points[kept], None if colors is None else colors[kept], np.split(rows, ends)[:count])

    def overlap(self) -> Mapping[str, np.ndarray]:
        """Return the pairs of frames that see common points, as `Recording.overlap` does.

        The overlap is twice the number of common points over the sum of both frames' points.

        >>> points, seen = np.zeros((4, 3)), [np.array([0, 1, 2]), np.array([2]), np.array([3])]
        >>> {name: values.tolist() for name, values in Tracks(points, None, seen).overlap().items()}
        {'first': [0], 'second': [1], 'overlap': [0.5]}
        """
        rows = np.concatenate([np.zeros(0, np.int64), *self.seen])
        sizes = np.array([len(of_frame) for of_frame in self.seen], np.int64)
        frames = np.repeat(np.arange(len(sizes)), sizes)[np.argsort(rows, kind="stable")]  # by point, then by frame
        starts = np.searchsorted(np.sort(rows), np.arange(len(self.points) + 1))
        found: list[np.ndarray] = [np.zeros((3, 0))]
        for first, of_frame in enumerate(self.seen):
            lengths = starts[of_frame + 1] - starts[of_frame]
            places = np.repeat(starts[of_frame] - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
            common = np.bincount(frames[places], minlength=len(sizes))
            second = np.flatnonzero(common[first + 1 :]) + first + 1
            share = 2 * common[second] / (sizes[first] + sizes[second])
            found.append(np.stack([np.full(len(second), first), second, share]))
        first, second, share = np.concatenate(found, 1)
        return {"first": first.astype(np.int64), "second": second.astype(np.int64), "overlap": share.astype(np.float32)}
