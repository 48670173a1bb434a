"""The reader of ICL-NUIM, and of folders with color, depth and one file of translations and quaternions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from annotated_types import Gt

from prior3d import BY_METADATA, Camera, Frame, Reader, Recording, UserError
from prior3d.data.posed import (
    COLOR_EXTENSIONS,
    DepthCodes,
    FileNames,
    FileRecording,
    FocalAndCenter,
    TimedPoses,
    color_size,
    depth_size,
    find_scenes,
    has_scene,
    mirrored_y,
    numbers_of,
    pinhole,
    pose_of_quaternion,
    read_rows,
)

_COLOR = FileNames("color", "color", r"(\d+)", COLOR_EXTENSIONS)
_DEPTH = FileNames("depth", "depth", r"(\d+)", ("png", "pgm"))
_POSES, _LISTED, _TRUTH = "pose.txt", "associations.txt", "*.gt.freiburg"
_PUBLISHED, _PUBLISHED_SIZE = (481.2, -480.0, 319.5, 239.5), (480, 640)
_PNG_SCALE, _PGM_SCALE = 5000.0, 1000.0
_MOST_APART = 0.02  # of time stamps, which are frame numbers


class _IclFrame(NamedTuple):
    """A frame as the files list it."""

    name: str
    color: Path | None
    depth: Path | None
    pose: np.ndarray | None
    problem: str | None


class Icl(Reader):
    """ICL-NUIM, and folders of `color/1.png`, `depth/1.png` or `.pgm` (16 bits) and `pose.txt`.

    ICL-NUIM has `rgb/`, `depth/`, `associations.txt` and a `.gt.freiburg` with `time tx ty tz qx qy qz qw`. `pose.txt`
    has `tx ty tz qx qy qz qw` per line, for the color files in the order of their numbers. Both are camera to world.
    The published fy is negative: the y axes of camera and world point up. The reader turns both over, so that fy is
    positive and the axes are OpenCV's.

    Args:
        root: folder of scenes, or the folder of one scene.
        intrinsics: fx, fy, cx, cy in pixels of the images, centers of pixels at whole numbers; a negative fy means that
            the y axes of the poses point up. By default those that ICL-NUIM published, 481.2 -480 319.5 239.5, if the
            depth maps are PNG and the images have 640x480 pixels.
        depth_scale: depth file units per meter; by default 5000 for PNG, as ICL-NUIM, and 1000 for PGM.

    Raises:
        UserError: no scene was found, or an option is wrong.
    """

    def __init__(
        self,
        root: Path,
        *,
        intrinsics: FocalAndCenter | None = None,
        depth_scale: Annotated[float, Gt(0)] | None = None,
    ) -> None:
        super().__init__(root)
        if intrinsics is not None and not (intrinsics[0] > 0 and intrinsics[1] != 0):
            raise UserError(f"expected fx above 0 and fy not 0, got {list(intrinsics[:2])}", "intrinsics")
        self._intrinsics, self._scale = intrinsics, depth_scale
        expected = "pose.txt with color/ and depth/, or associations.txt with a .gt.freiburg"
        self._folders = find_scenes(self.root, _is_scene, expected)

    @classmethod
    def recognizes(cls, folder: Path) -> int:
        """Return a number above `BY_METADATA` if a folder is or contains scenes of this format: TUM shares a list."""
        return BY_METADATA + 1 if has_scene(folder, _is_scene) else 0

    def scenes(self) -> Sequence[str]:
        """Return the names of the scenes, sorted."""
        return list(self._folders)

    def open(self, scene: str) -> Recording:
        """Open one scene; see `Reader.open`.

        Raises:
            UserError: lists cannot be read, no image can, or intrinsics are missing.
        """
        folder = self._folders[scene]
        truth = _truth(folder)
        more = [folder / _POSES] if truth is None else [folder / _LISTED, truth]
        listed, notes = (_numbered(folder), []) if truth is None else _associated(folder, truth)
        depths = [one.depth for one in listed if one.depth is not None]
        size = color_size(one.color for one in listed if one.color is not None)
        of_depth = depth_size(depths)
        is_pgm = any(path.suffix.lower() == ".pgm" for path in depths)
        numbers = self._intrinsics
        if numbers is None:
            if is_pgm or size != _PUBLISHED_SIZE:
                why = "its depth is PGM" if is_pgm else f"its images have {size[1]}x{size[0]} pixels, not 640x480"
                raise UserError(
                    f"scene {scene} is not as ICL-NUIM published it, {why}: set fx, fy, cx, cy", "intrinsics"
                )
            numbers = _PUBLISHED
            notes = [*notes, "intrinsics are those that ICL-NUIM published: 481.2 -480 319.5 239.5"]
        fx, fy, cx, cy = numbers
        codes = DepthCodes(self._scale or (_PGM_SCALE if is_pgm else _PNG_SCALE), (0,))
        camera = Camera("pinhole", pinhole(fx, abs(fy), cx, cy, "integer"), size, depth_size=of_depth)
        frames, files = [], []
        for one in listed:
            pose = None if one.pose is None or one.problem else mirrored_y(one.pose) if fy < 0 else one.pose
            frames.append(Frame(one.name, camera, pose, one.problem))
            both = (("image", one.color), ("depth", one.depth))
            files.append({field: path for field, path in both if path is not None})
        return FileRecording(frames, files, {"depth": codes.read}, more, f"{codes.facts} {numbers}", notes)


def _is_scene(folder: Path) -> bool:
    if (folder / _POSES).is_file():
        return _COLOR.any_in(folder) and _DEPTH.any_in(folder)
    return (folder / _LISTED).is_file() and _truth(folder) is not None


def _truth(folder: Path) -> Path | None:
    return next((path for path in sorted(folder.glob(_TRUTH)) if path.is_file()), None)


def _numbered(folder: Path) -> list[_IclFrame]:
    """Return the frames of a folder with `pose.txt`: its lines belong to the numbers in their order."""
    colors, depths, rows = _COLOR.find(folder), _DEPTH.find(folder), read_rows(folder / _POSES)
    found = []
    for index, number in enumerate(sorted(colors.keys() | depths.keys())):
        words = rows[index].words if index < len(rows) else None
        pose, problem = (None, "no pose") if words is None else pose_of_quaternion(numbers_of(words))
        color, depth = (folder / names[number] if number in names else None for names in (colors, depths))
        found.append(_IclFrame(str(number), color, depth, pose, _lacking(color, depth) or problem))
    if len(rows) > len(found):
        raise UserError(f"{folder / _POSES} has {len(rows)} poses for {len(found)} frames: which is whose?", "root")
    return found


def _associated(folder: Path, truth: Path) -> tuple[list[_IclFrame], list[str]]:
    """Return the frames of `associations.txt`, which lists depth first, and notes for the log."""
    trajectory, found, last = TimedPoses(truth), [], -np.inf
    for row in read_rows(folder / _LISTED):
        times = None if len(row.words) != 4 else numbers_of(row.words[::2])
        if times is None or not np.isfinite(times).all():
            raise UserError(f"expected time depth time color in line {row.number} of {folder / _LISTED}", "root")
        paths = sorted(row.words[1::2], key=lambda name: name.startswith("depth"))
        color, depth = ((folder / name if (folder / name).is_file() else None) for name in paths)
        pose, problem = trajectory.at(float(times[1]), _MOST_APART)
        problem = _lacking(color, depth) or problem
        if times[1] <= last:
            problem = "its time stamp does not rise"
        last = max(last, float(times[1]))
        found.append(_IclFrame(f"{paths[0]} (line {row.number})", color, depth, pose, problem))
    return found, trajectory.notes


def _lacking(color: Path | None, depth: Path | None) -> str | None:
    """Return the problem of a frame without one of its files."""
    return "no color file" if color is None else "no depth file" if depth is None else None
