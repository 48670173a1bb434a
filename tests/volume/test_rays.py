"""Rays of the fixed camera and of the orbit, against projections written out here."""

import math

import pytest
import torch

from prior3d.volume import CubeSpace, FrustumSpace, Space, orbit_pose, pixel_positions, random_pixels, small_orbit

SPACES = (FrustumSpace(), CubeSpace())


def grid(height: int = 6, width: int = 8) -> torch.Tensor:
    return pixel_positions(torch.arange(height * width).expand(2, -1), height, width)


def canonical_from_box(space: Space, points: torch.Tensor, aspect: float) -> torch.Tensor:
    """Undo the box's axes, independently of the module: [..., 3] in the fixed camera's frame."""
    x, y, z = points.double().unbind(-1)
    if isinstance(space, CubeSpace):
        return torch.stack([x, y, z + space.radius], dim=-1)
    depth = 1 / (1 / space.near + (z + 1) / 2 * (1 / space.far - 1 / space.near))
    tangent = math.tan(math.radians(space.fov_degrees) / 2)
    along_x, along_y = (tangent, tangent / aspect) if aspect >= 1 else (tangent * aspect, tangent)
    return torch.stack([x * along_x * depth, y * along_y * depth, depth], dim=-1)


@pytest.mark.parametrize("aspect", [1.0, 4 / 3, 0.5])
def test_frustum_is_pixel_aligned_and_needs_no_field_of_view(aspect: float) -> None:
    positions = grid()
    for fov_degrees in (20.0, 50.0, 100.0):
        rays = FrustumSpace(fov_degrees=fov_degrees).samples(positions, 5, aspect=aspect)
        torch.testing.assert_close(rays.points[..., :2], positions.unsqueeze(2).expand(-1, -1, 5, -1))
        torch.testing.assert_close(rays.points[0, 0, :, 2], torch.tensor([-0.8, -0.4, 0.0, 0.4, 0.8]))
        inverse = 1 / 1 + torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9]) * (1 / 3 - 1)
        torch.testing.assert_close(rays.depth[0, 0], 1 / inverse)
        assert rays.inside.all()


def test_cube_rays_in_closed_form() -> None:
    positions = torch.tensor([[[0.0, 0.0], [1.0, -0.5]]])
    rays = CubeSpace().samples(positions, 4)
    tangent = math.tan(math.radians(9))
    depth = torch.tensor([4.25, 4.75, 5.25, 5.75])
    torch.testing.assert_close(rays.depth[0, 1], depth)
    expected = torch.stack([depth * tangent, -0.5 * depth * tangent, depth - 5], dim=-1)
    torch.testing.assert_close(rays.points[0, 1], expected)
    torch.testing.assert_close(rays.deltas[0, 0], torch.full((4,), 0.5))
    slant = math.sqrt(1 + 1.25 * tangent**2)
    torch.testing.assert_close(rays.deltas[0, 1], torch.full((4,), 0.5 * slant))
    assert rays.inside.all()  # the box contains the whole frustum of an 18 degree lens


@pytest.mark.parametrize("space", SPACES)
def test_jitter_stays_in_its_bin_follows_the_generator_and_midpoints_do_not_move(space: Space) -> None:
    positions = grid()
    draw = [space.samples(positions, 8, jitter=True, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(draw[0].points, draw[1].points)
    assert not torch.equal(draw[0].points, draw[2].points)
    edges = space.near + draw[0].deltas[0, :1].cumsum(-1) / space.length_per_depth(
        torch.tensor(
            [positions[0, 0, 0] * space.half_extents(1)[0], positions[0, 0, 1] * space.half_extents(1)[1], 1.0]
        )
    )
    assert edges[0, -1].item() == pytest.approx(space.far, rel=1e-5)
    low = torch.cat([torch.tensor([space.near]), edges[0, :-1]])
    assert (draw[0].depth >= low - 1e-5).all()
    assert (draw[0].depth <= edges[0] + 1e-5).all()
    assert draw[0].depth.std(dim=(0, 1)).min() > 0  # every ray has draws of its own
    torch.testing.assert_close(draw[0].far, torch.full((2, 48), float(space.far)))
    torch.manual_seed(0)
    first = space.samples(positions, 8)
    torch.manual_seed(1)
    assert torch.equal(first.points, space.samples(positions, 8).points)
    torch.manual_seed(0)
    by_global = space.samples(positions, 8, jitter=True)
    torch.manual_seed(0)
    assert torch.equal(by_global.points, space.samples(positions, 8, jitter=True).points)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("aspect", [1.0, 4 / 3, 0.5])
def test_identity_pose_is_the_fixed_camera(space: Space, aspect: float) -> None:
    fixed = space.samples(grid(), 8, aspect=aspect)
    posed = space.samples(grid(), 8, aspect=aspect, canonical_from_camera=torch.eye(4))
    for name in ("points", "depth", "deltas", "far"):
        torch.testing.assert_close(getattr(fixed, name), getattr(posed, name), msg=name)
    assert posed.inside.all()


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("aspect", [1.0, 4 / 3])
def test_orbit_samples_project_back_to_their_pixels_and_depths(space: Space, aspect: float) -> None:
    positions, pose = grid(), orbit_pose(15, -10, (space.near + space.far) / 2)
    rays = space.samples(positions, 8, aspect=aspect, canonical_from_camera=pose)
    points = canonical_from_box(space, rays.points, aspect)
    in_camera = torch.linalg.inv(pose.double()) @ torch.cat([points, torch.ones_like(points[..., :1])], -1)[..., None]
    x, y, z = in_camera[..., :3, 0].unbind(-1)
    half_width, half_height = space.half_extents(aspect)
    inside = rays.inside
    assert 0.2 < inside.float().mean() < 1
    expected = torch.cat([positions.unsqueeze(2).expand(-1, -1, 8, -1), rays.depth.unsqueeze(-1)], dim=-1)[inside]
    projected = torch.stack([x / z / half_width, y / z / half_height, z], dim=-1)[inside]
    torch.testing.assert_close(projected, expected.double(), atol=3e-6, rtol=3e-6)
    assert (rays.points[inside].abs() <= 1.0001).all()


def test_orbit_keeps_the_pivot_in_the_center_and_moves_the_camera_where_it_says() -> None:
    pose = orbit_pose(30, 0, 2.0)
    torch.testing.assert_close(pose[:3, 3], torch.tensor([1.0, 0.0, 2 - math.sqrt(3)]))
    assert orbit_pose(0, 20, 2.0)[1, 3] < 0  # up is -y
    torch.testing.assert_close(orbit_pose(0, 0, 2.0), torch.eye(4))
    for pose in small_orbit(5, 12, 2.0):
        torch.testing.assert_close(pose[:3, :3] @ pose[:3, :3].T, torch.eye(3))
        assert torch.linalg.det(pose[:3, :3]).item() == pytest.approx(1, abs=1e-5)
        pivot = torch.linalg.inv(pose) @ torch.tensor([0.0, 0.0, 2.0, 1.0])
        torch.testing.assert_close(pivot[:3], torch.tensor([0.0, 0.0, 2.0]), atol=1e-6, rtol=0)


def test_what_lies_behind_the_fixed_camera_or_beside_its_frustum_is_outside() -> None:
    space = FrustumSpace()
    points = torch.tensor([[0.0, 0.0, -2.0], [0.0, 0.0, 0.0], [0.0, 0.0, 2.0], [2.0, 0.0, 2.0], [0.0, 0.0, 3.5]])
    inside = (space.box_from_canonical(points, 1.0).abs() <= 1).all(dim=-1)
    assert inside.tolist() == [False, False, True, False, False]
    assert space.box_from_canonical(points, 1.0).isfinite().all()


def test_random_pixels_are_in_the_image_and_reach_all_of_it() -> None:
    indices = random_pixels(2, 2000, 4, 6, generator=torch.Generator().manual_seed(0))
    assert indices.shape == (2, 2000)
    assert set(indices.flatten().tolist()) == set(range(24))


def test_impossible_cameras_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected 0 < near < far, got near 3.0 and far 1.0"):
        FrustumSpace(near=3.0, far=1.0)
    with pytest.raises(ValueError, match=r"expected 0 < near < far, got near -0.5 and far 1.5"):
        CubeSpace(radius=0.5)
    with pytest.raises(ValueError, match="expected a field of view between 0 and 180 degrees, got 0"):
        FrustumSpace(fov_degrees=0)
