"""Overlap against k-d trees on real frames, and against closed forms on walls."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from prior3d.geometry import pairwise_overlap, unproject

INTRINSICS = torch.tensor([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]])
PAIRS = ("office", [(0, 5), (0, 25), (0, 45), (10, 40)]), ("kitchen-a", [(0, 5), (0, 20), (10, 40), (48, 74)])


def walls(*lefts: float, depth: float = 2.0) -> tuple[Tensor, Tensor, Tensor]:
    """Views of one wall from cameras that stand beside each other, `lefts` in meters."""
    poses = torch.eye(4).repeat(len(lefts), 1, 1)
    poses[:, 0, 3] = torch.tensor(lefts)
    return torch.full((len(lefts), 48, 64), depth), INTRINSICS.expand(len(lefts), 3, 3), poses


def pair(*numbers: int) -> Tensor:
    """Frame numbers as pairwise_overlap wants them."""
    return torch.tensor(numbers)


@pytest.mark.parametrize(("scene", "pairs"), PAIRS)
@pytest.mark.parametrize("relative_distance", [0.0, 0.01])
def test_overlap_of_real_frames_is_near_that_of_all_points(
    read_frame: Callable, scene: str, pairs: list[tuple[int, int]], relative_distance: float
) -> None:
    numbers = sorted({number for chosen in pairs for number in chosen})
    depth, intrinsics, poses = (torch.stack(t) for t in zip(*(read_frame(scene, n) for n in numbers), strict=True))
    first, second = (torch.tensor([numbers.index(chosen[side]) for chosen in pairs]) for side in (0, 1))
    found = pairwise_overlap(depth, intrinsics, poses, first, second, relative_distance=relative_distance)

    points = unproject(depth, intrinsics.double(), poses.double())
    for overlap, a, b in zip(found.tolist(), first.tolist(), second.tolist(), strict=True):
        matched = counted = 0
        for source, target in ((a, b), (b, a)):
            sampled, z = points[source, ::6, ::6].flatten(0, 1), depth[source, ::6, ::6].flatten()
            sampled, limit = sampled[z > 0].numpy(), (relative_distance * z[z > 0]).clamp(min=0.02).numpy()
            surface = cKDTree(points[target][depth[target] > 0].numpy())
            matched += (surface.query(sampled, distance_upper_bound=limit.max())[0] <= limit).sum()
            counted += len(sampled)
        # Where the surface passes just outside the image or between compared pixels, overlap is missed, never invented.
        assert -0.045 < overlap - matched / counted < 0.02
        assert 0.05 < overlap < 0.99


def test_a_frame_overlaps_wholly_with_itself_and_its_double() -> None:
    assert pairwise_overlap(*walls(0.0, 0.0), pair(0, 0), pair(0, 1)).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("samples", [100, 1024, 100_000])
def test_half_a_wall(samples: int) -> None:
    # 64 pixels at 2 m and focal length 50 are 2.56 m.
    overlap = pairwise_overlap(*walls(0.0, 1.28, 2.56 * 0.75, 2.7), pair(0, 0, 0), pair(1, 2, 3), samples=samples)
    assert overlap.tolist() == pytest.approx([0.5, 0.25, 0.0], abs=0.07 if samples == 100 else 0.02)


def test_overlap_counts_both_views() -> None:
    depth, intrinsics, poses = walls(0.0, 0.0)
    depth[1, :, 16:] = 0  # a quarter of the second view is known: (1/4 + 1/4) / (1 + 1/4)
    overlap = pairwise_overlap(depth, intrinsics, poses, pair(0, 1), pair(1, 0), samples=48 * 64)
    assert overlap.tolist() == pytest.approx([0.4, 0.4], abs=0.02)


@pytest.mark.parametrize("unknown", [0.0, math.nan, math.inf, -1.0])
def test_nothing_known_overlaps_with_nothing(unknown: float) -> None:
    depth, intrinsics, poses = walls(0.0, 0.0, 0.0)
    depth[1:] = unknown
    assert pairwise_overlap(depth, intrinsics, poses, pair(0, 1), pair(1, 2)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("gap", "relative_distance", "expected"), [(0.018, 0.0, 1), (0.022, 0.0, 0), (0.038, 0.02, 1), (0.045, 0.02, 0)]
)
def test_the_limit_is_the_larger_of_meters_and_share_of_depth(
    gap: float, relative_distance: float, expected: float
) -> None:
    depth, intrinsics, poses = walls(0.0, 0.0)
    depth[1] += gap
    telephoto = intrinsics.clone()  # pixels 5 mm apart on the wall, so that the gap is what counts
    telephoto[:, [0, 1], [0, 1]] = 400
    overlap = pairwise_overlap(depth, telephoto, poses, pair(0), pair(1), relative_distance=relative_distance)
    assert overlap.item() == pytest.approx(expected, abs=0.06)


def test_what_lies_hidden_does_not_overlap() -> None:
    depth, intrinsics, poses = walls(0.0, 0.0)
    depth[1] -= 0.5
    assert pairwise_overlap(depth, intrinsics, poses, pair(0), pair(1)).item() == 0


def test_chunks_and_a_far_origin_change_nothing() -> None:
    depth, intrinsics, poses = walls(*np.linspace(0, 2, 7).tolist())
    first, second = torch.triu_indices(7, 7, 1)
    expected = pairwise_overlap(depth, intrinsics, poses, first, second)
    assert torch.equal(pairwise_overlap(depth, intrinsics, poses, first, second, chunk=4), expected)
    far = poses.double()
    far[:, :3, 3] += torch.tensor([5e5, -3e5, 10], dtype=torch.float64)
    torch.testing.assert_close(pairwise_overlap(depth, intrinsics, far, first, second), expected, rtol=0, atol=0.01)
    assert pairwise_overlap(depth, intrinsics, poses, first[:0], second[:0]).shape == (0,)


def test_a_broken_pose_spoils_only_its_own_pairs() -> None:
    depth, intrinsics, poses = walls(0.0, 0.0, 0.0)
    poses[0, 1, 3] = math.nan
    assert pairwise_overlap(depth, intrinsics, poses, pair(0, 1, 1), pair(1, 2, 0)).tolist() == [0.0, 1.0, 0.0]


def test_wrong_input_is_named() -> None:
    depth, intrinsics, poses = walls(0.0, 0.0)
    with pytest.raises(ValueError, match=r"expected depth of shape \[F, H, W\], got \[48, 64\]"):
        pairwise_overlap(depth[0], intrinsics, poses, pair(0), pair(1))
    with pytest.raises(ValueError, match="expected first and second of one shape"):
        pairwise_overlap(depth, intrinsics, poses, pair(0), pair(1, 1))
    with pytest.raises(ValueError, match="expected samples >= 1"):
        pairwise_overlap(depth, intrinsics, poses, pair(0), pair(1), samples=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_agrees() -> None:
    views = walls(0.0, 0.4, 1.1)
    first, second = torch.triu_indices(3, 3, 1)
    found = pairwise_overlap(*(t.cuda() for t in (*views, first, second)))
    torch.testing.assert_close(found.cpu(), pairwise_overlap(*views, first, second), rtol=0, atol=0.005)
