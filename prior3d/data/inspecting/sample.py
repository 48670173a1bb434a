"""A sample of a scene's frames, small enough that checks of all kinds take seconds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from prior3d.contracts.runner import Progress, silent
from prior3d.data.posed.dataset import PosedDataset
from prior3d.data.posed.plausibility import PosedDepth, at_resolution
from prior3d.data.spacing import evenly_chosen
from prior3d.errors import DamagedFile

NEEDED = frozenset({"image", "depth", "intrinsics", "world_from_camera"})
"""Fields that the checks compare."""

_WINDOWS = 4


@dataclass(frozen=True)
class SceneSample:
    """Frames of one scene in windows of consecutive ones, and the poses of all.

    Attributes:
        name: Name of the scene.
        frames: Dict from the number of a frame to the frame, in order.
        poses: Poses [F, 4, 4] float64 of ALL frames, meters.
        size: Height and width of the images, pixels.
        depth_size: Height and width of the depth maps, pixels.
        damaged: Files that could not be decoded.
    """

    name: str
    frames: Mapping[int, PosedDepth]
    poses: np.ndarray
    size: tuple[int, int]
    depth_size: tuple[int, int]
    damaged: Sequence[DamagedFile] = ()

    @property
    def neighbors(self) -> list[tuple[int, int]]:
        """Numbers of consecutive frames that are both in the sample."""
        return [(number, number + 1) for number in self.frames if number + 1 in self.frames]

    @property
    def typical_depth(self) -> float:
        """Median of the known depth, meters; 1 if none is known."""
        known = self.known_depth()
        return float(np.median(known)) if len(known) else 1.0

    def known_depth(self) -> np.ndarray:
        """Return every 7th known depth [N], meters."""
        return np.concatenate([np.zeros(0), *(frame.depth[frame.depth > 0][::7] for frame in self.frames.values())])

    def equal_poses(self) -> list[tuple[int, int]]:
        """Return the first and last frame of every run of at least 3 equal poses."""
        if len(self.poses) < 3:
            return []
        moves = np.abs(np.diff(self.poses, axis=0)).max(axis=(1, 2)) > 1e-9
        ends = [-1, *np.flatnonzero(moves).tolist(), len(self.poses) - 1]
        return [(before + 1, last) for before, last in pairwise(ends) if last - before >= 3]

    def with_poses(self, poses: np.ndarray) -> "SceneSample":
        """Return the sample with other poses [F, 4, 4]."""
        frames = {n: replace(frame, world_from_camera=poses[n]) for n, frame in self.frames.items()}
        return replace(self, frames=frames, poses=poses)


def take_sample(dataset: PosedDataset, scene: int, most: int = 48, progress: Progress = silent) -> SceneSample:
    """Decode a sample of a scene: all of a short scene, else evenly spaced windows of consecutive frames.

    Args:
        dataset: Data with the scene.
        scene: Index into its scenes.
        most: Largest number of frames to decode.
        progress: Shows progress.
    """
    count, name = dataset.frame_count(scene), dataset.scenes[scene]
    pose = frozenset({"world_from_camera"})
    poses = np.array([dataset.load(scene, n, pose)["world_from_camera"] for n in range(count)]).reshape(-1, 4, 4)
    frames, damaged, sizes = {}, [], ((0, 0), (0, 0))
    numbers = chosen_numbers(count, most)
    for number in progress(numbers, f"{name}: reading frames", len(numbers)):
        try:
            view = dataset.load(scene, number, NEEDED)
        except DamagedFile as damage:
            damaged.append(damage)
            continue
        gray, depth, intrinsics = at_resolution(view["image"], view["depth"], view["intrinsics"])
        frames[number] = PosedDepth(gray, depth, intrinsics, view["world_from_camera"])
        sizes = view["image"].shape[:2], view["depth"].shape
    return SceneSample(name, frames, poses, *sizes, damaged)


def chosen_numbers(count: int, most: int) -> list[int]:
    """Return the numbers of up to `most` frames: all, or windows of consecutive ones that are evenly spaced.

    >>> chosen_numbers(100, 8)
    [0, 1, 33, 34, 65, 66, 98, 99]
    """
    if count <= most:
        return list(range(count))
    long = most // _WINDOWS
    starts = evenly_chosen(count - long + 1, _WINDOWS)
    return sorted({start + step for start in starts for step in range(long)})
