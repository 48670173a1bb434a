"""Lift a teacher's features from a scene's posed views to Gaussians, and save and load them."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from prior3d import BackboneSpec, Batch, Scene, UserError
from prior3d.splat import (
    EngineChoice,
    Gaussians,
    Lifted,
    SplatOperator,
    gaussians_from_depth,
    target_columns,
    view_operator,
    views_at_once,
)
from prior3d.splat import lift_average as average
from prior3d.splat import lift_cg as conjugate_gradients

_FILE = "lifted.safetensors"
_AT_ONCE = 8
"""Number of images that a teacher encodes at once."""

_KEPT_BYTES = 1 << 30
"""Maximum size of lifted scenes kept in memory; reading one takes milliseconds."""


@dataclass(frozen=True)
class Grid:
    """The cells of a feature map, and the resolution at which views are rendered to fill them.

    Attributes:
        cells: rows and columns of the map.
        stride: image pixels per cell.
        fineness: rendered pixels per cell.
    """

    cells: tuple[int, int]
    stride: int
    fineness: int

    @classmethod
    def of(cls, backbone: BackboneSpec, stride: int | None, fineness: int) -> "Grid":
        """Return the grid of the encoder map at a stride, or of the dense features for None."""
        stride = stride or backbone.dense_stride
        return cls(tuple(-(-side // stride) for side in backbone.size), stride, fineness)

    @property
    def rendered(self) -> tuple[int, int]:
        """Height and width of a rendering, in its pixels."""
        return tuple(cells * self.fineness for cells in self.cells)

    def operator(
        self, gaussians: Gaussians, intrinsics: Tensor, world_from_camera: Tensor, engine: str | EngineChoice
    ) -> SplatOperator:
        """Return the operator from Gaussians to the cells of views; `intrinsics` [V, 3, 3] in image pixels."""
        camera = self.camera(intrinsics)
        return view_operator(gaussians, camera, world_from_camera, self.rendered, self.cells, engine=engine)

    def camera(self, intrinsics: Tensor) -> Tensor:
        """Return intrinsics [..., 3, 3] in pixels of a rendering; its cells start where the image's cells start."""
        scaled = intrinsics.to(torch.float32, copy=True)
        scaled[..., :2, :] *= self.fineness / self.stride
        return scaled


@dataclass(frozen=True)
class Lifting:
    """Options of the prior that determine a lifted scene."""

    method: Literal["average", "cg"]
    frames: int
    spacing: float | None
    min_views: int
    grid: Grid
    engine: str | EngineChoice = "auto"


@dataclass(frozen=True, eq=False)
class LiftedScene:
    """Gaussians of a scene and their lifted values [N, C + 1]: features, then the features' length as the last channel.

    The length is lifted separately because averaging shortens: the mean of features that disagree is shorter than each.
    """

    gaussians: Gaussians
    lifted: Lifted

    def save(self, folder: Path) -> None:
        """Write the scene; features in half precision, relative to the greatest length."""
        shape = ("means", "quaternions", "scales", "opacities")
        tensors = {name: getattr(self.gaussians, name) for name in shape}
        unit = self.lifted.features[:, -1].amax().clamp_min(1e-20)
        tensors |= {"features": (self.lifted.features / unit).half(), "unit": unit[None]}
        tensors |= {"views": self.lifted.views.to(torch.int16), "mass": self.lifted.mass}
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, folder / _FILE)

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> "LiftedScene":
        """Read a scene that `save` wrote."""
        tensors = load_file(folder / _FILE, device=str(device))
        features = tensors.pop("features").float() * tensors.pop("unit")
        lifted = Lifted(features, tensors.pop("mass"), tensors.pop("views").long())
        return cls(Gaussians(**tensors), lifted)

    def shown(self, min_views: int) -> "ShownScene":
        """Return what targets are rendered from; Gaussians seen by fewer than `min_views` views only hide others."""
        return ShownScene(self.gaussians, target_columns(self.lifted, min_views))


class ShownScene(NamedTuple):
    """Gaussians of a lifted scene and the columns [N, C + 3] that its targets sum; the same in every step."""

    gaussians: Gaussians
    columns: Tensor

    @property
    def bytes(self) -> int:
        """Approximate memory of the scene in bytes."""
        return 4 * (self.columns.numel() + 11 * len(self.gaussians))


def lift_scene(scene: Scene, teach: Callable[[Tensor], Tensor], options: Lifting) -> LiftedScene:
    """Lay Gaussians on the surfaces in a scene's depth maps and lift features of the same views onto them.

    Args:
        scene: scene to lift; at most `options.frames` evenly spaced frames are read.
        teach: maps images [1, V, 3, H, W] in 0..1 to feature maps [1, V, C, h, w].
        options: how to lift.

    Raises:
        UserError: the scene has too few frames, or no depth.
    """
    views = scene.read(_evenly(scene.frames, options.frames))
    count = views["frame"].shape[1]
    if count < options.min_views:
        raise UserError(
            f"scene {scene.name}: {count} frames, but a point must be seen by {options.min_views} (min_views)"
        )
    poses = views["world_from_camera"][0]
    gaussians = _lay_gaussians(scene.name, views, options)
    lift = {"average": average, "cg": conjugate_gradients}[options.method]
    at_once = views_at_once(options.engine, gaussians)
    cameras = zip(views["intrinsics"][0].split(at_once), poses.split(at_once), strict=True)
    operators = (options.grid.operator(gaussians, *camera, options.engine) for camera in cameras)
    return LiftedScene(gaussians, lift(zip(operators, _encode(views["image"], teach, at_once), strict=True)))


def _lay_gaussians(scene: str, views: Batch, options: Lifting) -> Gaussians:
    depth, intrinsics, poses = (views[name][0] for name in ("depth", "intrinsics", "world_from_camera"))
    spacing = options.spacing
    if spacing is None and (depth > 0).any():  # size of a rendered pixel at the median depth
        footprints = (depth / intrinsics[:, :1, :1])[depth > 0]
        spacing = float(footprints.median()) * options.grid.stride / options.grid.fineness
    try:
        return gaussians_from_depth(depth, intrinsics, poses, spacing=spacing)
    except ValueError as error:
        raise UserError(f"scene {scene}: {error}") from error


def _encode(images: Tensor, teach: Callable[[Tensor], Tensor], at_once: int) -> Iterator[Tensor]:
    """Yield the features of `at_once` views and their length, [V, C + 1, h, w]."""
    for part in images.split(at_once * max(1, _AT_ONCE // at_once), dim=1):
        for features in teach(part)[0].float().split(at_once):
            maps = torch.cat([features, features.norm(dim=1, keepdim=True)], 1)
            yield maps.contiguous()  # backbones lay channels out last; sums over maps follow the layout


def _evenly(count: int, most: int) -> list[int]:
    return torch.linspace(0, count - 1, min(count, most), dtype=torch.float64).round().long().tolist()


class LiftedScenes:
    """The lifted scenes of a run, read on demand; the most recently used ones stay in memory.

    Args:
        folders: folders of the scenes, in the order of the batch field `scene`.
        min_views: minimum number of views that must have seen a Gaussian.
    """

    def __init__(self, folders: Sequence[Path], min_views: int) -> None:
        self.folders = list(folders)
        self.min_views = min_views
        self._kept: OrderedDict[tuple[int, torch.device], ShownScene] = OrderedDict()

    def on(self, device: torch.device, scene: int) -> ShownScene:
        """Return a scene on a device."""
        key = (scene, device)
        if key not in self._kept:
            self._kept[key] = LiftedScene.load(self.folders[scene], device).shown(self.min_views)
            while len(self._kept) > 1 and sum(kept.bytes for kept in self._kept.values()) > _KEPT_BYTES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]
