"""The reader of NYUv2's labeled frames: the `.mat` of its authors, or a folder of images; pairs by relative poses."""

import hashlib
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from annotated_types import Ge, Gt

from prior3d import BY_METADATA, IGNORE_CLASS, Camera, DamagedFile, Frame, Reader, Recording, UserError, View
from prior3d.data import library, read_calibrated_color, read_ids
from prior3d.data.posed import (
    COLOR_EXTENSIONS,
    DepthCodes,
    FileNames,
    FocalAndCenter,
    color_size,
    depth_size,
    pinhole,
    pose_problem,
    scaled,
)

_IMAGE = FileNames("color", "images", r"(\d+)", COLOR_EXTENSIONS)
_DEPTH = FileNames("depth", "depth", r"(\d+)", ("png",))
_LABELS = FileNames("label", "labels40", r"(\d+)", ("png",))
_PAIRS, _MAT, _MAPPING = "pairs.npz", "nyu_depth_v2_labeled.mat", "classMapping40.mat"
_INTRINSICS, _SIZE = (518.858, 519.470, 325.582, 253.736), (480, 640)
_PER_METER = 25.5  # a byte holds 10 m
_BLOCK = 50  # frames: several rooms, so that blocks can be held out
_OTHER = 39  # "other prop" and unlabeled in one
_HDF5_ERRORS = (OSError, KeyError, ValueError, TypeError, RuntimeError)


class _NyuOptions(NamedTuple):
    crop: int
    depth: DepthCodes
    ignore: tuple[int, ...]
    raw_depth: bool
    facts: str


class _FolderFrames:
    """The frames of a folder, by number."""

    def __init__(self, folder: Path, options: _NyuOptions) -> None:
        self._options = options
        found = [names.find(folder) for names in (_IMAGE, _DEPTH, _LABELS)]
        self._files = [{number: folder / name for number, name in names.items()} for names in found]
        self.numbers = sorted(found[0].keys() | found[1].keys())
        self.has_labels = bool(found[2])
        self.size = color_size(self._files[0].values())
        if depth_size(self._files[1].values(), 8) != self.size:
            raise UserError(f"depth and images differ in size in {folder}", "root")

    def lacking(self, number: int) -> str | None:
        """Return the problem of a frame without one of its files."""
        kinds = zip((_IMAGE, _DEPTH, *((_LABELS,) if self.has_labels else ())), self._files, strict=False)
        return next((f"no {names.what} file" for names, files in kinds if number not in files), None)

    def files(self, number: int) -> list[Path]:
        """Return the files of a frame."""
        return [files[number] for files in self._files if number in files]

    def read(self, number: int, fields: frozenset[str]) -> dict[str, np.ndarray]:
        """Decode fields of a frame, not cropped."""
        images, depths, labels = self._files
        readers = {
            "image": (images, lambda path: read_calibrated_color(path, self.size)),
            "depth": (depths, self._options.depth.read),
            "semantic": (labels, lambda path: _ignoring(read_ids(path), self._options.ignore)),
        }
        values = {}
        for name in fields & readers.keys():
            files, decode = readers[name]
            values[name] = decode(files[number])
            if values[name].shape[:2] != self.size:
                height, width = values[name].shape[:2]
                raise DamagedFile(files[number], f"{width}x{height} pixels, where the images have {self.size[::-1]}")
        return values


class _MatFrames:
    """The frames of the `.mat`, in which MATLAB's axes are the other way around."""

    size = _SIZE

    def __init__(self, path: Path, options: _NyuOptions) -> None:
        self._path, self._options = path, options
        self._classes = _mapping(path.with_name(_MAPPING))
        self._depths = "rawDepths" if options.raw_depth else "depths"
        try:
            with library("h5py", "reading NYUv2's .mat").File(path, "r") as file:
                shapes = [file[name].shape for name in ("images", self._depths, "labels")]
        except _HDF5_ERRORS as error:
            raise UserError(f"cannot read {path}: {_one_line(error)}", "root") from error
        count = shapes[0][0]
        height, width = shapes[0][-1], shapes[0][-2]
        if shapes != [(count, 3, width, height), (count, width, height), (count, width, height)]:
            raise UserError(f"expected images [N, 3, W, H], depths and labels [N, W, H] in {path}", "root")
        self.size = height, width
        self.numbers, self.has_labels = list(range(count)), True

    def lacking(self, number: int) -> str | None:
        """Return the problem of a frame that the file does not have."""
        return None if number < len(self.numbers) else "not in the file"

    def files(self, number: int) -> list[Path]:
        """Return the files of a frame."""
        return [path for path in (self._path, self._path.with_name(_MAPPING)) if path.is_file()]

    def read(self, number: int, fields: frozenset[str]) -> dict[str, np.ndarray]:
        """Decode fields of a frame, not cropped."""
        values: dict[str, np.ndarray] = {}
        try:
            with library("h5py", "reading NYUv2's .mat").File(self._path, "r") as file:
                if "image" in fields:
                    values["image"] = np.ascontiguousarray(file["images"][number].transpose(2, 1, 0))
                if "depth" in fields:
                    depth = file[self._depths][number].T.astype(np.float32)
                    values["depth"] = np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))
                labels = file["labels"][number].T.astype(np.int64) if "semantic" in fields else None
        except _HDF5_ERRORS as error:
            raise DamagedFile(self._path, _one_line(error)) from error
        if labels is not None:
            if self._classes is not None and labels.max(initial=0) >= len(self._classes):
                raise DamagedFile(self._path, f"frame {number} has the label {labels.max()}, which has no class")
            classes = labels - 1 if self._classes is None else self._classes[labels] - 1
            classes = np.where((classes < 0) | (classes >= IGNORE_CLASS), IGNORE_CLASS, classes)
            values["semantic"] = classes if self._classes is None else _ignoring(classes, self._options.ignore)
        return values


class _NyuRecording(Recording):
    def __init__(
        self, frames: Sequence[Frame], numbers: Sequence[int], source: Any, options: _NyuOptions, more: Sequence[Path]
    ) -> None:
        self.frames, self._numbers, self._source, self._options, self._more = frames, numbers, source, options, more

    def read(self, frame: int, fields: frozenset[str]) -> View:
        """Decode one frame and cut its border off; see `Recording.read`."""
        values, cut = self._source.read(self._numbers[frame], fields), self._options.crop
        inner = tuple(slice(cut, length - cut) for length in self._source.size)
        return View({name: value[inner] for name, value in values.items()}, size=self.frames[frame].camera.size)

    def fingerprint(self, frames: Sequence[int] | None = None) -> str:
        """Return a text that changes with names, sizes and times of the files, and with the options."""
        found = hashlib.sha256(self._options.facts.encode())
        chosen = range(len(self.frames)) if frames is None else frames
        for path in (*self._more, *(path for frame in chosen for path in self._source.files(self._numbers[frame]))):
            if path.exists():
                status = path.stat()
                found.update(f"{path.parent.name}/{path.name} {status.st_size} {status.st_mtime_ns};".encode())
        return found.hexdigest()


class Nyuv2(Reader):
    """NYUv2's labeled frames: `nyu_depth_v2_labeled.mat`, or `images/0000.jpg`, `depth/0000.png`, `labels40/0000.png`.

    The frames have no poses in one world. `pairs.npz` (`first`, `second`, `second_from_first` [3, 4]) makes each pair a
    scene of two frames, `00/0004-0005`, in the axes of its first; the folder, here 00, counts blocks of 50 frames, by
    which rooms are held out. Without it, or with `pairs: false`, each frame is a scene, for `views: 1`.

    Args:
        root: folder with the `.mat`, or with the folders.
        pairs: whether scenes are pairs, if there is `pairs.npz`.
        intrinsics: fx, fy, cx, cy of the whole image at 640x480, centers of pixels at whole numbers.
        border: pixels to cut off all sides at a width of 640, where images have a white frame.
        depth_scale: values per meter of the folder's depth files, 8 or 16 bits; 25.5 is 10 m in a byte. The `.mat` is
            in meters.
        raw_depth: whether to read the depth of the `.mat` without filled holes.
        ignore: classes that become 255, if labels are of 40 classes (from 0): 39 is "other prop" and unlabeled in one.

    Raises:
        UserError: no frames were found, or an option is wrong.
    """

    provides = frozenset({"image", "depth", "semantic"})

    def __init__(
        self,
        root: Path,
        *,
        pairs: bool = True,
        intrinsics: FocalAndCenter = _INTRINSICS,
        border: Annotated[int, Ge(0)] = 12,
        depth_scale: Annotated[float, Gt(0)] = _PER_METER,
        raw_depth: bool = False,
        ignore: tuple[int, ...] = (_OTHER,),
    ) -> None:
        super().__init__(root)
        if min(intrinsics[:2]) <= 0:
            raise UserError(f"expected positive focal lengths, got {list(intrinsics[:2])}", "intrinsics")
        if not _is_root(self.root):
            raise UserError(f"no frames in {self.root}: expected {_MAT}, or the folders images and depth", "root")
        codes = DepthCodes(depth_scale, (0,), bits=8)
        facts = f"{codes.facts} {intrinsics} {border} {raw_depth} {ignore}"
        options = _NyuOptions(border, codes, ignore, raw_depth, facts)
        mat = self.root / _MAT
        self._source = _MatFrames(mat, options) if mat.is_file() else _FolderFrames(self.root, options)
        height, width = self._source.size
        cut = -(-border * width // _SIZE[1])
        if 2 * cut >= min(height, width):
            raise UserError(f"expected a border that leaves something of {width}x{height} pixels", "border")
        self._options = options._replace(crop=cut)
        if not self._source.has_labels:
            self.provides = self.provides - {"semantic"}
        matrix = scaled(pinhole(*intrinsics, "integer"), _SIZE, self._source.size)
        matrix[:2, 2] -= cut
        size = height - 2 * cut, width - 2 * cut
        self._camera = Camera("pinhole", matrix, size, depth_size=size)
        self._table = self.root / _PAIRS if pairs and (self.root / _PAIRS).is_file() else None
        self._scenes = self._singles() if self._table is None else _read_pairs(self._table)

    @classmethod
    def recognizes(cls, folder: Path) -> int:
        """Return `BY_METADATA` if a folder has the `.mat`, or labels or pairs next to images and depth."""
        return BY_METADATA if _is_root(folder) else 0

    def scenes(self) -> Sequence[str]:
        """Return the names of the pairs or frames, sorted."""
        return sorted(self._scenes)

    def open(self, scene: str) -> Recording:
        """Open a pair or a frame; see `Reader.open`."""
        frames, numbers = [], []
        for number, pose in self._scenes[scene].items():
            problem = self._source.lacking(number) or pose_problem(pose)
            frames.append(Frame(f"{number:04d}", self._camera, None if problem else pose, problem))
            numbers.append(number)
        more = [] if self._table is None else [self._table]
        return _NyuRecording(frames, numbers, self._source, self._options, more)

    def _singles(self) -> Mapping[str, Mapping[int, np.ndarray]]:
        return {f"{number // _BLOCK:02d}/{number:04d}": {number: np.eye(4)} for number in self._source.numbers}


def _is_root(folder: Path) -> bool:
    if (folder / _MAT).is_file():
        return True
    is_known = (folder / _PAIRS).is_file() or _LABELS.any_in(folder)
    return is_known and _IMAGE.any_in(folder) and _DEPTH.any_in(folder)


def _read_pairs(path: Path) -> dict[str, dict[int, np.ndarray]]:
    """Return {scene: {number of the frame: pose [4, 4]}} of a table of pairs, in the axes of their first frames."""
    try:
        with np.load(path, allow_pickle=False) as table:
            first, second, relative = (table[name] for name in ("first", "second", "second_from_first"))
            relative = relative.astype(np.float64).reshape(len(first), 3, 4)
            numbers = np.stack([first, second], 1).astype(np.int64)
    except (*_HDF5_ERRORS, zipfile.BadZipFile, zlib.error, EOFError) as error:
        expected = f"first, second and second_from_first [N, 3, 4] in {path}"
        raise UserError(f"expected {expected}: {_one_line(error)}", "root") from error
    found = {}
    for (one, other), rows in zip(numbers.tolist(), relative, strict=True):
        pose = np.vstack([rows, [0, 0, 0, 1]])
        pose = np.linalg.inv(pose) if pose_problem(pose) is None else pose
        found[f"{one // _BLOCK:02d}/{one:04d}-{other:04d}"] = {one: np.eye(4), other: pose}
    return found


def _mapping(path: Path) -> np.ndarray | None:
    """Return the class, from 1, of each of the 894 labels of `classMapping40.mat`, 0 = unlabeled; None without it."""
    if not path.is_file():
        return None
    try:
        classes = library("scipy.io", "reading classMapping40.mat").loadmat(path)["mapClass"].ravel()
    except _HDF5_ERRORS as error:
        raise UserError(f"cannot read mapClass of {path}: {_one_line(error)}", "root") from error
    return np.concatenate([[0], classes]).astype(np.int64)


def _ignoring(classes: np.ndarray, ignored: tuple[int, ...]) -> np.ndarray:
    return np.where(np.isin(classes, ignored), IGNORE_CLASS, classes)


def _one_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
