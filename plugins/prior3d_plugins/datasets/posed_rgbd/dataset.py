"""The dataset of scenes recorded by an RGB-D sensor: colour, 16-bit depth and pose files."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np

from prior3d.contracts.dataset import DataSpec, View
from prior3d.contracts.fields import FIELDS, UNKNOWN_DEPTH
from prior3d.data.decoding import read_16bit, read_color
from prior3d.data.posed.cameras import Calibration
from prior3d.data.posed.dataset import DEFAULT_PAIRS, DEFAULT_SURFACE, PosedDataset
from prior3d.data.posed.pairs import PairOptions
from prior3d.data.posed.surface import SurfaceOptions
from prior3d.errors import DamagedFile, UserError
from prior3d_plugins.datasets.posed_rgbd.layouts import FrameFiles, SceneFolder, find_scenes, names_scene
from prior3d_plugins.datasets.posed_rgbd.scene import CameraOptions, FocalAndCenter, OpenScene, open_scene


class PosedRGBD(PosedDataset):
    """Scenes in folders of colour, 16-bit depth and pose files.

    A scene is a folder in one of two layouts, and its name is its path below `root`:

    - `frames` (7-Scenes, 3DMatch): `frame-000000.color.png` or `.jpg`, `.depth.png`, `.pose.txt`, with
      `camera-intrinsics.txt` in the folder or above it;
    - `scannet` (ScanNet's exporter): `color/0.jpg`, `depth/0.png`, `pose/0.txt`, `intrinsic/intrinsic_depth.txt` and
      `intrinsic_color.txt`. The two cameras have one centre there; depth is looked up along the colour camera's rays.

    Poses are 4x4 camera-to-world matrices of the DEPTH camera in metres, OpenCV axes; frames whose pose is not finite
    or not rigid are left out and counted. Views carry the pose and intrinsics of the colour camera, and depth
    registered to it at the depth maps' own resolution.

    Scenes are named by patterns throughout: `kitchen-*`, a name, or a folder of sequences (`chess` for `chess/seq-01`).

    Args:
        spec: what every dataset is told.
        root: folder of scenes, or one scene.
        scenes: which to train on; empty = all that are not kept for validation or test.
        validation_scenes: scenes of the split "validation".
        test_scenes: scenes of the split "test".
        layout: how files are named; "auto" looks.
        intrinsics: fx, fy, cx, cy in pixels of the depth maps, or a file with them or a matrix, for scenes that have no
            file of their own.
        pixel_centers: whether the principal points given here and in files count the centre of the first pixel as 0
            ("integer", as the sensors' own files do) or as 0.5 ("half").
        depth_scale: units of the depth files per metre.
        invalid_depth: values of the depth files that mean: not measured.
        min_depth: metres; nearer depth is dropped.
        max_depth: metres; depth beyond is dropped.
        frame_step: use every n-th frame.
        max_frames: use at most this many frames of a scene, the first ones.
        depth_to_color: the colour camera of scenes whose depth is not registered to it, by pattern; the first pattern
            that fits counts, and scenes that fit none are registered. Depth is re-projected, see `CameraPair`.
        pairs: which two views of a scene make a pair.
        surface: how a scene's surface is fused from its frames, for priors that read it.

    Raises:
        UserError: if the folder or what an option names is missing, or options contradict each other.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        root: Path,
        scenes: tuple[str, ...] = (),
        validation_scenes: tuple[str, ...] = (),
        test_scenes: tuple[str, ...] = (),
        layout: Literal["auto", "frames", "scannet"] = "auto",
        intrinsics: FocalAndCenter | Path | None = None,
        pixel_centers: Literal["integer", "half"] = "integer",
        depth_scale: float = 1000.0,
        invalid_depth: tuple[int, ...] = (0, 65535),
        min_depth: float = 0.0,
        max_depth: float | None = None,
        frame_step: int = 1,
        max_frames: int | None = None,
        depth_to_color: dict[str, Calibration] | None = None,
        pairs: PairOptions = DEFAULT_PAIRS,
        surface: SurfaceOptions = DEFAULT_SURFACE,
    ) -> None:
        super().__init__(spec, pairs, surface)
        self._cameras = CameraOptions(Path(root).expanduser(), intrinsics, pixel_centers)
        self._depth_m = _depth_table(depth_scale, invalid_depth, min_depth, max_depth)
        self._step, self._most = _at_least_one(frame_step, "frame_step"), _at_least_one(max_frames, "max_frames")
        self._calibrations = depth_to_color or {}
        folders = find_scenes(self._cameras.root, layout)
        for pattern in self._calibrations:
            _matching(folders, (pattern,), "data.depth_to_color")
        kept_apart = {
            "validation": _matching(folders, validation_scenes, "data.validation_scenes"),
            "test": _matching(folders, test_scenes, "data.test_scenes"),
        }
        self.splits = ("train", *(split for split, names in kept_apart.items() if names))
        self._folders = _of_split(folders, scenes, kept_apart, spec.split)
        self.scenes = [folder.name for folder in self._folders]
        self._open: dict[int, OpenScene] = {}

    def frame_count(self, scene: int) -> int:
        """Return the number of usable frames of a scene."""
        return len(self.scene(scene).frames)

    def load(self, scene: int, frame: int, fields: frozenset[str]) -> View:
        """Decode one frame; see `PosedDataset.load`."""
        opened = self.scene(scene)
        files, wanted = opened.frames[frame], FIELDS.declared(fields)
        view = View(scene=scene, frame=frame, size=opened.image_size)
        if "image" in wanted:
            view["image"] = _of_size(read_color(files.color), opened.image_size, files.color)
        if "depth" in wanted:
            codes = _of_size(read_16bit(files.depth), opened.depth_size, files.depth)
            view["depth"] = opened.cameras.register(self._depth_m[codes])
        if "intrinsics" in wanted:
            view["intrinsics"] = opened.image_intrinsics.copy()
        if "world_from_camera" in wanted:
            view["world_from_camera"] = opened.world_from_color[frame].copy()
        return view

    def scene_fingerprint(self, scene: int) -> str:
        """Return a text that changes with the scene's files (names, sizes, times), poses, cameras or depth options."""
        opened = self.scene(scene)
        digest = hashlib.sha256(self._depth_m.tobytes() + opened.world_from_color.tobytes())
        for camera in asdict(opened.cameras).values():
            digest.update(camera.tobytes())
        for file in (file for frame in opened.frames for file in (frame.color, frame.depth)):
            status = file.stat()
            digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns};".encode())
        return json.dumps(["posed_rgbd", self.scenes[scene], opened.image_size, digest.hexdigest()])

    def scene(self, scene: int) -> OpenScene:
        """Return a scene's frames, poses and cameras, read when first asked for.

        Args:
            scene: index into `scenes`.

        Raises:
            UserError: if files of the scene are unmatched or it has no intrinsics.
        """
        if scene not in self._open:
            folder = self._folders[scene]
            fitting = [
                calibration for pattern, calibration in self._calibrations.items() if names_scene(pattern, folder.name)
            ]
            calibration = fitting[0] if fitting else None
            self._open[scene] = open_scene(folder, self._cameras, calibration, self._chosen)
        return self._open[scene]

    def verify(self) -> None:
        """Check that every scene's files match and that it has intrinsics and some usable pose."""
        counts = [self.frame_count(scene) for scene in range(len(self.scenes))]
        if not any(counts):
            dropped = sum((self.scene(scene).dropped for scene in range(len(self.scenes))), Counter())
            raise UserError(f"no frame has a usable pose ({_counted(dropped)})", "data.root")

    def describe(self) -> list[str]:
        """Return lines for the log: scenes, frames, pairs, and what was left out or goes unused."""
        lines = super().describe()
        opened = [self.scene(scene) for scene in range(len(self.scenes))]
        for name, scene in zip(self.scenes, opened, strict=True):
            if scene.dropped:
                lines.append(f"{name}: {scene.dropped.total()} frames left out, poses {_counted(scene.dropped)}")
        if self._cameras.intrinsics is not None and all(scene.own_intrinsics for scene in opened):
            lines.append("data.intrinsics goes unused: every scene has a file of its own")
        return lines

    def _chosen(self, frames: Sequence[FrameFiles]) -> Sequence[FrameFiles]:
        return frames[:: self._step][: self._most]


def _depth_table(scale: float, invalid: tuple[int, ...], nearest: float, farthest: float | None) -> np.ndarray:
    """Return metres (float32, 0 = unknown) for each of the 65536 values of a depth file."""
    if not scale > 0:
        raise UserError(f"expected units per metre above 0, got {scale}", "data.depth_scale")
    if not 0 <= nearest < (np.inf if farthest is None else farthest):
        raise UserError(f"expected 0 <= min_depth < max_depth, got {nearest} and {farthest}", "data.min_depth")
    if not all(0 <= value <= 65535 for value in invalid):
        raise UserError(f"expected values of 16 bits, 0 to 65535, got {list(invalid)}", "data.invalid_depth")
    metres = (np.arange(65536) / scale).astype(np.float32)
    metres[list(invalid)] = UNKNOWN_DEPTH
    metres[metres < nearest] = UNKNOWN_DEPTH
    if farthest is not None:
        metres[metres > farthest] = UNKNOWN_DEPTH
    return metres


def _at_least_one(number: int | None, option: str) -> int | None:
    if number is not None and number < 1:
        raise UserError(f"expected at least 1, got {number}", f"data.{option}")
    return number


def _matching(folders: list[SceneFolder], patterns: tuple[str, ...], key: str) -> set[str]:
    """Return the names of the scenes that patterns mean; a pattern that means none is an error."""
    matching: set[str] = set()
    for pattern in patterns:
        names = {folder.name for folder in folders if names_scene(pattern, folder.name)}
        if not names:
            known = ", ".join(folder.name for folder in folders[:10]) + (", ..." if len(folders) > 10 else "")
            raise UserError(f"no scene {pattern}; there are {known}", key)
        matching |= names
    return matching


def _of_split(
    folders: list[SceneFolder], scenes: tuple[str, ...], kept_apart: dict[str, set[str]], split: str
) -> list[SceneFolder]:
    """Return the scenes of a split, in order of their names."""
    both = sorted(kept_apart["validation"] & kept_apart["test"])
    if both:
        raise UserError(f"scene {both[0]} is both for validation and for test", "data.test_scenes")
    if split != "train":
        if not kept_apart[split]:
            raise UserError(f"this data has no split {split}: name scenes for it", f"data.{split}_scenes")
        return [folder for folder in folders if folder.name in kept_apart[split]]
    wanted = _matching(folders, scenes, "data.scenes") or {folder.name for folder in folders}
    wanted -= kept_apart["validation"] | kept_apart["test"]
    if not wanted:
        raise UserError("every scene is kept for validation or test: none is left to train on", "data.scenes")
    return [folder for folder in folders if folder.name in wanted]


def _of_size(pixels: np.ndarray, size: tuple[int, int], path: Path) -> np.ndarray:
    """Return the pixels, if they have the size of the scene's other images."""
    if pixels.shape[:2] != size:
        got, expected = ("x".join(map(str, reversed(shape))) for shape in (pixels.shape[:2], size))
        raise DamagedFile(path, f"{got} pixels, where the scene's images have {expected}")
    return pixels


def _counted(problems: Counter[str]) -> str:
    return ", ".join(f"{problem}: {count}" for problem, count in sorted(problems.items()))
