"""Lists with time stamps, and trajectories of translations and quaternions, as TUM RGB-D defined them."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from prior3d.errors import UserError

_UNIT_TOLERANCE = 1e-2  # of the length of a quaternion: files hold four digits


class ListRow(NamedTuple):
    """A line of a list: its number in the file, from 1, and its words."""

    number: int
    words: tuple[str, ...]


def read_rows(path: Path, key: str = "root") -> list[ListRow]:
    """Return the lines of a text file with anything in them; `#` begins a comment, commas count as spaces.

    Raises:
        UserError: The file cannot be read, or is no text.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", key) from error
    except ValueError as error:
        raise UserError(f"expected text in {path}", key) from error
    rows = (ListRow(number, tuple(line.replace(",", " ").split())) for number, line in enumerate(lines, 1))
    return [row for row in rows if row.words and not row.words[0].startswith("#")]


def numbers_of(words: Sequence[str]) -> np.ndarray | None:
    """Return words as float64, None if one is no number."""
    try:
        return np.array(words, np.float64)
    except ValueError:
        return None


def pose_of_quaternion(numbers: np.ndarray | None) -> tuple[np.ndarray | None, str | None]:
    """Return the pose [4, 4] of tx ty tz qx qy qz qw, or None and the problem with it.

    >>> pose_of_quaternion(np.array([1, 2, 3, 0, 0, 0, 1.0]))[0][:3, 3].tolist()
    [1.0, 2.0, 3.0]

    Args:
        numbers: Translation, meters, and quaternion with the real part last; None for what is no numbers.
    """
    if numbers is None or numbers.size != 7:
        return None, "pose not tx ty tz qx qy qz qw"
    if not np.isfinite(numbers).all():
        return None, "pose not finite"
    length = np.linalg.norm(numbers[3:])
    if abs(length - 1) > _UNIT_TOLERANCE:
        return None, "quaternion of the pose not of length 1"
    x, y, z, w = numbers[3:] / length
    pose = np.eye(4)
    pose[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    pose[:3, 3] = numbers[:3]
    return pose, None


def mirrored_y(pose: np.ndarray) -> np.ndarray:
    """Return a pose [4, 4] with the y axes of both camera and world turned over.

    Cameras with a negative fy have their y axis up. Turning over the camera's axis alone would leave a mirroring, no
    rotation; turning over the world's, too, gives a rotation again, and the same images.
    """
    flip = np.diag([1.0, -1.0, 1.0, 1.0])
    return flip @ pose @ flip


class TimedPoses:
    """Poses by time stamp, from a file with lines of `time tx ty tz qx qy qz qw`.

    Attributes:
        notes: Lines for the log about rows that were left out.

    Args:
        path: Text file.

    Raises:
        UserError: The file cannot be read, or a line has no time stamp.
    """

    def __init__(self, path: Path) -> None:
        times, rows, wrong = [], [], []
        for row in read_rows(path):
            numbers = numbers_of(row.words)
            if numbers is None or numbers.size != 8 or not np.isfinite(numbers[0]):
                rows_expected = "time tx ty tz qx qy qz qw"
                raise UserError(f"expected {rows_expected} in line {row.number} of {path}", "root")
            if times and numbers[0] <= times[-1]:
                wrong.append(row.number)
                continue
            times.append(float(numbers[0]))
            rows.append(numbers[1:])
        self._times, self._rows = np.array(times), rows
        count = f"{len(wrong)} line{'s' * (len(wrong) > 1)} of {path.name} left out"
        self.notes = [f"{count}: its time stamp does not rise, the first in line {wrong[0]}"] if wrong else []

    def at(self, time: float, most: float) -> tuple[np.ndarray | None, str | None]:
        """Return the pose [4, 4] at a time, or None and the problem.

        It lies between the poses before and after, in proportion, if both are near enough in time: motion capture runs
        at another rate than the camera, and the nearest pose alone would be off by up to half its interval.

        Args:
            time: Time stamp, seconds.
            most: Largest difference of time stamps, seconds.
        """
        after = int(np.searchsorted(self._times, time))
        near = [index for index in (after - 1, after) if 0 <= index < len(self._times)]
        near = sorted((abs(self._times[index] - time), index) for index in near)
        near = [(gap, index) for gap, index in near if gap <= most]
        if not near:
            return None, f"no pose within {most:g} s"
        (gap, nearest), *others = near
        first, problem = pose_of_quaternion(self._rows[nearest])
        if problem is not None or gap == 0 or not others:
            return first, problem
        problem = pose_of_quaternion(self._rows[others[0][1]])[1]
        if problem is not None:
            return first, None
        share = gap / (gap + others[0][0])
        return pose_of_quaternion(_between(self._rows[nearest], self._rows[others[0][1]], share))


def associate(first: Sequence[float], second: Sequence[float], most: float) -> dict[int, int]:
    """Return {index in first: index in second} of the nearest time stamps, each used once, the nearest pairs first.

    >>> associate([0.0, 1.0, 1.01], [0.99, 0.005], 0.02)
    {0: 1, 1: 0}

    Args:
        first: Time stamps, seconds.
        second: Time stamps, seconds.
        most: Largest difference, seconds.
    """
    order = np.argsort(second, kind="stable")
    ascending = np.array(second)[order]
    near = []
    for index, time in enumerate(first):
        low, high = np.searchsorted(ascending, [time - most, time + most])
        high = min(high + 1, len(ascending))
        gaps = ((abs(ascending[place] - time), index, int(order[place])) for place in range(low, high))
        near += [gap for gap in gaps if gap[0] <= most]
    found: dict[int, int] = {}
    taken: set[int] = set()
    for _, index, other in sorted(near):
        if index not in found and other not in taken:
            found[index] = other
            taken.add(other)
    return dict(sorted(found.items()))


def _between(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    """Return translation and quaternion at a share of the way; rotations move along the shorter great arc."""
    one, other = (row[3:] / np.linalg.norm(row[3:]) for row in (first, second))
    cosine = float(one @ other)
    if cosine < 0:
        other, cosine = -other, -cosine
    angle = np.arccos(min(cosine, 1.0))
    weights = (1 - share, share) if angle < 1e-6 else np.sin([(1 - share) * angle, share * angle]) / np.sin(angle)
    turned = weights[0] * one + weights[1] * other
    return np.concatenate([(1 - share) * first[:3] + share * second[:3], turned / np.linalg.norm(turned)])
