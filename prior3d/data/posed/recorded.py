"""Posed datasets from readers: scenes by pattern, frames thinned, depth limited and moved to the color camera."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from prior3d.contracts.dataset import DataSpec, table_of
from prior3d.contracts.fields import UNKNOWN_DEPTH
from prior3d.contracts.reader import Camera, Cloud, Frame, Reader, Recording
from prior3d.contracts.runner import SceneJob
from prior3d.contracts.view import View
from prior3d.data.posed.cameras import Calibration, camera_problem, scaled
from prior3d.data.posed.checking import Checked, Checking, check_scene, describe_checked, facts_of, judge_scenes
from prior3d.data.posed.dataset import DEFAULT_PAIRS, DEFAULT_SURFACE, PosedDataset
from prior3d.data.posed.lenses import LENS_VERSION, Lens, lens_problem, undistorted, undistorted_camera
from prior3d.data.posed.pairs import PairOptions, PairTable, pairs_of_tracks
from prior3d.data.posed.registration import CameraPair
from prior3d.data.posed.selection import SceneNames, matching_scenes, names_scene, scenes_of_split
from prior3d.data.posed.surface import SurfaceOptions
from prior3d.errors import UserError, section
from prior3d.jobs import damage_in, do_job

_NAMED = 5
"""Number of unusable frames that the log names."""

_FAR_FROM_ORIGIN_M = 1000.0
"""Distance beyond which the world's origin is moved to the scene."""


@dataclass(frozen=True)
class Choice:
    """Which part of the recordings to use, for any format.

    Attributes:
        scenes: Patterns of the scenes to train on, or a file with one name a line; empty for all scenes that are not
            held out for validation or test.
        validation_scenes: Patterns or a file of the scenes of the split "validation".
        test_scenes: Patterns or a file of the scenes of the split "test".
        min_depth: Smallest depth to keep, meters; nearer depth is dropped.
        max_depth: Largest depth to keep, meters; farther depth is dropped.
        frame_step: Use every n-th frame.
        max_frames: Use at most this many frames of a scene, the first ones.
        depth_to_color: Color camera of scenes whose depth is not registered to it, by pattern; the first matching
            pattern counts.
        check_poses: Action if neighboring frames show that poses, depth and images contradict each other. "refuse" ends
            the run if at least half of the scenes are affected, and warns if fewer are; "warn" only warns; "off" skips
            the check.
    """

    scenes: SceneNames = ()
    validation_scenes: SceneNames = ()
    test_scenes: SceneNames = ()
    min_depth: float = 0.0
    max_depth: float | None = None
    frame_step: int = 1
    max_frames: int | None = None
    depth_to_color: Mapping[str, Calibration] | None = None
    check_poses: Checking = "refuse"

    def __post_init__(self) -> None:
        if not 0 <= self.min_depth < (np.inf if self.max_depth is None else self.max_depth):
            given = f"{self.min_depth} and {self.max_depth}"
            raise UserError(f"expected 0 <= min_depth < max_depth, got {given}", "min_depth")
        for option in ("frame_step", "max_frames"):
            number = getattr(self, option)
            if number is not None and number < 1:
                raise UserError(f"expected at least 1, got {number}", option)

    def within_limits(self, depth: np.ndarray) -> np.ndarray:
        """Return depth [h, w] in meters with values outside the limits set to unknown."""
        if self.min_depth > 0:
            depth = np.where(depth < self.min_depth, np.float32(UNKNOWN_DEPTH), depth)
        if self.max_depth is not None:
            depth = np.where(depth > self.max_depth, np.float32(UNKNOWN_DEPTH), depth)
        return depth


@dataclass(frozen=True)
class OpenScene:
    """What is known of a scene before any of its images is decoded.

    Attributes:
        recording: Recording as the reader opened it.
        frames: Indices of the used frames in the recording, in order.
        world_from_color: Poses [F, 4, 4] float64 of the color camera, meters.
        cameras: All cameras of these frames, before undistortion.
        camera_of: Index [F] of each frame's camera.
        left_out: Dict from problem to the names of the frames that have it.
        moved: Where the origin [3] float64 lies in the axes of the recording, meters.
    """

    recording: Recording
    frames: Sequence[int]
    world_from_color: np.ndarray
    cameras: Sequence[Camera]
    camera_of: np.ndarray
    left_out: Mapping[str, Sequence[str]]
    moved: np.ndarray

    def camera(self, frame: int) -> Camera:
        """Return the camera of a frame, by its index into `frames`."""
        return self.cameras[self.camera_of[frame]]


class RecordedScenes(PosedDataset):
    """Recordings of any format as a dataset of posed views: `RecordedScenes(spec, [MyReader("scans")])`.

    Views have the pose and intrinsics of the color camera, and depth registered to it at the resolution of the depth
    maps. Images of distorted lenses are undistorted, and their intrinsics are those after that. Unusable frames (no
    pose, a pose that is not rigid) are left out; the log gives their number and names. Scenes are selected by patterns
    (`kitchen-*`, a name, a folder of sequences: `chess` for `chess/seq-01`) or by a file with one name a line.

    Args:
        spec: Settings that every dataset gets.
        readers: Readers of the data; if two have a scene of one name, the first counts.
        choice: Which part of the recordings to use.
        pairs: Which two views of a scene make a pair.
        surface: How to fuse a scene's surface from its frames.
        reader_key: Section of the readers' options, for messages; "" if they are among the dataset's options.

    Raises:
        UserError: An option names no scene, or options contradict each other.
    """

    def __init__(
        self,
        spec: DataSpec,
        readers: Sequence[Reader],
        choice: Choice | None = None,
        pairs: PairOptions = DEFAULT_PAIRS,
        surface: SurfaceOptions = DEFAULT_SURFACE,
        reader_key: str = "",
    ) -> None:
        super().__init__(spec, pairs, surface)
        self.choice = choice or Choice()
        self._reader_key = reader_key
        readers_of = {name: reader for reader in reversed(readers) for name in reader.scenes()}
        names = sorted(readers_of)
        for pattern in self.choice.depth_to_color or {}:
            matching_scenes(names, (pattern,), "depth_to_color")
        kept_apart = {
            "validation": matching_scenes(names, self.choice.validation_scenes, "validation_scenes"),
            "test": matching_scenes(names, self.choice.test_scenes, "test_scenes"),
        }
        self.splits = ("train", *(split for split, scenes in kept_apart.items() if scenes))
        self.scenes = scenes_of_split(names, self.choice.scenes, kept_apart, spec.split)
        self._readers = [readers_of[name] for name in self.scenes]
        self.provides = _provided(readers)
        self.fields = tuple(dict.fromkeys(field for reader in readers for field in reader.fields))
        names_of_classes = {reader.class_names for reader in readers}
        self.class_names = names_of_classes.pop() if len(names_of_classes) == 1 else ()
        if spec.views > 1 and "depth" not in self.provides and pairs.source == "depth":
            raise UserError("this format has no depth, which is needed to find pairs of views: set views: 1", "views")
        self._table = table_of(self)
        self._open: dict[int, OpenScene] = {}
        self._checked: list[Checked] = []

    def frame_count(self, scene: int) -> int:
        """Return the number of usable frames of a scene."""
        return len(self.scene(scene).frames)

    def load(self, scene: int, frame: int, fields: frozenset[str]) -> View:
        """Decode one frame; see `PosedDataset.load`."""
        opened = self.scene(scene)
        original, wanted = opened.camera(frame), self._table.declared(fields)
        camera = undistorted_camera(original)
        read = opened.recording.read(opened.frames[frame], wanted & self._readers[scene].provides)
        view = View(dict(read.values), scene, frame, camera.size)
        for name in read.values:
            if name in view and not (name == "depth" and camera.depth_intrinsics is not None):
                view[name] = undistorted(view[name], self._table[name], original)
        if "depth" in view:
            view["depth"] = _registered(self.choice.within_limits(view["depth"]), camera)
        if "intrinsics" in wanted:
            view["intrinsics"] = camera.intrinsics.copy()
        if "world_from_camera" in wanted:
            view["world_from_camera"] = opened.world_from_color[frame].copy()
        return view

    def scene_fingerprint(self, scene: int) -> str:
        """Return a text that changes with the scene's files, poses, cameras, or the options that select its frames."""
        opened = self.scene(scene)
        digest = hashlib.sha256(opened.world_from_color.tobytes() + opened.camera_of.tobytes())
        for camera in opened.cameras:
            facts = (
                camera.size,
                camera.depth_size,
                camera.intrinsics,
                camera.depth_intrinsics,
                camera.color_from_depth,
            )
            for fact in facts:
                digest.update(str(None if fact is None else np.asarray(fact).tolist()).encode())
            if (lens := Lens.of(camera)) is not None:
                digest.update(f"{LENS_VERSION} {lens}".encode())
        facts = [self.choice.min_depth, self.choice.max_depth, digest.hexdigest()]
        return json.dumps(["posed", self.scenes[scene], *facts, opened.recording.fingerprint(opened.frames)])

    def scene(self, scene: int) -> OpenScene:
        """Return a scene's frames, poses and cameras, read on first access.

        Args:
            scene: Index into `scenes`.

        Raises:
            UserError: Files of the scene do not fit together, it has no intrinsics, or its cameras cannot be used.
        """
        if scene not in self._open:
            self._open[scene] = self._opened(scene)
        return self._open[scene]

    def jobs(self, fields: frozenset[str]) -> Iterator[Sequence[SceneJob]]:
        """Yield the check of every scene, then pairs and surfaces; see `PosedDataset.jobs`.

        Raises:
            UserError: Poses, depth and images contradict each other, or there are no pairs.
        """
        if self._is_checked:
            yield [self._check_job(scene) for scene in range(len(self.scenes))]
            self._checked = [self._check(scene) for scene in range(len(self.scenes))]
            judge_scenes(self._checked, self.choice.check_poses)
        yield from super().jobs(fields)

    def verify(self) -> None:
        """Check that every scene's files fit together, and that at least one frame can be used."""
        if not any(self.frame_count(scene) for scene in range(len(self.scenes))):
            left_out: Counter[str] = Counter()
            for scene in range(len(self.scenes)):
                left_out.update({why: len(names) for why, names in self.scene(scene).left_out.items()})
            reasons = ", ".join(f"{why}: {count}" for why, count in sorted(left_out.items()))
            raise UserError(f"no frame can be used ({reasons or 'there is none'})", "root")

    def describe(self) -> list[str]:
        """Return lines for the log: scenes, frames, pairs, left-out frames and unused options."""
        lines = super().describe()
        lines += describe_checked(self._checked)
        notes: dict[str, list[str]] = {}
        for scene, name in enumerate(self.scenes):
            opened = self.scene(scene)
            if opened.left_out:
                count = sum(map(len, opened.left_out.values()))
                whys = ", ".join(f"{why}: {_numbered(names)}" for why, names in sorted(opened.left_out.items()))
                lines.append(f"{name}: {count} frames left out ({whys})")
            for note in opened.recording.notes:
                notes.setdefault(note, []).append(name)
        for note, names in notes.items():
            who = names[0] if len(names) == 1 else f"{len(names)} scenes"
            lines.append(f"{'every scene' if len(names) == len(self.scenes) > 1 else who}: {note}")
        return lines

    @property
    def _is_checked(self) -> bool:
        return self.choice.check_poses != "off" and {"image", "depth"} <= self.provides

    def _check_job(self, scene: int) -> SceneJob:
        build = partial(check_scene, self, scene)
        return SceneJob("checks", self.scenes[scene], facts_of(self.scene_fingerprint(scene)), build)

    def _check(self, scene: int) -> Checked:
        folder = do_job(self._check_job(scene), self.store)
        self.note_damage(damage_in(folder))
        return Checked.load(self.scenes[scene], folder)

    def _pairs_of_tracks(self, scene: int) -> PairTable:
        opened = self.scene(scene)
        overlap = opened.recording.overlap()
        if overlap is None:
            unknown = "its format does not know which frames see the same points"
            raise UserError(f"scene {self.scenes[scene]}: {unknown}: set depth", "pairs.source")
        return pairs_of_tracks(overlap, opened.frames, opened.world_from_color, self.pair_options)

    def _surface_of_format(self, scene: int) -> Cloud:
        opened = self.scene(scene)
        cloud = opened.recording.surface()
        if cloud is None:
            raise UserError(
                f"scene {self.scenes[scene]}: its format has no mesh and no points: set depth", "surface.source"
            )
        return cloud._replace(points=cloud.points - opened.moved)

    def _knows_tracks(self, scene: int) -> bool:
        return type(self.scene(scene).recording).overlap is not Recording.overlap

    def _opened(self, scene: int) -> OpenScene:
        name, choice = self.scenes[scene], self.choice
        with section(self._reader_key, elsewhere={"root": "root"}):
            recording = self._readers[scene].open(name)
            chosen = range(0, len(recording.frames), choice.frame_step)[: choice.max_frames]
            frames = {index: recording.frames[index] for index in chosen}
        left_out: dict[str, list[str]] = {}
        for frame in frames.values():
            if frame.problem is not None:
                left_out.setdefault(frame.problem, []).append(frame.name)
        used = {index: frame for index, frame in frames.items() if frame.problem is None}
        fitting = [one for pattern, one in (choice.depth_to_color or {}).items() if names_scene(pattern, name)]
        originals = list({id(frame.camera): frame.camera for frame in used.values()}.values())
        if fitting and any(camera.model != "pinhole" for camera in originals):
            raise UserError(f"scene {name} has a lens model, and depth_to_color is of pinholes", "depth_to_color")
        cameras = [fitting[0].of_color(camera) if fitting else camera for camera in originals]
        for camera in cameras:
            if problem := camera_problem(camera) or lens_problem(camera):
                raise UserError(f"scene {name}: {problem}", "root")
        number = {id(camera): index for index, camera in enumerate(originals)}
        camera_of = np.array([number[id(frame.camera)] for frame in used.values()], np.int64)
        poses = np.array([_pose(frame, fitting) for frame in used.values()]).reshape(-1, 4, 4)
        if fitting:
            poses = poses @ np.linalg.inv(fitting[0].color_from_depth)
        moved = _origin_of(poses)
        poses[:, :3, 3] -= moved
        return OpenScene(recording, list(used), poses, cameras, camera_of, left_out, moved)


def _provided(readers: Sequence[Reader]) -> frozenset[str]:
    """Return the fields that all readers decode, plus cameras, poses, and the fields that are fused from them."""
    decoded = frozenset.intersection(*(frozenset(reader.provides) for reader in readers))
    fused = {"surface", "surface_color"} if decoded >= {"image", "depth"} else set()
    return decoded | {"intrinsics", "world_from_camera"} | fused


def _pose(frame: Frame, fitting: Sequence[Calibration]) -> np.ndarray:
    """Return the pose [4, 4] of the color camera, or of the depth camera if a calibration will move it."""
    if fitting and frame.camera.color_from_depth is not None:
        return frame.world_from_camera @ frame.camera.color_from_depth
    return frame.world_from_camera


def _origin_of(poses: np.ndarray) -> np.ndarray:
    """Return where to put the origin [3], in whole meters: far cameras [F, 4, 4] get one near them.

    Batches hold poses in float32, which rounds georeferenced coordinates to half a meter.
    """
    center = np.median(poses[:, :3, 3], axis=0).round() if len(poses) else np.zeros(3)
    return center if np.abs(center).max() >= _FAR_FROM_ORIGIN_M else np.zeros(3)


def _registered(depth: np.ndarray, camera: Camera) -> np.ndarray:
    """Return the depth map as the color camera sees it, at its own resolution."""
    if camera.depth_intrinsics is None:
        return depth
    moved = np.eye(4) if camera.color_from_depth is None else camera.color_from_depth
    color = scaled(camera.intrinsics, camera.size, camera.depth_size)
    return CameraPair(camera.depth_intrinsics, color, moved).register(depth)


def _numbered(names: Sequence[str]) -> str:
    """Return the number of frames, and the names of the first of them."""
    more = ", ..." if len(names) > _NAMED else ""
    return f"{len(names)}, frame{'s' * (len(names) > 1)} {', '.join(names[:_NAMED])}{more}"
