"""Pairs of held-out views, balanced over view angles, and the points that both views of a pair see."""

from dataclasses import dataclass

import torch
from torch import Tensor

from prior3d import UserError
from prior3d.data.posed import angle_bin
from prior3d.geometry import pixel_centers, project, unproject_pixels
from prior3d.probes import ProbeData
from prior3d.randomness import generator

VIEW_ANGLE_BINS_DEG = ((0.0, 15.0), (15.0, 30.0), (30.0, 60.0), (60.0, 180.0))
"""Bins of the angle between the optical axes of two views, degrees."""

_SAME_SURFACE = 0.05
"""How far a point may be from the surface that the other view measured: this share of its depth, but at least this
many meters."""


@dataclass(frozen=True)
class ViewPair:
    """Two overlapping views of one scene.

    Attributes:
        rows: Rows of the two views among the held-out frames.
        angle_deg: Angle between their optical axes, degrees.
        bin: Index into `VIEW_ANGLE_BINS_DEG`.
    """

    rows: tuple[int, int]
    angle_deg: float
    bin: int


@dataclass(frozen=True)
class PosedView:
    """The geometry of one view.

    Attributes:
        depth: Depth [H, W] along the optical axis, meters; 0 = unknown.
        intrinsics: Matrix [3, 3], pixels.
        world_from_camera: Pose [4, 4], meters.
    """

    depth: Tensor
    intrinsics: Tensor
    world_from_camera: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, pixels."""
        return tuple(self.depth.shape)

    def depth_at(self, pixels: Tensor) -> Tensor:
        """Return depth [M] at pixels [M, 2], read at the nearest pixel of the image."""
        height, width = self.size
        x, y = pixels.unbind(-1)
        return self.depth[y.clamp(0, height - 1).long(), x.clamp(0, width - 1).long()]

    def points_at(self, pixels: Tensor) -> Tensor:
        """Return the points [M, 3] (meters, world axes) that the view sees at pixels [M, 2] of known depth."""
        return unproject_pixels(pixels, self.depth_at(pixels), self.intrinsics, self.world_from_camera)


@dataclass(frozen=True)
class SharedPoints:
    """Points at the cells of one view, and their positions in the other view.

    Attributes:
        cells: Pixels [M, 2] of the first view, of known depth.
        points: Points [M, 3], meters, world axes.
        target: Pixels [M, 2] of the second view that the points project to; infinite behind its camera.
        visible: Mask [M] bool: the second view sees the point, which is inside the image and not hidden.
    """

    cells: Tensor
    points: Tensor
    target: Tensor
    visible: Tensor


def choose_pairs(data: ProbeData, per_bin: int) -> list[ViewPair]:
    """Choose overlapping pairs of held-out views, the same for every model.

    Args:
        data: Held-out frames of posed views; pairs with an excluded frame are excluded.
        per_bin: Largest number of pairs per bin of view angle.

    Raises:
        UserError: There are no overlapping pairs.
    """
    dataset = data.parts["held_out"]
    row = {frame: index for index, frame in enumerate(data.frames["held_out"])}
    by_bin: list[list[ViewPair]] = [[] for _ in VIEW_ANGLE_BINS_DEG]
    for scene in range(len(dataset.scenes)):
        table = dataset.pairs(scene)
        bins = angle_bin(table.angle_deg, VIEW_ANGLE_BINS_DEG)
        columns = (table.first, table.second, table.angle_deg, bins)
        for first, second, angle, index in zip(*(column.tolist() for column in columns), strict=True):
            if (scene, first) in row and (scene, second) in row:
                by_bin[index].append(ViewPair((row[scene, first], row[scene, second]), angle, index))
    chosen = []
    for index, pairs in enumerate(by_bin):
        order = torch.randperm(len(pairs), generator=generator("correspondence pairs", index))
        chosen += [pairs[position] for position in order[:per_bin].tolist()]
    if not chosen:
        raise UserError(
            f"no two of the {len(row)} held-out images overlap: measure on more of them (max_images)", "data"
        )
    return chosen


def read_views(data: ProbeData, rows: tuple[int, ...], device: torch.device) -> list[PosedView]:
    """Return the geometry of held-out frames, on a device."""
    names = ("depth", "intrinsics", "world_from_camera")
    depth, intrinsics, poses = (data.field("held_out", name).take(torch.tensor(rows), device) for name in names)
    return [PosedView(*view) for view in zip(depth, intrinsics, poses, strict=True)]


def cell_centers(size: tuple[int, int], cells: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Return the centers [h * w, 2], in pixels, of the cells (h, w) that images of `size` (H, W) are divided into."""
    scale = torch.tensor([size[1] / cells[1], size[0] / cells[0]], device=device)
    return pixel_centers(*cells, device=device) * scale


def share_points(a: PosedView, b: PosedView, cells: Tensor) -> SharedPoints:
    """Find where the points that one view sees are in another view.

    Args:
        a: View that sees the points.
        b: View to find them in.
        cells: Pixels [M, 2] of `a`; those of unknown depth are left out.
    """
    cells = cells[a.depth_at(cells) > 0]
    points = a.points_at(cells)
    target, expected = project(points, b.intrinsics, b.world_from_camera)
    target = torch.where(expected[:, None] > 0, target, torch.inf)  # behind the camera a projection has no meaning
    height, width = b.size
    inside = (target >= 0).all(-1) & (target[:, 0] < width) & (target[:, 1] < height)
    measured = b.depth_at(target)
    near = (measured - expected).abs() <= (_SAME_SURFACE * expected).clamp_min(_SAME_SURFACE)
    return SharedPoints(cells, points, target, inside & (measured > 0) & near)
