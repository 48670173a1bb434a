"""Common parts of datasets of single images: their files, and a separate order for every epoch."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from prior3d.contracts.dataset import Dataset, DataSpec, Split, View
from prior3d.data.images.listing import PathTable
from prior3d.errors import DoesNotFit, UserError
from prior3d.files import content_key, fingerprint
from prior3d.randomness import generator

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
"""Default extensions of image files."""

_EPOCHS_KEPT = 2  # at the turn of an epoch, one worker's samples come from two


@dataclass(frozen=True)
class SplitFolders:
    """Sub-folders of `root` that hold the splits, if splits have their own folders.

    Attributes:
        train: Sub-folder of the training images, for example `train`.
        validation: Sub-folder of the validation images, if there are any.
        test: Sub-folder of the test images, if there are any.
    """

    train: str
    validation: str | None = None
    test: str | None = None


class SingleImages(Dataset):
    """Images that are samples of one view each; a scene is a folder, a domain, or the whole set.

    Every epoch shows each image once, in an order that depends only on the seed and the epoch. A subclass calls `hold`
    in its constructor and decodes in `load`.

    Args:
        spec: Settings that every dataset gets.

    Raises:
        UserError: The recipe asks for more than one view per sample.
    """

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        if spec.views > 1:
            raise DoesNotFit(f"single images make samples of 1 view, got {spec.views}", "views")
        self._orders: dict[int, torch.Tensor] = {}
        self._first: np.ndarray | None = None

    def offer(self, splits: tuple[Split, ...]) -> None:
        """Set the splits of this data; raise UserError if the requested one is not among them."""
        self.splits = splits
        if self.spec.split not in splits:
            advice = f"set folders, or {self.spec.split}_fraction where no folders hold the splits"
            if self.spec.split == "train":  # split folders always include one: the fractions removed it
                advice = "lower test_fraction or validation_fraction"
            words = f"this data has no split {self.spec.split}, only {', '.join(splits)}: {advice}"
            raise UserError(words, "root")

    def hold(self, roots: Sequence[Path], names: Sequence[Sequence[str]]) -> None:
        """Set the images of this split: for each scene, a folder and the paths of its images below it."""
        self._roots = list(roots)
        self._paths = [PathTable(paths) for paths in names]
        self._first = np.cumsum([0, *(len(paths) for paths in self._paths)])

    def __len__(self) -> int:
        """Return the number of images of this split."""
        if self._first is None:
            raise RuntimeError(f"{type(self).__name__} holds no images: call `hold` in its constructor")
        return int(self._first[-1])

    def sample(self, index: int, fields: frozenset[str], generator: torch.Generator) -> list[View]:
        """Decode the image of an index; see `Dataset.sample`."""
        epoch, position = divmod(index, len(self))
        number = int(self._order(epoch)[position])
        scene = int(np.searchsorted(self._first, number, side="right")) - 1
        return [self.load(scene, number - int(self._first[scene]), fields)]

    def frame_count(self, scene: int) -> int:
        """Return the number of images of one scene."""
        return len(self._paths[scene])

    def path(self, scene: int, frame: int) -> Path:
        """Return the file of an image, by the `scene` and `frame` of its view."""
        return self._roots[scene] / self._paths[scene][frame]

    def files(self, scene: int, frame: int) -> list[Path]:
        """Return all files that `load` reads for an image; scores are matched to their data by these files."""
        return [self.path(scene, frame)]

    def content_options(self) -> Mapping[str, object]:
        """Return plain values that are not in the files and that the result of `load` depends on."""
        return {}

    def fingerprint(self, frames: Iterable[tuple[int, int]] | None = None) -> str:
        """Return a text that changes when the files of these images do; see `Dataset.fingerprint`."""
        if frames is None:
            frames = ((scene, frame) for scene in range(len(self.scenes)) for frame in range(self.frame_count(scene)))
        files = fingerprint(file for frame in frames for file in self.files(*frame))
        return content_key({"files": files, "options": dict(self.content_options())})

    def _order(self, epoch: int) -> torch.Tensor:
        if epoch not in self._orders:
            while len(self._orders) >= _EPOCHS_KEPT:
                self._orders.pop(next(iter(self._orders)))
            stream = generator("image_folder", self.spec.seed, epoch)
            self._orders[epoch] = torch.randperm(len(self), generator=stream)
        return self._orders[epoch]


def split_of(name: str, test_fraction: float, validation_fraction: float) -> str:
    """Return the split of an image, from a hash of its path below the root.

    Args:
        name: Path below the root.
        test_fraction: Share of the images in "test".
        validation_fraction: Share of the images in "validation".
    """
    digest = hashlib.blake2b(os.fsencode(name), digest_size=8).digest()
    position = int.from_bytes(digest, "little") / 2**64
    if position < test_fraction:
        return "test"
    return "validation" if position < test_fraction + validation_fraction else "train"


def found_folders(root: Path) -> SplitFolders | None:
    """Return the split folders with the usual names (train, val or validation, test) in a root; None without train."""
    found = {name: name for name in ("train", "val", "validation", "test") if (root / name).is_dir()}
    if "train" not in found:
        return None
    return SplitFolders("train", found.get("val", found.get("validation")), found.get("test"))


def splits_of(folders: SplitFolders | None, test_fraction: float, validation_fraction: float) -> tuple[Split, ...]:
    """Return the splits that folders or fractions make; if all images are in one split, return only that one.

    Raises:
        UserError: Folders and fractions contradict each other, or the fractions are invalid.
    """
    if not (test_fraction >= 0 and validation_fraction >= 0 and test_fraction + validation_fraction <= 1):
        raise UserError(
            f"expected shares from 0 to 1 in all, got {test_fraction} for test and {validation_fraction} for"
            " validation",
            "test_fraction",
        )
    shares = {
        "train": 1 - test_fraction - validation_fraction,
        "validation": validation_fraction,
        "test": test_fraction,
    }
    if folders is None:
        return tuple(split for split, share in shares.items() if share > 1e-9)
    if test_fraction or validation_fraction:
        raise UserError("splits come either from sub-folders or from fractions, not from both", "test_fraction")
    return tuple(split for split in shares if getattr(folders, split) is not None)


def existing_folder(path: Path, key: str) -> Path:
    """Return a folder, `~` expanded; raise UserError if it does not exist."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(f"no folder {folder}", key)
    return folder


def endings_of(extensions: Sequence[str]) -> tuple[str, ...]:
    """Return file extensions in lower case and with their dot, as `list_files` takes them."""
    return tuple(f".{extension.lower().lstrip('.')}" for extension in extensions)
