"""Rendering of any number of values per Gaussian, with depth and alpha, by any engine."""

from typing import NamedTuple

from torch import Tensor

from prior3d.contracts.engine import Gaussians, SplatEngine
from prior3d.geometry import working_dtype
from prior3d.registry.engines import EngineChoice, choose


class Rendering(NamedTuple):
    """Rendering of the Gaussians; the leading V exists if the poses have one.

    Attributes:
        values: [V, C, H, W] sum of weight x value, plus (1 - alpha) x background
        depth: [V, H, W] expected depth, sum of weight x depth / alpha, meters; 0 where nothing was drawn
        alpha: [V, H, W] sum of weights, in [0, 1)
    """

    values: Tensor
    depth: Tensor
    alpha: Tensor


def rasterize(
    gaussians: Gaussians,
    values: Tensor,
    intrinsics: Tensor,
    world_from_camera: Tensor,
    size: tuple[int, int],
    *,
    engine: str | EngineChoice = "torch",
    background: Tensor | None = None,
) -> Rendering:
    """Render values of Gaussians by front-to-back compositing.

    All engines keep these conventions (gsplat 1.5.3, `classic`): the first pixel's center is (0.5, 0.5); 2D covariances
    grow by 0.3 pixel^2; Gaussians nearer than 1 cm are dropped; alpha = min(0.999, opacity x exp(-d^2 / 2)), dropped
    below 1/255; Gaussians are ordered by depth of the mean; a pixel ends before its transmittance is 1e-4. Computed in
    float32 (float64 if the means are), with autocast and TF32 off. Differentiable once in means, quaternions, scales,
    opacities, values and background; not in the camera.

    Args:
        gaussians: Gaussians to render.
        values: [N, C] per Gaussian, any C (colors, features, ...)
        intrinsics: [3, 3] or [V, 3, 3] pixels of `size`, no skew
        world_from_camera: [4, 4] or [V, 4, 4] rigid, OpenCV axes, meters
        size: (height, width) in pixels.
        engine: `torch` (everywhere), `gsplat` (CUDA, float32), another installed engine, or `auto`: the best one that
            can run here, logged once.
        background: [C] value behind all Gaussians

    Returns:
        The rendering.

    Raises:
        ValueError: if shapes do not fit together.
        UserError: if the engine is not available, or cannot work on these tensors.

    Reference:
        Kerbl et al. 2023, arXiv 2308.04079; conventions of Ye et al. 2024 (gsplat), arXiv 2409.06765.

    >>> import torch
    >>> from prior3d.splat import gaussians_from_depth
    >>> intrinsics = torch.tensor([[20.0, 0, 8], [0, 20, 6], [0, 0, 1]])
    >>> pose = torch.eye(4)
    >>> depth = torch.full((1, 12, 16), 2.0)
    >>> gaussians = gaussians_from_depth(depth, intrinsics, pose[None])
    >>> seen = rasterize(gaussians, torch.ones(len(gaussians), 3), intrinsics, pose, (12, 16))
    >>> seen.values.shape, round(seen.depth[6, 8].item(), 3)
    (torch.Size([3, 12, 16]), 2.0)
    """
    check_shapes(len(gaussians), values, intrinsics, world_from_camera, background)
    dtype = working_dtype(gaussians.means)
    gaussians, values = gaussians.to(dtype), values.to(dtype)
    poses = world_from_camera.to(values).reshape(-1, 4, 4)
    cameras = intrinsics.to(values).expand(len(poses), 3, 3)
    background = values.new_zeros(values.shape[1]) if background is None else background.to(values)
    draw = splat_engine(engine, values).rasterize
    rendering = Rendering(*draw(gaussians, values, cameras, poses, size, background))
    return rendering if world_from_camera.ndim == 3 else Rendering(*(tensor[0] for tensor in rendering))


def splat_engine(engine: str | EngineChoice, tensor: Tensor) -> SplatEngine:
    """Return the engine for a name, for `auto` or for an earlier choice, for tensors like this one."""
    if isinstance(engine, EngineChoice):
        return engine.on(tensor.device, tensor.dtype)
    return choose("splat", engine, tensor.device, tensor.dtype)


def check_shapes(
    count: int, values: Tensor | None, intrinsics: Tensor, world_from_camera: Tensor, background: Tensor | None = None
) -> None:
    """Refuse arguments that do not fit together, and name the wrong one.

    Args:
        count: number of Gaussians.
        values: expected [N, C].
        intrinsics: expected [3, 3] or, with V poses, [V, 3, 3].
        world_from_camera: expected [4, 4] or [V, 4, 4].
        background: expected [C].

    Raises:
        ValueError: names the expected and the actual shape.
    """
    if values is not None and (values.ndim != 2 or len(values) != count or values.shape[1] == 0):
        raise ValueError(f"expected values [{count}, C] with C > 0, got {list(values.shape)}")
    if world_from_camera.ndim not in (2, 3) or world_from_camera.shape[-2:] != (4, 4):
        raise ValueError(f"expected world_from_camera [4, 4] or [V, 4, 4], got {list(world_from_camera.shape)}")
    views = list(world_from_camera.shape[:-2])
    if list(intrinsics.shape) not in ([3, 3], [*views, 3, 3]):
        raise ValueError(f"expected intrinsics [3, 3] or {[*views, 3, 3]}, got {list(intrinsics.shape)}")
    if background is not None and values is not None and background.shape != values.shape[1:]:
        raise ValueError(f"expected background {list(values.shape[1:])}, got {list(background.shape)}")
