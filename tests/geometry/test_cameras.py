"""Cameras against closed forms, matrix algebra in float64, and numerical gradients."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from prior3d.geometry import (
    baseline,
    invert_rigid,
    known_depth,
    pixel_centers,
    project,
    unproject,
    unproject_pixels,
    view_angle,
    warp_pixels,
)

INTRINSICS = torch.tensor([[100.0, 0, 4], [0, 50, 3], [0, 0, 1]])


def test_pixel_centers_run_along_rows_from_half() -> None:
    assert pixel_centers(2, 3).tolist() == [[0.5, 0.5], [1.5, 0.5], [2.5, 0.5], [0.5, 1.5], [1.5, 1.5], [2.5, 1.5]]


def test_unproject_closed_form() -> None:
    depth = torch.zeros(6, 8)
    depth[5, 7] = 2.0  # pixel center (7.5, 5.5)
    points = unproject(depth, INTRINSICS)
    assert points.shape == (6, 8, 3)
    torch.testing.assert_close(points[5, 7], torch.tensor([2 * 3.5 / 100, 2 * 2.5 / 50, 2.0]))
    assert points[0, 0].tolist() == [0, 0, 0]


def test_unproject_puts_points_into_the_world() -> None:
    # The camera stands at (1, 2, 3) and looks along world x.
    pose = torch.tensor([[0.0, 0, 1, 1], [-1, 0, 0, 2], [0, -1, 0, 3], [0, 0, 0, 1]])
    points = unproject_pixels(torch.tensor([[4.0, 3.0]]), torch.tensor([5.0]), INTRINSICS, pose)
    torch.testing.assert_close(points, torch.tensor([[6.0, 2.0, 3.0]]))


def test_projection_is_the_matrix_product(odd_intrinsics: Tensor, random_poses: Tensor) -> None:
    points = torch.from_numpy(np.random.default_rng(0).normal(0, 4, (5, 40, 3)))
    pixels, depth = project(points, odd_intrinsics, random_poses)
    homogeneous = np.concatenate([points.numpy(), np.ones((5, 40, 1))], -1)
    camera = np.einsum("bij,bnj->bni", np.linalg.inv(random_poses.numpy()), homogeneous)[..., :3]
    image = np.einsum("bij,bnj->bni", odd_intrinsics.numpy(), camera)
    front = camera[..., 2] > 0.1
    assert front.sum() > 50
    np.testing.assert_allclose(depth.numpy(), camera[..., 2], atol=1e-12)
    np.testing.assert_allclose(pixels.numpy()[front], (image[..., :2] / image[..., 2:])[front], rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-3), (torch.float64, 1e-10)])
def test_round_trip(odd_intrinsics: Tensor, random_poses: Tensor, dtype: torch.dtype, tolerance: float) -> None:
    depth = torch.linspace(0.3, 6.0, 5 * 48 * 64, dtype=dtype).view(5, 48, 64)
    intrinsics, poses = odd_intrinsics.to(dtype), random_poses.to(dtype)
    points = unproject(depth, intrinsics, poses)
    pixels, depth_again = project(points.flatten(1, 2), intrinsics, poses)
    assert points.dtype == pixels.dtype == depth_again.dtype == dtype
    torch.testing.assert_close(pixels, pixel_centers(48, 64).to(dtype).expand(5, -1, 2), rtol=0, atol=tolerance)
    torch.testing.assert_close(depth_again, depth.flatten(1), rtol=0, atol=tolerance)


def test_one_camera_serves_many_views(random_poses: Tensor) -> None:
    depth = torch.rand(2, 5, 6, 8) + 1
    points = unproject(depth, INTRINSICS, random_poses.float())
    assert points.shape == (2, 5, 6, 8, 3)
    torch.testing.assert_close(points[1, 3], unproject(depth[1, 3], INTRINSICS, random_poses[3].float()))
    pixels, depth_again = project(torch.rand(7, 3), INTRINSICS, random_poses.float())
    assert pixels.shape == (5, 7, 2) and depth_again.shape == (5, 7)


def test_gradients(odd_intrinsics: Tensor, random_poses: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = (torch.rand(5, 3, 2, generator=generator, dtype=torch.float64) * 40).requires_grad_()
    depth = (torch.rand(5, 3, generator=generator, dtype=torch.float64) + 1).requires_grad_()
    cameras = odd_intrinsics.requires_grad_(), random_poses.requires_grad_()
    assert torch.autograd.gradcheck(unproject_pixels, (pixels, depth, *cameras))
    points = unproject_pixels(pixels, depth, *cameras).detach().requires_grad_()
    assert torch.autograd.gradcheck(project, (points, *cameras))


@pytest.mark.parametrize("z", [0.0, -1e-12, -2.0, 1e-30])
def test_points_beside_and_behind_the_camera_stay_finite(z: float) -> None:
    points = torch.tensor([[0.3, -0.2, z], [0.0, 0.0, z]], requires_grad=True)
    pixels, depth = project(points, INTRINSICS)
    pixels.sum().backward()
    assert torch.isfinite(pixels).all() and torch.isfinite(points.grad).all()
    assert depth.tolist() == pytest.approx([z, z])
    assert pixels[0, 0] > 1000  # far outside: who forgets the sign of the depth finds no match there


def test_invert_rigid_is_the_inverse(random_poses: Tensor) -> None:
    torch.testing.assert_close(invert_rigid(random_poses), torch.linalg.inv(random_poses))


@pytest.mark.parametrize("degrees", [0.0, 0.001, 0.1, 15.0, 90.0, 179.99, 180.0])
def test_view_angle_is_exact_at_both_ends(degrees: float) -> None:
    pose = torch.eye(4)
    turned = pose.clone()
    turned[:3, :3] = torch.from_numpy(Rotation.from_euler("y", degrees, degrees=True).as_matrix())
    assert view_angle(pose, turned).item() == pytest.approx(degrees, rel=1e-5, abs=1e-5)


def test_rolling_changes_no_view_angle() -> None:
    rolled = torch.eye(4)
    rolled[:3, :3] = torch.from_numpy(Rotation.from_euler("z", 70, degrees=True).as_matrix())
    assert view_angle(torch.eye(4), rolled).item() == pytest.approx(0, abs=1e-6)


def test_baseline_is_the_distance_of_the_centers(random_poses: Tensor) -> None:
    expected = np.linalg.norm(random_poses[0, :3, 3] - random_poses[:, :3, 3], axis=-1)
    np.testing.assert_allclose(baseline(random_poses[0], random_poses), expected, atol=1e-12)


def test_warping_pixels_is_projecting_with_the_cropped_camera() -> None:
    crop_from_image = torch.tensor([[1.6, 0.1, -20], [-0.2, 1.5, -9], [0, 0, 1]])
    points = torch.rand(30, 3) + torch.tensor([-0.5, -0.5, 1.0])
    pixels, _ = project(points, INTRINSICS)
    expected, _ = project(points, crop_from_image @ INTRINSICS)
    torch.testing.assert_close(warp_pixels(crop_from_image, pixels), expected, rtol=1e-5, atol=1e-4)


def test_warping_divides_by_the_last_row() -> None:
    homography = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.5, 0, 1]])
    assert warp_pixels(homography, torch.tensor([[2.0, 6.0]])).tolist() == [[1.0, 3.0]]


def test_known_depth() -> None:
    depth = torch.tensor([0.0, -1.0, math.nan, math.inf, -math.inf, 1e-3, 7.0])
    assert known_depth(depth).tolist() == [False] * 5 + [True] * 2


def test_autocast_and_half_precision_change_nothing(random_poses: Tensor) -> None:
    depth = (torch.rand(5, 6, 8) * 4).bfloat16()
    outside = unproject(depth.float(), INTRINSICS, random_poses.float())
    with torch.autocast("cpu", torch.bfloat16):
        inside = unproject(depth, INTRINSICS, random_poses.float())
        angle = view_angle(random_poses[0].float(), random_poses[1].float())
    assert inside.dtype == torch.float32 and torch.equal(inside, outside)
    assert torch.equal(angle, view_angle(random_poses[0].float(), random_poses[1].float()))


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"expected depth of shape \[..., H, W\], got \[4\]"):
        unproject(torch.ones(4), INTRINSICS)
    with pytest.raises(ValueError, match=r"expected intrinsics of shape \[..., 3, 3\], got \[4, 4\]"):
        unproject(torch.ones(4, 4), torch.eye(4))
    with pytest.raises(ValueError, match=r"expected world_from_camera of shape \[..., 4, 4\], got \[3, 4\]"):
        project(torch.ones(4, 3), INTRINSICS, torch.eye(4)[:3])
