"""The surface of a scene as colored points on disk, and the part of it in the box around a view's frustum."""

import math
from dataclasses import asdict, dataclass
from functools import cached_property, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from prior3d.contracts.dataset import Dataset

SURFACE_NEEDS = frozenset({"depth", "intrinsics", "world_from_camera"})
"""Fields of a sample that determine which part of the surface its views get."""

FAR_PERCENTILE = 99
"""Percentile of a view's known depth at which its frustum ends, so a few wrong pixels do not stretch it."""

_BLOCK_M = 0.5
_NO_POINTS, _NO_ROWS = np.zeros((0, 3), np.float32), np.zeros(0, np.int64)
_POINTS, _COLORS, _STARTS, _BOUNDS = "points.npy", "colors.npy", "starts.npy", "bounds.npy"


@dataclass(frozen=True)
class SurfaceOptions:
    """How to fuse a scene's surface from its frames, and how much of it a view gets.

    Attributes:
        voxel_size: Voxel size in meters. Each voxel keeps at most one point: the mean of the points measured in it,
            with the mean color of their pixels.
        max_frames: Frames per scene to fuse; a longer scene is thinned evenly.
        min_frames: Number of frames that must see something within the same 4 x 4 x 4 voxels to keep a point; 1 for
            depth without noise.
        edge: Largest difference in depth, as a share of it, between neighboring pixels of one surface. Beyond it they
            belong to different things, and sensors invent points between them. Surfaces seen at up to 80 degrees always
            pass.
        max_points: Largest number of points per view; more are thinned to an even random subset.
        source: Where surfaces come from: "depth" fuses frames; "format" takes the mesh's vertices or the points that
            come with the recording, as Pri3D does with ScanNet's meshes, and uses none of the options above but
            max_points.
    """

    voxel_size: float = 0.01
    max_frames: int = 200
    min_frames: int = 2
    edge: float = 0.02
    max_points: int = 200_000
    source: Literal["depth", "format"] = "depth"

    def __post_init__(self) -> None:
        if not (self.voxel_size > 0 and self.edge > 0):
            raise ValueError(f"expected voxel_size and edge above 0, got {self.voxel_size} and {self.edge}")
        for name in ("max_frames", "min_frames", "max_points"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} of at least 1, got {getattr(self, name)}")

    @property
    def making(self) -> dict[str, object]:
        """The options that the points of a scene depend on."""
        if self.source == "format":
            return {"source": self.source}
        return {name: value for name, value in asdict(self).items() if name not in ("max_points", "source")}


class Surface:
    """The points of a scene in a folder, sorted into blocks, so a box of them can be read without reading all.

    Points stay on disk and are memory-mapped; pickling (to a loader's worker) passes only the folder.

    Args:
        folder: Folder that `save` wrote.

    Attributes:
        points: Points [N, 3] float32, meters, world axes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.points: np.ndarray = np.load(self.folder / _POINTS, mmap_mode="r")
        self._starts: np.ndarray = np.load(self.folder / _STARTS)  # [blocks + 1]
        bounds = self.folder / _BOUNDS
        self._low, self._high = np.load(bounds) if bounds.exists() else _bounds(self.points, self._starts)

    def __len__(self) -> int:
        return len(self.points)

    def __reduce__(self) -> tuple:
        """Pickle by folder: pickled memory maps would be copies of all points."""
        return type(self), (self.folder,)

    @cached_property
    def colors(self) -> np.ndarray | None:
        """Colors [N, 3] uint8 RGB of the rows of `points`; None if they were saved without."""
        # Opened on first access: each map keeps a file open, and there may be one per scene.
        file = self.folder / _COLORS
        return np.load(file, mmap_mode="r") if file.exists() else None

    @staticmethod
    def save(points: np.ndarray, folder: Path, colors: np.ndarray | None = None) -> None:
        """Write points from any source in the form that `Surface` reads.

        Args:
            points: Points [N, 3], meters, world axes.
            folder: Existing folder.
            colors: Colors [N, 3] uint8 RGB of the same rows; without them samples cannot have `surface_color`.
        """
        points = np.asarray(points, np.float32)
        if colors is not None and (colors.dtype != np.uint8 or colors.shape != points.shape):
            raise ValueError(f"expected colors uint8 {points.shape}, got {colors.dtype} {colors.shape}")
        blocks = np.floor(points / np.float32(_BLOCK_M)).astype(np.int64)
        order = _by_block(points, blocks)
        points = points[order]
        (folder / _COLORS).unlink(missing_ok=True)  # colors of points that were saved here before
        if colors is not None:
            np.save(folder / _COLORS, colors[order])
        blocks = np.floor(points / np.float32(_BLOCK_M))
        changes = np.flatnonzero((blocks[1:] != blocks[:-1]).any(1)) + 1
        np.save(folder / _POINTS, points)
        starts = np.array([*([0] if len(points) else []), *changes, len(points)], np.int64)
        np.save(folder / _STARTS, starts)
        np.save(folder / _BOUNDS, _bounds(points, starts))

    def within(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Return which points, rows [M] int64 of `points` and `colors`, are inside a box, including its faces.

        Args:
            low: Lowest corner [3], meters, world axes.
            high: Highest corner [3], meters.
        """
        low, high = np.asarray(low, np.float32), np.asarray(high, np.float32)
        touched = np.flatnonzero(((self._low <= high) & (self._high >= low)).all(1))
        if not len(touched):
            return _NO_ROWS
        # Only what a face of the box cuts is tested, and only against that face.
        below, above = self._low[touched] < low, self._high[touched] > high
        cut = (below | above).any(1)
        parts = [self._rows(touched[~cut])]
        points = self.points.view(np.ndarray)  # slices of memory maps are slow to make
        for block, *faces in zip(touched[cut], below[cut].tolist(), above[cut].tolist(), strict=True):
            start = self._starts[block]
            own = points[start : self._starts[block + 1]]
            tests = [own[:, axis] >= low[axis] for axis in range(3) if faces[0][axis]]
            tests += [own[:, axis] <= high[axis] for axis in range(3) if faces[1][axis]]
            parts.append(np.flatnonzero(reduce(np.logical_and, tests)) + start)
        return np.concatenate(parts)

    def _rows(self, blocks: np.ndarray) -> np.ndarray:
        """Return the rows of the points of some blocks (ascending)."""
        runs = np.split(blocks, np.flatnonzero(np.diff(blocks) > 1) + 1) if len(blocks) else []
        return np.concatenate([_NO_ROWS, *(np.arange(self._starts[run[0]], self._starts[run[-1] + 1]) for run in runs)])


def _bounds(points: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return the lowest and the highest coordinates [2, blocks, 3] of the points of each block."""
    if len(starts) < 2:
        return np.stack([_NO_POINTS, _NO_POINTS])
    return np.stack([np.minimum.reduceat(points, starts[:-1]), np.maximum.reduceat(points, starts[:-1])])


def _by_block(points: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """Return the order [N] of points by the z, y and x of their blocks, then by their own z, y and x."""
    if not len(points):
        return _NO_ROWS
    first = blocks.min(0)
    sizes = (blocks.max(0) - first + 1).tolist()
    if math.prod(sizes) >= 2**31 or not np.isfinite(points).all():
        return np.lexsort((*points.T, *blocks.T))
    # One number holds block and z. Few points share it, unless a wall is along the axes.
    x, y, z = (blocks - first).T
    heights = (points[:, 2] + np.float32(0)).view(np.int32)  # + 0: the bits of -0 are not those of 0
    keys = (z * sizes[1] + y) * sizes[0] + x
    keys <<= 32
    keys |= np.where(heights < 0, ~heights, heights + np.int64(2**31))  # ascends with z
    order = np.argsort(keys)
    ties = keys[order[1:]] == keys[order[:-1]]
    tied = np.flatnonzero(np.append(ties, False) | np.insert(ties, 0, False))
    rows = np.sort(order[tied])
    order[tied] = rows[np.lexsort((points[rows, 0], points[rows, 1], keys[rows]))]
    return order


def frustum_box(
    depth: np.ndarray,
    intrinsics: np.ndarray,
    world_from_camera: np.ndarray,
    near: float = 0.0,
    far: float | None = None,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the lowest and highest corner [3] of the world-axes box around a view's frustum; None without depth.

    Args:
        depth: Depth [H, W] along the optical axis, meters, 0 = unknown.
        intrinsics: Matrix [3, 3], pixels of `depth`, centers at +0.5.
        world_from_camera: Pose [4, 4], meters.
        near: Depth at which the frustum begins, meters.
        far: Depth at which it ends, meters; by default the 99th percentile of known depth.
    """
    if far is None:
        known = depth[np.isfinite(depth) & (depth > 0)]
        if not len(known):
            return None
        far = float(np.percentile(known, FAR_PERCENTILE))
    height, width = depth.shape
    corners = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]], np.float64)
    rays = corners @ np.linalg.inv(np.asarray(intrinsics, np.float64)).T
    pose = np.asarray(world_from_camera, np.float64)
    world = np.concatenate([rays * near, rays * far]) @ pose[:3, :3].T + pose[:3, 3]
    return world.min(0), world.max(0)


def crop_to_frustum(
    surface: Surface,
    depth: np.ndarray,
    intrinsics: np.ndarray,
    world_from_camera: np.ndarray,
    near: float = 0.0,
    far: float | None = None,
) -> np.ndarray:
    """Return which points, rows [M] int64, of a surface are in the box around a view's frustum; see `frustum_box`.

    Reference:
        The chunks of Pri3D, Hou et al., 2021, arXiv 2104.11225. Its code rounds the box of the view's unprojected depth
        map to whole meters (unknown depth counts as the camera's center); here it is the exact box of the frustum.
    """
    box = frustum_box(depth, intrinsics, world_from_camera, near, far)
    return _NO_ROWS if box is None else surface.within(*box)


def even_subset(rows: np.ndarray, most: int, generator: torch.Generator) -> np.ndarray:
    """Return at most `most` of the rows [N]: one drawn from each of `most` equal stretches of their order."""
    if len(rows) <= most:
        return rows
    ends = np.arange(most + 1) * len(rows) // most
    places = torch.rand(most, generator=generator, dtype=torch.float64).numpy() * np.diff(ends)
    return rows[ends[:-1] + places.astype(np.int64)]


def add_surface(sample: dict[str, Tensor], dataset: "Dataset", generator: torch.Generator, color: bool = False) -> None:
    """Add `surface` [N, 3] and `surface_view` [N] to a sample: for each (augmented) view the surface in its frustum.

    Args:
        sample: Sample from `assemble` with the fields of `SURFACE_NEEDS` and `scene`.
        dataset: Dataset that provides the scene's surface.
        generator: Draws the subset if there are more than `max_points` points.
        color: Whether to add `surface_color` [N, 3], too; it does not change the draws.

    Raises:
        ValueError: Colors are requested and the scene's surface has none.
    """
    scene, most = int(sample["scene"]), dataset.max_surface_points
    surface = dataset.surface(scene)
    views = zip(*(sample[name].numpy() for name in ("depth", "intrinsics", "world_from_camera")), strict=True)
    parts = [even_subset(crop_to_frustum(surface, *view), most, generator) for view in views]
    rows = np.concatenate(parts)
    sample["surface"] = torch.from_numpy(np.take(surface.points, rows, axis=0))
    if color:
        if surface.colors is None:
            raise ValueError(
                f"expected a surface with colors, as {type(dataset).__name__} provides surface_color, got one without"
                f" for scene {dataset.scenes[scene]}"
            )
        sample["surface_color"] = torch.from_numpy(np.take(surface.colors, rows, axis=0)).float() / 255
    sample["surface_view"] = torch.from_numpy(np.repeat(np.arange(len(parts)), [len(part) for part in parts]))
