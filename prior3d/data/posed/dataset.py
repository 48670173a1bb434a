"""What all datasets of posed views with depth share: mined pairs, and samples of one, two or more views."""

import json
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prior3d.contracts.dataset import Dataset, DataSpec, View
from prior3d.contracts.runner import Progress, silent
from prior3d.data.posed.fusion import PosedFrame, fuse
from prior3d.data.posed.pairs import PairOptions, PairSampler, PairTable, describe_pairs, mine_pairs
from prior3d.data.posed.surface import Surface, SurfaceOptions
from prior3d.errors import DamagedFile, UserError
from prior3d.files import content_key
from prior3d.jobs.store import Store
from prior3d.randomness import generator

PAIRS_VERSION = 1
"""Raise it when mining changes, so that tables in caches are made anew."""

SURFACE_VERSION = 2
"""The same for fused surfaces."""

DEFAULT_PAIRS = PairOptions()
DEFAULT_SURFACE = SurfaceOptions()

_DAMAGED = "damaged.json"
_GEOMETRY = frozenset({"depth", "intrinsics", "world_from_camera"})


class PosedDataset(Dataset):
    """Scenes of posed views with depth; subclasses say how many frames there are and decode one.

    With one view per sample, an epoch is every frame once in an order of its own. With two, each sample is a pair of
    overlapping views in random order, drawn evenly over the angle between them; with more, further partners of the
    first view follow. An epoch is as many samples as there are frames.

    Args:
        spec: what every dataset is told.
        pairs: which two views of a scene make a pair.
        surface: how a scene's surface is fused from its frames.
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
            scene: index into `scenes`.
            frame: from 0 to `frame_count(scene) - 1`.
            fields: what to decode; the rest stays None, but `scene` and `frame`, and `size` with the intrinsics.
        """

    @abstractmethod
    def scene_fingerprint(self, scene: int) -> str:
        """Return a text that changes when the scene's content does; cheap, so names, sizes and times of files."""

    def fingerprint(self, frames: Iterable[tuple[int, int]] | None = None) -> str:
        """Return a text that changes when a scene of these frames does; see `Dataset.fingerprint`."""
        scenes = range(len(self.scenes)) if frames is None else sorted({scene for scene, _ in frames})
        return content_key({self.scenes[scene]: self.scene_fingerprint(scene) for scene in scenes})

    def __len__(self) -> int:
        return int(self._frame_ends[-1]) if self.scenes else 0

    def prepare(self, progress: Progress = silent) -> None:
        """Find the pairs of every scene, unless samples have one view; tables are cached on disk."""
        if self.pair_options.geometry == "permuted" and min(map(self.frame_count, range(len(self.scenes)))) < 2:
            raise UserError("geometry: permuted needs at least 2 frames in every scene", "data.pairs")
        if self.spec.views < 2:
            return
        for scene in progress(range(len(self.scenes)), "pairs of views", len(self.scenes)):
            self.pairs(scene)
        if not self._sampler:
            raise UserError(self._why_no_pairs(), "data")

    def pairs(self, scene: int) -> PairTable:
        """Return the pairs of one scene, from the cache or found now."""
        if scene not in self._tables:
            facts = {
                "version": PAIRS_VERSION,
                "scene": self.scene_fingerprint(scene),
                "options": self.pair_options.mining,
            }
            entry = self.store.build("pairs", facts, lambda folder: self._mine(scene, folder))
            self._tables[scene] = PairTable.load(entry / "pairs.npz")
            self._count_damaged(entry)
        return self._tables[scene]

    def prepare_surface(self, progress: Progress = silent) -> None:
        """Fuse the surface of every scene; they are cached on disk."""
        for scene in progress(range(len(self.scenes)), f"{self.spec.split} surfaces", len(self.scenes)):
            self.surface(scene)

    def surface(self, scene: int) -> Surface:
        """Return the surface of one scene, from the cache or fused now from its frames."""
        if scene not in self._surfaces:
            options = {name: value for name, value in asdict(self.surface_options).items() if name != "max_points"}
            facts = {"version": SURFACE_VERSION, "scene": self.scene_fingerprint(scene), "options": options}
            entry = self.store.build("surfaces", facts, lambda folder: self._fuse(scene, folder))
            self._surfaces[scene] = Surface(entry)
            self._count_damaged(entry)
        return self._surfaces[scene]

    def sample(self, index: int, fields: frozenset[str], generator: torch.Generator) -> list[View]:
        """Decode one frame, or overlapping views of one scene; see the class and `Dataset.sample`."""
        scene, frames = self.chosen_frames(index, generator)
        return [self.load(scene, frame, fields) for frame in frames]

    def chosen_frames(self, index: int, generator: torch.Generator) -> tuple[int, list[int]]:
        """Return the scene and the frames of a sample, see `sample`; nothing is decoded."""
        return self._single_frame(index) if self.spec.views == 1 else self._sampler.draw(generator)

    def describe(self) -> list[str]:
        """Return lines for the log: scenes, frames and, with two or more views, what the pairs are like."""
        lines = [f"{len(self.scenes)} scenes, {len(self)} frames"]
        if self.spec.views > 1:
            lines += describe_pairs([self.pairs(scene) for scene in range(len(self.scenes))])
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

    def _single_frame(self, draw: int) -> tuple[int, list[int]]:
        epoch, number = divmod(draw, len(self))
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = torch.randperm(len(self), generator=generator("frames", self.spec.seed, epoch))
        index = int(self._order[number])
        scene = int(np.searchsorted(self._frame_ends, index, side="right"))
        return scene, [index - int(self._frame_ends[scene]) + self.frame_count(scene)]

    def _why_no_pairs(self) -> str:
        options = self.pair_options
        if self.damaged:
            where = f"of the {self.spec.split} split"
            return f"no two views {where} overlap: {len(self.damaged)} files are damaged, the first: {self.damaged[0]}"
        if self.spec.views > 2 and any(len(table) for table in self._tables.values()):
            return f"no view of the {self.spec.split} split overlaps with {self.spec.views - 1} others: use fewer views"
        return (
            f"no two views of any scene of the {self.spec.split} split ({len(self.scenes)} scenes, {len(self)} frames)"
            f" overlap by {options.min_overlap:.0%} (pairs.min_overlap) within {options.max_distance} m"
            " (pairs.max_distance): check the poses and the depth scale, or lower the threshold"
        )

    def _mine(self, scene: int, folder: Path) -> None:
        views = list(self._read_evenly(scene, self.pair_options.max_frames, _GEOMETRY, folder))
        table = _mine_views(views, self.pair_options, self.scenes[scene])
        numbers = torch.tensor([view.frame for view in views], dtype=torch.int64)
        columns = numbers[table.first], numbers[table.second], table.overlap, table.angle_deg, table.baseline_m
        PairTable(*columns).save(folder / "pairs.npz")

    def _fuse(self, scene: int, folder: Path) -> None:
        views = self._read_evenly(scene, self.surface_options.max_frames, _GEOMETRY | {"image"}, folder)
        cloud = fuse(map(_posed_frame, views), self.surface_options)
        Surface.save(cloud.points, folder, cloud.colors)

    def _read_evenly(self, scene: int, most: int, fields: frozenset[str], folder: Path) -> Iterator[View]:
        """Read at most so many frames, evenly spaced; leave out what is damaged, and say so in `folder`."""
        damaged: list[tuple[str, str]] = []
        wanted = min(self.frame_count(scene), most)
        for frame in np.linspace(0, self.frame_count(scene) - 1, wanted).round().astype(int).tolist():
            try:
                yield self.load(scene, frame, fields)
            except DamagedFile as damage:
                damaged.append((str(damage.path), damage.why))
        (folder / _DAMAGED).write_text(json.dumps(damaged), encoding="utf-8")

    def _count_damaged(self, entry: Path) -> None:
        known = {damage.path for damage in self.damaged}
        damaged = json.loads((entry / _DAMAGED).read_text(encoding="utf-8"))
        self.damaged += [DamagedFile(path, why) for path, why in damaged if Path(path) not in known]


def _mine_views(views: list[View], options: PairOptions, scene: str) -> PairTable:
    sizes = {view["depth"].shape for view in views}
    if len(sizes) > 1:
        raise UserError(f"the depth maps of scene {scene} differ in size: {sorted(sizes)}", "data")
    if len(views) < 2:
        return PairTable(*torch.zeros(2, 0, dtype=torch.int64), *torch.zeros(3, 0))
    depth = torch.from_numpy(np.stack([view["depth"] for view in views]))
    intrinsics = torch.stack([_depth_intrinsics(view) for view in views])
    poses = torch.from_numpy(np.stack([view["world_from_camera"] for view in views]))
    return mine_pairs(depth, intrinsics, poses, options)


def _posed_frame(view: View) -> PosedFrame:
    return PosedFrame(view["depth"], _depth_intrinsics(view).double().numpy(), view["world_from_camera"], view["image"])


def _depth_intrinsics(view: View) -> Tensor:
    """Return the intrinsics [3, 3] float32 in pixels of the depth map, which may be smaller than the image."""
    rows, columns = view["depth"].shape
    height, width = view.size or (rows, columns)
    scale = np.diag([columns / width, rows / height, 1.0])
    return torch.from_numpy(scale @ view["intrinsics"]).float()
