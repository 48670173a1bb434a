"""Common parts of readers of folders: which folders are scenes, which files make a frame, and frames from files."""

import contextlib
import hashlib
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from prior3d.contracts.reader import Camera, Frame, Recording
from prior3d.contracts.view import View
from prior3d.data.decoding import ImageHeader, Orientation, read_calibrated_color, read_header
from prior3d.data.depth_files import DepthHeader, read_depth_header
from prior3d.data.images.listing import PathTable
from prior3d.data.posed.cameras import read_pose
from prior3d.data.posed.depth_codes import Along, DepthBits, DepthCodes, depth_problem
from prior3d.data.posed.rays import along_axis
from prior3d.errors import DamagedFile, UserError

DEEPEST_SCENE = 3
"""Largest depth of a scene folder below the root (`building/room/sequence`)."""

COLOR_EXTENSIONS = ("png", "jpg", "jpeg")

_LOOKED_AT = 1000  # folders: enough for every scene of ScanNet, but not for a walk through a home folder
_SHOWN = 3

_ImageOrDepth = TypeVar("_ImageOrDepth", ImageHeader, DepthHeader)


@dataclass(frozen=True)
class FileNames:
    """Naming scheme of one type of files within a scene.

    Attributes:
        what: Type of the files, for messages: "color".
        folder: Sub-folder of the scene; "" is the scene's own folder.
        stem: Regular expression of a name without its extension; group 1 is the number of the frame.
        extensions: Extensions to read, without their dot; upper case counts, too.
    """

    what: str
    folder: str
    stem: str
    extensions: tuple[str, ...]

    def find(self, scene: Path) -> dict[int, str]:
        """Return {number of the frame: path of its file below the scene}.

        Raises:
            UserError: Two files have the same frame number.
        """
        found: dict[int, str] = {}
        for number, name in sorted(self._matches(scene)):  # so the message is the same on every file system
            if number in found:
                folder, both = scene / self.folder, f"{found[number]} and {name}"
                raise UserError(f"two {self.what} files of frame {number} in {folder}: {both}; keep one", "root")
            found[number] = name
        return {number: os.path.join(self.folder, name) for number, name in found.items()}

    def any_in(self, scene: Path) -> bool:
        """Return whether the scene has a file of this type; stop at the first."""
        return next(self._matches(scene), None) is not None

    def seen_instead(self, scene: Path) -> str:
        """Return, in words, which extensions are read, and which files with others exist."""
        named = re.compile(rf"(?:{self.stem})\.\w+", re.IGNORECASE)
        names = sorted(entry.name for entry in _files_in(scene / self.folder))
        others = [name for name in names if named.fullmatch(name) and not self._pattern.fullmatch(name)]
        wanted = " ".join(f".{extension}" for extension in self.extensions)
        folder = f" in {self.folder}" if self.folder else ""
        seen = f"; seen{folder}: {_some(others)}" if others else f"; no file{folder} has another extension"
        return f"{self.what} is read from {wanted}{seen}"

    @property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(rf"(?:{self.stem})\.(?:{'|'.join(self.extensions)})", re.IGNORECASE)

    def _matches(self, scene: Path) -> Iterator[tuple[int, str]]:
        pattern = self._pattern
        for entry in _files_in(scene / self.folder):
            match = pattern.fullmatch(entry.name)
            if match:
                yield int(match[1]), entry.name


class FrameFiles(NamedTuple):
    """The files of one frame; a frame without a pose cannot be used, but its neighbors can."""

    number: int
    color: Path
    depth: Path
    pose: Path | None


class SceneFiles(Sequence[FrameFiles]):
    """The files of a scene's frames, ordered by number; a few dozen bytes each.

    Args:
        folder: Folder of the scene.
        names: By type ("color", "depth", "pose"): {number of the frame: path below the folder}.
    """

    def __init__(self, folder: Path, names: Mapping[str, Mapping[int, str]]) -> None:
        self.folder = folder
        self._numbers = np.array(sorted(names["color"]), np.int64)
        self._names = {
            sort: PathTable(of_sort.get(number, "") for number in self._numbers.tolist())
            for sort, of_sort in names.items()
        }

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> FrameFiles:
        names = {sort: table[index] for sort, table in self._names.items()}
        paths = {sort: self.folder / name if name else None for sort, name in names.items()}
        return FrameFiles(int(self._numbers[index]), **paths)


def find_scenes(root: Path, is_scene: Callable[[Path], bool], expected: str) -> dict[str, Path]:
    """Return {name: folder} of the scenes in a folder, sorted; the folder itself may be the only scene.

    A scene's name is its path below the root. The folders within a scene are not searched.

    Args:
        root: Folder to search.
        is_scene: Function that returns whether a folder holds a scene of the format.
        expected: Contents of a scene, for messages.

    Raises:
        UserError: The folder does not exist, or there is no scene in it; the key is `root`.
    """
    if not root.is_dir():
        raise UserError(f"no folder {root}", "root")
    found = {name: folder for folder, name, scene in _walk(root, is_scene) if scene}
    if not found:
        raise UserError(f"no scene in {root}: expected {expected}; {seen_in(root)}", "root")
    return {name: found[name] for name in sorted(found)}


def has_scene(root: Path, is_scene: Callable[[Path], bool]) -> bool:
    """Return whether one of the first folders is a scene, searching the root first; `recognizes` uses it.

    A folder that may not be read ends the search; opening the scenes reports it.
    """
    with contextlib.suppress(UserError):
        return any(scene for *_, scene in itertools.islice(_walk(root, is_scene), _LOOKED_AT))
    return False


def seen_in(folder: Path) -> str:
    """Return the contents of a folder in words, for messages about missing contents."""
    names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in _entries(folder))
    return f"there is {_some(names)}" if names else "it is empty"


def match_frames(scene: str, folder: Path, color: FileNames, depth: FileNames, pose: FileNames) -> SceneFiles:
    """Return the frames of a scene, ordered by number.

    A frame without a pose is one with lost tracking. Poses without images are left out.

    Args:
        scene: Name of the scene.
        folder: Folder of the scene.
        color: Naming scheme of its color files.
        depth: Naming scheme of its depth files.
        pose: Naming scheme of its pose files.

    Raises:
        UserError: A frame has color but no depth or depth but no color, or has two files of one type.
    """
    sorts = (color, depth, pose)
    colors, depths, poses = found = [names.find(folder) for names in sorts]
    unmatched = (colors.keys() ^ depths.keys()) or (set() if colors else poses.keys())
    if unmatched:
        first = min(unmatched)
        lacking = [names for names, files in zip(sorts[:2], found[:2], strict=True) if first not in files]
        counts = ", ".join(f"{len(files)} {names.what}" for names, files in zip(sorts, found, strict=True))
        lacks = " and no ".join(names.what for names in lacking)
        raise UserError(
            f"scene {scene} has {counts} files; the first unmatched frame is {first}: it has no {lacks}"
            f" ({'; '.join(names.seen_instead(folder) for names in lacking)})",
            "root",
        )
    return SceneFiles(folder, {"color": colors, "depth": depths, "pose": poses})


def nearest_file(folder: Path, root: Path, names: Sequence[str]) -> Path | None:
    """Return the first of these files in the scene or in a folder above it: sequences of one sensor often share files.

    Args:
        folder: Folder of the scene.
        root: Highest folder to look in.
        names: Paths below a folder.
    """
    above = folder
    while True:
        for name in names:
            if (above / name).is_file():
                return above / name
        if above in (root, above.parent):
            return None
        above = above.parent


def color_size(files: Iterable[Path], orientation: Orientation = "stored") -> tuple[int, int]:
    """Return height and width of a scene's color images, from the first usable one.

    Args:
        files: Color images.
        orientation: Which pixels the calibration describes, see `read_calibrated_color`.

    Raises:
        UserError: None can be read.
    """
    if orientation == "upright":
        return _first(files, read_header, lambda header: None).upright_size
    return _first(files, read_header, lambda header: header.problem_as_calibrated).size


def depth_size(files: Iterable[Path], bits: DepthBits = 16) -> tuple[int, int]:
    """Return height and width of a scene's depth maps, from the first usable one.

    Args:
        files: Depth files, see `prior3d.data.read_depth_values`.
        bits: Fewest bits of a value, as declared to `DepthCodes`.

    Raises:
        UserError: None can be read, or none has so many bits.
    """
    return _first(files, read_depth_header, lambda header: depth_problem(header.bits, bits)).size


def _first(
    files: Iterable[Path], read: Callable[[Path], _ImageOrDepth], problem: Callable[[_ImageOrDepth], str | None]
) -> _ImageOrDepth:
    failures = []
    for path in files:
        try:
            header = read(path)
            why = problem(header)
            if why is None:
                return header
            failures.append(f"{path}: {why}")
        except DamagedFile as damage:
            failures.append(str(damage))
    first = f", the first: {failures[0]}" if failures else ": none of those listed exists"
    raise UserError(f"none of {len(failures)} files can be used{first}", "root")


class FileRecording(Recording):
    """A recording with one file per field and frame, for example a color image and a depth map.

    Args:
        frames: Frames of the scene.
        files: For each frame, a dict from field to file.
        decoders: For each field except `image`, a function from file to array; files of other fields are not decoded.
        more: Further files that the scene's content depends on: poses, intrinsics.
        facts: Options that the scene's content depends on.
        notes: Notes for the log.
        along: Whether depth files hold depth along the camera's axis, or the distance along the ray of each pixel.
        orientation: Which pixels the intrinsics belong to: those of the image files, or those that the files' EXIF
            orientation turns upright. A note says if the first image has one.
    """

    def __init__(
        self,
        frames: Sequence[Frame],
        files: Sequence[Mapping[str, Path]],
        decoders: Mapping[str, Callable[[Path], np.ndarray]],
        more: Sequence[Path] = (),
        facts: str = "",
        notes: Sequence[str] = (),
        along: Along = "axis",
        orientation: Orientation = "stored",
    ) -> None:
        self.frames = frames
        self.notes = [*notes, *_note_on_orientation(frames, files, orientation)]
        self._orientation = orientation
        self._files = files
        self._decoders = decoders
        self._more = more
        self._facts = facts
        self._along = along

    def read(self, frame: int, fields: frozenset[str]) -> View:
        """Decode the files of one frame; see `Recording.read`."""
        camera, values = self.frames[frame].camera, {}
        for name, path in self._files[frame].items():
            if name not in fields or name not in {"image", *self._decoders}:
                continue
            if name == "image":
                values[name] = read_calibrated_color(path, camera.size, self._orientation)
                continue
            values[name] = self._decoders[name](path)
            if name == "depth" and values[name].shape != camera.depth_size:
                got, wanted = (f"{width}x{height}" for height, width in (values[name].shape, camera.depth_size))
                raise DamagedFile(path, f"{got} pixels, where the scene's images have {wanted}")
            if name == "depth" and self._along == "ray":
                values[name] = along_axis(values[name], camera)
        return View(values, size=camera.size)

    def fingerprint(self, frames: Sequence[int] | None = None) -> str:
        """Return a text that changes with names, sizes and times of the files, and with the options."""
        found = hashlib.sha256(self._facts.encode())
        chosen = range(len(self.frames)) if frames is None else frames
        for path in (*self._more, *(path for frame in chosen for path in self._files[frame].values())):
            with contextlib.suppress(FileNotFoundError):  # decoding reports it
                status = path.stat()
                found.update(f"{path.parent.name}/{path.name} {status.st_size} {status.st_mtime_ns};".encode())
        return found.hexdigest()


def _note_on_orientation(
    frames: Sequence[Frame], files: Sequence[Mapping[str, Path]], orientation: Orientation
) -> list[str]:
    """Return a note for the log if the first image has an EXIF orientation: whether it is applied."""
    path = files[0].get("image") if len(files) else None
    try:
        header = None if path is None else read_header(path)
    except DamagedFile:  # decoding reports it
        return []
    if header is None or not header.turned:
        return []
    size = frames[0].camera.size
    if orientation == "upright" or header.size != size == header.upright_size:
        return [f"images are turned by their EXIF orientation: intrinsics are of {size[1]} x {size[0]} pixels"]
    return ["images are read as stored, and their EXIF orientation goes unused: intrinsics belong to stored pixels"]


class _PosedFrames(Sequence[Frame]):
    """The frames of a scene of one camera; each pose file is read on first access and then kept."""

    def __init__(self, files: SceneFiles, camera: Camera) -> None:
        self._files = files
        self._camera = camera
        self._read: dict[int, Frame] = {}

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Frame:
        if index not in self._read:
            file = self._files[index]
            self._read[index] = Frame(str(file.number), self._camera, *read_pose(file.pose))
        return self._read[index]


class RGBDFolder(FileRecording):
    """A scene of one sensor with a color, a depth and a pose file for each frame.

    Args:
        files: Files of the frames.
        camera: Camera of all frames.
        depth: Meaning of the values in the depth files.
        more: Further files that the scene's content depends on.
        notes: Notes for the log.
    """

    def __init__(
        self, files: SceneFiles, camera: Camera, depth: DepthCodes, more: Sequence[Path], notes: Sequence[str] = ()
    ) -> None:
        matrices = (camera.intrinsics, camera.depth_intrinsics)
        facts = [depth.facts, *(None if matrix is None else matrix.tolist() for matrix in matrices)]
        frames = _PosedFrames(files, camera)
        super().__init__(frames, _FieldsOf(files), {"depth": depth.read}, more, str(facts), notes, depth.along)


class _FieldsOf(Sequence[Mapping[str, Path]]):
    def __init__(self, files: SceneFiles) -> None:
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Mapping[str, Path]:
        file = self._files[index]
        pose = {} if file.pose is None else {"world_from_camera": file.pose}
        return {"image": file.color, "depth": file.depth, **pose}


def _walk(root: Path, is_scene: Callable[[Path], bool]) -> Iterator[tuple[Path, str, bool]]:
    """Yield folders, their names as scenes, and whether they are scenes, level by level; skip folders in a scene."""
    level = [(root, "")]
    for _ in range(DEEPEST_SCENE + 1):
        others = []
        for folder, name in level:
            scene = is_scene(folder)
            yield folder, name or root.resolve().name, scene
            others += [] if scene else [(folder, name)]
        level = [
            (folder / below, f"{name}/{below}".lstrip("/"))
            for folder, name in others
            for below in sorted(entry.name for entry in _entries(folder) if entry.is_dir())
        ]


def _entries(folder: Path) -> list[os.DirEntry]:
    with _readable(folder), contextlib.suppress(NotADirectoryError), os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]
    return []


def _files_in(folder: Path) -> Iterator[os.DirEntry]:
    with _readable(folder):
        if folder.is_dir():
            with os.scandir(folder) as entries:
                yield from entries


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}", "root") from error


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"
