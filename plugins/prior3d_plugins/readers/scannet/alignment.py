"""A scene's axis alignment: the rotation and translation after which z is up and walls follow the axes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from prior3d import Cloud, Frame, UserError
from prior3d.data.posed import pose_problem

_KEY = "axisAlignment"


def read_alignment(path: Path) -> np.ndarray | None:
    """Return the matrix [4, 4] float64 of a scene's `<scene>.txt`, or None if the file gives none: test scenes.

    Raises:
        UserError: the file cannot be read, or its alignment is no rigid motion; the key is `root`.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        why = "it is no text" if isinstance(error, UnicodeDecodeError) else error.strerror or type(error).__name__
        raise UserError(f"cannot read {path}: {why}", "root") from error
    for line in lines:
        name, _, value = line.partition("=")
        if name.strip() == _KEY:
            return _matrix(path, value)
    return None


def aligned_cloud(cloud: Cloud, world_from_scan: np.ndarray) -> Cloud:
    """Return points in the aligned axes."""
    return Cloud(cloud.points @ world_from_scan[:3, :3].T + world_from_scan[:3, 3], cloud.colors)


class AlignedFrames(Sequence[Frame]):
    """Frames with their poses in the aligned axes, made on access.

    Args:
        frames: frames in the axes of the scan.
        world_from_scan: the alignment, [4, 4].
    """

    def __init__(self, frames: Sequence[Frame], world_from_scan: np.ndarray) -> None:
        self._frames = frames
        self._world_from_scan = world_from_scan

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Frame:
        frame = self._frames[index]
        if frame.world_from_camera is None:
            return frame
        return replace(frame, world_from_camera=self._world_from_scan @ frame.world_from_camera)


def _matrix(path: Path, value: str) -> np.ndarray:
    try:
        numbers = np.array(value.split(), np.float64)
    except ValueError:
        numbers = None
    if problem := pose_problem(numbers):
        problem = problem.removeprefix("pose ").replace("no 4x4 matrix", "not 16 numbers")
        raise UserError(f"{_KEY} in {path} is {problem}: mend it, or set axis_alignment: false", "root")
    return numbers.reshape(4, 4)
