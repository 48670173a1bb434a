"""What the data of a run look like: recorded in checkpoints, so that a resumed run does not continue on other data."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from prior3d.contracts.dataset import Dataset
from prior3d.errors import DamagedFile, UserError
from prior3d.probes.probe_data import chosen_frames

_FRAMES = 8
"""Number of frames whose fields are recorded."""

_FIELDS = ("image", "depth", "intrinsics", "world_from_camera")

_TOLERANCE = 2e-3
"""Relative difference of two means that versions of an image library may cause."""


def record_data(dataset: Dataset) -> dict[str, Any]:
    """Return the numbers of frames, and mean values of a few frames, as plain values.

    Names, paths and times of files are left out: they change when data are moved or copied.

    Args:
        dataset: the training data, prepared.
    """
    try:
        counts = [dataset.frame_count(scene) for scene in range(len(dataset.scenes))]
        means = {f"{scene}/{frame}": _means(dataset, scene, frame) for scene, frame in chosen_frames(dataset, _FRAMES)}
    except NotImplementedError:  # it does not give its frames one by one
        return {"samples": len(dataset)}
    return {"frames": counts, "means": {frame: values for frame, values in means.items() if values is not None}}


def check_data(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse data that differ from those a run began with.

    Args:
        before: record of the run's checkpoint.
        now: record of the present data.

    Raises:
        UserError: the numbers of frames differ, or frames do.
    """
    problem = None
    if before.get("frames") != now.get("frames") or before.get("samples") != now.get("samples"):
        problem = f"the run began with {_size(before)}, and these are {_size(now)}"
    elif changed := [frame for frame in before.get("means", {}) if _differ(before["means"], now["means"], frame)]:
        scene, _, frame = changed[0].partition("/")
        count = f"{len(changed)} of {len(before['means'])} compared frames"
        problem = f"{count} differ from those the run began with, the first is frame {frame} of scene {scene}"
    if problem is not None:
        raise UserError(f"a resumed run must keep its data, which may only be moved: {problem}")


def _means(dataset: Dataset, scene: int, frame: int) -> dict[str, float] | None:
    """Return the mean of each field of a frame; None if a file is damaged."""
    fields = frozenset(field for field in _FIELDS if field in dataset.provides)
    try:
        view = dataset.load(scene, frame, fields)
    except DamagedFile:
        return None
    values = {field: np.asarray(view[field], dtype=np.float64) for field in fields if field in view}
    return {field: float(value[np.isfinite(value)].sum() / max(value.size, 1)) for field, value in values.items()}


def _differ(before: Mapping[str, Any], now: Mapping[str, Any], frame: str) -> bool:
    """Return whether a frame has other values; one that is damaged now does not."""
    if frame not in now:
        return False
    ours, theirs = before[frame], now[frame]
    return any(
        not math.isclose(ours[field], theirs[field], rel_tol=_TOLERANCE, abs_tol=1e-6)
        for field in ours.keys() & theirs.keys()
    )


def _size(record: Mapping[str, Any]) -> str:
    if "samples" in record:
        return f"{record['samples']} samples"
    return f"{sum(record['frames'])} frames in {len(record['frames'])} scenes"
