"""A made-up backbone, batch, features and scenes, small enough to try every prior on."""

from collections.abc import Sequence

import torch
from torch import Tensor

from prior3d.contracts.fields import FIELDS
from prior3d.contracts.prior import BackboneSpec, Batch, Features, Scene
from prior3d.randomness import reseed

SIZE = (48, 64)
"""Height and width of the images of `example_batch`, in pixels."""


def example_backbone() -> BackboneSpec:
    """Return the specification that matches `example_features`."""
    return BackboneSpec(
        name="example",
        size=SIZE,
        dense_channels=16,
        dense_stride=4,
        encoder_channels={4: 8, 16: 24},
        pooled_channels=24,
        has_decoder=True,
    )


def example_batch(known: bool = True) -> Batch:
    """Return a batch of 2 samples x 2 views of a textured room's corner, with every field that can be made up.

    Args:
        known: False for a batch with nothing to learn from: no depth, no surface, and crops without overlap.
    """
    stream = torch.Generator().manual_seed(0)
    height, width = SIZE
    samples, views = 2, 2
    intrinsics = torch.tensor([[50.0, 0, width / 2], [0, 50.0, height / 2], [0, 0, 1]]).expand(samples, views, 3, 3)
    poses = torch.eye(4).repeat(samples, views, 1, 1)
    poses[:, 1, 0, 3] = 0.2
    depth = torch.stack([_corner(poses[0, view], intrinsics[0, 0]) for view in range(views)]).expand(
        samples, -1, -1, -1
    )
    crops = torch.eye(3).repeat(samples, 2, 1, 1)
    crops[:, 1, 0, 2] = 5.0 if known else 10.0 * width
    image = torch.rand(samples, views, 3, height, width, generator=stream)
    batch = {
        "image": image,
        "image_clean": image.clone(),
        "image_crops": torch.rand(samples, 2, 3, height, width, generator=stream),
        "crop_from_image": crops,
        "depth": depth.clone() if known else torch.zeros_like(depth),
        "pseudo_depth": depth.clone() if known else torch.zeros_like(depth),
        "pseudo_kind": torch.tensor([0, 1]),
        "intrinsics": intrinsics.clone(),
        "world_from_camera": poses,
        "scene": torch.tensor([0, 1]),
        "frame": torch.tensor([[0, 1], [0, 1]]),
    }
    return {**batch, **_surface(batch, known)}


def example_features(batch: Batch, fields: tuple[str, ...], grad: bool = True) -> dict[str, Features]:
    """Return random features for the image fields of a batch, as leaf tensors that collect gradients."""
    reseed("features")
    spec = example_backbone()

    def one(count: int, views: int, requires_grad: bool, teachers: dict[str, Features]) -> Features:
        def make(*shape: int) -> Tensor:
            return torch.randn(count, views, *shape).requires_grad_(requires_grad)

        encoder = {stride: make(c, *(side // stride for side in SIZE)) for stride, c in spec.encoder_channels.items()}
        dense = make(spec.dense_channels, *spec.dense_size)
        return Features(encoder, dense, make(spec.pooled_channels), **teachers)

    result = {}
    for field in fields:
        count, views = batch[field].shape[:2]
        teachers = {name: one(count, views, False, {}) for name in ("reference", "ema")}
        result[field] = one(count, views, grad, teachers)
    return result


def example_scenes(fields: Sequence[str]) -> list[Scene]:
    """Return two scenes of the corner in `example_batch`, four frames each, for offline stages.

    Args:
        fields: fields of the frames, in the form of `Prior.prepares`.
    """
    chosen = {field.split("|")[0] for field in fields}
    return [
        Scene(index, f"corner-{index}", 4, lambda frames, index=index: _frames(index, frames, chosen))
        for index in range(2)
    ]


def example_teacher(images: Tensor) -> Features:
    """Return features of images [B, V, 3, H, W] that depend on nothing else, for `example_backbone`."""
    spec = example_backbone()
    stream = torch.Generator().manual_seed(0)

    def project(channels: int, size: tuple[int, int]) -> Tensor:
        pooled = torch.nn.functional.adaptive_avg_pool2d(images.flatten(0, 1), size)
        weights = torch.randn(channels, 3, generator=stream, dtype=images.dtype)
        return torch.einsum("cd,ndhw->nchw", weights, pooled - 0.5).unflatten(0, images.shape[:2])

    encoder = {
        stride: project(c, tuple(side // stride for side in SIZE)) for stride, c in spec.encoder_channels.items()
    }
    dense = project(spec.dense_channels, spec.dense_size)
    return Features(encoder, dense, project(spec.pooled_channels, (1, 1)).flatten(2))


def _frames(scene: int, frames: Sequence[int], fields: set[str]) -> Batch:
    """Return frames of a scene as a batch of one sample; frames 0 and 1 have the cameras of `example_batch`."""
    height, width = SIZE
    intrinsics = torch.tensor([[50.0, 0, width / 2], [0, 50.0, height / 2], [0, 0, 1]])
    poses = torch.eye(4).repeat(len(frames), 1, 1)
    poses[:, 0, 3] = torch.tensor([(0.0, 0.2, 0.1, -0.1)[frame] for frame in frames])
    stream = torch.Generator().manual_seed(scene)
    image = torch.rand(4, 3, height, width, generator=stream)[list(frames)]
    depth = torch.stack([_corner(pose, intrinsics) for pose in poses])
    views = {
        **{"image": image, "image_clean": image.clone(), "depth": depth, "pseudo_depth": depth.clone()},
        **{"intrinsics": intrinsics.repeat(len(frames), 1, 1), "world_from_camera": poses},
    }
    made = {name: value[None] for name, value in views.items() if fields & {name, FIELDS[name].made_from}}
    made |= {"pseudo_kind": torch.zeros(1, dtype=torch.int64)} if "pseudo_depth" in fields else {}
    return {**made, "scene": torch.tensor([scene]), "frame": torch.tensor([list(frames)])}


def _corner(world_from_camera: Tensor, intrinsics: Tensor) -> Tensor:
    """Return depth [H, W] of a corner: walls at z = 2 m and x = 0.5 m, seen by a camera that looks along z."""
    height, width = SIZE
    x = (torch.arange(width) + 0.5 - intrinsics[0, 2]) / intrinsics[0, 0]
    to_side = (0.5 - world_from_camera[0, 3]) / x.clamp_min(1e-6)
    return torch.minimum(to_side, torch.tensor(2.0)).expand(height, width).clone()


def _surface(batch: Batch, known: bool) -> Batch:
    """Return the surface seen by each view, packed, in the colors of its pixels."""
    if not known:
        nothing = torch.zeros(0, 3)
        return {"surface": nothing, "surface_view": nothing[:, 0].long(), "surface_color": nothing.clone()}
    from prior3d.geometry import unproject

    points = unproject(batch["depth"], batch["intrinsics"], batch["world_from_camera"])
    points = points.flatten(2, 3).flatten(0, 1)
    views = torch.arange(len(points)).repeat_interleave(points.shape[1])
    colors = batch["image_clean"].flatten(0, 1).flatten(2).movedim(1, -1)
    return {"surface": points.flatten(0, 1), "surface_view": views, "surface_color": colors.flatten(0, 1)}
