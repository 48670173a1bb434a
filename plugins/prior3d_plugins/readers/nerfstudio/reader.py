"""The reader of `transforms.json`: frames, cameras, depth files and points."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from annotated_types import Gt

from prior3d import BY_METADATA, Cloud, Frame, Reader, Recording, UserError
from prior3d.data.posed import DepthCodes, FileRecording, find_scenes, has_scene, pose_problem, read_ply
from prior3d_plugins.readers.nerfstudio.cameras import DeclaredLens, cameras_of, lens_of

_SPLITS = ("train", "val", "test")
_WHOLE, _TRAIN = "transforms.json", "transforms_train.json"
_EXTENSIONS = (".png", ".jpg", ".jpeg")  # to try for names without one, as those of Blender's scenes
_DEPTH_KEYS = ("depth_file_path", "depth_path")
_UNIT_KEYS = ("depth_unit_scale_factor", "integer_depth_scale")
_MILLIMETER = 0.001
_INVALID = (0, 65535)  # the largest number of 16 bits is no distance but an overflow
_OPENCV_FROM_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])

Split = Literal["all", "train", "val", "test"]


class Nerfstudio(Reader):
    """nerfstudio: `transforms.json`, also of instant-ngp, and `transforms_train.json` of the Blender scenes of NeRF.

    Poses are camera-to-world with OpenGL axes; the reader turns them. The world keeps the axes of the file, so
    `applied_transform` stays applied; `applied_scale` is undone, since depth files and points are of the world before
    it. Intrinsics are those of a frame, or else of the file.

    Args:
        root: folder of scenes, or the folder of one scene.
        split: which frames to read, where the file lists `train_filenames`, or `transforms_train.json` has others next
            to it.
        depth: whether to read depth files; by default if the first scene names some.
        depth_unit_scale_factor: meters per unit of the depth files, whole numbers or not; by default what the file
            declares under this name or `integer_depth_scale`, else 0.001, as in nerfstudio.
        scale: meters per unit of the poses and points. Without it, one unit counts as a meter.

    Raises:
        UserError: no scene was found, or an option is wrong.
    """

    def __init__(
        self,
        root: Path,
        *,
        split: Split = "all",
        depth: bool | None = None,
        depth_unit_scale_factor: Annotated[float, Gt(0)] | None = None,
        scale: Annotated[float, Gt(0)] | None = None,
    ) -> None:
        super().__init__(root)
        self._split = split
        self._unit = depth_unit_scale_factor
        self._scale = scale
        self._folders = find_scenes(self.root, _is_scene, f"{_WHOLE} or {_TRAIN}")
        self._has_depth = _names_depth(next(iter(self._folders.values()))) if depth is None else depth
        self.provides = frozenset({"image", "depth"} if self._has_depth else {"image"})

    @classmethod
    def recognizes(cls, folder: Path) -> int:
        """Return a little more than `BY_METADATA` if a folder is or contains scenes, since many also hold a model."""
        return BY_METADATA + 5 if has_scene(folder, _is_scene) else 0

    def scenes(self) -> Sequence[str]:
        """Return the names of the scenes, sorted."""
        return list(self._folders)

    def open(self, scene: str) -> Recording:
        """Open one scene; see `Reader.open`.

        Raises:
            UserError: a file makes no sense, all images are missing, or a lens is not supported.
        """
        folder = self._folders[scene]
        paths = self._tables(folder)
        metas = {path: _loaded(path) for path in paths}
        entries: list[tuple[str, Mapping, np.ndarray | None, str | None, DeclaredLens]] = []
        units = set()
        for path, meta in metas.items():
            with _naming(path):
                units.add(self._unit or _declared_unit(meta))
                entries += [
                    (_name(entry), entry, *self._pose(meta, entry), lens_of(meta, entry))
                    for entry in self._chosen(meta)
                ]
        if not entries:
            raise UserError(f"no frame in {' and '.join(map(str, paths))}", "root")
        if len(units) > 1:
            raise UserError(f"the files of {folder} declare different units: set one", "depth_unit_scale_factor")
        entries.sort(key=lambda one: _natural(one[0]))
        files = [self._files(folder, name, entry) for name, entry, *_ in entries]
        if not any("image" in own for own in files):
            raise UserError(f"none of {len(files)} images is there, such as {folder / entries[0][0]}", "root")
        per_meter = 1 / units.pop()
        depth = DepthCodes(per_meter, _INVALID, float_scale=per_meter) if self._has_depth else None
        with _naming(paths[0]):
            cameras, notes = cameras_of([lens for *_, lens in entries], files, self._has_depth)
        frames: list[Frame] = []
        count: Counter[str] = Counter()
        for (name, _, pose, problem, lens), own in zip(entries, files, strict=True):
            camera, damage = cameras[lens]
            count[name] += 1
            if count[name] > 1:
                name, problem = f"{name} ({count[name]})", "listed twice"
            missing = next(
                (f"no {what} file" for what in ("image", "depth") if what in self.provides - own.keys()), None
            )
            frames.append(Frame(name, camera, pose, problem or missing or damage))
        ply = _ply_of(folder, metas.values())
        if ply is not None and not os.path.isfile(ply):
            notes.append(f"its ply_file_path is missing: {ply.name}")
        ply = ply if ply is not None and os.path.isfile(ply) else None
        notes += self._notes(paths, list(metas.values()), [entry for _, entry, *_ in entries])
        facts = f"{self._split} {None if depth is None else depth.facts} {per_meter} {self._scale}"
        more = paths if ply is None else [*paths, ply]
        return _Scene(frames, files, depth, more, facts, notes, (ply, self._scale or 1.0))

    def _tables(self, folder: Path) -> list[Path]:
        """Return the files of a scene that hold frames of the split."""
        if os.path.isfile(folder / _WHOLE):
            return [folder / _WHOLE]
        wanted = _SPLITS if self._split == "all" else (self._split,)
        found = [path for split in wanted if os.path.isfile(path := folder / f"transforms_{split}.json")]
        if not found:
            raise UserError(f"no transforms_{self._split}.json in {folder}", "split")
        return found

    def _chosen(self, meta: Mapping) -> list[Mapping]:
        entries = meta["frames"]
        lists = [f"{split}_filenames" for split in _SPLITS if f"{split}_filenames" in meta]
        if self._split == "all" or not lists:
            return entries
        names = meta.get(f"{self._split}_filenames")
        if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise UserError(f"no list {self._split}_filenames; there is {', '.join(lists)}", "split")
        wanted = set(map(_normal, names))
        return [entry for entry in entries if _name(entry) in wanted]

    def _files(self, folder: Path, name: str, entry: Mapping) -> dict[str, Path]:
        image = folder / name
        candidates = (image, *(image.with_name(image.name + extension) for extension in _EXTENSIONS))
        found = next((path for path in candidates if os.path.isfile(path)), None)
        files = {} if found is None else {"image": found}
        depth = next((entry[key] for key in _DEPTH_KEYS if entry.get(key)), None)
        if self._has_depth and _is_path(depth) and os.path.isfile(folder / _normal(depth)):
            files["depth"] = folder / _normal(depth)
        return files

    def _pose(self, meta: Mapping, entry: Mapping) -> tuple[np.ndarray | None, str | None]:
        """Return the pose [4, 4] in meters and OpenCV axes, or None and what is wrong with it."""
        if "transform_matrix" not in entry:
            return None, "no pose"
        try:
            pose = np.array(entry["transform_matrix"], np.float64)
        except (ValueError, TypeError):
            return None, "pose no 4x4 matrix"
        if pose.shape == (3, 4):
            pose = np.vstack([pose, [0, 0, 0, 1]])
        problem = pose_problem(pose)
        if problem is not None:
            return None, problem
        pose = pose @ _OPENCV_FROM_OPENGL
        pose[:3, 3] *= (self._scale or 1.0) / _positive(meta, "applied_scale", 1.0)
        return pose, None

    def _notes(self, paths: Sequence[Path], metas: Sequence[Mapping], entries: Sequence[Mapping]) -> list[str]:
        notes = []
        if self._scale is None and not self._has_depth:
            notes.append(
                "one unit of the poses counts as a meter, which is arbitrary if COLMAP made them (reader.scale)"
            )
        if any("applied_scale" in meta for meta in metas):
            notes.append("its applied_scale is undone")
        masks = sum(bool(entry.get("mask_path")) for entry in entries)
        if masks:
            notes.append(f"the mask_path of {masks} frames goes unused")
        unread = sum(any(entry.get(key) for key in _DEPTH_KEYS) for entry in entries)
        if unread and not self._has_depth:
            notes.append(f"the depth files of {unread} frames go unused (reader.depth)")
        splits = [split for split in _SPLITS if any(f"{split}_filenames" in meta for meta in metas)]
        splits = splits or ([path.stem.removeprefix("transforms_") for path in paths] if len(paths) > 1 else [])
        if splits and self._split == "all":
            notes.append(f"it has splits of its own ({', '.join(splits)}), and all are read (reader.split)")
        return notes


class _Scene(FileRecording):
    """A scene with the points of its PLY file."""

    def __init__(
        self,
        frames: Sequence[Frame],
        files: Sequence[Mapping[str, Path]],
        depth: DepthCodes | None,
        more: Sequence[Path],
        facts: str,
        notes: Sequence[str],
        surface: tuple[Path | None, float],
    ) -> None:
        decoders = {} if depth is None else {"depth": depth.read}
        super().__init__(frames, files, decoders, more, facts, notes)
        self._ply, self._scale = surface

    def surface(self) -> Cloud | None:
        """Return the points of `ply_file_path`; None without it."""
        if self._ply is None:
            return None
        cloud = read_ply(self._ply)
        return Cloud(cloud.points * self._scale, cloud.colors)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the name of a file in front of errors about its contents."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error.message}", error.key) from error


def _is_scene(folder: Path) -> bool:
    return any(os.path.isfile(folder / name) for name in (_WHOLE, _TRAIN))  # Path.is_file raises without permission


def _names_depth(folder: Path) -> bool:
    """Return whether a scene's file names depth files; a file that cannot be read is refused when it is opened."""
    try:
        content = (folder / (_WHOLE if os.path.isfile(folder / _WHOLE) else _TRAIN)).read_bytes()
    except OSError:
        return False
    return any(f'"{key}"'.encode() in content for key in _DEPTH_KEYS)


def _loaded(path: Path) -> Mapping:
    """Return the contents of a file of frames."""
    try:
        meta = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{path} cannot be read: {why}", "root") from error
    entries = meta.get("frames") if isinstance(meta, dict) else None
    if not isinstance(entries, list):
        raise UserError(f"expected a list of frames in {path}", "root")
    for number, entry in enumerate(entries):
        if not (isinstance(entry, dict) and _is_path(entry.get("file_path"))):
            raise UserError(f"expected a file_path of frame {number} in {path}", "root")
    return meta


def _is_path(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value and bool(_normal(value))


def _normal(path: str) -> str:
    """Return a path with `/` and without `./` at its beginning."""
    return path.replace("\\", "/").removeprefix("./")


def _name(entry: Mapping) -> str:
    return _normal(entry["file_path"])


def _natural(name: str) -> list[str | int]:
    """Return a key that sorts numbers within names by their value."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", name))]


def _positive(meta: Mapping, key: str, default: float) -> float:
    value = meta.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise UserError(f"expected a number above 0 for {key}, got {str(value)[:40]!r}", "root")
    return float(value)


def _declared_unit(meta: Mapping) -> float:
    """Return meters per unit of the depth files."""
    key = next((key for key in _UNIT_KEYS if key in meta), None)
    return _MILLIMETER if key is None else _positive(meta, key, _MILLIMETER)


def _ply_of(folder: Path, metas: Iterable[Mapping]) -> Path | None:
    names = [meta["ply_file_path"] for meta in metas if _is_path(meta.get("ply_file_path"))]
    return folder / _normal(names[0]) if names else None
