"""ScanNet's sets of classes: its own categories, the 40 classes of NYUv2, and the 20 of its benchmark."""

import csv
from pathlib import Path
from typing import Literal

import numpy as np

from prior3d import IGNORE_CLASS, UserError

LabelSet = Literal["raw", "nyu40", "scannet20"]
"""Classes of labels: ScanNet's categories by their ids, NYU40 as 0 to 39, or the benchmark's 20 as 0 to 19."""

TABLE_NAME = "scannetv2-labels.combined.tsv"

NO_CLASS = -1
"""Entry of a look-up table for an id that does not exist; `IGNORE_CLASS` is for ids without a class."""

NYU40 = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter",
    "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat", "clothes", "ceiling", "books",
    "refrigerator", "television", "paper", "towel", "shower curtain", "box", "whiteboard", "person", "night stand",
    "toilet", "sink", "lamp", "bathtub", "bag", "other structure", "other furniture", "other prop",
)  # fmt: skip
"""Names of the ids 1 to 40 of NYUv2's set of 40 classes."""

SCANNET20 = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 24, 28, 33, 34, 36, 39)
"""NYU40 ids of the benchmark's classes, in its order."""

_LARGEST_ID = 65535


def names_of(labels: LabelSet) -> tuple[str, ...]:
    """Return the names of the classes of a set, by class id; empty for ScanNet's own categories.

    >>> len(names_of("nyu40")), names_of("scannet20")[-3:]
    (40, ('sink', 'bathtub', 'other furniture'))
    """
    return {"raw": (), "nyu40": NYU40, "scannet20": tuple(NYU40[one - 1] for one in SCANNET20)}[labels]


def classes_of_nyu40(labels: LabelSet) -> np.ndarray:
    """Return the class [41] int16 of each NYU40 id, 0 to 40; `IGNORE_CLASS` where it has none.

    >>> classes_of_nyu40("scannet20")[[0, 1, 13, 14, 39, 40]].tolist()
    [255, 0, 255, 12, 19, 255]
    """
    classes = np.full(len(NYU40) + 1, IGNORE_CLASS, np.int16)
    ids = SCANNET20 if labels == "scannet20" else range(1, len(NYU40) + 1)
    classes[list(ids)] = range(len(ids))
    return classes


def read_label_table(path: Path) -> np.ndarray:
    """Return the NYU40 id [n] int16 of each of ScanNet's category ids; 0 where it has none, `NO_CLASS` for no such id.

    Args:
        path: ScanNet's table `scannetv2-labels.combined.tsv`.

    Raises:
        UserError: it cannot be read or is another table; the key is `label_table`.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            nyu40 = {int(row["id"]): int(row["nyu40id"] or 0) for row in rows}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or type(error).__name__}", "label_table") from error
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        message = f"expected a table with whole numbers in the columns id and nyu40id in {path}"
        raise UserError(message, "label_table") from error
    if not nyu40 or min(nyu40) < 0 or max(nyu40) > _LARGEST_ID or not set(nyu40.values()) <= set(range(len(NYU40) + 1)):
        raise UserError(f"expected ids of 16 bits and NYU40 ids from 0 to {len(NYU40)} in {path}", "label_table")
    table = np.full(max(nyu40) + 1, NO_CLASS, np.int16)
    table[list(nyu40)] = list(nyu40.values())
    table[0] = 0  # not labeled
    return table
