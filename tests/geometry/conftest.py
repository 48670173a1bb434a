"""Cameras of all kinds, and frames of real depth sensors with their poses."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation
from torch import Tensor


class Frame(NamedTuple):
    """One depth map [H, W] in meters, with its camera."""

    depth: Tensor
    intrinsics: Tensor
    world_from_camera: Tensor


@pytest.fixture
def random_poses() -> Tensor:
    """Poses [5, 4, 4], float64."""
    poses = torch.eye(4, dtype=torch.float64).repeat(5, 1, 1)
    poses[:, :3, :3] = torch.from_numpy(Rotation.random(5, random_state=0).as_matrix())
    poses[:, :3, 3] = torch.from_numpy(np.random.default_rng(0).normal(0, 2, (5, 3)))
    return poses


@pytest.fixture
def odd_intrinsics() -> Tensor:
    """Intrinsics [5, 3, 3], float64: plain, skewed, upside down, of a crop turned by 10 degrees, off center."""
    matrices = torch.tensor([[60.0, 0, 31], [0, 55, 23], [0, 0, 1]], dtype=torch.float64).repeat(5, 1, 1)
    matrices[1, 0, 1] = 7.0
    matrices[2, 1, 1] = -55.0
    turn = torch.eye(3, dtype=torch.float64)
    turn[:2, :2] = torch.from_numpy(Rotation.from_euler("z", 10, degrees=True).as_matrix()[:2, :2])
    matrices[3] = turn @ matrices[3]
    matrices[4, :2, 2] = torch.tensor([-20.0, 90.0])
    return matrices


@pytest.fixture
def read_frame(shared_data) -> Callable[..., Frame]:
    """Read the n-th frame of a scene: every step-th pixel, optionally of an enlarged crop."""

    def read(scene: str, number: int, step: int = 1, zoom: float = 1.0, place: float = 0.5) -> Frame:
        """`zoom` enlarges a crop to the frame's size; it lies at `place`, 0 top left to 1 bottom right."""
        folder = shared_data / "rgbd" / scene
        stem = sorted(path.name.removesuffix(".depth.png") for path in folder.glob("*.depth.png"))[number]
        stored = np.asarray(Image.open(folder / f"{stem}.depth.png")).astype(np.float32)
        depth = torch.from_numpy(np.where(stored == 65535, 0, stored) / 1000)
        intrinsics = torch.from_numpy(np.loadtxt(folder / "camera-intrinsics.txt")).float()
        intrinsics[:2, 2] += 0.5  # the files count the center of the first pixel as 0
        height, width = depth.shape
        corner = torch.tensor([width, height]) * (1 - 1 / zoom) * place
        rows, columns = (
            ((torch.arange(side // step) + 0.5) * step / zoom + start).long()
            for side, start in ((height, corner[1]), (width, corner[0]))
        )
        matrix = intrinsics.clone()
        matrix[:2, 2] -= corner
        matrix[:2] *= zoom / step
        pose = torch.from_numpy(np.loadtxt(folder / f"{stem}.pose.txt")).float()
        return Frame(depth[rows][:, columns], matrix, pose)

    return read
