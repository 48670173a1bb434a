"""Choice of the splatting engine, and the adapter to gsplat."""

import functools
import importlib.util
import logging
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from prior3d.geometry import full_precision
from prior3d.splat.projection import LOW_PASS, NEAR

if TYPE_CHECKING:
    from prior3d.splat.gaussians import Gaussians

Engine = Literal["torch", "gsplat", "auto"]
GSPLAT_CHANNEL_CHUNK = 32  # gsplat's kernels are compiled for a few widths; beyond 32 registers spill
INSTALL_GSPLAT = (
    "pip install gsplat==1.5.3 (it compiles its kernels with nvcc on first use, or take one of its prebuilt wheels)"
)
_log = logging.getLogger(__name__)


def resolve_engine(engine: Engine, tensor: Tensor) -> Literal["torch", "gsplat"]:
    """Turn what was asked for into an engine that can run.

    Args:
        engine: `torch`, `gsplat` or `auto`.
        tensor: on the device and of the type that will be rendered.

    Returns:
        `torch` or `gsplat`.

    Raises:
        ValueError: for an unknown name, or `gsplat` on tensors it cannot render.
        ImportError: for `gsplat` where it is not installed or its kernels cannot be built.
    """
    if engine not in get_args(Engine):
        raise ValueError(f"expected engine torch, gsplat or auto, got {engine!r}")
    if engine == "auto":
        obstacle = _gsplat_obstacle() if tensor.is_cuda and tensor.dtype == torch.float32 else "not float32 on CUDA"
        chosen = "torch" if obstacle else "gsplat"
        _log_choice(chosen, obstacle)
        return chosen
    if engine == "gsplat":
        if obstacle := _gsplat_obstacle():
            raise ImportError(f"engine gsplat: {obstacle}; {INSTALL_GSPLAT}, or choose engine torch")
        if not tensor.is_cuda or tensor.dtype != torch.float32:
            raise ValueError(f"engine gsplat: expected float32 on CUDA, got {tensor.dtype} on {tensor.device}")
    return engine


@functools.cache
def _gsplat_obstacle() -> str | None:
    """Why gsplat cannot run here, or None; building its kernels may take minutes the first time."""
    if importlib.util.find_spec("gsplat") is None:
        return "gsplat is not installed"
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA device"
    from gsplat.cuda._backend import _C

    return "gsplat found no CUDA toolkit to build its kernels with" if _C is None else None


@functools.cache
def _log_choice(chosen: str, obstacle: str | None) -> None:
    _log.info("splatting engine auto: %s%s", chosen, f" ({obstacle})" if obstacle else "")


def rasterize_gsplat(
    gaussians: "Gaussians",
    values: Tensor,
    intrinsics: Tensor,
    world_from_camera: Tensor,
    size: tuple[int, int],
    background: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Render with gsplat's CUDA kernels; conventions as in `rasterize`.

    Args:
        gaussians: float32, on CUDA.
        values: per Gaussian  # [N, C]
        intrinsics: pixels  # [V, 3, 3]
        world_from_camera: rigid  # [V, 4, 4]
        size: (height, width) in pixels.
        background: value behind everything  # [C]

    Returns:
        Values [V, C, H, W], expected depth [V, H, W] and alpha [V, H, W].
    """
    import gsplat

    rotation = world_from_camera[:, :3, :3].transpose(1, 2)
    camera_from_world = world_from_camera.clone()
    camera_from_world[:, :3, :3] = rotation
    camera_from_world[:, :3, 3] = -(rotation * world_from_camera[:, None, :3, 3]).sum(-1)
    with full_precision(values.device):
        image, alpha, _ = gsplat.rasterization(
            means=gaussians.means.contiguous(),
            quats=gaussians.quaternions.contiguous(),
            scales=gaussians.scales.contiguous(),
            opacities=gaussians.opacities.contiguous(),
            colors=values.contiguous(),
            viewmats=camera_from_world.contiguous(),
            Ks=intrinsics.contiguous(),
            width=size[1],
            height=size[0],
            near_plane=NEAR,
            eps2d=LOW_PASS,
            packed=False,
            render_mode="RGB+ED",
            rasterize_mode="classic",
            channel_chunk=GSPLAT_CHANNEL_CHUNK,
            backgrounds=background.expand(len(intrinsics), -1).contiguous(),
        )
    return image[..., :-1].permute(0, 3, 1, 2), image[..., -1], alpha[..., 0]
