"""Images with one class each: class folders, in one folder, in split folders, or in domain folders."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from prior3d import DataSpec, Split, UserError, View
from prior3d.data import image_size, read_color
from prior3d.data.images import (
    IMAGE_ENDINGS,
    SingleImages,
    SplitFolders,
    endings_of,
    existing_folder,
    found_folders,
    list_files,
    split_of,
    splits_of,
)

Label = Literal["folder", "prefix"]


class ClassificationFolder(SingleImages):
    """Images in `root/<class>`, `root/<split>/<class>` or `root/<domain>/<class>`; the class is the field `label`.

    Images are directly in the folder of their class. Splits are the folders named train, val or validation, and test;
    without them, the fractions select the splits. Domains are the scenes of this dataset: the fractions split those of
    `train_domains`, and those of `test_domains` are in the split "test" as a whole. Files and folders whose names
    begin with a dot are ignored. Classes are sorted by name, and every folder must have the same classes.

    Args:
        spec: Settings that every dataset gets.
        root: Folder of the set.
        label: Where the class name is: in the name of the folder, or in that of the file, before its first `_` (the
            images are then in one folder, `n01440764_tench.jpg`).
        folders: Sub-folders of `root` that hold the splits, if they are not train, val or validation, and test.
        train_domains: Folders of `root` to train on; by default those that are not in `test_domains`.
        test_domains: Folders of `root` to test on and never train on; by default those that are not in
            `train_domains`.
        test_fraction: Share of the images held out for the split "test", by a hash of the path below `root`; 1 for all.
        validation_fraction: The same for the split "validation".
        extensions: Extensions of image files, upper or lower case.

    Raises:
        UserError: A folder is missing, the classes differ between folders, or a split is empty.
    """

    provides = frozenset({"image", "label"})

    def __init__(
        self,
        spec: DataSpec,
        *,
        root: Path,
        label: Label = "folder",
        folders: SplitFolders | None = None,
        train_domains: tuple[str, ...] = (),
        test_domains: tuple[str, ...] = (),
        test_fraction: float = 0.0,
        validation_fraction: float = 0.0,
        extensions: tuple[str, ...] = IMAGE_ENDINGS,
    ) -> None:
        super().__init__(spec)
        root = existing_folder(root, "root")
        endings, shares = endings_of(extensions), (test_fraction, validation_fraction)
        domains = _domains(root, train_domains, test_domains)
        if domains and folders:
            raise UserError("folders hold either splits or domains, not both", "folders")
        folders = None if domains else folders or found_folders(root)
        self.offer(_splits(folders, domains, shares))
        self.class_names = _common_classes(root, _all_folders(folders, domains), label, endings)
        chosen: dict[str, list[str]] = {}  # paths below root, by folder
        for folder, split in _folders_with(spec.split, folders, domains).items():
            names = _images(root, folder, label, endings)
            chosen[folder] = [name for name in names if (split or split_of(name, *shares)) == spec.split]
        chosen = {folder: names for folder, names in chosen.items() if names}
        if not chosen:
            raise UserError(f"no images ({' '.join(endings)}) for the split {spec.split} in {root}", "root")
        self.scenes = list(chosen) if domains else [root.resolve().name]
        self.hold([root] * len(chosen), list(chosen.values()))
        self._label = label
        self._labels = [_class_numbers(names, self.class_names, label) for names in chosen.values()]

    def content_options(self) -> dict[str, object]:
        """Return the sorted classes and where their names are."""
        return {"classes": list(self.class_names), "label": self._label}

    def load(self, scene: int, frame: int, fields: frozenset[str]) -> View:
        """Decode one image; see `Dataset.load`."""
        path = self.path(scene, frame)
        view = View(scene=scene, frame=frame)
        if "label" in fields:
            view["label"] = int(self._labels[scene][frame])
        if "image" in fields:
            view["image"] = read_color(path)
        else:
            view.size = image_size(path)
        return view

    def verify(self) -> None:
        """Check that every class has a training image."""
        if self.spec.split != "train":
            return
        counts = self._counts()
        empty = [name for name, count in zip(self.class_names, counts, strict=True) if not count]
        if empty:
            raise UserError(
                f"{len(empty)} of {len(counts)} classes have no image in the training split, the first: {empty[0]};"
                " lower this share",
                "test_fraction",
            )

    def describe(self) -> list[str]:
        """Return the number of images and classes, by domain."""
        scenes = ", ".join(f"{name}: {len(paths)}" for name, paths in zip(self.scenes, self._paths, strict=True))
        counts = self._counts()
        return [
            f"{len(self)} images of the split {self.spec.split}, {len(counts)} classes of {counts.min()} to"
            f" {counts.max()} images ({scenes})"
        ]

    def _counts(self) -> np.ndarray:
        return np.bincount(np.concatenate(self._labels), minlength=len(self.class_names))


def _domains(root: Path, trained: Sequence[str], tested: Sequence[str]) -> dict[str, Split | None]:
    """Return each domain's split, None if its images are split individually; empty if no domain is named."""
    if not trained and not tested:
        return {}
    present = _folders(root)
    for key, names in (("train_domains", trained), ("test_domains", tested)):
        unknown = sorted(set(names) - set(present))
        if unknown:
            raise UserError(f"no folder {unknown[0]} in {root}, only {', '.join(present) or 'none'}", key)
    if both := sorted(set(trained) & set(tested)):
        raise UserError(
            f"{both[0]} is also trained on: name it in only one of the two, and hold part of it out with test_fraction",
            "test_domains",
        )
    trained = trained or [name for name in present if name not in tested]
    tested = tested or [name for name in present if name not in trained]
    return {**dict.fromkeys(trained, None), **dict.fromkeys(tested, "test")}


def _splits(
    folders: SplitFolders | None, domains: Mapping[str, Split | None], shares: tuple[float, float]
) -> tuple[Split, ...]:
    """Return the splits that there are: those of folders and shares, and "test" if a whole domain is in it."""
    splits = splits_of(folders, *shares)
    return (*splits, "test") if "test" in domains.values() and "test" not in splits else splits


def _folders_with(
    split: Split, folders: SplitFolders | None, domains: Mapping[str, Split | None]
) -> Mapping[str, Split | None]:
    """Return the folders that may have images of a split, each with the split of all its images.

    It is None for a folder whose images are split individually.
    """
    if folders is not None:
        return {getattr(folders, split).strip("/"): split}
    return domains or {"": None}


def _all_folders(folders: SplitFolders | None, domains: Iterable[str]) -> list[str]:
    if folders is None:
        return list(domains) or [""]
    every = (folders.train, folders.validation, folders.test)
    return [folder.strip("/") for folder in every if folder is not None]


def _common_classes(root: Path, folders: Sequence[str], label: Label, endings: tuple[str, ...]) -> tuple[str, ...]:
    """Return the sorted classes, which must be the same in all folders."""
    found = {folder: _classes(existing_folder(root / folder, "root"), label, endings) for folder in folders}
    first = max(found, key=lambda folder: len(found[folder]))
    for folder, classes in found.items():
        if differing := sorted(found[first] ^ classes):
            where, other = (first, folder) if differing[0] in found[first] else (folder, first)
            raise UserError(
                f"{len(found[first])} classes in {root / first} and {len(classes)} in {root / folder}:"
                f" {differing[0]} has images in {where} and none in {other}; both need the same classes",
                "root",
            )
    if len(found[first]) < 2:
        raise UserError(f"expected at least two classes, got only {found[first].pop()} in {root / first}", "root")
    return tuple(sorted(found[first]))


def _classes(folder: Path, label: Label, endings: tuple[str, ...]) -> set[str]:
    """Return the classes that have an image in a folder, without listing all images of large sets."""
    if label == "prefix":
        classes = {_class_of(name, label) for name in _files(folder, endings)}
    else:
        classes = {name for name in _folders(folder) if next(_files(folder / name, endings), None) is not None}
    if not classes:
        raise UserError(f"no classes in {folder}: {_advice(folder, label, endings)}", "root")
    return classes


def _advice(folder: Path, label: Label, endings: tuple[str, ...]) -> str:
    below = _folders(folder)
    if label == "prefix":
        return f"expected images in it ({' '.join(endings)}), their class before the first _ of the name"
    if next(_files(folder, endings), None) is not None:
        return "images lie in it directly; label: prefix takes the class from names such as class_1.jpg"
    if any(_folders(folder / name) for name in below):
        names = ", ".join(below[:3])
        return f"the images lie one folder deeper; if {names} are domains, name them in train_domains"
    return "expected a folder of images for each class"


def _images(root: Path, folder: str, label: Label, endings: tuple[str, ...]) -> list[str]:
    """Return the paths below root of the images in a folder whose location gives their class."""
    depth = 1 if label == "folder" else 0
    names = list_files(root / folder, endings)
    return [f"{folder}/{name}" if folder else name for name in names if name.count("/") == depth]


def _class_of(name: str, label: Label) -> str:
    folder, _, file = name.rpartition("/")
    return os.path.basename(folder) if label == "folder" else os.path.splitext(file)[0].split("_")[0]


def _class_numbers(names: Iterable[str], classes: Sequence[str], label: Label) -> np.ndarray:
    """Return the number of the class of each image, int32."""
    number = {name: index for index, name in enumerate(classes)}
    return np.array([number[_class_of(name, label)] for name in names], np.int32)


def _folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())


def _files(folder: Path, endings: tuple[str, ...]) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and entry.name.lower().endswith(endings):
                yield entry.name
