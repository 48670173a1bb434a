import pytest
import torch

from prior3d.splat import Gaussians, gaussians_from_depth, rasterize
from prior3d.splat.projection import rotation_from_quaternion

HEIGHT, WIDTH, FOCAL = 24, 32, 32.0
INTRINSICS = torch.tensor([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]])


def poses(count):
    return torch.eye(4).repeat(count, 1, 1)


def wall(depth_m=2.0, views=1):
    return torch.full((views, HEIGHT, WIDTH), depth_m)


def plane_depth(normal, offset_m):
    """Depth of the plane normal . x = offset from the identity pose."""
    y, x = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    rays = torch.stack([(x - WIDTH / 2) / FOCAL, (y - HEIGHT / 2) / FOCAL, torch.ones_like(x)], -1)
    return (offset_m / (rays @ normal))[None]


def test_at_the_pixels_own_spacing_each_pixel_of_a_wall_becomes_one_gaussian():
    gaussians = gaussians_from_depth(wall(), INTRINSICS, poses(1))
    x = (torch.arange(WIDTH) + 0.5 - WIDTH / 2) / 16
    y = (torch.arange(HEIGHT) + 0.5 - HEIGHT / 2) / 16
    expected = torch.stack([*torch.meshgrid(x, y, indexing="ij"), torch.full((WIDTH, HEIGHT), 2.0)], -1).reshape(-1, 3)
    assert torch.allclose(gaussians.means, expected)  # voxels are ordered by x, then y
    assert torch.allclose(gaussians.scales[:, :2], torch.tensor(0.5 / 16))
    assert torch.allclose(gaussians.scales[:, 2], torch.tensor(0.05 / 16))
    assert (gaussians.opacities == 0.8).all()
    assert gaussians.colors is None


def test_coarser_voxels_average_positions_and_colors_over_pixels_and_views():
    images = torch.rand(2, 3, HEIGHT, WIDTH)
    gaussians = gaussians_from_depth(wall(views=2), INTRINSICS, poses(2), images, spacing=0.25)
    blocks = torch.nn.functional.avg_pool2d(images.mean(0), 4)  # 0.25 m are 4 pixels at 2 m
    assert torch.allclose(gaussians.colors, blocks.permute(2, 1, 0).reshape(-1, 3), atol=1e-6)
    assert torch.allclose(gaussians.means[:, 0].unique(), (torch.arange(8) - 3.5) / 4, atol=1e-6)
    assert torch.allclose(gaussians.scales[:, 0], torch.tensor(0.125))


def test_where_pixels_are_sparser_than_voxels_gaussians_are_as_wide_as_pixels():
    gaussians = gaussians_from_depth(wall(4.0), INTRINSICS, poses(1), spacing=0.01, shape="isotropic")
    assert len(gaussians) == HEIGHT * WIDTH
    assert torch.allclose(gaussians.scales, torch.tensor(0.5 * 4 / FOCAL))


@pytest.mark.parametrize("normal", [(0.0, 0.0, 1.0), (0.6, 0.0, 0.8), (-0.3, 0.5, 0.812404)])
def test_flat_gaussians_lie_in_the_plane_they_were_seen_on_wherever_the_world_is(normal):
    normal = torch.nn.functional.normalize(torch.tensor(normal), dim=0)
    turn = rotation_from_quaternion(torch.tensor([0.4, -0.3, 0.8, 0.1]))
    pose = torch.eye(4)
    pose[:3, :3], pose[:3, 3] = turn, torch.tensor([1.0, -2, 3])
    gaussians = gaussians_from_depth(plane_depth(normal, 2.0), INTRINSICS, pose[None], spacing=0.1)
    local = (gaussians.means - pose[:3, 3]) @ turn
    assert torch.allclose(local @ normal, torch.tensor(2.0), atol=1e-4)
    thin_axis = rotation_from_quaternion(gaussians.quaternions)[:, :, 2]
    assert torch.allclose(thin_axis, -(turn @ normal).expand_as(thin_axis), atol=1e-3)  # toward the camera
    assert torch.allclose(gaussians.scales[:, 2], 0.1 * gaussians.scales[:, 0])


@pytest.mark.parametrize("shape", ["flat", "isotropic"])
def test_a_wall_renders_opaque_at_its_depth_also_between_the_views(shape):
    world_from_camera = poses(3)
    world_from_camera[:, 0, 3] = torch.tensor([-0.3, 0, 0.3])
    gaussians = gaussians_from_depth(wall(views=3), INTRINSICS, world_from_camera, spacing=0.08, shape=shape)
    novel = torch.eye(4)
    novel[0, 3] = 0.13
    _, depth, alpha = rasterize(gaussians, torch.ones(len(gaussians), 1), INTRINSICS, novel, (HEIGHT, WIDTH))
    assert alpha[2:-2, 2:-2].min() > 0.85
    assert alpha[2:-2, 2:-2].mean() > 0.94
    assert (depth[2:-2, 2:-2] - 2).abs().max() < 1e-2


def test_pixels_that_float_between_two_surfaces_are_dropped_and_edges_kept():
    depth = wall(3.0)
    depth[:, 7:17, 9:21] = 2.2  # one ring of it stays, as the mixed pixels of the edge
    depth[:, 8:16, 10:20] = 1.5
    gaussians = gaussians_from_depth(depth, INTRINSICS, poses(1), spacing=0.01)
    z = gaussians.means[:, 2]
    assert not ((z > 2.1) & (z < 2.3)).any()
    assert (z < 1.6).sum() == 8 * 10 - 4  # without its corners
    assert (z > 2.9).sum() == HEIGHT * WIDTH - 10 * 12


def test_unknown_depth_makes_no_gaussian():
    depth = wall()
    depth[:, :, :16] = 0
    gaussians = gaussians_from_depth(depth, INTRINSICS, poses(1))
    assert len(gaussians) == HEIGHT * 16
    assert (gaussians.means[:, 0] > 0).all()


def test_what_other_views_look_through_is_dropped():
    depth = wall(3.0, views=4)
    depth[:, 4:10, 4:10] = 1.5  # all views agree on this one
    depth[0, 14:20, 20:26] = 1.0  # only the first claims this one
    gaussians = gaussians_from_depth(depth, INTRINSICS, poses(4), spacing=0.01)
    z = gaussians.means[:, 2]
    assert (z < 1.1).sum() == 0
    assert ((z > 1.4) & (z < 1.6)).sum() == 36 - 4  # without its corners


def test_what_lies_behind_a_camera_is_not_looked_through_by_it():
    around = poses(4)
    for quarter, pose in enumerate(around):
        angle = torch.tensor(quarter * torch.pi / 2)
        pose[0, 0], pose[0, 2], pose[2, 0], pose[2, 2] = angle.cos(), angle.sin(), -angle.sin(), angle.cos()
    together = gaussians_from_depth(wall(views=4), INTRINSICS, around, spacing=0.1)
    alone = [gaussians_from_depth(wall(), INTRINSICS, pose[None], spacing=0.1) for pose in around]
    rendering = rasterize(together, torch.ones(len(together), 1), INTRINSICS, around, (HEIGHT, WIDTH))
    assert len(together) >= 0.95 * sum(map(len, alone))  # the walls share the voxels of their corners, if any
    assert (rendering.alpha.flatten(1).mean(1) > 0.9).all()


def test_views_in_parts_make_the_same_gaussians_to_the_last_bit(monkeypatch):
    draws = torch.Generator().manual_seed(0)
    depth = wall(views=5) * (1 + 0.02 * torch.rand(wall(views=5).shape, generator=draws))
    depth[3] *= 0.6  # looked through by the others
    images = torch.rand(5, 3, *depth.shape[1:], generator=draws)
    whole = gaussians_from_depth(depth, INTRINSICS, poses(5), images)
    monkeypatch.setattr("prior3d.splat.gaussians.PIXELS_AT_ONCE", 2 * depth[0].numel())
    monkeypatch.setattr("prior3d.splat.gaussians.AT_ONCE", 3 * len(whole))
    parts = gaussians_from_depth(depth, INTRINSICS, poses(5), images)
    for name in ("means", "quaternions", "scales", "opacities", "colors"):
        assert torch.equal(getattr(parts, name), getattr(whole, name))


def test_moving_converting_and_choosing_carry_everything():
    gaussians = gaussians_from_depth(wall(), INTRINSICS, poses(1), torch.rand(1, 3, HEIGHT, WIDTH))
    wide = gaussians.to(torch.float64)
    assert wide.means.dtype == wide.colors.dtype == torch.float64
    assert wide.features is None
    few = gaussians[torch.tensor([3, 1])]
    assert len(few) == 2
    assert torch.equal(few.colors, gaussians.colors[[3, 1]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": "cube"}, "expected shape flat or isotropic, got 'cube'"),
        ({"depth": torch.zeros(1, HEIGHT, WIDTH)}, "got no valid depth"),
        ({"depth": torch.zeros(HEIGHT, WIDTH)}, r"expected depth \[V, H, W\].* got \[24, 32\] and \[1, 4, 4\]"),
        ({"spacing": 0.0}, "expected a spacing above 0 m, got 0.0"),
        ({"intrinsics": torch.zeros(2, 3, 3)}, r"expected intrinsics \[3, 3\] or \[1, 3, 3\], got \[2, 3, 3\]"),
        ({"world_from_camera": poses(2)}, r"expected depth .* got \[1, 24, 32\] and \[2, 4, 4\]"),
        ({"images": torch.zeros(1, 3, 5, 5)}, r"expected images \[1, 3, 24, 32\], got \[1, 3, 5, 5\]"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        gaussians_from_depth(**{"depth": wall(), "intrinsics": INTRINSICS, "world_from_camera": poses(1)} | change)


def test_gaussians_refuse_tensors_of_different_lengths():
    with pytest.raises(ValueError, match=r"expected scales \[2, 3\], got \[3, 3\]"):
        Gaussians(torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(3, 3), torch.zeros(2))
