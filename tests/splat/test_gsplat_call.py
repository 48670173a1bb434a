"""The adapter's call, against a double with gsplat 1.5.3's own signature that composites by definition."""

import sys
import types

import torch

from prior3d.splat import Gaussians, rasterize
from prior3d_plugins.engines.splat_gsplat import SplatGsplat

SIZE = (11, 14)


def test_layouts_and_the_direction_of_poses(brute_force, random_scene, camera, monkeypatch):
    def rasterization(
        means,  # [N, 3]
        quats,  # [N, 4]
        scales,  # [N, 3]
        opacities,  # [N]
        colors,  # [N, D]
        viewmats,  # [C, 4, 4]
        Ks,  # [C, 3, 3]
        width,
        height,
        near_plane=0.01,
        far_plane=1e10,
        radius_clip=0.0,
        eps2d=0.3,
        sh_degree=None,
        packed=True,
        tile_size=16,
        backgrounds=None,  # [C, D]
        render_mode="RGB",
        sparse_grad=False,
        absgrad=False,
        rasterize_mode="classic",
        channel_chunk=32,
    ):
        assert render_mode == "RGB+ED" and rasterize_mode == "classic" and eps2d == 0.3 and near_plane == 0.01
        assert backgrounds.shape == (len(viewmats), colors.shape[1])
        views = []
        for viewmat, camera_matrix, background in zip(viewmats, Ks, backgrounds, strict=True):
            scene = Gaussians(means, quats, scales, opacities)
            inverse = torch.linalg.inv(viewmat)
            image, depth, alpha = brute_force(scene, colors, camera_matrix, inverse, (height, width))
            image = image + (1 - alpha) * background[:, None, None]
            views.append((torch.cat([image, depth[None]]).permute(1, 2, 0), alpha[..., None]))
        images, alphas = (torch.stack(parts) for parts in zip(*views, strict=True))
        return images, alphas, {}

    double = types.ModuleType("gsplat")
    double.rasterization = rasterization
    monkeypatch.setitem(sys.modules, "gsplat", double)
    scene, values = random_scene(30, 5)
    intrinsics, poses = (torch.stack(parts) for parts in zip(camera(0.0), camera(0.4), strict=True))
    background = torch.linspace(-1, 1, 5, dtype=torch.float64)
    expected = rasterize(scene, values, intrinsics, poses, SIZE, background=background)
    found = SplatGsplat().rasterize(scene, values, intrinsics, poses, SIZE, background)
    for want, got in zip(expected, found, strict=True):
        assert got.shape == want.shape
        assert torch.allclose(got, want)
