"""The checks of a scene, one after another: what is found first is left out of those that follow."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from prior3d.data.inspecting import edges
from prior3d.data.inspecting.findings import Finding, mean_agreement, misread
from prior3d.data.inspecting.sample import SceneSample
from prior3d.data.inspecting.typical import odd_cameras, odd_scale
from prior3d.data.posed.plausibility import GAPS, PosedDepth, has_moved
from prior3d.data.spacing import evenly_chosen

_PAIRS = 16
_LAGS = range(-8, 9)
_CHANGED = 1.5  # gray values: more than the noise of a still camera
_GAIN = 0.05  # mean rank by which edges must agree better
_PEAK = 0.03
_ZOOMS = (0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15)
_OFFSETS = range(-6, 7)
_NEAR = 1  # pixels of the small images: no more than rounding
_LONG_WAY = 2.0
_ALIKE = 0.5


def check_sample(sample: SceneSample) -> list[Finding]:
    """Return everything that contradicts itself or is unusual in a sample of a scene."""
    found = []
    repeated, repeats = duplicates(sample)
    stuck, frozen = stuck_poses(sample, repeats)
    found += [one for one in (repeated, stuck) if one is not None]
    left = {n: frame for n, frame in sample.frames.items() if n not in repeats | frozen}
    sample = replace(sample, frames=left)
    delay, _ = color_delay(sample)
    if delay is not None:
        found.append(delay)
    wrong = misread(frame_pairs(sample)) or shuffled(sample)
    if wrong is not None:
        found.append(wrong)
    if delay is None and (wrong is None or "mirrored" not in wrong.kind):
        apart = not_registered(list(sample.frames.values()))
        found += [apart] if apart is not None else []
    explained = wrong is not None and wrong.kind.startswith(("intrinsics", "principal"))
    found += [*([] if explained else odd_cameras(sample)), *odd_scale(sample)]
    return found


def frame_pairs(sample: SceneSample) -> list[tuple[PosedDepth, PosedDepth]]:
    """Return pairs of sampled frames a few frames apart, the nearest that have moved."""
    numbers, pairs = list(sample.frames), []
    for first in (numbers[index] for index in evenly_chosen(len(numbers), 2 * _PAIRS)):
        inside = [first + gap for gap in GAPS if first + gap in sample.frames]
        if not inside:
            inside = [number for number in numbers if number > first][:1]
        moved = [n for n in inside if has_moved(sample.poses[first], sample.poses[n], sample.typical_depth)]
        if inside:
            pairs.append((first, (moved or inside[-1:])[0]))
    chosen = [pairs[index] for index in evenly_chosen(len(pairs), _PAIRS)]
    return [(sample.frames[first], sample.frames[second]) for first, second in chosen]


def duplicates(sample: SceneSample) -> tuple[Finding | None, set[int]]:
    """Return a finding if frames repeat the image and depth of others, and the numbers of those that do."""
    first_of: dict[bytes, int] = {}
    repeats = {}
    for number, frame in sample.frames.items():
        first = first_of.setdefault(frame.gray.tobytes() + frame.depth.tobytes(), number)
        if first != number and frame.gray.std() > 1:
            repeats[number] = first
    if not repeats:
        return None, set()
    number, first = next(iter(repeats.items()))
    figure = f"{len(repeats)} of {len(sample.frames)} sampled frames, the first: {number} repeats {first}"
    mend = "frames repeat another: leave them out of the scene, or use every n-th frame"
    return Finding("duplicated frames", figure, mend, "data.frame_step: 2"), set(repeats)


def stuck_poses(sample: SceneSample, ignored: set[int]) -> tuple[Finding | None, set[int]]:
    """Return a finding if a pose stays exactly the same while the image changes, and the frames that are affected."""
    stuck = set()
    for first, last in sample.equal_poses():
        inside = [n for n in sample.frames if first <= n <= last and n not in ignored]
        changes = [np.abs(sample.frames[n].gray - sample.frames[inside[0]].gray).mean() > _CHANGED for n in inside[1:]]
        stuck |= {n for n, changed in zip(inside[1:], changes, strict=True) if changed}
    if len(stuck) < 2:
        return None, set()
    figure = f"{len(stuck)} sampled frames, from {min(stuck)} to {max(stuck)}, have the pose of a frame before"
    mend = "the pose is stuck: tracking was lost there; leave these frames out (delete their pose files)"
    return Finding("stuck pose", figure, mend), stuck


def color_delay(sample: SceneSample) -> tuple[Finding | None, int]:
    """Return a finding if the images agree better with depth of other moments, and by how many frames."""
    numbers = list(sample.frames)
    outlines, ranks = edges.of_frames(list(sample.frames.values()))
    place = {number: index for index, number in enumerate(numbers)}
    scores = {}
    for lag in _LAGS:
        both = [n for n in numbers if n + lag in place]
        if len(both) >= 4:
            scores[lag] = edges.agreement([outlines[place[n]] for n in both], [ranks[place[n + lag]] for n in both])
    if 0 not in scores or len(scores) < 5:
        return None, 0
    best = max(scores, key=lambda lag: scores[lag])
    away = [score for lag, score in scores.items() if abs(lag - best) > 2]
    if best == 0 or scores[best] < scores[0] + _GAIN or not away or scores[best] < max(away) + _PEAK:
        return None, 0
    word = "delayed" if best > 0 else "ahead"
    figure = f"edges of depth meet edges of color at rank {scores[0]:.2f} as given, {scores[best]:.2f} so moved"
    mend = f"color seems {word} by {abs(best)} frames: the image of frame n + {best} belongs to the depth of frame n"
    return Finding(f"color {word} by {abs(best)} frames", figure, mend), best


def shuffled(sample: SceneSample) -> Finding | None:
    """Return a finding if neighboring images are alike, but their poses jump to and fro."""
    pairs = [(sample.frames[a], sample.frames[b]) for a, b in sample.neighbors]
    if len(pairs) < 4:
        return None
    given, still = mean_agreement(pairs), mean_agreement(pairs, still=True)
    length, shortest = way_lengths(sample.poses)
    if still[0] < max(_ALIKE, given[0] + 0.05) or length < _LONG_WAY * shortest:
        return None
    figure = (
        f"neighboring frames: gray correlation {given[0]:.2f} by the poses, {still[0]:.2f} without motion; the way"
        f" through the poses is {length / max(shortest, 1e-9):.1f} times the shortest"
    )
    mend = "the poses seem to be in another order than the images: check which pose belongs to which frame"
    return Finding("shuffled poses", figure, mend)


def way_lengths(poses: np.ndarray, most: int = 300) -> tuple[float, float]:
    """Return the length of the way through the camera centers in order, and of one from nearest to nearest."""
    centers = poses[:most, :3, 3]
    length = float(np.linalg.norm(np.diff(centers, axis=0), axis=1).sum())
    left, here, shortest = set(range(1, len(centers))), 0, 0.0
    while left:
        rest = np.array(sorted(left))
        distances = np.linalg.norm(centers[rest] - centers[here], axis=1)
        here = int(rest[distances.argmin()])
        left.remove(here)
        shortest += float(distances.min())
    return length, shortest


def not_registered(frames: Sequence[PosedDepth], most: int = 16) -> Finding | None:
    """Return a finding if edges of depth meet edges of color better after a small offset or zoom."""
    chosen = [frames[index] for index in evenly_chosen(len(frames), most)] if frames else []
    outlines, ranks = edges.of_frames(chosen)
    if len({rank.shape for rank in ranks}) != 1:
        return None
    scores = edges.search(outlines, ranks, _ZOOMS, _OFFSETS)
    given = scores.get((1.0, (0, 0)), 0.0)
    if not given:
        return None
    (zoom, (down, right)), best = max(scores.items(), key=lambda item: item[1])
    values = np.array([score for (scale, _), score in scores.items() if scale == 1.0])
    if best < given + _GAIN or (zoom == 1.0 and max(abs(down), abs(right)) <= _NEAR):
        return None
    if best < values.mean() + 3 * values.std():
        return None
    width, focal = frames[0].gray.shape[1], frames[0].intrinsics[0, 0]
    depth = np.concatenate([frame.depth[frame.depth > 0] for frame in chosen])
    per_pixel = float(np.median(depth)) / (zoom * focal)
    shift = (right * per_pixel, down * per_pixel, 0.0)
    figure = (
        f"edges of depth meet edges of color at rank {given:.2f} (random offsets: {values.mean():.2f} +-"
        f" {values.std():.2f}), at {best:.2f} after zoom {zoom:g} and {100 * right / width:+.1f} % of the width to"
        f" the right, {100 * down / width:+.1f} % down"
    )
    mend = (
        "depth is not registered to color: give the color camera; start from a focal length of"
        f" {zoom * focal / width:.3f} of the image width, and fit fx, fy, cx, cy and translation"
    )
    return Finding("depth not registered", figure, mend, "depth_to_color", zoom=zoom, shift_m=shift)
