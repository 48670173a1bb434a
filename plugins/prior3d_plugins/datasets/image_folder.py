"""Plain images from one folder or several, with optional pseudo-depth."""

import json
import os
from pathlib import Path
from typing import Literal

import numpy as np

from prior3d import DamagedFile, DataSpec, UserError, View
from prior3d.data import image_size, read_16bit, read_array, read_color, same_field_of_view
from prior3d.data.images import (
    IMAGE_ENDINGS,
    SingleImages,
    SplitFolders,
    endings_of,
    existing_folder,
    list_files,
    split_of,
)

PSEUDO_KINDS = ("depth", "disparity")
"""Types of pseudo-depth; the position is the value of the field `pseudo_kind`."""

_PSEUDO_EXTENSIONS = (".png", ".npy")
_ASPECT_OF_NETWORKS = 0.1
"""Allowed difference in aspect between pseudo-depth and image: networks round sizes to multiples of 14 or 32 pixels."""


class ImageFolder(SingleImages):
    """Images in folders, found recursively, each a sample of one view; no poses, and no scenes except the folders.

    Every epoch shows each image once, in an order that depends only on the seed and the epoch. Files and folders
    whose names begin with a dot are ignored. Photographs are rotated upright by their EXIF orientation; pseudo-depth
    must match the rotated photographs.

    Args:
        spec: Settings that every dataset gets.
        root: Folder of images, or several folders.
        extensions: Extensions of image files, upper or lower case.
        folders: Sub-folders of `root` that hold the splits.
        test_fraction: Share of the images held out for the split "test", by a hash of each image's path below `root`:
            an image keeps its split when others are added or removed, or when the whole folder moves.
        validation_fraction: The same for the split "validation".
        pseudo_depth: Folder (one per root) with a 16-bit `.png` or a `.npy` of the same relative name for each image:
            depth or disparity of unknown scale and shift over the same field of view; 0 = unknown.
        pseudo_kind: Whether it is depth or disparity; a file `kind.json` in that folder can set it instead,
            {"kind": "disparity"}.

    Raises:
        UserError: A folder is missing or empty, the splits contradict each other, or the pseudo-depth's kind is not
            given.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        root: Path | list[Path],
        extensions: tuple[str, ...] = IMAGE_ENDINGS,
        folders: SplitFolders | None = None,
        test_fraction: float = 0.0,
        validation_fraction: float = 0.0,
        pseudo_depth: Path | list[Path] | None = None,
        pseudo_kind: Literal["depth", "disparity"] | None = None,
    ) -> None:
        super().__init__(spec)
        self.splits = _splits(folders, test_fraction, validation_fraction)
        if spec.split not in self.splits:
            raise UserError(f"this data has no split {spec.split}: set this share or folders", f"{spec.split}_fraction")
        roots = _existing(_as_list(root), "root")
        self._pseudo_roots = _existing(_as_list(pseudo_depth), "pseudo_depth")
        self._pseudo_kind = self._declared_kind(pseudo_kind, len(roots))
        if self._pseudo_roots:
            self.provides = frozenset({"image", "pseudo_depth"})
        self.scenes = _distinct_names(roots)
        endings = endings_of(extensions)
        shares = test_fraction, validation_fraction
        self.hold(roots, [self._list(root, endings, folders, shares) for root in roots])
        if not len(self):
            where = ", ".join(str(root) for root in roots)
            raise UserError(f"no images ({' '.join(endings)}) for the split {spec.split} in {where}", "root")

    def load(self, scene: int, frame: int, fields: frozenset[str]) -> View:
        """Decode one image; see `Dataset.load`."""
        name = self._paths[scene][frame]
        view = View(scene=scene, frame=frame)
        if "image" in fields:
            view["image"] = read_color(self._roots[scene] / name)
        view.size = view["image"].shape[:2] if "image" in view else image_size(self._roots[scene] / name)
        if fields & {"pseudo_depth", "pseudo_kind"} and self._pseudo_roots:
            view["pseudo_depth"] = _read_pseudo(self._pseudo_roots[scene] / name, view.size)
            view["pseudo_kind"] = self._pseudo_kind
        return view

    def files(self, scene: int, frame: int) -> list[Path]:
        """Return an image and its pseudo-depth."""
        pseudo = [_pseudo_file(self._pseudo_roots[scene] / self._paths[scene][frame])] if self._pseudo_roots else []
        return [self.path(scene, frame), *pseudo]

    def content_options(self) -> dict[str, object]:
        """Return the kind of the pseudo-depth."""
        return {"pseudo_kind": self._pseudo_kind}

    def verify(self) -> None:
        """Check that every image has pseudo-depth."""
        for pseudo_root, paths in zip(self._pseudo_roots, self._paths, strict=False):
            stems = {os.path.splitext(name)[0] for name in list_files(pseudo_root, _PSEUDO_EXTENSIONS)}
            missing = [name for name in paths if os.path.splitext(name)[0] not in stems]
            if missing:
                raise UserError(
                    f"{len(missing)} of {len(paths)} images have no .png or .npy in {pseudo_root}, the first:"
                    f" {missing[0]}",
                    "pseudo_depth",
                )

    def describe(self) -> list[str]:
        """Return the number of images, by folder."""
        counts = [f"{name}: {len(paths)}" for name, paths in zip(self.scenes, self._paths, strict=True)]
        pseudo = f", with pseudo-{PSEUDO_KINDS[self._pseudo_kind]}" if self._pseudo_roots else ""
        return [f"{len(self)} images of the split {self.spec.split}{pseudo} ({', '.join(counts)})"]

    def _list(
        self, root: Path, endings: tuple[str, ...], folders: SplitFolders | None, shares: tuple[float, float]
    ) -> list[str]:
        if folders is not None:
            below = getattr(folders, self.spec.split)
            if not (root / below).is_dir():
                raise UserError(f"no folder {root / below}", f"folders.{self.spec.split}")
            return [f"{below.strip('/')}/{name}" for name in list_files(root / below, endings, self._pseudo_roots)]
        names = list_files(root, endings, self._pseudo_roots)
        if not any(shares):
            return names
        return [name for name in names if split_of(name, *shares) == self.spec.split]

    def _declared_kind(self, declared: str | None, roots: int) -> int | None:
        if not self._pseudo_roots:
            if declared is not None:
                raise UserError("there is no pseudo_depth that it could describe", "pseudo_kind")
            return None
        if len(self._pseudo_roots) != roots:
            raise UserError(
                f"expected one folder for each of the {roots} roots, got {len(self._pseudo_roots)}",
                "pseudo_depth",
            )
        kinds = {declared, *(_kind_in(root) for root in self._pseudo_roots)} - {None}
        if not kinds:
            raise UserError(
                "say whether the pseudo-depth is depth or disparity, here or in its kind.json: neither is an affine"
                " function of the other",
                "pseudo_kind",
            )
        if len(kinds) > 1:
            raise UserError(
                f"pseudo-depth is said to be both {' and '.join(sorted(kinds))} (recipe, kind.json)", "pseudo_kind"
            )
        return PSEUDO_KINDS.index(kinds.pop())


def _as_list(roots: Path | list[Path] | None) -> list[Path]:
    if roots is None:
        return []
    return roots if isinstance(roots, list) else [roots]


def _existing(roots: list[Path], key: str) -> list[Path]:
    return [existing_folder(root, key) for root in roots]


def _distinct_names(roots: list[Path]) -> list[str]:
    names = [root.resolve().name for root in roots]
    return names if len(set(names)) == len(names) else [str(root) for root in roots]


def _splits(folders: SplitFolders | None, test_fraction: float, validation_fraction: float) -> tuple[str, ...]:
    if not (test_fraction >= 0 and validation_fraction >= 0 and test_fraction + validation_fraction < 1):
        raise UserError(
            f"expected shares from 0 that leave something to train on, got {test_fraction} for test and"
            f" {validation_fraction} for validation",
            "test_fraction",
        )
    shares = {"validation": validation_fraction, "test": test_fraction}
    if folders is None:
        return ("train", *(split for split, share in shares.items() if share > 0))
    if any(shares.values()):
        raise UserError("splits come either from sub-folders or from fractions, not from both", "folders")
    return ("train", *(split for split in shares if getattr(folders, split) is not None))


def _kind_in(root: Path) -> str | None:
    """Return the kind that the folder's `kind.json` declares, if the file exists."""
    path = root / "kind.json"
    if not path.is_file():
        return None
    try:
        declared = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}", "pseudo_depth") from error
    kind = declared.get("kind") if isinstance(declared, dict) else None
    if kind not in PSEUDO_KINDS:
        raise UserError(f'expected {{"kind": "depth"}} or {{"kind": "disparity"}} in {path}', "pseudo_depth")
    return kind


def _read_pseudo(image: Path, size: tuple[int, int]) -> np.ndarray:
    """Return the pseudo-depth map [h', w'] float32 of an image name; 0 = unknown.

    Raises:
        DamagedFile: The map cannot be decoded, has another field of view than an image of this size, or is empty.
    """
    file = _pseudo_file(image)
    pseudo = read_array(file) if file.suffix == ".npy" else read_16bit(file).astype(np.float32)
    if not same_field_of_view(size, pseudo.shape, _ASPECT_OF_NETWORKS):
        image_size, map_size = (f"{width} x {height}" for height, width in (size, pseudo.shape))
        raise DamagedFile(file, f"{map_size} pixels cannot show the field of view of an image of {image_size}")
    if not pseudo.any():
        raise DamagedFile(file, "no pixel has a known value")
    return pseudo


def _pseudo_file(image: Path) -> Path:
    array = image.with_suffix(".npy")
    return array if array.exists() else image.with_suffix(".png")
