"""The reader of TUM RGB-D: lists of images with time stamps, and a trajectory of motion capture."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from annotated_types import Gt

from prior3d import BY_METADATA, Camera, Frame, Reader, Recording, UserError
from prior3d.data.posed import (
    DepthCodes,
    FileRecording,
    FocalAndCenter,
    GivenIntrinsics,
    PixelCenters,
    TimedPoses,
    associate,
    color_size,
    depth_size,
    find_scenes,
    has_scene,
    numbers_of,
    pinhole,
    read_rows,
)

_RGB, _DEPTH, _TRUTH, _LISTED = "rgb.txt", "depth.txt", "groundtruth.txt", "associations.txt"
_CALIBRATION = "calibration.txt"  # of ETH3D's sequences
_SIZE = (480, 640)
_NAME = re.compile(r"freiburg([123])(?!\d)")

TumLens = Literal["published", "pinhole"]


class _Published(NamedTuple):
    """Calibration of a color camera: fx, fy, cx, cy, centers of pixels at whole numbers, and k1 k2 p1 p2 k3."""

    intrinsics: FocalAndCenter
    distortion: tuple[float, ...]


_CAMERAS = {
    "1": _Published((517.3, 516.5, 318.6, 255.3), (0.2624, -0.9531, -0.0054, 0.0026, 1.1633)),
    "2": _Published((520.9, 521.0, 325.1, 249.7), (0.2312, -0.7849, -0.0033, -0.0001, 0.9172)),
    "3": _Published((535.4, 539.2, 320.1, 247.6), ()),
}


class _TimedImage(NamedTuple):
    time: float
    name: str
    line: int


class Tum(Reader):
    """TUM RGB-D: `rgb.txt` and `depth.txt` (time stamp, file), `groundtruth.txt` (time stamp, tx ty tz qx qy qz qw).

    Each color image gets the depth map nearest in time, and each depth map is used once; `associations.txt`, if it is
    there, says so instead. Its pose is interpolated between the poses before and after. Poses are camera to world.
    The cameras freiburg1, 2 and 3 are known by the folder's name, with the published distortion; `calibration.txt`
    (fx fy cx cy), as in ETH3D's sequences, is read.

    Reference:
        Sturm et al., 2012, A Benchmark for the Evaluation of RGB-D SLAM Systems.

    Args:
        root: folder of sequences, or the folder of one.
        intrinsics: fx, fy, cx, cy in pixels of the images, or a file with these numbers; instead of the published ones.
        pixel_centers: coordinate of the center of the first pixel in the principal points of `intrinsics` and of files:
            0 ("integer", as published) or 0.5 ("half").
        lens: "published" undistorts with the published coefficients, "pinhole" takes the images as they are.
        max_difference: largest difference of the time stamps of color, depth and pose, seconds.
        depth_scale: depth file units per meter.

    Raises:
        UserError: no scene was found, or an option is wrong.
    """

    def __init__(
        self,
        root: Path,
        *,
        intrinsics: FocalAndCenter | Path | None = None,
        pixel_centers: PixelCenters = "integer",
        lens: TumLens = "published",
        max_difference: Annotated[float, Gt(0)] = 0.02,
        depth_scale: Annotated[float, Gt(0)] = 5000.0,
    ) -> None:
        super().__init__(root)
        self._given = GivenIntrinsics(intrinsics, pixel_centers)
        self._lens, self._most = lens, max_difference
        self._depth = DepthCodes(depth_scale, (0,))
        self._folders = find_scenes(self.root, _is_scene, "groundtruth.txt with rgb.txt and depth.txt")

    @classmethod
    def recognizes(cls, folder: Path) -> int:
        """Return `BY_METADATA` if a folder is or contains sequences of this format."""
        return BY_METADATA if has_scene(folder, _is_scene) else 0

    def scenes(self) -> Sequence[str]:
        """Return the names of the sequences, sorted."""
        return list(self._folders)

    def open(self, scene: str) -> Recording:
        """Open one sequence; see `Reader.open`.

        Raises:
            UserError: lists cannot be read, no image can, or intrinsics are missing.
        """
        folder = self._folders[scene]
        trajectory = TimedPoses(folder / _TRUTH)
        is_listed = (folder / _LISTED).is_file()
        pairs = _listed(folder / _LISTED) if is_listed else self._associated(folder)
        found = [[path if path.is_file() else None for path in (folder / c.name, folder / d.name)] for c, d in pairs]
        size = color_size(color for color, _ in found if color is not None)
        of_depth = depth_size(depth for _, depth in found if depth is not None)
        camera = self._camera(scene, folder, size, of_depth)
        frames, files, last, taken = [], [], -np.inf, set()
        for (color, _), (image, depth) in zip(pairs, found, strict=True):
            pose, problem = trajectory.at(color.time, self._most)
            if image is None or depth is None:
                problem = "no color file" if image is None else "no depth file"
            if color.time <= last:
                problem = "its time stamp does not rise"
            last = max(last, color.time)
            name = f"{color.name} (line {color.line})" if color.name in taken else color.name
            taken.add(color.name)
            frames.append(Frame(name, camera, None if problem else pose, problem, color.time))
            both = (("image", image), ("depth", depth))
            files.append({field: path for field, path in both if path is not None})
        names = (_TRUTH, *((_LISTED,) if is_listed else (_RGB, _DEPTH)), _CALIBRATION)
        more = [folder / name for name in names if (folder / name).is_file()]
        facts = f"{self._depth.facts} {camera.intrinsics.tolist()} {camera.distortion} {self._most}"
        notes = list(trajectory.notes)
        if not is_listed:
            alone = len(read_rows(folder / _RGB)) - len(pairs)
            notes += [f"{alone} color images have no depth within {self._most:g} s"] if alone else []
        return FileRecording(frames, files, {"depth": self._depth.read}, more, facts, notes)

    def _associated(self, folder: Path) -> list[tuple[_TimedImage, _TimedImage]]:
        colors, depths = (_images(folder / name) for name in (_RGB, _DEPTH))
        found = associate([one.time for one in colors], [one.time for one in depths], self._most)
        if not found:
            raise UserError(f"no color and depth within {self._most:g} s of each other in {folder}", "max_difference")
        return [(colors[index], depths[other]) for index, other in found.items()]

    def _camera(self, scene: str, folder: Path, size: tuple[int, int], of_depth: tuple[int, int]) -> Camera:
        known = _NAME.search(folder.resolve().name)
        matrix, distortion = self._given.declared(), ()
        if matrix is None and (folder / _CALIBRATION).is_file():
            matrix = self._given.read(folder / _CALIBRATION)
        elif matrix is None and known:
            if size != _SIZE:
                advice = "set fx, fy, cx, cy of these images"
                raise UserError(f"scene {scene} has {size[1]}x{size[0]} pixels, TUM's 640x480: {advice}", "intrinsics")
            published = _CAMERAS[known[1]]
            matrix = pinhole(*published.intrinsics, "integer")
            distortion = published.distortion if self._lens == "published" else ()
        if matrix is None:
            unknown = "its name has no freiburg1, freiburg2 or freiburg3"
            raise UserError(f"no intrinsics for scene {scene}, {unknown}: set fx, fy, cx, cy", "intrinsics")
        return Camera("opencv" if distortion else "pinhole", matrix, size, distortion, depth_size=of_depth)


def _is_scene(folder: Path) -> bool:
    if not (folder / _TRUTH).is_file():
        return False
    return (folder / _LISTED).is_file() or all((folder / name).is_file() for name in (_RGB, _DEPTH))


def _images(path: Path) -> list[_TimedImage]:
    """Return the images of a list with lines of `time file`."""
    return [_image(row.words, row.number, path) for row in read_rows(path)]


def _listed(path: Path) -> list[tuple[_TimedImage, _TimedImage]]:
    """Return color and depth of a list with lines of `time file time file`; files in `depth/` are depth."""
    pairs = []
    for row in read_rows(path):
        both = [_image(words, row.number, path) for words in (row.words[:2], row.words[2:])]
        color, depth = sorted(both, key=lambda image: image.name.startswith("depth"))
        pairs.append((color, depth))
    return pairs


def _image(words: Sequence[str], line: int, path: Path) -> _TimedImage:
    time = numbers_of(words[:1])
    if len(words) != 2 or time is None or not np.isfinite(time).all():
        raise UserError(f"expected a time stamp and a file in line {line} of {path}", "root")
    return _TimedImage(float(time[0]), words[1], line)
