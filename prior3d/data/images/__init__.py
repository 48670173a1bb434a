"""Single images without poses: listed, ordered, decoded."""

from prior3d.data.images.listing import PathTable, list_files
from prior3d.data.images.single_images import (
    IMAGE_ENDINGS,
    SingleImages,
    SplitFolders,
    endings_of,
    existing_folder,
    found_folders,
    split_of,
    splits_of,
)

__all__ = [
    "IMAGE_ENDINGS",
    "PathTable",
    "SingleImages",
    "SplitFolders",
    "endings_of",
    "existing_folder",
    "found_folders",
    "list_files",
    "split_of",
    "splits_of",
]
