"""Rendering of any number of values per Gaussian, with depth and alpha, by the engine of one's choice."""

from typing import NamedTuple

from torch import Tensor

from prior3d.contracts.engine import Gaussians, SplatEngine
from prior3d.geometry import working_dtype
from prior3d.registry.engines import EngineChoice, choose


class Rendering(NamedTuple):
    """What a camera sees of the Gaussians; the leading V is there where the poses had it.

    Attributes:
        values: sum of weight x value, plus (1 - alpha) x background  # [V, C, H, W]
        depth: expected depth, sum of weight x depth / alpha, metres; 0 where nothing was drawn  # [V, H, W]
        alpha: sum of weights, in [0, 1)  # [V, H, W]
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

    Every engine keeps these conventions (gsplat 1.5.3, `classic`): the first pixel's centre is (0.5, 0.5); 2D
    covariances grow by 0.3 pixel^2; Gaussians nearer than 1 cm are dropped; alpha = min(0.999, opacity x
    exp(-d^2 / 2)), dropped below 1/255; order by depth of the mean; a pixel ends before its transmittance is 1e-4.
    Computed in float32 (float64 if the means are), autocast and TF32 off. Differentiable once in means, quaternions,
    scales, opacities, values and background; not in the camera.

    Args:
        gaussians: what to render.
        values: per Gaussian, any C (colours, features, ...)  # [N, C]
        intrinsics: pixels of `size`, no skew  # [3, 3] or [V, 3, 3]
        world_from_camera: rigid, OpenCV axes, metres  # [4, 4] or [V, 4, 4]
        size: (height, width) in pixels.
        engine: `torch` (everywhere), `gsplat` (CUDA, float32), another that is installed, or `auto`: the best that can
            run here, logged once.
        background: value behind everything  # [C]

    Returns:
        The rendering.

    Raises:
        ValueError: if shapes do not fit together.
        UserError: if the engine cannot be had, or cannot work on these tensors.

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
    """Return the engine of a name, `auto` or a choice made before, for tensors like this one."""
    if isinstance(engine, EngineChoice):
        return engine.on(tensor.device, tensor.dtype)
    return choose("splat", engine, tensor.device, tensor.dtype)


def check_shapes(
    count: int, values: Tensor | None, intrinsics: Tensor, world_from_camera: Tensor, background: Tensor | None = None
) -> None:
    """Refuse arguments that do not fit together, naming the one at fault.

    Args:
        count: number of Gaussians.
        values: expected [N, C].
        intrinsics: expected [3, 3] or, with V poses, [V, 3, 3].
        world_from_camera: expected [4, 4] or [V, 4, 4].
        background: expected [C].

    Raises:
        ValueError: naming the expected shape and the one found.
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
