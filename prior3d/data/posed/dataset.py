"""Common parts of datasets of posed views with depth: mined pairs, and samples of one, two or more views."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prior3d.contracts.dataset import Dataset, DataSpec, View
from prior3d.contracts.fields import SURFACE_FIELDS
from prior3d.contracts.reader import Cloud
from prior3d.contracts.runner import Progress, Runner, SceneJob, silent
from prior3d.data.posed.depth_maps import DepthMaps, at_one_size
from prior3d.data.posed.fusion import PosedFrame, fuse
from prior3d.data.posed.pairs import PairOptions, PairSampler, PairTable, describe_pairs, mine_pairs
from prior3d.data.posed.surface import Surface, SurfaceOptions
from prior3d.data.preparing import prepare
from prior3d.data.spacing import evenly_chosen
from prior3d.errors import DamagedFile, UserError
from prior3d.files import content_key
from prior3d.jobs import Store, damage_in, do_job
from prior3d.randomness import generator

PAIRS_VERSION = 1
"""Version of mining. Raise it when mining changes; cached tables are then computed again."""

SURFACE_VERSION = 3
"""The same for fused surfaces."""

DEFAULT_PAIRS = PairOptions()
DEFAULT_SURFACE = SurfaceOptions()

_BY_TRACKS = "; this format also knows which frames see the same points: set pairs.source: tracks"
_GEOMETRY = frozenset({"depth", "intrinsics", "world_from_camera"})


class PosedDataset(Dataset):
    """Scenes of posed views with depth; a subclass gives the number of frames and decodes one frame.

    With one view per sample, an epoch shows every frame once, each epoch in a different order. With two, each sample is
    a pair of overlapping views in random order, drawn evenly over the angle between them. With more, further partners
    of the first view follow. The number of samples in an epoch is the number of frames.

    Args:
        spec: Settings that every dataset gets.
        pairs: Which two views of a scene make a pair.
        surface: How to fuse a scene's surface from its frames.
    """

    provides: frozenset[str] = frozenset(
        {"image", "depth", "intrinsics", "world_from_camera", "surface", "surface_color"}
    )

    def __init__(
        self, spec: DataSpec, pairs: PairOptions = DEFAULT_PAIRS, surface: SurfaceOptions = DEFAULT_SURFACE
    ) -> None:
        super().__init__(spec)
        self.pair_options = pairs
        self.surface_options = surface
        self.max_surface_points = surface.max_points
        self.store = Store(spec.cache)
        self._tables: dict[int, PairTable] = {}
        self._surfaces: dict[int, Surface] = {}
        self._epoch, self._order = -1, torch.zeros(0, dtype=torch.int64)

    @abstractmethod
    def frame_count(self, scene: int) -> int:
        """Return the number of frames of a scene."""

    @abstractmethod
    def load(self, scene: int, frame: int, fields: frozenset[str]) -> View:
        """Decode one frame.

        Args:
            scene: Index into `scenes`.
            frame: Index from 0 to `frame_count(scene) - 1`.
            fields: Fields to decode; the others stay absent, except `scene`, `frame`, and `size` with the intrinsics.
        """

    @abstractmethod
    def scene_fingerprint(self, scene: int) -> str:
        """Return a text that changes with the scene's content; cheap, so made of names, sizes and times of files."""

    def fingerprint(self, frames: Iterable[tuple[int, int]] | None = None) -> str:
        """Return a text that changes when a scene of these frames does; see `Dataset.fingerprint`."""
        scenes = range(len(self.scenes)) if frames is None else sorted({scene for scene, _ in frames})
        return content_key({self.scenes[scene]: self.scene_fingerprint(scene) for scene in scenes})

    def __len__(self) -> int:
        return int(self._frame_ends[-1]) if self.scenes else 0

    def prepare(
        self, progress: Progress = silent, fields: frozenset[str] = frozenset(), runner: Runner | None = None
    ) -> None:
        """Run all of this dataset's jobs, as a run does before training.

        Args:
            progress: Shows progress.
            fields: Fields to read, as in `jobs`.
            runner: Runner of the jobs; `local` by default.
        """
        prepare(self, fields, runner, progress)

    def jobs(self, fields: frozenset[str]) -> Iterator[Sequence[SceneJob]]:
        """Yield the mining of pairs, unless samples have one view, then the fusion of surfaces if a field needs them.

        Raises:
            UserError: There are no pairs.
        """
        scenes = range(len(self.scenes))
        if self.spec.views > 1:
            yield [self._pairs_job(scene) for scene in scenes]
            if not self._sampler:
                raise UserError(self._why_no_pairs())
        if SURFACE_FIELDS & fields:
            yield [self._surface_job(scene) for scene in scenes]
            for scene in scenes:
                self.surface(scene)

    def pairs(self, scene: int) -> PairTable:
        """Return the pairs of one scene, from the cache or computed now."""
        if scene not in self._tables:
            entry = do_job(self._pairs_job(scene), self.store)
            self._tables[scene] = PairTable.load(entry / "pairs.npz")
            self.note_damage(damage_in(entry))
        return self._tables[scene]

    def surface(self, scene: int) -> Surface:
        """Return the surface of one scene, from the cache or fused now from its frames."""
        if scene not in self._surfaces:
            entry = do_job(self._surface_job(scene), self.store)
            self._surfaces[scene] = Surface(entry)
            self.note_damage(damage_in(entry))
        return self._surfaces[scene]

    def sample(self, index: int, fields: frozenset[str], generator: torch.Generator) -> list[View]:
        """Decode one frame, or overlapping views of one scene; see the class and `Dataset.sample`."""
        scene, frames = self.chosen_frames(index, generator)
        return [self.load(scene, frame, fields) for frame in frames]

    def chosen_frames(self, index: int, generator: torch.Generator) -> tuple[int, list[int]]:
        """Return the scene and the frames of a sample without decoding anything, see `sample`."""
        return self._single_frame(index) if self.spec.views == 1 else self._sampler.sample(generator)

    def describe(self) -> list[str]:
        """Return lines for the log: scenes, frames and, with two or more views, a summary of the pairs."""
        lines = [f"{len(self.scenes)} scenes, {len(self)} frames"]
        if self.spec.views > 1:
            tables = [self.pairs(scene) for scene in range(len(self.scenes))]
            lines += describe_pairs(tables)
            for name, table in zip(self.scenes, tables, strict=True):
                if not len(table):
                    lines.append(f"warning: scene {name}: no two of its views overlap, so it is never drawn in pairs")
            thinned = sum(self.frame_count(scene) > self.pair_options.max_frames for scene in range(len(self.scenes)))
            if thinned:
                lines.append(f"{thinned} scenes were thinned to {self.pair_options.max_frames} frames to find pairs")
        return lines

    @cached_property
    def _frame_ends(self) -> np.ndarray:
        return np.cumsum([self.frame_count(scene) for scene in range(len(self.scenes))])

    @cached_property
    def _sampler(self) -> PairSampler:
        return PairSampler([self.pairs(scene) for scene in range(len(self.scenes))], self.spec.views)

    def _single_frame(self, index: int) -> tuple[int, list[int]]:
        epoch, number = divmod(index, len(self))
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = torch.randperm(len(self), generator=generator("frames", self.spec.seed, epoch))
        place = int(self._order[number])
        scene = int(np.searchsorted(self._frame_ends, place, side="right"))
        return scene, [place - int(self._frame_ends[scene]) + self.frame_count(scene)]

    def _why_no_pairs(self) -> str:
        options = self.pair_options
        if self.damaged:
            where = f"of the {self.spec.split} split"
            return f"no two views {where} overlap: {len(self.damaged)} files are damaged, the first: {self.damaged[0]}"
        if self.spec.views > 2 and any(len(table) for table in self._tables.values()):
            return f"no view of the {self.spec.split} split overlaps with {self.spec.views - 1} others: use fewer views"
        where = f"of any scene of the {self.spec.split} split ({len(self.scenes)} scenes, {len(self)} frames)"
        if options.source == "tracks":
            return f"no two views {where} share {options.min_overlap:.0%} of their points: lower pairs.min_overlap"
        advice = _BY_TRACKS if any(self._knows_tracks(scene) for scene in range(len(self.scenes))) else ""
        return (
            f"no two views {where} overlap by {options.min_overlap:.0%} (pairs.min_overlap)"
            f" within {options.max_distance} m"
            f" (pairs.max_distance): check the poses and the depth scale, or lower the threshold{advice}"
        )

    def _pairs_job(self, scene: int) -> SceneJob:
        facts = {"version": PAIRS_VERSION, "scene": self.scene_fingerprint(scene), "options": self.pair_options.mining}
        return SceneJob("pairs", self.scenes[scene], facts, partial(self._mine, scene))

    def _surface_job(self, scene: int) -> SceneJob:
        options = self.surface_options.making
        facts = {"version": SURFACE_VERSION, "scene": self.scene_fingerprint(scene), "options": options}
        return SceneJob("surfaces", self.scenes[scene], facts, partial(self._fuse, scene))

    def _mine(self, scene: int, folder: Path, progress: Progress) -> list[DamagedFile]:
        damaged: list[DamagedFile] = []
        if self.pair_options.source == "tracks":
            table = PairTable.empty()
            try:
                table = self._pairs_of_tracks(scene)
            except DamagedFile as damage:
                damaged.append(damage)
            table.save(folder / "pairs.npz")
            return damaged
        name, depth = self.scenes[scene], DepthMaps()
        numbers, intrinsics, poses = [], [], []
        for view in self._read_evenly(scene, self.pair_options.max_frames, _GEOMETRY, damaged, progress):
            depth.append(view["depth"])
            numbers.append(view.frame)
            intrinsics.append(_depth_intrinsics(view))
            poses.append(torch.from_numpy(view["world_from_camera"]))
        depth, intrinsics = at_one_size(depth, intrinsics)
        if len(depth) < 2:
            table = PairTable.empty()
        else:
            cameras = torch.stack(intrinsics), torch.stack(poses)
            named = partial(_named, progress, name)
            table = mine_pairs(depth, *cameras, self.pair_options, named)
        frames = torch.tensor(numbers, dtype=torch.int64)
        columns = frames[table.first], frames[table.second], table.overlap, table.angle_deg, table.baseline_m
        PairTable(*columns).save(folder / "pairs.npz")
        return damaged

    def _knows_tracks(self, scene: int) -> bool:
        """Return whether `pairs.source: tracks` is possible."""
        return False

    def _pairs_of_tracks(self, scene: int) -> PairTable:
        """Return the pairs of frames that share points, where the data knows them."""
        raise UserError("this dataset does not know which frames see the same points: set depth", "pairs.source")

    def _surface_of_format(self, scene: int) -> Cloud:
        """Return the points that come with a scene, where the data has some."""
        raise UserError("this dataset brings no meshes and no points: set depth", "surface.source")

    def _fuse(self, scene: int, folder: Path, progress: Progress) -> list[DamagedFile]:
        damaged: list[DamagedFile] = []
        if self.surface_options.source == "format":
            cloud = Cloud(np.zeros((0, 3)), None)
            try:
                cloud = self._surface_of_format(scene)
            except DamagedFile as damage:
                damaged.append(damage)
            Surface.save(cloud.points, folder, cloud.colors)
            return damaged
        fields = _GEOMETRY | {"image"}
        views = self._read_evenly(scene, self.surface_options.max_frames, fields, damaged, progress)
        cloud = fuse(map(_posed_frame, views), self.surface_options)
        Surface.save(cloud.points, folder, cloud.colors)
        return damaged

    def _read_evenly(
        self, scene: int, most: int, fields: frozenset[str], damaged: list[DamagedFile], progress: Progress
    ) -> Iterator[View]:
        """Read evenly spaced frames, up to a limit; leave out damaged files and add them to `damaged`."""
        frames = evenly_chosen(self.frame_count(scene), most)
        for frame in progress(frames, f"{self.scenes[scene]}: reading frames", len(frames)):
            try:
                yield self.load(scene, frame, fields)
            except DamagedFile as damage:
                damaged.append(damage)


def _named(progress: Progress, scene: str, items: Iterable, description: str, total: int) -> Iterable:
    """Show progress with the name of the scene in front."""
    return progress(items, f"{scene}: {description}", total)


def _posed_frame(view: View) -> PosedFrame:
    return PosedFrame(view["depth"], _depth_intrinsics(view).double().numpy(), view["world_from_camera"], view["image"])


def _depth_intrinsics(view: View) -> Tensor:
    """Return the intrinsics [3, 3] float32 in pixels of the depth map, which may be smaller than the image."""
    rows, columns = view["depth"].shape
    height, width = view.size or (rows, columns)
    scale = np.diag([columns / width, rows / height, 1.0])
    return torch.from_numpy(scale @ view["intrinsics"]).float()
