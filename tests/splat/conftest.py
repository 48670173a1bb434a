"""Scenes of random Gaussians, and compositing by its definition: every Gaussian in every pixel, in float64."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from prior3d.splat import Gaussians


def brute_force(gaussians: Gaussians, values: Tensor, intrinsics: Tensor, world_from_camera: Tensor, size: tuple):
    """No tiles, no boxes, no fused formulas: 3x3 matrices, an inverse, and a loop over Gaussians front to back."""
    camera_from_world = torch.linalg.inv(world_from_camera)
    rotation = camera_from_world[:3, :3]
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) + 0.5 for n in size), indexing="ij")
    centers = torch.stack([x, y], -1)
    half = torch.tensor([size[1], size[0]]) / 2 / intrinsics.diagonal()[:2]  # tan of the half field of view
    middle = (torch.tensor([size[1], size[0]]) / 2 - intrinsics[:2, 2]) / intrinsics.diagonal()[:2]
    in_camera = [rotation @ mean + camera_from_world[:3, 3] for mean in gaussians.means]
    transmittance = torch.ones(size, dtype=torch.float64)
    running = torch.ones(size, dtype=torch.bool)
    image, depth = torch.zeros(values.shape[1], *size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    for index in sorted(range(len(in_camera)), key=lambda i: float(in_camera[i][2].detach())):
        point = in_camera[index]
        if point[2] < 0.01:
            continue
        w, i, j, k = gaussians.quaternions[index] / gaussians.quaternions[index].norm()
        zero = torch.zeros_like(w)
        skew = torch.stack([torch.stack([zero, -k, j]), torch.stack([k, zero, -i]), torch.stack([-j, i, zero])])
        own = torch.eye(3, dtype=torch.float64) + 2 * w * skew + 2 * skew @ skew
        covariance = rotation @ own @ torch.diag(gaussians.scales[index] ** 2) @ own.T @ rotation.T
        slope = torch.minimum(torch.maximum(point[:2] / point[2], middle - 1.3 * half), middle + 1.3 * half)
        jacobian = torch.cat([torch.eye(2, dtype=torch.float64), -slope[:, None]], 1) / point[2]
        jacobian = torch.diag(intrinsics.diagonal()[:2]) @ jacobian
        precision = torch.linalg.inv(jacobian @ covariance @ jacobian.T + 0.3 * torch.eye(2, dtype=torch.float64))
        offset = centers - (intrinsics @ point)[:2] / point[2]
        power = torch.einsum("hwi,ij,hwj->hw", offset, precision, offset)
        alpha = (gaussians.opacities[index] * torch.exp(-power / 2)).clamp(max=0.999)
        alpha = torch.where(alpha >= 1 / 255, alpha, 0.0)
        running = running & (transmittance * (1 - alpha) > 1e-4)
        weight = torch.where(running, alpha * transmittance, 0.0)
        image = image + weight * values[index][:, None, None]
        depth = depth + weight * point[2]
        transmittance = torch.where(running, transmittance * (1 - alpha), transmittance)
    alpha = 1 - transmittance
    return image, depth / alpha.clamp(min=1e-10), alpha


def random_scene(count: int, channels: int, seed: int = 0) -> tuple[Gaussians, Tensor]:
    """Needles and blobs in front of, beside and behind the cameras, some nearly opaque; float64."""
    draw = torch.Generator().manual_seed(seed)
    uniform = lambda *shape: torch.rand(*shape, generator=draw, dtype=torch.float64)  # noqa: E731
    means = (uniform(count, 3) - 0.5) * torch.tensor([3.0, 2.5, 3.4]) + torch.tensor([0, 0, 1.5])
    scales = 0.01 * 30 ** uniform(count, 3)
    quaternions = torch.randn(count, 4, generator=draw, dtype=torch.float64)
    opacities = 0.1 + 0.9 * uniform(count)
    return Gaussians(means, quaternions, scales, opacities), uniform(count, channels) * 2 - 1


def camera(turn: float = 0.0) -> tuple[Tensor, Tensor]:
    """Intrinsics with an off-center principal point, and a pose turned about the vertical; float64."""
    intrinsics = torch.tensor([[30.0, 0, 17.3], [0, 28, 12.1], [0, 0, 1]], dtype=torch.float64)
    cos, sin = math.cos(turn), math.sin(turn)
    world_from_camera = torch.eye(4, dtype=torch.float64)
    world_from_camera[:3, :3] = torch.tensor([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]], dtype=torch.float64)
    world_from_camera[:3, 3] = torch.tensor([0.2 - turn, 0.1, -0.3])
    return intrinsics, world_from_camera


@pytest.fixture(name="brute_force")
def brute_force_fixture() -> Callable:
    return brute_force


@pytest.fixture(name="random_scene")
def random_scene_fixture() -> Callable:
    return random_scene


@pytest.fixture(name="camera")
def camera_fixture() -> Callable:
    return camera
