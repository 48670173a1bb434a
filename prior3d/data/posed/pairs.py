"""Pairs of overlapping views of a scene: found once from depth and poses, drawn evenly over the angle between them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from prior3d.contracts.runner import Progress, silent
from prior3d.data.spacing import evenly_chosen
from prior3d.geometry import baseline, overlap_bounds, pairwise_overlap, view_angle

ANGLE_BINS_DEG = ((0.0, 15.0), (15.0, 30.0), (30.0, 180.0))
"""Bins of the angle between the optical axes of two views, degrees; pairs are drawn evenly over non-empty bins."""

NARROW_ANGLE_DEG = 5.0
"""Median angle, in degrees, below which a set of pairs hardly shows anything from two viewpoints."""

_COARSE_SAMPLES = 64
_COARSE_MARGIN = 0.15  # about 3.5 standard deviations of an overlap estimated from twice _COARSE_SAMPLES points

_SAMPLING = ("views", "geometry")
_FRAMES = ("first", "second")

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class PairOptions:
    """Which two views of a scene make a pair.

    Attributes:
        min_overlap: Smallest overlap of a pair: the share of both views' known pixels that see a common surface, above
            0 to 1. With tracks, the share of both views' points that both see.
        max_distance: Largest distance, in meters, between two points that count as the same surface.
        relative_distance: The same distance as a share of depth; the larger of the two counts. 0 is Pri3D's definition;
            0.01 suits depth sensors.
        samples: Points per view to estimate the overlap from.
        max_angle: Largest angle between the optical axes of a pair, degrees.
        max_frames: Frames per scene to compare; a longer scene is thinned evenly.
        source: How to find pairs: "depth" compares depth maps; "tracks" takes the points that two frames share from
            formats that know them, such as COLMAP's, whose depth is sparse.
        views: "self" is the former name of `data.control: self`.
        geometry: "permuted" is the former name of `data.control: permuted`.
    """

    min_overlap: float = 0.3
    max_distance: float = 0.02
    relative_distance: float = 0.01
    samples: int = 1024
    max_angle: float = 180.0
    max_frames: int = 400
    source: Literal["depth", "tracks"] = "depth"
    views: Literal["mined", "self"] = "mined"
    geometry: Literal["own", "permuted"] = "own"

    def __post_init__(self) -> None:
        if not 0 < self.min_overlap <= 1:
            raise ValueError(f"expected min_overlap above 0 and at most 1, got {self.min_overlap}")
        if not (self.max_distance > 0 and self.relative_distance >= 0):
            raise ValueError(
                "expected max_distance above 0 and relative_distance of at least 0,"
                f" got {self.max_distance} and {self.relative_distance}"
            )
        if self.samples < 1 or self.max_frames < 2:
            raise ValueError(f"expected samples >= 1 and max_frames >= 2, got {self.samples} and {self.max_frames}")
        if not 0 < self.max_angle <= 180:
            raise ValueError(f"expected max_angle above 0 and at most 180 degrees, got {self.max_angle}")
        if self.views == "self" and self.geometry == "permuted":
            raise ValueError(
                "expected views: self or geometry: permuted, got both: an image matches itself by any geometry"
            )

    @property
    def control(self) -> Literal["self", "permuted"] | None:
        """The control that the former names select, see `prior3d.data.posed.controls`."""
        return "self" if self.views == "self" else "permuted" if self.geometry == "permuted" else None

    @property
    def mining(self) -> dict[str, float]:
        """The options that the table of pairs depends on; others only change how samples are made from it."""
        options = {name: value for name, value in asdict(self).items() if name not in _SAMPLING}
        if self.source == "depth":
            del options["source"]  # so tables from before this option still count
        return options


@dataclass(frozen=True)
class PairTable:
    """The pairs of one scene, each once, with the smaller frame first.

    Attributes:
        first: Frame [P] int64 of the one view.
        second: Frame [P] int64 of the other view.
        overlap: Overlap [P] float32, 0..1.
        angle_deg: Angle [P] float32 between the optical axes, degrees.
        baseline_m: Distance [P] float32 between the camera centers, meters.
    """

    first: Tensor
    second: Tensor
    overlap: Tensor
    angle_deg: Tensor
    baseline_m: Tensor

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, rows: Tensor) -> "PairTable":
        """Return the chosen rows, by index or mask."""
        return PairTable(*(getattr(self, field.name)[rows] for field in fields(self)))

    @classmethod
    def empty(cls) -> "PairTable":
        """Return a table without pairs."""
        return cls(*torch.zeros(2, 0, dtype=torch.int64), *torch.zeros(3, 0))

    def save(self, path: Path) -> None:
        """Write the table as an `.npz` file."""
        np.savez(path, **{field.name: getattr(self, field.name).numpy() for field in fields(self)})

    @classmethod
    def load(cls, path: Path) -> "PairTable":
        """Read a table that `save` wrote."""
        with np.load(path) as columns:
            return cls(**{field.name: torch.from_numpy(columns[field.name]) for field in fields(cls)})


def mine_pairs(
    depth: Tensor | Sequence[Tensor],
    intrinsics: Tensor,
    world_from_camera: Tensor,
    options: PairOptions | None = None,
    progress: Progress = silent,
    device: torch.device | str | None = None,
) -> PairTable:
    """Find the pairs of a scene's views with enough overlap, at the resolution of the depth maps.

    Pairs whose frustums show that they cannot overlap enough are left out first, then those of which a few points show
    it. The result does not depend on the device.

    Args:
        depth: Depth [F, H, W] along the optical axis, meters, 0 = unknown, or a sequence of F maps [H, W], each of
            which is asked for a few times. Use full resolution: small maps cannot show overlap within centimeters.
        intrinsics: Matrices [F, 3, 3], pixels of the depth maps, centers at +0.5.
        world_from_camera: Poses [F, 4, 4], meters.
        options: Pair options; `PairOptions()` by default.
        progress: Shows progress.
        device: Where to compare views; by default where the depth is.
    """
    options = options or PairOptions()
    first, second = torch.triu_indices(len(depth), len(depth), offset=1, device=world_from_camera.device)
    angle = view_angle(world_from_camera[first], world_from_camera[second])
    first, second = first[angle <= options.max_angle], second[angle <= options.max_angle]

    views = depth, intrinsics, world_from_camera
    limits = options.max_distance, options.relative_distance
    if len(first):
        bounds = overlap_bounds(*views, *limits, options.samples).to(first.device)
        possible = bounds[first, second] >= options.min_overlap
        first, second = first[possible], second[possible]
    compare = partial(pairwise_overlap, *views, progress=progress, device=device)
    if options.samples > 2 * _COARSE_SAMPLES:  # a few points show that most pairs of a long scene are far apart
        near = compare(first, second, *limits, _COARSE_SAMPLES) >= options.min_overlap - _COARSE_MARGIN
        first, second = first[near], second[near]
    overlap = compare(first, second, *limits, options.samples)
    kept = overlap >= options.min_overlap
    first, second, overlap = first[kept], second[kept], overlap[kept]
    poses = world_from_camera[first], world_from_camera[second]
    columns = first, second, overlap.float(), view_angle(*poses).float(), baseline(*poses).float()
    return PairTable(*(column.cpu() for column in columns))


def pairs_of_tracks(
    overlap: Mapping[str, np.ndarray],
    frames: Sequence[int],
    world_from_camera: np.ndarray,
    options: PairOptions | None = None,
) -> PairTable:
    """Return the pairs of a scene's frames that share enough of their points.

    Args:
        overlap: Pairs of frames of the recording; see `Recording.overlap`.
        frames: The frames of the recording that are used, ascending; the table counts these.
        world_from_camera: Their poses [F, 4, 4] float64, meters.
        options: Pair options; `PairOptions()` by default.
    """
    options = options or PairOptions()
    chosen = np.array(evenly_chosen(len(frames), options.max_frames), np.int64)
    place = {frames[index]: index for index in chosen.tolist()}
    first, second = (np.array([place.get(one, -1) for one in overlap[name].tolist()], np.int64) for name in _FRAMES)
    kept = (first >= 0) & (second >= 0) & (overlap["overlap"] >= options.min_overlap)
    first, second, share = (torch.from_numpy(column[kept]) for column in (first, second, overlap["overlap"]))
    poses = torch.from_numpy(world_from_camera)
    poses = poses[first], poses[second]
    table = PairTable(first, second, share.float(), view_angle(*poses).float(), baseline(*poses).float())
    return table[table.angle_deg <= options.max_angle]


def angle_bin(angle_deg: Tensor | float, bins: Sequence[tuple[float, float]] = ANGLE_BINS_DEG) -> Tensor:
    """Return the index of the bin that an angle falls into.

    Args:
        angle_deg: Angles of any shape, degrees.
        bins: Lower and upper end of each bin, degrees, ascending and without gaps.

    Returns:
        Bin indices, int64 of the same shape.

    >>> angle_bin(torch.tensor([3.0, 15.0, 170.0])).tolist()
    [0, 1, 2]
    """
    edges = torch.tensor([low for low, _ in bins[1:]])
    return torch.bucketize(torch.as_tensor(angle_deg, dtype=edges.dtype), edges, right=True)


class PairSampler:
    """Draws views evenly over the non-empty angle bins, then over scenes, then over the scene's pairs.

    Args:
        tables: One table per scene.
        views: Views per sample: a pair in either order and, beyond 2, further partners of its first view. Only first
            views with enough partners are drawn.
    """

    def __init__(self, tables: Sequence[PairTable], views: int = 2) -> None:
        if views < 2:
            raise ValueError(f"expected at least 2 views, got {views}")
        self.views = views
        self._partners: list[dict[int, Tensor]] = []
        self._bins: list[list[tuple[int, Tensor]]] = [[] for _ in ANGLE_BINS_DEG]  # per bin: (scene, pairs [n, 2])
        for scene, table in enumerate(tables):
            pairs = torch.cat(
                [torch.stack([table.first, table.second], 1), torch.stack([table.second, table.first], 1)]
            )
            partner_count = torch.bincount(pairs[:, 0], minlength=1)
            enough = partner_count[pairs[:, 0]] >= views - 1
            bins = angle_bin(table.angle_deg).repeat(2)
            for number, scenes in enumerate(self._bins):
                rows = pairs[enough & (bins == number)]
                if len(rows):
                    scenes.append((scene, rows))
            anchors = pairs[enough, 0].unique().tolist() if views > 2 else []
            self._partners.append({anchor: pairs[pairs[:, 0] == anchor, 1] for anchor in anchors})
        self._bins = [scenes for scenes in self._bins if scenes]

    def __bool__(self) -> bool:
        """Whether there is anything to sample."""
        return bool(self._bins)

    def sample(self, generator: torch.Generator) -> tuple[int, list[int]]:
        """Return a scene and `views` different frames of it."""
        if not self._bins:
            raise ValueError(f"expected at least one pair of views with {self.views - 1} partners, got none")
        scene, pairs = _choose(_choose(self._bins, generator), generator)
        first, second = _choose(pairs, generator).tolist()
        frames = [first, second]
        if self.views > 2:
            others = self._partners[scene][first]
            others = others[others != second]
            frames += others[torch.randperm(len(others), generator=generator)[: self.views - 2]].tolist()
        return scene, frames


def _choose(items: Sequence[_Item], generator: torch.Generator) -> _Item:
    return items[int(torch.randint(len(items), (), generator=generator))]


def describe_pairs(tables: Sequence[PairTable]) -> list[str]:
    """Return lines on the number of pairs and their angles and distances, with a note if the views hardly move."""
    angle = torch.cat([torch.zeros(0), *(table.angle_deg for table in tables)]).double()
    distance = torch.cat([torch.zeros(0), *(table.baseline_m for table in tables)]).double()
    if not len(angle):
        return ["no pairs of views"]
    low, median, high = angle.quantile(torch.tensor([0.1, 0.5, 0.9]).double()).tolist()
    counts = torch.bincount(angle_bin(angle), minlength=len(ANGLE_BINS_DEG)).tolist()
    bins = ", ".join(
        f"{lower:.0f}-{upper:.0f}: {count}" for (lower, upper), count in zip(ANGLE_BINS_DEG, counts, strict=True)
    )
    lines = [
        f"{len(angle)} pairs of views; angle median {median:.1f} degrees (10-90 %: {low:.1f}-{high:.1f}),"
        f" baseline median {distance.median():.2f} m; pairs by degrees {bins}"
    ]
    if median < NARROW_ANGLE_DEG:
        lines.append(
            f"warning: the median angle between paired views is {median:.1f} degrees, under {NARROW_ANGLE_DEG:.0f}:"
            " these views hardly show anything from two sides, so there is little 3D to learn from them"
        )
    return lines
