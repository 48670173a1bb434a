"""Check that poses, depth and images agree: neighboring frames are warped as given and under the usual mistakes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from prior3d.data.spacing import evenly_chosen

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GAPS = (3, 5, 8, 13, 21)
"""Gaps to try between the two frames of a compared pair: the first with enough motion is taken."""

_PAIRS = 12
_COLUMNS = 160
_LEAST_POINTS = 200
_LEAST_INSIDE = 0.2  # share of a frame's points that must land in the other frame to judge a reading by them
_ENOUGH_DEGREES = 3.0
_ENOUGH_BASELINE = 0.03  # share of the median depth
_MOST_RATIO = 0.8  # to refute the given reading, another must lower the error of depth to this share,
_LEAST_PAIRS = 0.75  # in this share of the pairs, and
_LEAST_GAIN = 0.005  # raise the correlation of gray values by this much on average;
_FITS = 0.3  # and the correlation of gray values under it must reach this
_STILL_GAIN = 0.1
_FEWEST_PAIRS = 3
_ROUNDING = 1e-3  # of the error: lost to rounding in the files
_CLEAR_GAIN = 0.03  # or raise it by this much, and lower the error at all, in that share of the pairs

_FLIP = np.diag([1.0, -1.0, -1.0, 1.0])


class Reading(NamedTuple):
    """A way to read the files of a scene that undoes a common mistake.

    Attributes:
        mend: How to fix the data if this reading fits better than the given one.
        inverted: Poses are camera_from_world.
        flipped: Poses have OpenGL axes (y up, z backward).
        scale: Factor on depth.
        still: Nothing moves: the reference for poses without any meaning.
    """

    mend: str
    inverted: bool = False
    flipped: bool = False
    scale: float = 1.0
    still: bool = False


GIVEN = "as given"
STILL = "no motion"

READINGS: Mapping[str, Reading] = {
    GIVEN: Reading("nothing"),
    "inverted poses": Reading("the poses seem to be camera_from_world: invert them", inverted=True),
    "OpenGL axes": Reading("the poses seem to have OpenGL axes (y up, z backward): flip y and z", flipped=True),
    "inverted poses with OpenGL axes": Reading(
        "the poses seem to be camera_from_world with OpenGL axes: invert them, then flip y and z",
        inverted=True,
        flipped=True,
    ),
    STILL: Reading("the poses fit worse than no motion at all: check which pose belongs to which frame", still=True),
    **{
        f"depth x {scale:g}": Reading(
            f"depth seems {1 / scale:g} times too large against the poses: multiply depth_scale by {1 / scale:g}, or"
            " the translations of the poses are in another unit"
            if scale < 1
            else f"depth seems {scale:g} times too small against the poses: divide depth_scale by {scale:g}, or the"
            " translations of the poses are in another unit",
            scale=scale,
        )
        for scale in (0.001, 0.1, 0.2, 0.5, 2.0, 5.0, 10.0, 1000.0)
    },
}
"""Dict from name to reading; the scales are those between common units (meters, millimeters, 1/5000 m) and halves."""


@dataclass(frozen=True)
class PosedDepth:
    """One frame in the form that is compared.

    Attributes:
        gray: Gray values [h, w] float32, 0..255, at the resolution of depth.
        depth: Depth [h, w] float32 along the optical axis, meters, 0 = unknown.
        intrinsics: Matrix [3, 3] float64, pixels of depth, centers at +0.5.
        world_from_camera: Pose [4, 4] float64, meters, OpenCV axes.
    """

    gray: np.ndarray
    depth: np.ndarray
    intrinsics: np.ndarray
    world_from_camera: np.ndarray


class Agreement(NamedTuple):
    """How well a reading fits the compared pairs.

    Attributes:
        correlation: Correlation of gray values, mean over the pairs; -1 if nothing can be compared.
        error: Median of |log| of predicted over measured depth, median over the pairs; infinite if nothing can be
            compared.
    """

    correlation: float
    error: float


@dataclass(frozen=True)
class Verdict:
    """Result of comparing the frames of a scene.

    Attributes:
        pairs: Compared pairs of frames.
        agreements: Dict from reading to how well it fits; empty if nothing could be compared.
        better: Reading that refutes the given one; None if none does.
        depth_range: 5th and 95th percentile of the known depth, meters; None without any.
    """

    pairs: int
    agreements: Mapping[str, Agreement]
    better: str | None
    depth_range: tuple[float, float] | None

    def figures(self) -> str:
        """Return, in numbers, how well the given reading and the better one fit."""
        names = [GIVEN, STILL] if self.better in (None, STILL) else [GIVEN, self.better, STILL]
        return ", ".join(
            f"{name}: gray correlation {self.agreements[name].correlation:.2f}, depth error"
            f" {100 * np.expm1(self.agreements[name].error):.1f} %"
            for name in names
        )


def choose_pairs(world_from_camera: np.ndarray, depth: float) -> list[tuple[int, int]]:
    """Choose pairs of neighboring frames that have moved, evenly spaced over a recording.

    Args:
        world_from_camera: Poses [F, 4, 4], meters.
        depth: A typical depth, meters.

    Returns:
        Index of the first and the second frame of each pair.

    >>> poses = np.stack([np.eye(4)] * 8)
    >>> poses[:, 0, 3] = np.arange(8)
    >>> choose_pairs(poses, depth=2.0)
    [(0, 3), (1, 4), (2, 5), (3, 6), (4, 7)]
    """
    count = len(world_from_camera)
    gaps = [gap for gap in GAPS if gap < count] or ([count - 1] if count > 1 else [])
    pairs = []
    starts = evenly_chosen(count, 2 * _PAIRS) if gaps else []
    for first in starts:
        inside = [gap for gap in gaps if first + gap < count]
        moved = [gap for gap in inside if has_moved(*world_from_camera[[first, first + gap]], depth)]
        if inside:
            pairs.append((first, first + (moved[0] if moved else inside[-1])))
    return [pairs[index] for index in evenly_chosen(len(pairs), _PAIRS)]


def judge(frames: Sequence[tuple[PosedDepth, PosedDepth]]) -> Verdict:
    """Compare pairs of frames as given and under every other reading.

    A reading refutes the given one if, in most pairs, it predicts the depth of the second frame far better, and the
    gray values better, too. If the camera hardly moves, or only turns, nothing distinguishes depth scales; then no
    reading refutes the given one.

    Args:
        frames: Overlapping pairs, see `choose_pairs`.
    """
    measured = [{name: compare(*pair, reading) for name, reading in READINGS.items()} for pair in frames]
    known = [pair for pair in measured if any(np.isfinite(agreement.error) for agreement in pair.values())]
    depths = np.concatenate([np.zeros(0), *(frame.depth[frame.depth > 0].ravel() for pair in frames for frame in pair)])
    depth_range = tuple(np.percentile(depths, [5, 95]).tolist()) if len(depths) else None
    if len(known) < _FEWEST_PAIRS:
        return Verdict(len(known), {}, None, depth_range)
    agreements = {
        name: Agreement(
            float(np.mean([pair[name].correlation for pair in known])),
            float(np.median([pair[name].error for pair in known])),
        )
        for name in READINGS
    }
    refuting = [name for name in READINGS if name != GIVEN and _refutes(name, known)]
    better = max(refuting, key=lambda name: agreements[name].correlation, default=None)
    return Verdict(len(known), agreements, better, depth_range)


def warp(first: PosedDepth, second: PosedDepth, reading: Reading = READINGS[GIVEN]) -> tuple[np.ndarray, ...]:
    """Project the known pixels of one frame into another.

    Args:
        first: Frame with the points.
        second: Frame that sees them.
        reading: How to read poses and depth.

    Returns:
        Pixels of the first frame [N] (row-major), x and y in the second [N] and depth there [N]; only points in front
        of the second camera, inside or outside of its image.
    """
    # Not `prior3d.geometry`: it computes in another order, so the last bits would differ, and verdicts have limits.
    rows, columns = np.nonzero(first.depth > 0)
    z = first.depth[rows, columns].astype(np.float64) * reading.scale
    pixels = np.stack([columns + 0.5, rows + 0.5, np.ones(len(rows))])
    points = np.linalg.inv(first.intrinsics) @ pixels * z
    second_from_first = np.eye(4) if reading.still else _relative(first, second, reading)
    moved = second_from_first[:3, :3] @ points + second_from_first[:3, 3:]
    front = moved[2] > 1e-6
    projected = second.intrinsics @ moved[:, front]
    source = (rows * first.depth.shape[1] + columns)[front]
    return source, projected[0] / projected[2], projected[1] / projected[2], moved[2][front]


def _relative(first: PosedDepth, second: PosedDepth, reading: Reading) -> np.ndarray:
    poses = [frame.world_from_camera for frame in (first, second)]
    if reading.inverted:
        poses = [np.linalg.inv(pose) for pose in poses]
    if reading.flipped:
        poses = [pose @ _FLIP for pose in poses]
    return np.linalg.inv(poses[1]) @ poses[0]


def compare(first: PosedDepth, second: PosedDepth, reading: Reading) -> Agreement:
    """Return how well the first frame predicts the second.

    Args:
        first: Frame with the points.
        second: Frame that sees them.
        reading: How to read poses and depth.
    """
    source, x, y, z = warp(first, second, reading)
    height, width = second.depth.shape
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    rows, columns = y[inside].astype(int), x[inside].astype(int)
    measured = second.depth[rows, columns] * reading.scale
    seen = measured > 0
    known = (first.depth > 0).sum()
    if seen.sum() < max(_LEAST_POINTS, _LEAST_INSIDE * known):
        return Agreement(-1.0, np.inf)
    error = float(np.median(np.abs(np.log(z[inside][seen] / measured[seen]))))
    ours, theirs = first.gray.ravel()[source[inside][seen]], second.gray[rows[seen], columns[seen]]
    spread = ours.std() * theirs.std()
    correlation = float(((ours - ours.mean()) * (theirs - theirs.mean())).mean() / spread) if spread > 1e-6 else 0.0
    return Agreement(correlation, error)


def _refutes(name: str, pairs: Sequence[Mapping[str, Agreement]]) -> bool:
    """Return whether a reading fits clearly better: depth far better and gray values a little, or both well."""
    if name == STILL:  # neighbors of a sparse capture look a little alike without overlapping
        pairs = [pair for pair in pairs if np.isfinite(pair[GIVEN].error)]
    if len(pairs) < _FEWEST_PAIRS or np.median([pair[name].correlation for pair in pairs]) < _FITS:
        return False
    ratios = np.array([_ratio(pair[name].error, pair[GIVEN].error) for pair in pairs])
    gains = np.array([max(0.0, pair[name].correlation) - max(0.0, pair[GIVEN].correlation) for pair in pairs])
    if name == STILL:
        return bool(np.mean(gains > 0) >= _LEAST_PAIRS and gains.mean() >= _STILL_GAIN and np.median(ratios) < 1)
    by_far = np.mean(ratios <= _MOST_RATIO) >= _LEAST_PAIRS and gains.mean() >= _LEAST_GAIN
    both = np.mean((ratios < 1) & (gains > 0)) >= _LEAST_PAIRS and gains.mean() >= _CLEAR_GAIN
    explains = np.mean([pair[name].error < pair[STILL].error for pair in pairs]) >= _LEAST_PAIRS
    return bool(explains and (by_far or both))


def _ratio(error: float, given: float) -> float:
    if not np.isfinite(error):
        return np.inf
    return (error + _ROUNDING) / (given + _ROUNDING)


def has_moved(first: np.ndarray, second: np.ndarray, depth: float) -> bool:
    """Return whether two poses [4, 4] differ enough, against a typical depth in meters, to judge a reading by them."""
    cosine = (np.trace(first[:3, :3].T @ second[:3, :3]) - 1) / 2
    turned = np.degrees(np.arccos(np.clip(cosine, -1, 1))) >= _ENOUGH_DEGREES
    return bool(turned or np.linalg.norm(first[:3, 3] - second[:3, 3]) >= _ENOUGH_BASELINE * depth)


def at_resolution(image: np.ndarray, depth: np.ndarray, intrinsics: np.ndarray) -> tuple[np.ndarray, ...]:
    """Resize an image and its registered depth to one small resolution.

    Args:
        image: Image [H, W, 3] uint8.
        depth: Depth [h, w] float32, meters, the same field of view.
        intrinsics: Matrix [3, 3], pixels of the image.

    Returns:
        Gray values [r, c] float32, depth [r, c] float32 (nearest), intrinsics [3, 3] in their pixels.
    """
    height, width = image.shape[:2]
    columns = min(_COLUMNS, width, depth.shape[1])
    rows = max(1, round(columns * height / width))
    gray = Image.fromarray(image).convert("L").resize((columns, rows), Image.Resampling.BOX)
    row = ((np.arange(rows) + 0.5) * depth.shape[0] / rows).astype(int)
    column = ((np.arange(columns) + 0.5) * depth.shape[1] / columns).astype(int)
    scaled = np.diag([columns / width, rows / height, 1.0]) @ intrinsics
    return np.asarray(gray, np.float32), depth[row[:, None], column[None, :]], scaled


def plot_warped(frames: Sequence[tuple[PosedDepth, PosedDepth]], most: int = 3) -> "Figure":
    """Plot pairs of frames: the second, the first warped into the second by poses and depth, and where they differ.

    Args:
        frames: Pairs, see `choose_pairs`; evenly spaced ones are shown.
        most: Largest number of pairs to show.
    """
    from matplotlib.figure import Figure

    chosen = evenly_chosen(len(frames), most)
    figure = Figure(figsize=(9, 2.5 * len(chosen)), layout="constrained")
    axes = figure.subplots(len(chosen), 3, squeeze=False)
    for row, index in zip(axes, chosen, strict=True):
        first, second = frames[index]
        warped = _warped_gray(first, second)
        difference = np.abs(warped - second.gray)
        for axis, picture, title in zip(
            row,
            (second.gray, warped, difference),
            ("a frame", "its neighbor, warped into it", "difference"),
            strict=True,
        ):
            axis.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axis.set_title(title, fontsize=9)
            axis.set_axis_off()
    return figure


def _warped_gray(first: PosedDepth, second: PosedDepth) -> np.ndarray:
    """Return the gray values of the first frame at the pixels of the second, NaN where none falls; nearest wins."""
    source, x, y, z = warp(first, second)
    height, width = second.depth.shape
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    order = np.argsort(-z[inside], kind="stable")
    warped = np.full((height, width), np.nan, np.float32)
    warped[y[inside][order].astype(int), x[inside][order].astype(int)] = first.gray.ravel()[source[inside][order]]
    return warped
