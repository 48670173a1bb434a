"""The check of a recording as a job: whether poses, depth and images agree, stored per scene with one figure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from prior3d.contracts.runner import Progress
from prior3d.contracts.view import View
from prior3d.data.posed.dataset import PosedDataset
from prior3d.data.posed.plausibility import READINGS, PosedDepth, at_resolution, choose_pairs, judge, plot_warped
from prior3d.errors import DamagedFile, UserError

Checking = Literal["refuse", "warn", "off"]
"""Action on scenes whose poses, depth and images contradict each other."""

CHECK_VERSION = 2
"""Version of the check. Raise it when the check changes; scenes are then checked again."""

_VERDICT, _PICTURE = "verdict.json", "warped.png"
_NEEDED = frozenset({"image", "depth", "intrinsics", "world_from_camera"})
_NEAR_M, _FAR_M = 0.1, 100.0  # range of indoor and street depth


@dataclass(frozen=True)
class Checked:
    """Result of the check of one scene.

    Attributes:
        scene: Name of the scene.
        mend: How to fix it; None if nothing contradicts.
        figures: How well the frames agree as given, and under the better reading.
        depth_range: 5th and 95th percentile of the known depth, meters; None without any.
        picture: Neighboring frames warped into each other; None if there was nothing to warp.
        doubts: What else seems misread (intrinsics, depth along the ray, mirrored or unregistered images); it never
            ends a run.
    """

    scene: str
    mend: str | None
    figures: str
    depth_range: tuple[float, float] | None
    picture: Path | None
    doubts: tuple[str, ...] = ()

    @classmethod
    def load(cls, scene: str, folder: Path) -> "Checked":
        """Read the files that `check_scene` wrote."""
        found = json.loads((folder / _VERDICT).read_text(encoding="utf-8"))
        picture = folder / _PICTURE
        depth_range = None if found["depth_range"] is None else tuple(found["depth_range"])
        shown = picture if picture.is_file() else None
        return cls(scene, found["mend"], found["figures"], depth_range, shown, tuple(found["doubts"]))


def check_scene(dataset: PosedDataset, scene: int, folder: Path, progress: Progress) -> Sequence[DamagedFile]:
    """Compare neighboring frames of a scene and write the result.

    Args:
        dataset: Data with the scene.
        scene: Index into its scenes.
        folder: Folder for the verdict and the figure.
        progress: Not used: this takes a second.

    Returns:
        Files that could not be decoded.
    """
    count, damaged = dataset.frame_count(scene), {}
    frames: dict[int, PosedDepth] = {}

    def frame(number: int) -> PosedDepth | None:
        if number not in frames:
            try:
                frames[number] = _small(dataset.load(scene, number, _NEEDED))
            except DamagedFile as damage:
                damaged[damage.path] = damage
        return frames.get(number)

    poses = [dataset.load(scene, n, frozenset({"world_from_camera"}))["world_from_camera"] for n in range(count)]
    typical = _typical_depth(frame(count // 2)) if count else 1.0
    chosen = choose_pairs(np.stack(poses), typical) if count > 1 else []
    pairs = [(frame(first), frame(second)) for first, second in chosen]
    known = [(first, second) for first, second in pairs if first is not None and second is not None]
    verdict = judge(known)
    content = {
        "mend": None if verdict.better is None else READINGS[verdict.better].mend,
        "figures": verdict.figures() if verdict.agreements else "too few frames overlap to be compared",
        "depth_range": verdict.depth_range,
        "doubts": _doubts(known, list(frames.values())) if verdict.better is None and verdict.agreements else [],
    }
    (folder / _VERDICT).write_text(json.dumps(content) + "\n", encoding="utf-8")
    if known:
        plot_warped(known).savefig(folder / _PICTURE, dpi=110)
    return list(damaged.values())


def judge_scenes(checked: Sequence[Checked], checking: Checking) -> None:
    """End the run if most scenes contradict themselves; otherwise the log names the few that do.

    Args:
        checked: Result of the check of each scene.
        checking: Requested action.

    Raises:
        UserError: At least half of the scenes are read wrong.
    """
    wrong = [one for one in checked if one.mend is not None]
    if checking == "refuse" and 2 * len(wrong) >= max(1, len(checked)) and wrong:
        first = wrong[0]
        others = f" (and {len(wrong) - 1} more of {len(checked)} scenes)" if len(wrong) > 1 else ""
        raise UserError(
            f"scene {first.scene}{others} contradicts itself: {first.mend} ({first.figures}; see {first.picture});"
            " if you know better, set check_poses: warn"
        )


def describe_checked(checked: Sequence[Checked]) -> list[str]:
    """Return lines for the log: the range of depth, scenes that contradict themselves, a figure to look at.

    Args:
        checked: Result of the check of each scene.
    """
    ranges = [one.depth_range for one in checked if one.depth_range is not None]
    if not ranges:
        return []
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    lines = [f"depth from {low:.2f} to {high:.2f} m (5-95 % of each scene)"]
    if low > _FAR_M or high < _NEAR_M:
        lines.append("warning: no room and no street is that large or small: check depth_scale")
    for one in checked:
        if one.mend is not None:
            lines.append(f"warning: scene {one.scene}: {one.mend} ({one.figures}; see {one.picture})")
        lines += [f"warning: scene {one.scene}: {doubt}" for doubt in one.doubts]
    shown = next((one for one in checked if one.mend is None and one.picture is not None), None)
    if shown is not None:
        lines.append(f"{shown.scene}: {shown.figures}; neighboring frames warped into each other: {shown.picture}")
    return lines


def facts_of(fingerprint: str) -> Mapping[str, object]:
    """Return the values that the result of a check depends on, given the fingerprint of the scene."""
    return {"version": CHECK_VERSION, "scene": fingerprint}


def _doubts(pairs: Sequence[tuple[PosedDepth, PosedDepth]], frames: Sequence[PosedDepth]) -> list[str]:
    # imported here: these modules import others of this package, which is not complete yet while it is imported
    from prior3d.data.inspecting.checks import not_registered
    from prior3d.data.inspecting.findings import misread
    from prior3d.data.inspecting.readings import FEW

    found = [misread(pairs, FEW), not_registered(frames)]
    seen = [f"{one.mend} ({one.figure})" for one in found if one is not None]
    return [*seen[:-1], f"{seen[-1]}; `prior3d-data inspect` shows more"] if seen else []


def _small(view: View) -> PosedDepth:
    gray, depth, intrinsics = at_resolution(view["image"], view["depth"], view["intrinsics"])
    return PosedDepth(gray, depth, intrinsics, view["world_from_camera"])


def _typical_depth(frame: PosedDepth | None) -> float:
    known = frame.depth[frame.depth > 0] if frame is not None else np.zeros(0)
    return float(np.median(known)) if len(known) else 1.0
