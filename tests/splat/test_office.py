"""Real frames: color of views never used, and features that agree between views."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from prior3d.splat import (
    compositing_weights,
    gaussians_from_depth,
    lift_average,
    lift_cg,
    rasterize,
    render_feature_targets,
)

SIZE, GRID = (120, 160), (24, 32)
INTRINSICS = torch.tensor([[570.34 / 4, 0, 80], [0, 570.34 / 4, 60], [0, 0, 1]])


def read(folder, numbers):
    depth, images, poses = [], [], []
    for number in numbers:
        stem = folder / f"frame-{number:06d}"
        images.append(np.asarray(Image.open(f"{stem}.color.jpg").resize((160, 120), Image.Resampling.BOX)))
        raw = np.asarray(Image.open(f"{stem}.depth.png"))[2::4, 2::4].astype(np.float32)
        depth.append(np.where(raw == 65535, 0, raw / 1000))
        poses.append(np.loadtxt(f"{stem}.pose.txt", dtype=np.float32))
    images = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255
    return torch.from_numpy(np.stack(depth)), images, torch.from_numpy(np.stack(poses))


@pytest.fixture(scope="module")
def office(shared_data):
    folder = shared_data / "rgbd" / "office"
    lifted, held_out = read(folder, range(935, 985, 3)), read(folder, (942, 951, 960, 969, 978))
    depth, images, poses = lifted
    return lifted, held_out, gaussians_from_depth(depth, INTRINSICS, poses, images, spacing=0.05)


def psnr(rendering, images):
    drawn = rendering.alpha > 0.5
    error = (rendering.values / rendering.alpha.clamp(min=0.5)[:, None] - images).square().mean(1)
    return -10 * error[drawn].mean().log10().item()


def test_color_and_depth_of_held_out_views(office):
    _, (depth, images, poses), gaussians = office
    rendering = rasterize(gaussians, gaussians.colors, INTRINSICS, poses, SIZE)
    right, wrong = psnr(rendering, images), psnr(rendering, images.roll(1, 0))
    measured = (depth > 0) & (rendering.alpha > 0.5)
    error = ((rendering.depth - depth).abs() / depth.clamp(min=0.1))[measured].median().item()
    print(f"{len(gaussians)} Gaussians, PSNR {right:.1f} dB ({wrong:.1f} of another view), depth {100 * error:.1f} %")
    assert (rendering.alpha > 0.5).float().mean() > 0.95
    assert right > 19
    assert right > wrong + 5
    assert error < 0.025


def raw_features(images):
    """A fixed random network of two layers, 64 channels, its view-dependence that of the pixels."""
    draw = torch.Generator().manual_seed(0)
    first = torch.randn(32, 3, 5, 5, generator=draw) / 75**0.5
    second = torch.randn(64, 32, 3, 3, generator=draw) / 144**0.5
    hidden = F.conv2d((images - 0.5) * 4, first, padding=2).relu()
    return F.adaptive_avg_pool2d(F.conv2d(hidden, second, padding=1).relu(), GRID)


def matches(depth, poses, a, b):
    """Cells of view a whose center's point view b sees too, and where (in grid_sample's coordinates)."""
    y, x = torch.meshgrid(torch.arange(24) * 5 + 2.5, torch.arange(32) * 5 + 2.5, indexing="ij")
    z = depth[a][2::5, 2::5]
    focal = INTRINSICS[0, 0]
    points = torch.stack([(x - 80) / focal * z, (y - 60) / focal * z, z], -1) @ poses[a, :3, :3].T + poses[a, :3, 3]
    u, v, z_in_b = ((points - poses[b, :3, 3]) @ poses[b, :3, :3]).unbind(-1)
    u, v = u / z_in_b * focal + 80, v / z_in_b * focal + 60
    inside = (z > 0) & (u >= 0) & (u < 160) & (v >= 0) & (v < 120)
    measured = depth[b][v.clamp(0, 119).long(), u.clamp(0, 159).long()]
    same = inside & ((measured - z_in_b).abs() < 0.03 * measured)
    return same, torch.stack([u / 80 - 1, v / 60 - 1], -1)


def inconsistency(features, masks, depth, poses):
    """Squared distance of a point's features in two views, over that of points shuffled; and top-1 retrieval."""
    apart = shuffled = hits = count = 0.0
    for a in range(len(poses)):
        for b in range(a + 1, len(poses)):
            same, where = matches(depth, poses, a, b)
            same = same & masks[a]
            in_a = features[a][:, same].T
            where = where[same][None, None]
            in_b = F.grid_sample(features[b, None], where, padding_mode="border", align_corners=False)[0, :, 0].T
            order = torch.randperm(len(in_a), generator=torch.Generator().manual_seed(0))
            apart += (in_a - in_b).square().sum().item()
            shuffled += (in_a - in_b[order]).square().sum().item()
            nearest = torch.cdist(in_a, in_b).argmin(1)
            hits, count = hits + (nearest == torch.arange(len(in_a))).sum().item(), count + len(in_a)
    return apart / shuffled, hits / count


@pytest.mark.slow
def test_rendered_features_of_held_out_views_agree_better_than_the_raw_ones(office):
    (_, images, poses), (depth, held_images, held_poses), gaussians = office
    mean = raw_features(images).mean((0, 2, 3), keepdim=True)
    raw, held_raw = raw_features(images) - mean, raw_features(held_images) - mean
    weights = [compositing_weights(gaussians, INTRINSICS, pose, SIZE).pooled(GRID) for pose in poses]
    for lift in (lift_average, lift_cg):
        lifted = lift(list(zip(weights, raw, strict=True)))
        targets = [render_feature_targets(gaussians, lifted, INTRINSICS, pose, SIZE, GRID) for pose in held_poses]
        rendered = torch.stack([target.values for target in targets])
        masks = torch.stack([target.mass for target in targets]) > 0.7
        assert masks.float().mean() > 0.9
        before, top1_before = inconsistency(held_raw, masks, depth, held_poses)
        after, top1_after = inconsistency(rendered, masks, depth, held_poses)
        changed, energy = ((rendered - held_raw).square().sum(1), held_raw.square().sum(1))
        difference = (changed[masks].sum() / energy[masks].sum()).item()
        print(
            f"{lift.__name__} ({lifted.iterations} iterations): matched over shuffled {before:.4f} -> {after:.4f}, "
            f"top-1 {top1_before:.2f} -> {top1_after:.2f}, energy changed {difference:.3f}"
        )
        assert after < before / 3
        assert top1_after > 2 * top1_before
        assert difference < 0.15  # still features of that image, not a constant
