"""Images with a mask of class ids each: the usual layout of semantic segmentation data."""

import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Ge, Le

from prior3d import IGNORE_CLASS, DamagedFile, DataSpec, UserError, View
from prior3d.data import image_size, read_color, read_ids
from prior3d.data.images import (
    IMAGE_ENDINGS,
    PathTable,
    SingleImages,
    SplitFolders,
    endings_of,
    existing_folder,
    found_folders,
    list_files,
    split_of,
    splits_of,
)

MaskId = Annotated[int, Ge(0), Le(65535)]
"""Value of a pixel of a mask file."""

_CHECKED = 16
"""Number of masks whose ids `verify` reads, spread evenly over the set."""


class SegmentationFolder(SingleImages):
    """Images and masks of the same name, in `root/<split>/images` and `root/<split>/labels`.

    A mask is an image of the same size with one class id per pixel, as gray value or palette index (colors of the
    palette are ignored). Without split folders, images are in `root/images`, and the fractions select the held-out
    images. Files and folders whose names begin with a dot are ignored.

    Args:
        spec: Settings that every dataset gets.
        root: Folder of the set.
        classes: Number of classes; their ids run from 0. Optional if `class_names` is given.
        class_names: Names of the classes, by id.
        ignore: Id, or ids, of pixels that do not count ("void"); 255 never counts.
        images: Name of the image folders.
        labels: Name of the mask folders.
        folders: Sub-folders of `root` that hold the splits, if they are not train, val or validation, and test.
        train_match: Pattern that the names of training images (without extension) must match, for example `Seq05VD*`.
        validation_match: The same for validation images.
        test_match: The same for test images.
        test_fraction: Share of the images held out for the split "test", by a hash of the path below `root`; 1 for all.
        validation_fraction: The same for the split "validation".
        extensions: Extensions of image files, upper or lower case; masks are `.png`.

    Raises:
        UserError: A folder is missing or empty, images and masks do not pair up, or the classes are not given.
    """

    provides = frozenset({"image", "semantic"})

    def __init__(
        self,
        spec: DataSpec,
        *,
        root: Path,
        classes: Annotated[int, Ge(2), Le(IGNORE_CLASS)] | None = None,
        class_names: tuple[str, ...] = (),
        ignore: MaskId | list[MaskId] | None = None,
        images: str = "images",
        labels: str = "labels",
        folders: SplitFolders | None = None,
        train_match: str | None = None,
        validation_match: str | None = None,
        test_match: str | None = None,
        test_fraction: float = 0.0,
        validation_fraction: float = 0.0,
        extensions: tuple[str, ...] = IMAGE_ENDINGS,
    ) -> None:
        super().__init__(spec)
        root = existing_folder(root, "root")
        self.class_names = _names(classes, class_names)
        self._ignored = frozenset([ignore] if isinstance(ignore, int) else ignore or [])
        self._class_of_id = _class_of_id(len(self.class_names), self._ignored)
        folders = folders or found_folders(root)
        self.offer(splits_of(folders, test_fraction, validation_fraction))
        below = "" if folders is None else getattr(folders, spec.split).strip("/") + "/"
        self._images = f"{below}{images}/"
        pattern = {"train": train_match, "validation": validation_match, "test": test_match}[spec.split] or "*"
        pairs = _pairs(root, self._images, f"{below}{labels}/", endings_of(extensions), pattern)
        if folders is None:
            shares = test_fraction, validation_fraction
            pairs = [pair for pair in pairs if split_of(pair[0], *shares) == spec.split]
        if not pairs:
            match = f" whose name matches {pattern}" if pattern != "*" else ""
            raise UserError(f"no images{match} for the split {spec.split} in {root / self._images}", "root")
        self.scenes = [root.resolve().name]
        self.hold([root], [[image for image, _ in pairs]])
        self._masks = PathTable(mask for _, mask in pairs)

    def mask_path(self, frame: int) -> Path:
        """Return the mask file of an image."""
        return self._roots[0] / self._masks[frame]

    def files(self, scene: int, frame: int) -> list[Path]:
        """Return an image and its mask."""
        return [self.path(scene, frame), self.mask_path(frame)]

    def content_options(self) -> dict[str, object]:
        """Return the classes and the ids that do not count."""
        return {"classes": list(self.class_names), "ignore": sorted(self._ignored)}

    def load(self, scene: int, frame: int, fields: frozenset[str]) -> View:
        """Decode one image and its mask; see `Dataset.load`.

        Raises:
            UserError: The mask has an id that is not a class.
        """
        view = View(scene=scene, frame=frame)
        if "image" in fields:
            view["image"] = read_color(self.path(scene, frame))
        view.size = view["image"].shape[:2] if "image" in view else image_size(self.path(scene, frame))
        if "semantic" in fields:
            view["semantic"] = self._read_mask(frame)
            if view["semantic"].shape != view.size:
                raise DamagedFile(self.mask_path(frame), _sizes(view["semantic"].shape, view.size))
        return view

    def verify(self) -> None:
        """Check that every mask is as large as its image, and the ids of some masks; skip single damaged files."""
        for frame in range(len(self)):
            try:
                mask, image = image_size(self.mask_path(frame)), image_size(self.path(0, frame))
            except DamagedFile:
                continue  # reported when the file is loaded
            if mask != image:
                raise UserError(f"{self.mask_path(frame)}: {_sizes(mask, image)}", "root")
        chosen = np.linspace(0, len(self) - 1, min(_CHECKED, len(self))).astype(int).tolist()
        damaged = []
        for frame in chosen:
            try:
                self._read_mask(frame)
            except DamagedFile as damage:
                damaged.append(damage)
        if len(damaged) == len(chosen):
            raise UserError(f"no mask can be read: {damaged[0]}", "root")

    def describe(self) -> list[str]:
        """Return the number of images and classes."""
        return [f"{len(self)} images of the split {self.spec.split}, {len(self.class_names)} classes"]

    def _read_mask(self, frame: int) -> np.ndarray:
        """Return class ids [h, w] uint8, `IGNORE_CLASS` where a pixel does not count."""
        path = self.mask_path(frame)
        ids = read_ids(path)
        known = (ids >= 0) & (ids < len(self._class_of_id))
        mask = np.where(known, self._class_of_id[np.where(known, ids, 0)], -1)
        if (mask < 0).any():
            wrong = int(ids[mask < 0].min())
            count = len(self.class_names)
            raise UserError(
                f"{path} holds the class id {wrong}, but the {count} classes have the ids 0 to {count - 1}: give all"
                " classes, or list ids that do not count in `ignore`",
                "classes",
            )
        return mask.astype(np.uint8)


def _names(classes: int | None, class_names: Sequence[str]) -> tuple[str, ...]:
    if classes is None and not class_names:
        raise UserError("say how many classes there are, or name them with class_names", "classes")
    if class_names and classes not in (None, len(class_names)):
        raise UserError(f"{len(class_names)} names for {classes} classes", "class_names")
    if len(set(class_names)) != len(class_names):
        raise UserError("two classes have the same name", "class_names")
    if class_names and not 2 <= len(class_names) <= IGNORE_CLASS:
        raise UserError(f"expected 2 to {IGNORE_CLASS} names, got {len(class_names)}", "class_names")
    return tuple(class_names) or tuple(f"class {index}" for index in range(classes))


def _class_of_id(classes: int, ignored: frozenset[int]) -> np.ndarray:
    """Return the class of each id from 0: the id itself, `IGNORE_CLASS`, or -1 for an id that is not allowed."""
    table = np.full(max(IGNORE_CLASS, classes, *ignored, 0) + 1, -1, np.int32)
    table[:classes] = np.arange(classes)
    table[[IGNORE_CLASS, *ignored]] = IGNORE_CLASS
    return table


def _pairs(root: Path, images: str, masks: str, endings: tuple[str, ...], pattern: str) -> list[tuple[str, str]]:
    """Return the path below root of each image and its mask, with the images sorted.

    Raises:
        UserError: A folder is missing, or images and masks do not pair up.
    """
    image_of = _by_stem(root / images, endings, pattern)
    mask_of = _by_stem(root / masks, (".png",), pattern)
    _refuse_lonely(image_of, mask_of, "images have no mask", root / masks)
    _refuse_lonely(mask_of, image_of, "masks have no image", root / images)
    return [(images + image_of[stem], masks + mask_of[stem]) for stem in image_of]


def _by_stem(folder: Path, endings: tuple[str, ...], pattern: str) -> dict[str, str]:
    """Return the files below a folder by their path without extension; the name must match the pattern."""
    existing_folder(folder, "root")
    found: dict[str, str] = {}
    for name in list_files(folder, endings):
        stem = os.path.splitext(name)[0]
        if fnmatchcase(os.path.basename(stem), pattern):
            if stem in found:
                raise UserError(f"two files for {stem} in {folder}: {found[stem]}, {name}", "root")
            found[stem] = name
    return found


def _refuse_lonely(ones: Mapping[str, str], others: Mapping[str, str], what: str, where: Path) -> None:
    if lonely := sorted(ones.keys() - others.keys()):
        raise UserError(f"{len(lonely)} of {len(ones)} {what} in {where}, the first: {lonely[0]}", "root")


def _sizes(mask: Sequence[int], image: Sequence[int]) -> str:
    return f"the mask is {mask[0]} x {mask[1]} pixels and its image {image[0]} x {image[1]}"
