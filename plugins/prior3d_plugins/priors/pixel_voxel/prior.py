"""The pixel-voxel prior (Pri3D's geometric prior)."""

from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

import torch
from annotated_types import Ge, Gt, Le
from matplotlib.figure import Figure
from torch import Tensor, nn

from prior3d import BackboneSpec, Batch, Features, Prior
from prior3d.losses import Exclusion, gather_cells, kept_fraction, masked_point_info_nce
from prior3d.sparse import CoordinateManager, SparseTensor, grids_in_one_pass, mink_unet34c, mink_unet_small
from prior3d_plugins.priors.pixel_voxel.chunks import (
    Grids,
    Points,
    Voxels,
    mean_colors,
    random_grids,
    reach_boxes,
    voxelize,
    within_reach,
)
from prior3d_plugins.priors.pixel_voxel.matching import PixelVoxels, match_pixels, sample_matches
from prior3d_plugins.priors.pixel_voxel.pictures import plot_matches


class PixelVoxel(Prior):
    """PointInfoNCE between pixels of a view and the voxels that they see in the view's chunk.

    A chunk holds the voxels of the scene's surface in the world-axes box around the view's frustum, hidden parts
    included. A sparse 3D U-Net, trained jointly, gives each voxel a feature. With two views, a sample is the joint
    sample of Pri3D, (C_i, C_j, V_i, V_j): each image with its own chunk.

    Args:
        backbone: specification of the features.
        temperature: softmax temperature; cosine similarities are divided by it. Pri3D's code uses 0.4.
        points: maximum number of matches per view, at most one per feature cell and one per voxel.
        voxel_size: edge of a voxel in meters. The paper uses 0.02; 0.10 suits a CPU.
        voxels: input of the 3D network. `occupancy`: only which voxels are occupied. A pixel and its voxel then match
            by the surrounding shape alone, and the voxels of a flat wall are hardly distinguishable. `color`: the
            voxel's mean color in the scene's images as well. Places on a wall then differ, but a pixel and its voxel
            match by texture where that is easier, and the features need not encode shape.
        max_voxels: maximum number of voxels per chunk; those nearest to the camera stay. A view in a room has about 260
            000 voxels of 2 cm, 50 000 of 4 cm or 6 000 of 10 cm.
        chunk_far: maximum depth of a chunk in meters; by default a chunk ends where the view's depth does.
        chunks: `each` view has its own chunk, or only the `first` view of a sample, at half the cost for two views.
        max_turn: maximum angle in degrees by which a chunk is turned about the vertical axis; 0 for no turn.
        up: world axis that is vertical.
        unet: 3D network: `small` (0.9 M parameters) or `34c` (Pri3D's, 37.9 M).
        width: factor on the channels of the 3D network.
        unet_channels: output channels of the 3D network; 96 in Pri3D.
        channels: dimension of the space in which pixels and voxels are compared, after a linear head on each side.
        negatives: source of the negatives: the same view's chunk (`pair`), or every chunk of the batch (`batch`).
        exclude_radius: radius in meters around the positive's 3D point; features of the same scene inside it are not
            used as negatives. Useful with `batch`, where the chunks of two views overlap. 0 keeps all negatives.
        engine: engine of the sparse convolutions: `auto`, or the name of an engine, with or without the prefix
            `sparse/`.

    Raises:
        UserError: if the engine is not available.

    Reference:
        Hou et al., Pri3D: Can 3D Priors Help 2D Representation Learning?, ICCV 2021, arXiv 2104.11225. Differences:
        voxels hold occupancy by default, as in the paper (its code uses colors; `color` gives both, taken from the
        recorded images, while the view itself has photometric augmentation); a match is the voxel that holds a pixel's
        point or borders it (there, any voxel within 20 cm in depth); no pixel cell and no voxel occurs twice; voxel
        coordinates are floored (there, truncated), and chunks are turned and shifted at random; the chunks of a batch
        are normalized together.
    """

    needs = ("image", "depth", "intrinsics", "world_from_camera", "surface")
    reads = frozenset({"dense"})

    def __init__(
        self,
        backbone: BackboneSpec,
        *,
        temperature: Annotated[float, Gt(0)] = 0.1,
        points: Annotated[int, Ge(2), Le(10**6)] = 384,
        voxel_size: Annotated[float, Gt(0)] = 0.04,
        voxels: Literal["occupancy", "color"] = "occupancy",
        max_voxels: Annotated[int, Ge(1), Le(10**7)] = 60_000,
        chunk_far: Annotated[float, Gt(0)] | None = None,
        chunks: Literal["each", "first"] = "each",
        max_turn: Annotated[float, Ge(0), Le(180)] = 180.0,
        up: Literal["x", "y", "z"] = "z",
        unet: Literal["small", "34c"] = "small",
        width: Annotated[float, Gt(0), Le(4)] = 1.0,
        unet_channels: Annotated[int, Ge(1), Le(512)] = 32,
        channels: Annotated[int, Ge(1), Le(4096)] = 64,
        negatives: Literal["pair", "batch"] = "pair",
        exclude_radius: Annotated[float, Ge(0)] = 0.0,
        engine: str = "auto",
    ) -> None:
        super().__init__(backbone)
        rows, columns = backbone.dense_size
        self.temperature, self.points = temperature, min(points, rows * columns)
        self.voxel_size, self.max_voxels, self.chunk_far = voxel_size, max_voxels, chunk_far
        self.voxels, self.chunks, self.max_turn, self.up = voxels, chunks, max_turn, up
        self.negatives, self.exclude_radius = negatives, exclude_radius
        if voxels == "color":
            self.needs = (*self.needs, "surface_color")
        if exclude_radius:
            self.needs = (*self.needs, "scene")
        make = {"small": mink_unet_small, "34c": mink_unet34c}[unet]
        self.unet = make(4 if voxels == "color" else 1, unet_channels, width=width, engine=engine)
        self.pixel_head = nn.Linear(backbone.dense_channels, channels)
        self.voxel_head = nn.Linear(unet_channels, channels)

    def forward(self, batch: Batch, features: Mapping[str, Features]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, the shares of filled match slots and of matches inside their voxel, and voxels per chunk."""
        sample = self._sample(batch)
        if sample is None:
            nothing = torch.zeros((), device=batch["depth"].device)
            return self.zero(features), {"matches": nothing, "contained": nothing, "voxels": nothing}
        match = sample.match
        dense = self._of_views(features["image"].dense)
        queries = self.pixel_head(gather_cells(dense, match.cells))
        voxels = self.unet(sample.tensor(len(dense)))
        # No voxel occurs twice but as padding: each row of the gradient is one number and zeros, in any order.
        rows = voxels.features.index_select(0, match.voxels.flatten()).unflatten(0, match.voxels.shape)
        keys = self.voxel_head(rows)
        loss = masked_point_info_nce(
            queries,
            keys,
            match.valid,
            self.temperature,
            negatives=self.negatives,
            exclude=self._exclude(batch, match) if self.exclude_radius else None,
        )
        contained = match.contained.sum() / match.valid.sum().clamp_min(1)
        per_chunk = torch.full((), len(sample.voxels) / len(dense), device=dense.device)
        return loss, {"matches": kept_fraction(match.valid), "contained": contained, "voxels": per_chunk}

    def plot(self, batch: Batch, features: Mapping[str, Features]) -> dict[str, Figure]:
        """Plot the matches of the first view next to its chunk."""
        sample = self._sample(batch)
        if sample is None:
            return {}
        match, own = sample.match, sample.voxels[:, 0] == 0
        valid, row_in_chunk = match.valid[0], own.cumsum(0) - 1
        if not valid.any():
            return {}
        figure = plot_matches(
            batch["image"][0, 0],
            match.pixels[0][valid],
            row_in_chunk[match.voxels[0][valid]],
            sample.grids.centers(sample.voxels[own]),
            batch["intrinsics"][0, 0],
            batch["world_from_camera"][0, 0],
            sample.grids.axes,
        )
        return {"matches": figure}

    def _sample(self, batch: Batch) -> "_Sample | None":
        """Voxelize the chunks and sample matches; return None if no chunk has a point."""
        depth, intrinsics, poses = (self._of_views(batch[n]) for n in ("depth", "intrinsics", "world_from_camera"))
        grids = random_grids(poses, self.voxel_size, self.max_turn, self.up)
        if grids_in_one_pass(depth.device):
            return self._sample_in_one_pass(batch, depth, intrinsics, poses, grids)
        points = self._points(batch, intrinsics, poses)
        if len(points.positions) == 0:
            return None
        voxels = voxelize(points, grids, self.max_voxels)
        spec = self.backbone
        match = match_pixels(depth, intrinsics, poses, spec.dense_size, spec.dense_stride, voxels.coordinates, grids)
        return _Sample(voxels.coordinates, _inputs(voxels), grids, sample_matches(match, self.points))

    def _sample_in_one_pass(
        self, batch: Batch, depth: Tensor, intrinsics: Tensor, poses: Tensor, grids: Grids
    ) -> "_Sample | None":
        """Do the same on a GPU, with one wait for it."""
        # Triton is not there on every machine.
        from prior3d_plugins.priors.pixel_voxel.one_pass import DrawnPixels, sample_distinct, start_voxels

        far, spec, colors = self.chunk_far, self.backbone, batch["surface_color"] if self.voxels == "color" else None
        points = Points(batch["surface"], batch["surface_view"], colors)
        every = 1 if self.chunks == "each" else batch["depth"].shape[1]
        boxes = None if far is None else reach_boxes(intrinsics, poses, spec.size, far)
        pending = start_voxels(points, every, boxes, grids, self.max_voxels, self.unet.kernel_maps())
        pixels = DrawnPixels(depth, intrinsics, poses, spec.dense_size, spec.dense_stride, grids)
        grid = pending.finish()
        if grid is None:
            return None
        voxels = Voxels(grid.coordinates, None)
        if colors is not None:
            voxels = voxels._replace(colors=mean_colors(colors, grid.rows_of_points(), len(grid.keys)))
        match = sample_distinct(pixels.match(grid), self.points, len(grid.keys))
        return _Sample(voxels.coordinates, _inputs(voxels), grids, match, grid.manager)

    def _of_views(self, values: Tensor) -> Tensor:
        """Select the views that have a chunk, [B, V, ...] -> [G, ...]."""
        return values.flatten(0, 1) if self.chunks == "each" else values[:, 0]

    def _points(self, batch: Batch, intrinsics: Tensor, poses: Tensor) -> Points:
        """Return the packed points of the views that have a chunk."""
        colors = batch["surface_color"] if self.voxels == "color" else None
        points = Points(batch["surface"], batch["surface_view"], colors)
        if self.chunks == "first":
            views = batch["depth"].shape[1]
            points = points.where(points.chunk % views == 0)
            points = points._replace(chunk=points.chunk // views)
        if self.chunk_far is not None:
            where = points.positions, points.chunk
            points = points.where(within_reach(*where, intrinsics, poses, self.backbone.size, self.chunk_far))
        return points

    def _exclude(self, batch: Batch, match: PixelVoxels) -> Exclusion:
        """Return which pairs of matches may show one point of a scene."""
        scene = batch["scene"].to(match.points.device, non_blocking=True)
        scene = scene.repeat_interleave(len(match.points) // len(scene))
        return Exclusion(match.points, self.exclude_radius, scene[:, None].expand(match.points.shape[:2]))


class _Sample(NamedTuple):
    """Voxels [M, 4] of the chunks of a batch, their features, their grids, and the pixels matched with them.

    `manager` has the levels of the 3D network, if they are already made.
    """

    voxels: Tensor
    inputs: Tensor
    grids: Grids
    match: PixelVoxels
    manager: CoordinateManager | None = None

    def tensor(self, chunks: int) -> SparseTensor:
        """Return the input of the 3D network."""
        if self.manager is not None:
            return SparseTensor(self.inputs, manager=self.manager)
        return SparseTensor(self.inputs, self.voxels, batch_size=chunks)


def _inputs(voxels: Voxels) -> Tensor:
    """Return the input of the 3D network: occupancy [M, 1], or [M, 4] with the mean color, centered about 0."""
    occupancy = torch.ones(len(voxels.coordinates), 1, device=voxels.coordinates.device)
    return occupancy if voxels.colors is None else torch.cat([occupancy, voxels.colors - 0.5], dim=1)
