"""A `.sens` file as a recording: frames without a pose or without pixels have a problem, depth is in meters."""

import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from prior3d import Camera, Frame, Recording, UserError, View
from prior3d.data.posed import DepthCodes, GivenIntrinsics, pinhole, pose_problem
from prior3d_plugins.readers.scannet.sens import SensFile, open_sens

_SAME = 1e-3


class SensRecording(Recording):
    """The recording of one `.sens` file.

    Args:
        path: the file.
        given: the options `intrinsics` and `pixel_centers`.
        depth_scale: depth units per meter; None for the header's.
        invalid_depth: units that mean "not measured".

    Attributes:
        color_size: height and width of the color images.

    Raises:
        UserError: the file cannot be read, or has no intrinsics.
    """

    def __init__(
        self, path: Path, given: GivenIntrinsics, depth_scale: float | None, invalid_depth: tuple[int, ...]
    ) -> None:
        sens = open_sens(path)
        self._sens = sens
        self.color_size = sens.color_size
        self._depth = DepthCodes(sens.depth_shift if depth_scale is None else depth_scale, invalid_depth)
        color, depth = (_pinhole(path, matrix, given) for matrix in (sens.color_intrinsics, sens.depth_intrinsics))
        camera = Camera("pinhole", color, sens.color_size, depth_size=sens.depth_size, depth_intrinsics=depth)
        self._facts = f"{self._depth.facts} {color.tolist()} {depth.tolist()}"
        self.frames = _SensFrames(sens, camera)
        self.notes = [*given.unused(True), *_notes(sens)]

    def read(self, frame: int, fields: frozenset[str]) -> View:
        """Decode one frame; see `Recording.read`."""
        values = {}
        if "image" in fields:
            values["image"] = self._sens.color(frame)
        if "depth" in fields:
            values["depth"] = self._depth.meters(self._sens.depth(frame))
        return View(values, size=self._sens.color_size)

    def fingerprint(self, frames: Sequence[int] | None = None) -> str:
        """Return a text that changes with the file's size and time, the frames' headers, and the options."""
        sens = self._sens
        rows = slice(None) if frames is None else list(frames)
        found = hashlib.sha256(f"{self._facts} {len(sens.index)}".encode() + sens.index[rows].tobytes())
        with contextlib.suppress(FileNotFoundError):  # decoding reports it
            status = sens.path.stat()
            found.update(f"{sens.path.name} {status.st_size} {status.st_mtime_ns}".encode())
        return found.hexdigest()


class _SensFrames(Sequence[Frame]):
    """The frames of a `.sens` file, made on access from its index."""

    def __init__(self, sens: SensFile, camera: Camera) -> None:
        self._sens = sens
        self._camera = camera
        self._poses = sens.poses()
        self._times = sens.times()

    def __len__(self) -> int:
        return len(self._poses)

    def __getitem__(self, index: int) -> Frame:
        pose, row = self._poses[index], self._sens.index[index]
        problem = next((f"no {what}" for what in ("color", "depth") if row[f"{what}_bytes"] == 0), pose_problem(pose))
        time = None if self._times is None else float(self._times[index])
        return Frame(str(range(len(self))[index]), self._camera, None if problem else pose, problem, time)


def _pinhole(path: Path, matrix: np.ndarray, given: GivenIntrinsics) -> np.ndarray:
    fx, fy, cx, cy = matrix[[0, 1, 0, 1], [0, 1, 2, 2]].tolist()
    if not (np.isfinite([fx, fy, cx, cy]).all() and fx > 0 and fy > 0):
        raise UserError(f"the header of {path} has no intrinsics: its focal lengths are {fx:g} and {fy:g}", "root")
    return pinhole(fx, fy, cx, cy, given.pixel_centers)


def _notes(sens: SensFile) -> list[str]:
    notes, whole = [], len(sens.index)
    if whole < sens.promised:
        notes.append(
            f"{sens.path.name} ends after {whole} of the {sens.promised} frames that its header promises: the rest is"
            " not used; was its download broken off?"
        )
    stamps = sens.index["color_time"]
    if stamps.any() and sens.times() is None:
        notes.append(
            f"the time stamps of {sens.path.name} repeat or decrease and are not used; frames keep their order"
        )
    if np.abs(sens.extrinsics - np.eye(4)).max() > _SAME:
        notes.append(f"the extrinsics in {sens.path.name} are not used; set depth_to_color if edges do not agree")
    return notes
