"""The dataset `synthetic_rooms`: rooms rendered once into the cache, then read from memory maps."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from prior3d import DataSpec, Progress, SceneJob, UserError, View
from prior3d.data.posed import DEFAULT_PAIRS, DEFAULT_SURFACE, PairOptions, PosedDataset, SurfaceOptions
from prior3d.files import content_key
from prior3d.jobs import do_job
from prior3d_plugins.datasets.synthetic_rooms.catalog import CLASSES
from prior3d_plugins.datasets.synthetic_rooms.rendering import render
from prior3d_plugins.datasets.synthetic_rooms.rooms import draw_room
from prior3d_plugins.datasets.synthetic_rooms.sensor import draw_sensor
from prior3d_plugins.datasets.synthetic_rooms.styles import SPLITS, style_of
from prior3d_plugins.datasets.synthetic_rooms.trajectories import pinhole

CONTENT_VERSION = 2
"""Version of the rooms. Raise it when anything about the rooms changes; it invalidates caches."""

_ARRAYS = ("image", "depth", "semantic", "normals", "world_from_camera")

_MOST_ROOMS = 100_000
"""Rooms of a split: rendering more takes months, and their names alone much memory."""


class SyntheticRooms(PosedDataset):
    """Furnished rooms, drawn from a seed and ray-cast: exact depth, poses, normals and classes; no download.

    No room occurs in two splits. By default, the texture of a thing is drawn independently of its class, so texture and
    color carry no information about shape or class. A camera walks around each room; with more frames, neighboring
    views are closer together. Depth, normals and classes are exact under all image effects.

    Args:
        spec: Settings that every dataset gets; the images have its size.
        rooms: Number of rooms in the split "train".
        validation_rooms: Number of rooms in the split "validation".
        test_rooms: Number of rooms in the split "test".
        frames: Views per room.
        field_of_view: Degrees across the width of a view.
        exposure: Spread of the views' brightness. Each view is multiplied by a factor between e^-exposure and
            e^exposure, and each of its channels by one with a quarter of that exponent, so the color of a point differs
            between views.
        noise: Standard deviation of the sensor noise, for images in 0..1; each view has its own noise.
        highlights: Brightness of the lamp's reflection on the glossiest surfaces; 1 is white. A highlight moves with
            the camera, so a point has different colors in different views. Gloss is independent of class.
        texture: How textures depend on classes. "independent": not at all, see above. "correlated": as in real rooms,
            nine of ten textures have the pattern and the colors (within 0.08 per channel) of the class they cover, so
            appearance is a shortcut to class; the tenth is random. Every class has its own colors; 15 classes share the
            12 patterns.
        families: How splits share variants of furniture and patterns of textures. "shared": all splits draw from all of
            them. "disjoint": each split has its own variants (at least one of every kind) and patterns (four: cloudy,
            gridded, striped, spotted), so tests show known kinds of things in unseen shapes with unseen patterns. All
            classes are drawn in every split (a single room may lack one). Some things have to be the same for all
            splits: floors, walls and ceilings, which are the sides of a box, and the solids that furniture is made of;
            so are sizes, lamps, walks and colors. With correlated textures and disjoint families, a class has the same
            colors in all splits; in each split its pattern is the same one of that split's four kinds.
        content_seed: Seed of the rooms; `seed` of the recipe does not change them.
        pairs: Which two views of a room make a pair.
        surface: How to fuse a room's surface from its frames, for priors that read it.

    Raises:
        UserError: An option is out of range.
    """

    provides = PosedDataset.provides | {"semantic", "normals"}
    splits = SPLITS
    class_names = CLASSES

    def __init__(
        self,
        spec: DataSpec,
        *,
        rooms: int = 12,
        validation_rooms: int = 4,
        test_rooms: int = 4,
        frames: int = 24,
        field_of_view: float = 65.0,
        exposure: float = 0.1,
        noise: float = 0.0,
        highlights: float = 0.0,
        texture: Literal["independent", "correlated"] = "independent",
        families: Literal["shared", "disjoint"] = "shared",
        content_seed: int = 0,
        pairs: PairOptions = DEFAULT_PAIRS,
        surface: SurfaceOptions = DEFAULT_SURFACE,
    ) -> None:
        super().__init__(spec, pairs, surface)
        counts = {"rooms": rooms, "validation_rooms": validation_rooms, "test_rooms": test_rooms}
        for name, value in counts.items():
            _check_range(name, value, 1, _MOST_ROOMS)
        _check_range("frames", frames, 1, 1_000_000)
        _check_range("field_of_view", field_of_view, 10, 150)
        for name, value in {"exposure": exposure, "noise": noise, "highlights": highlights}.items():
            _check_range(name, value, 0, 1)
        _check_range("content_seed", content_seed, 0, 2**63 - 1)
        split = SPLITS.index(spec.split)
        self.frames = frames
        self.field_of_view = field_of_view
        self.exposure = exposure
        self.noise = noise
        self.highlights = highlights
        self._look = {"texture": texture, "families": families}
        self._seeds = [(content_seed, split, room) for room in range(tuple(counts.values())[split])]
        self.scenes = [f"{spec.split}-{room:03d}" for _, _, room in self._seeds]
        self._open: dict[int, dict[str, np.ndarray]] = {}

    def frame_count(self, scene: int) -> int:
        """Return the number of views of a room."""
        return self.frames

    def scene_fingerprint(self, scene: int) -> str:
        """Return a text that changes with everything that the room's content depends on."""
        return content_key(self._facts(scene))

    def jobs(self, fields: frozenset[str]) -> Iterator[Sequence[SceneJob]]:
        """Yield the jobs that render the rooms, then the jobs that all posed datasets need once."""
        yield [self._room_job(scene) for scene in range(len(self.scenes))]
        yield from super().jobs(fields)

    def load(self, scene: int, frame: int, fields: frozenset[str]) -> View:
        """Read one view; see `PosedDataset.load`."""
        arrays = self._arrays(scene)
        view = View(scene=scene, frame=frame, size=self.spec.size)
        if "normals" in fields:
            view["normals"] = _in_camera(arrays["normals"][frame], arrays["world_from_camera"][frame])
        for name in fields & {"image", "depth", "semantic", "world_from_camera"}:
            view[name] = np.array(arrays[name][frame])
        if "intrinsics" in fields:
            view["intrinsics"] = pinhole(self.spec.size, self.field_of_view)
        return view

    def __getstate__(self) -> dict[str, object]:
        """Leave out the memory maps: pickled, they would be copies of all rooms."""
        return {**self.__dict__, "_open": {}}

    def _facts(self, scene: int) -> dict[str, object]:
        return {
            "version": CONTENT_VERSION,
            "seed": self._seeds[scene],
            "frames": self.frames,
            "size": self.spec.size,
            "field_of_view": self.field_of_view,
            "exposure": self.exposure,
            "noise": self.noise,
            "highlights": self.highlights,
            **self._look,
        }

    def _arrays(self, scene: int) -> dict[str, np.ndarray]:
        if scene not in self._open:
            entry = do_job(self._room_job(scene), self.store)
            self._open[scene] = {name: np.load(entry / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
        return self._open[scene]

    def _room_job(self, scene: int) -> SceneJob:
        return SceneJob("synthetic_rooms", self.scenes[scene], self._facts(scene), partial(self._render, scene))

    def _render(self, scene: int, folder: Path, progress: Progress) -> None:
        # Separate streams: how many numbers a room draws must not change how its views are exposed.
        content, exposures = (
            np.random.default_rng(seed) for seed in np.random.SeedSequence(self._seeds[scene]).spawn(2)
        )
        room = draw_room(content, style_of(self.spec.split, **self._look))
        poses = room.trajectory.poses(self.frames)
        sensor = draw_sensor(
            np.random.default_rng(exposures), self.frames, self.exposure, self.noise, self._seeds[scene]
        )
        camera = pinhole(self.spec.size, self.field_of_view)
        rendering = render(room, poses, camera, self.spec.size, sensor, self.highlights)
        np.save(folder / "world_from_camera.npy", poses)
        for name in _ARRAYS[:4]:
            np.save(folder / f"{name}.npy", getattr(rendering, name))


def _in_camera(normals: np.ndarray, world_from_camera: np.ndarray) -> np.ndarray:
    """Return stored normals [H, W, 3] int8 (world axes) in camera axes, float32 of length 1."""
    turned = normals.astype(np.float32) @ world_from_camera[:3, :3].astype(np.float32)
    return turned / np.linalg.norm(turned, axis=-1, keepdims=True)


def _check_range(option: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UserError(f"expected {low} to {high}, got {value}", option)
