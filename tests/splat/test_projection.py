import math

import pytest
import torch

from prior3d.splat.projection import project_gaussians, rotation_from_quaternion

SIZE = (24, 32)


def arguments(random_scene, camera, count=6, seed=1):
    scene, _ = random_scene(count, 1, seed)
    return [scene.means, scene.quaternions, scene.scales, scene.opacities, *camera(0.3)]


def test_rotations_equal_scipy():
    scipy = pytest.importorskip("scipy.spatial.transform")
    quaternions = torch.randn(20, 4, dtype=torch.float64)
    expected = scipy.Rotation.from_quat(quaternions[:, [1, 2, 3, 0]].numpy()).as_matrix()
    assert torch.allclose(rotation_from_quaternion(quaternions), torch.from_numpy(expected))


def test_a_ball_on_the_optical_axis_is_a_disc_at_the_principal_point(camera):
    intrinsics, world_from_camera = camera()
    means = world_from_camera[None, :3, 3] + torch.tensor([[0.0, 0, 2]])
    opacity = 0.6
    result = project_gaussians(
        means,
        torch.tensor([[2.0, 0, 0, 0]], dtype=torch.float64),
        torch.full((1, 3), 0.1, dtype=torch.float64),
        torch.tensor([opacity], dtype=torch.float64),
        intrinsics,
        world_from_camera,
        SIZE,
    )
    variance = torch.tensor([(30 * 0.1 / 2) ** 2 + 0.3, (28 * 0.1 / 2) ** 2 + 0.3], dtype=torch.float64)
    assert torch.allclose(result.pixels[0], torch.tensor([17.3, 12.1], dtype=torch.float64))
    assert torch.allclose(result.conics[0, [0, 2]], 1 / variance)
    assert result.conics[0, 1].abs() < 1e-12
    assert torch.allclose(result.depths, torch.tensor([2.0], dtype=torch.float64))
    assert torch.allclose(result.radii[0], (2 * math.log(255 * opacity) * variance).sqrt())


def test_covariance_is_the_jacobian_of_the_pinhole_applied_to_that_of_the_world(random_scene, camera):
    means, quaternions, scales, opacities, intrinsics, world_from_camera = arguments(random_scene, camera, 40)
    result = project_gaussians(means, quaternions, scales, opacities, intrinsics, world_from_camera, SIZE)

    def pinhole(point):
        local = intrinsics @ torch.linalg.inv(world_from_camera)[:3] @ torch.cat([point, point.new_ones(1)])
        return local[:2] / local[2]

    center = torch.tensor([16.0, 12.0], dtype=torch.float64)
    seen = (result.depths > 0.2) & ((result.pixels - center).abs() < 1.2 * center).all(-1)
    assert seen.sum() > 10
    for index in seen.nonzero().flatten():
        jacobian = torch.autograd.functional.jacobian(pinhole, means[index])
        axes = rotation_from_quaternion(quaternions[index]) * scales[index]
        covariance = jacobian @ axes @ axes.T @ jacobian.T + 0.3 * torch.eye(2, dtype=torch.float64)
        conic = torch.linalg.inv(covariance)
        assert torch.allclose(result.conics[index], torch.stack([conic[0, 0], conic[0, 1], conic[1, 1]]))
        assert torch.allclose(result.pixels[index], pinhole(means[index]))


def test_gradcheck(random_scene, camera):
    means, quaternions, scales, opacities, *pose = arguments(random_scene, camera)
    leaves = [tensor.requires_grad_() for tensor in (means, quaternions, scales)]
    assert torch.autograd.gradcheck(lambda m, q, s: project_gaussians(m, q, s, opacities, *pose, SIZE)[:3], leaves)


def test_behind_the_camera_is_invisible_with_finite_gradients(random_scene, camera):
    means, quaternions, scales, opacities, intrinsics, world_from_camera = arguments(random_scene, camera)
    means = world_from_camera[:3, 3] - world_from_camera[:3, 2] * torch.tensor([[0.0], [1e-3], [2.0]])
    means.requires_grad_()
    result = project_gaussians(means, quaternions[:3], scales[:3], opacities[:3], intrinsics, world_from_camera, SIZE)
    assert (result.radii == 0).all()
    sum(tensor.sum() for tensor in result[:3]).backward()
    assert means.grad.isfinite().all()


def test_a_needle_seen_almost_edge_on_keeps_a_positive_definite_conic_in_float32(camera):
    intrinsics, world_from_camera = (tensor.float() for tensor in camera())
    intrinsics[:2] *= 100
    result = project_gaussians(
        torch.tensor([[0.3, 0.2, 1.0]]),
        torch.tensor([[0.9, 0.1, 0.2, 0.37]]),
        torch.tensor([[1.0, 1e-5, 1e-5]]),
        torch.tensor([0.9]),
        intrinsics,
        world_from_camera,
        (2400, 3200),
    )
    exact = project_gaussians(
        *(
            tensor.double()
            for tensor in (
                torch.tensor([[0.3, 0.2, 1.0]]),
                torch.tensor([[0.9, 0.1, 0.2, 0.37]]),
                torch.tensor([[1.0, 1e-5, 1e-5]]),
                torch.tensor([0.9]),
                intrinsics,
                world_from_camera,
            )
        ),
        (2400, 3200),
    )
    assert torch.allclose(result.conics.double(), exact.conics, rtol=1e-3)
