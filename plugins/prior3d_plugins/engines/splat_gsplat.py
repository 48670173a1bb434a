"""Splatting with gsplat's CUDA kernels."""

import functools
import importlib.util

import torch
from torch import Tensor

from prior3d import SplatEngine
from prior3d.geometry import full_precision
from prior3d.splat import LOW_PASS, NEAR, Gaussians

CHANNEL_CHUNK = 32
"""gsplat compiles its kernels for a few widths; beyond 32, registers spill."""

_INSTALL = "pip install 'prior3d[gpu]' (gsplat compiles its kernels with nvcc on first use, or take a prebuilt wheel)"


class SplatGsplat(SplatEngine):
    """gsplat's rasterization in `classic` mode, in float32 on CUDA.

    Its sums are atomic: equal inputs give values and gradients that differ in the last bits.

    Reference:
        Ye et al., gsplat: An Open-Source Library for Gaussian Splatting, 2024, arXiv 2409.06765.
    """

    rank = 10
    deterministic = False

    def obstacle(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return what is missing, or None; building the kernels may take minutes the first time."""
        if device.type != "cuda":
            return f"gsplat runs on CUDA devices, not on {device.type}: install a CUDA build of PyTorch and train there"
        if dtype != torch.float32:
            return f"gsplat renders float32, not {dtype}: convert, or take engine torch"
        return _missing()

    def rasterize(
        self,
        gaussians: Gaussians,
        values: Tensor,
        intrinsics: Tensor,
        world_from_camera: Tensor,
        size: tuple[int, int],
        background: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `SplatEngine.rasterize`."""
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
                channel_chunk=CHANNEL_CHUNK,
                backgrounds=background.expand(len(intrinsics), -1).contiguous(),
            )
        return image[..., :-1].permute(0, 3, 1, 2), image[..., -1], alpha[..., 0]


@functools.cache
def _missing() -> str | None:
    if importlib.util.find_spec("gsplat") is None:
        return f"gsplat is not installed: {_INSTALL}"
    from gsplat.cuda._backend import _C

    return f"gsplat found no CUDA toolkit to build its kernels with: {_INSTALL}" if _C is None else None
