"""Label and instance images of ScanNet's frames: where they are, and how their ids become classes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prior3d import IGNORE_CLASS, DamagedFile, Field, UserError
from prior3d.data import read_header, read_ids, same_field_of_view
from prior3d.data.images import PathTable
from prior3d.data.posed import FileNames
from prior3d_plugins.readers.scannet.classes import (
    NO_CLASS,
    NYU40,
    TABLE_NAME,
    LabelSet,
    classes_of_nyu40,
    read_label_table,
)
from prior3d_plugins.readers.scannet.scenes import ScanNetScene

_PNG = ("png",)
_LABELS = [FileNames("label", folder, r"(\d+)", _PNG) for folder in ("label-filt", "label")]
_INSTANCES = [FileNames("instance", folder, r"(\d+)", _PNG) for folder in ("instance-filt", "instance")]
_PER_CLASS = 1000  # scannet_frames_25k: 1000 * class + number of the object

CATEGORY = Field(
    "scannet/category",
    "[B, V, H, W]",
    "int64",
    f"ids of {TABLE_NAME}, 0 = not labeled",
    "nearest",
    kept_as="int32",
    probes_only=True,
)
"""The field of `labels: raw`: `semantic` has no room for ids above 254."""


@dataclass(frozen=True)
class LabelImages:
    """The images of one field of a scene.

    Attributes:
        field: name of the field.
        folder: folder of the scene.
        names: for each frame the path of its image below the folder, "" if it has none; None if no frame has one.
        decode: function from file to ids [h, w].
        empty: id of the pixels of a scene without images.
    """

    field: str
    folder: Path
    names: PathTable | None
    decode: Callable[[Path], np.ndarray]
    empty: int

    def read(self, frame: int, size: tuple[int, int]) -> np.ndarray:
        """Return the ids [h, w] of a frame; see `SceneLabels.read`."""
        if self.names is None:
            return np.full(size, self.empty, np.uint8)
        if not self.names[frame]:
            raise DamagedFile(f"{self.folder}, frame {frame}", f"it has no {self.field} image, and others have one")
        path = self.folder / self.names[frame]
        ids = self.decode(path)
        if not same_field_of_view(size, ids.shape):
            got, wanted = (f"{width}x{height}" for height, width in (ids.shape, size))
            raise DamagedFile(path, f"{got} pixels, which is another field of view than that of color, {wanted}")
        return ids


class SceneLabels:
    """The label and instance images of one scene.

    Args:
        images: images by field.
        size: height and width of its color images.
        facts: options that its content depends on.
        notes: lines for the log.
    """

    def __init__(self, images: Sequence[LabelImages], size: tuple[int, int], facts: str, notes: Sequence[str]) -> None:
        self._images = images
        self._size = size
        self.facts = facts
        self.notes = notes

    def read(self, frame: int, fields: frozenset[str]) -> dict[str, np.ndarray]:
        """Return those of the fields that are label images, ids [h, w] each.

        Raises:
            DamagedFile: an image is missing, cannot be decoded, has another field of view, or an unknown id.
        """
        return {one.field: one.read(frame, self._size) for one in self._images if one.field in fields}

    def files(self, frames: Sequence[int]) -> Iterator[Path]:
        """Yield the files of some frames."""
        for one in self._images:
            if one.names is not None:
                yield from (one.folder / one.names[frame] for frame in frames if one.names[frame])


class LabelOptions:
    """The options `labels` and `label_table`, for all scenes of a root.

    Args:
        labels: classes to read; None for NYU40, if the files' ids are of NYU40 or there is a table for them.
        table: table of ScanNet's categories; None for the one in the root or next to it.
        root: folder of the scenes.
        scenes: the scenes.

    Raises:
        UserError: the table is missing or wrong, or the files do not have the ids that are asked for.
    """

    def __init__(
        self, labels: LabelSet | None, table: Path | None, root: Path, scenes: Mapping[str, ScanNetScene]
    ) -> None:
        self.labels: LabelSet = labels or "nyu40"
        labeled = [scene for scene in scenes.values() if _has(_LABELS, scene)]
        raw = [scene for scene in labeled if not scene.is_frames_25k]
        if labels == "raw" and len(raw) < len(labeled):
            raise UserError("the labels of scannet_frames_25k are NYU40 ids, not ScanNet's categories", "labels")
        self._nyu40_of = None
        if self.labels != "raw" and raw:
            found = table or next(
                (path for path in (root / TABLE_NAME, root.resolve().parent / TABLE_NAME) if path.is_file()), None
            )
            if found is None and labels is not None:
                message = f"{labels} is asked for, and there is no {TABLE_NAME} in {root} or next to it: set its path"
                raise UserError(message, "label_table")
            self._nyu40_of = None if found is None else read_label_table(found)
        self.field = CATEGORY.name if self.labels == "raw" else "semantic"
        has_classes = self.labels == "raw" or self._nyu40_of is not None or len(raw) < len(labeled)
        has_instances = any(_has(_INSTANCES, scene) for scene in scenes.values())
        self.provides = frozenset(
            ({self.field} if labeled and has_classes else set()) | ({"instances"} if has_instances else set())
        )

    def of_scene(self, scene: ScanNetScene, numbers: Sequence[int], size: tuple[int, int]) -> SceneLabels:
        """Return the label images of a scene.

        Args:
            scene: the scene.
            numbers: number of each frame, which its label image is named by.
            size: height and width of its color images.

        Raises:
            UserError: two images have the number of one frame.
        """
        images, notes = [], []
        decode = self._decoder(scene)
        labeled = _first(_LABELS, scene.labels)
        if labeled and decode is None:
            notes.append(f"{labeled.folder} goes unused: set label_table to the path of {TABLE_NAME}")
        for field, names, how, empty in (
            (self.field, labeled, decode, 0 if self.labels == "raw" else IGNORE_CLASS),
            ("instances", _first(_INSTANCES, scene.labels), _instances_25k if scene.is_frames_25k else read_ids, 0),
        ):
            if field in self.provides:
                table = None
                if names and how:
                    found = names.find(scene.labels)
                    table = PathTable(found.get(number, "") for number in numbers)
                elif names is None:
                    notes.append(f"it has no {field} images: all its pixels are {empty} (none)")
                images.append(LabelImages(field, scene.labels, table, how or read_ids, empty))
        return SceneLabels(images, size, f"labels {self.labels}", notes)

    def _decoder(self, scene: ScanNetScene) -> Callable[[Path], np.ndarray] | None:
        if self.labels == "raw":
            return read_ids
        if scene.is_frames_25k:
            return _Classes(classes_of_nyu40(self.labels), f"NYU40, which ends at {len(NYU40)}").read
        if self._nyu40_of is None:
            return None
        known = self._nyu40_of != NO_CLASS
        classes = np.where(known, classes_of_nyu40(self.labels)[self._nyu40_of], NO_CLASS)
        return _Classes(classes, TABLE_NAME).read


class _Classes:
    """Label images whose ids are looked up.

    Args:
        classes: class of each id, `NO_CLASS` for ids that do not exist.
        source: what lists the ids, for messages.
    """

    def __init__(self, classes: np.ndarray, source: str) -> None:
        self._classes = classes
        self._source = source

    def read(self, path: Path) -> np.ndarray:
        """Return the classes [h, w] uint8, 255 = ignore."""
        ids = read_ids(path)
        known = (ids >= 0) & (ids < len(self._classes))
        classes = self._classes[np.where(known, ids, 0)]
        wrong = ~known | (classes == NO_CLASS)
        if wrong.any():
            raise DamagedFile(path, f"label id {ids[wrong][0]} is not in {self._source}")
        return classes.astype(np.uint8)


def _instances_25k(path: Path) -> np.ndarray:
    """Return ids [h, w] of objects; images of 16 bits hold 1000 * class + number, and class 0 is no object."""
    ids = read_ids(path)
    return ids if read_header(path).mode == "L" else np.where(ids < _PER_CLASS, 0, ids)


def _has(kinds: Sequence[FileNames], scene: ScanNetScene) -> bool:
    return any((scene.labels / names.folder).is_dir() for names in kinds)


def _first(kinds: Sequence[FileNames], folder: Path) -> FileNames | None:
    return next((names for names in kinds if names.any_in(folder)), None)
