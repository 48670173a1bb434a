"""Check a decoded view against the table of fields: `check_view`, on which the dataset checks build."""

from collections.abc import Callable, Sequence

import numpy as np

from prior3d.contracts.fields import FIELDS, IGNORE_BOX, IGNORE_CLASS, SURFACE_FIELDS, Field, FieldTable
from prior3d.contracts.view import View
from prior3d.data.decoding import same_field_of_view

_FARTHEST_M = 500.0
"""A median depth beyond this many meters is in another unit."""

_SAME_ASPECT = 0.1
"""Maximum deviation of a map's aspect from the image's: networks round sizes to multiples of 14 or 32 pixels."""

_RIGID = 1e-3
"""Maximum deviation from the identity of a rotation times its transpose."""

_KINDS = {"f": "floating point", "i": "whole numbers", "u": "whole numbers", "b": "truth values"}


def check_view(view: View, fields: frozenset[str], table: FieldTable = FIELDS, class_names: Sequence[str] = ()) -> None:
    """Assert that a view holds the requested fields and no others, as described in the table.

    It checks shapes and types of numbers; that numbers are finite; that maps cover the image's field of view; that the
    values are plausible in the units of the table: depth is not negative and not in millimeters, rotations are
    rotations, focal lengths are in pixels, normals have length 1, ids are ids of classes and objects, boxes lie in the
    image.

    >>> depth = np.full((6, 8), 1.5, np.float32)
    >>> check_view(View({"depth": depth}, size=(12, 16)), frozenset({"depth"}))
    >>> check_view(View({"depth": 1000 * depth}, size=(12, 16)), frozenset({"depth"}))
    Traceback (most recent call last):
    AssertionError: depth of scene 0, frame 0: half of it is beyond 1500 m: is it in meters?

    Args:
        view: view from `Dataset.load` or `Reader.read`.
        fields: requested fields, a subset of the provided ones.
        table: all known fields.
        class_names: names of the classes, if the data has some.

    Raises:
        AssertionError: describes the error, with its scene and frame.
    """
    place = f"scene {view.scene}, frame {view.frame}"
    held = {name for name in view.values if name in view}
    expected = fields - SURFACE_FIELDS
    missing = sorted(expected - held)
    assert not missing, f"{place}: {', '.join(missing)} asked for and not there"
    comes_with = {name for name in held if name in table and table[name].made_from in expected}
    extra = sorted(held - expected - comes_with)
    assert not extra, f"{place}: {', '.join(extra)} decoded and not asked for"
    _check_size(view, place)
    for name in sorted(held):
        assert name in table, f"{place}: holds {name}, which is not a field"
        _check_numbers(table[name], view[name], f"{name} of {place}")
        _check_extent(table[name], view, f"{name} of {place}")
    for name in sorted(held & _PLAUSIBLE.keys()):
        _PLAUSIBLE[name](view, class_names, f"{name} of {place}")


def _check_size(view: View, place: str) -> None:
    if "image" in view:
        shape = tuple(np.shape(view["image"])[:2])
        assert view.size is None or tuple(view.size) == shape, f"{place}: size is {view.size}, the image's {shape}"
    else:
        assert view.size is not None, f"{place}: size is not set, and no image says it: crops would be unknown"
        assert len(view.size) == 2 and min(view.size) > 0, f"{place}: size is {view.size}, should be height and width"


def _check_numbers(field: Field, value: object, where: str) -> None:
    """Check that a value's numbers have the right type, are finite and fit the type that stores them."""
    numbers = np.asarray(value)
    if field.moves == "resample":
        assert numbers.dtype == field.dtype, f"{where}: {numbers.dtype}, should be {field.dtype}"
    kind = np.dtype(field.dtype).kind
    alike = {"f": "f", "i": "iu", "u": "iu", "b": "b"}[kind]
    assert numbers.dtype.kind in alike, f"{where}: {numbers.dtype}, should be {_KINDS[kind]} ({field.dtype} in batches)"
    assert np.isfinite(numbers).all(), f"{where}: holds numbers that are not finite"
    if kind in "iu" and numbers.size:
        kept = np.iinfo(field.kept_as or field.dtype)
        low, high = int(numbers.min()), int(numbers.max())
        assert kept.min <= low and high <= kept.max, f"{where}: holds {low} to {high}, {kept.dtype} holds less"


def _check_extent(field: Field, view: View, where: str) -> None:
    """Check a value's shape, and for maps also that they have the image's aspect."""
    shape = np.shape(view[field.name])
    axes = field.axes[1:] if field.axes[1:2] != ("V",) else field.axes[2:]
    if field.is_map:
        axes = (*axes[-2:], *axes[:-2])
    axes = ("N", *axes) if field.batches == "pack" else axes
    fits = len(shape) == len(axes) and all(
        not axis.isdigit() or int(axis) == n for axis, n in zip(axes, shape, strict=True)
    )
    assert fits, f"{where}: {list(shape)}, should be [{', '.join(axes).lower()}]"
    if field.rows_of in view:
        rows = len(view[field.rows_of])
        assert shape[0] == rows, f"{where}: {shape[0]} rows, {field.rows_of} has {rows}"
    if field.is_map:
        height, width = view["image"].shape[:2] if "image" in view else view.size
        alike = same_field_of_view((height, width), shape[:2], _SAME_ASPECT)
        assert alike, f"{where}: {shape[0]} x {shape[1]}, another aspect than the image's {height} x {width}"


def _depth(view: View, class_names: Sequence[str], where: str) -> None:
    depth = view["depth"]
    assert depth.min() >= 0, f"{where}: holds {depth.min():g}, unknown depth is 0 and no other is below it"
    known = depth[depth > 0]
    middle = float(np.median(known)) if known.size else 0.0
    assert middle < _FARTHEST_M, f"{where}: half of it is beyond {middle:.0f} m: is it in meters?"


def _pseudo_depth(view: View, class_names: Sequence[str], where: str) -> None:
    lowest = view["pseudo_depth"].min()
    assert lowest >= 0, f"{where}: holds {lowest:g}, unknown is 0 and nothing is below it"
    assert "pseudo_kind" in view, f"{where}: comes without pseudo_kind, 0 for depth or 1 for disparity"
    assert int(view["pseudo_kind"]) in (0, 1), f"{where}: pseudo_kind is {view['pseudo_kind']}, should be 0 or 1"


def _intrinsics(view: View, class_names: Sequence[str], where: str) -> None:
    matrix = np.asarray(view["intrinsics"])
    height, width = view["image"].shape[:2] if "image" in view else view.size
    assert matrix[2].tolist() == [0, 0, 1] and matrix[1, 0] == 0, f"{where}: no pinhole matrix: {matrix.tolist()}"
    focal, center = matrix[[0, 1], [0, 1]], matrix[:2, 2]
    longest = max(height, width)
    in_pixels = (focal > 0.1 * longest).all() and (focal < 50 * longest).all()
    assert in_pixels, f"{where}: focal lengths {focal.tolist()} of an image {height} x {width}: are they in its pixels?"
    inside = (center > 0).all() and (center < (width, height)).all()
    assert inside, f"{where}: principal point {center.tolist()} outside the image {height} x {width}"


def _pose(view: View, class_names: Sequence[str], where: str) -> None:
    pose = np.asarray(view["world_from_camera"])
    assert pose[3].tolist() == [0, 0, 0, 1], f"{where}: last row {pose[3].tolist()}, should be 0, 0, 0, 1"
    rotation = pose[:3, :3]
    wrong = float(np.abs(rotation @ rotation.T - np.eye(3)).max())
    assert wrong < _RIGID, f"{where}: not rigid: its rotation times its transpose is off the identity by {wrong:.2g}"
    assert np.linalg.det(rotation) > 0, f"{where}: mirrors the world: its determinant is negative"


def _semantic(view: View, class_names: Sequence[str], where: str) -> None:
    _check_classes(np.asarray(view["semantic"]), class_names, IGNORE_CLASS, where)


def _label(view: View, class_names: Sequence[str], where: str) -> None:
    _check_classes(np.asarray(view["label"]), class_names, None, where)


def _box_labels(view: View, class_names: Sequence[str], where: str) -> None:
    _check_classes(np.asarray(view["box_labels"]), class_names, IGNORE_BOX, where)


def _check_classes(ids: np.ndarray, class_names: Sequence[str], ignored: int | None, where: str) -> None:
    counted = ids[ids != ignored] if ignored is not None else ids
    assert (counted >= 0).all(), f"{where}: holds the id {counted.min()}"
    if class_names and counted.size:
        most = int(counted.max())
        assert most < len(class_names), f"{where}: holds the id {most}, and there are {len(class_names)} classes"


def _instances(view: View, class_names: Sequence[str], where: str) -> None:
    assert np.min(view["instances"]) >= 0, f"{where}: holds an id below 0, which means none"


def _normals(view: View, class_names: Sequence[str], where: str) -> None:
    length = np.linalg.norm(view["normals"], axis=-1)
    unit = (length == 0) | (np.abs(length - 1) < 1e-2)
    assert unit.all(), f"{where}: of length {length[~unit][0]:.3g}, should be 1, or 0 where unknown"
    facing = (view["normals"][..., 2] <= 0)[length > 0]
    assert not facing.size or facing.mean() > 0.5, f"{where}: most point away from the camera (z forward)"


def _boxes(view: View, class_names: Sequence[str], where: str) -> None:
    height, width = view["image"].shape[:2] if "image" in view else view.size
    boxes = np.asarray(view["boxes"])
    ordered = (boxes[:, :2] < boxes[:, 2:]).all(1)
    assert ordered.all(), f"{where}: {boxes[~ordered][:1].tolist()} has no area: left, top, right, bottom?"
    inside = (boxes >= -1).all(1) & (boxes <= (width + 1, height + 1, width + 1, height + 1)).all(1)
    assert inside.all(), f"{where}: {boxes[~inside][:1].tolist()} is outside the image {height} x {width}"
    largest = boxes.max() if boxes.size else np.inf
    assert largest > 1 or min(height, width) == 1, f"{where}: within 0 to 1: they are in pixels"


def _box_instances(view: View, class_names: Sequence[str], where: str) -> None:
    ids = np.asarray(view["box_instances"])
    assert (ids >= 0).all(), f"{where}: holds an id below 0, which means none"
    if "instances" in view:
        unknown = sorted(set(ids[ids > 0].tolist()) - set(np.unique(view["instances"]).tolist()))
        assert not unknown, f"{where}: the object {unknown[0]} has no pixel in instances"


_PLAUSIBLE: dict[str, Callable[[View, Sequence[str], str], None]] = {
    "depth": _depth,
    "pseudo_depth": _pseudo_depth,
    "intrinsics": _intrinsics,
    "world_from_camera": _pose,
    "semantic": _semantic,
    "label": _label,
    "instances": _instances,
    "normals": _normals,
    "boxes": _boxes,
    "box_labels": _box_labels,
    "box_instances": _box_instances,
}
