"""Bounds of overlap hold for every pair, and leave out pairs that do not see each other."""

import math

import pytest
import torch
from plain_overlap import plain_overlap
from posed_boxes import box_views
from scipy.spatial.transform import Rotation

from prior3d.geometry import overlap_bounds

FAR = {"scale": 40.0, "relative_distance": 0.02}
NEAR = {"scale": 0.02, "spread": 0.95}  # 2 cm is a third of this box: the limit counts as much as the frustum


@pytest.mark.parametrize("field_of_view", [4.0, 20.0, 60.0, 120.0, 165.0])
@pytest.mark.parametrize("scene", [{}, FAR, NEAR, {"odd": True}, {"spread": 0.05}], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_no_overlap_exceeds_its_bound(field_of_view: float, scene: dict, seed: int) -> None:
    scene = dict(scene)
    options = {"relative_distance": scene.pop("relative_distance", 0.0), "samples": 150}
    views = box_views(16, seed, (18, 24), field_of_view, **scene)
    first, second = torch.triu_indices(16, 16)
    overlap = plain_overlap(*views, first, second, **options)
    bounds = overlap_bounds(*views, **options)
    assert torch.equal(bounds, bounds.T)
    assert (overlap <= bounds[first, second]).all()
    assert overlap.max() == 1


@pytest.mark.parametrize("focal", [3.3, 7.7])
def test_points_on_the_border_of_an_image_are_within_the_bound(focal):
    # A wall with one sample in each tile; the cameras stand half a pixel apart, so that samples lie on borders. The
    # first camera, the origin, is so far that rounding moves the points by a millimeter.
    depth, count = torch.full((41, 4, 4), 1.7), 41
    intrinsics = torch.tensor([[focal, 0, 2], [0, focal, 2], [0, 0, 1]]).repeat(count, 1, 1)
    poses = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    poses[:, 0, 3] = torch.arange(count) * 1.7 / focal / 2
    poses[0, :3, 3] = torch.tensor([-13100.0, 12700.0, 0.5])
    poses[:, :3] = torch.from_numpy(Rotation.random(random_state=0).as_matrix()) @ poses[:, :3]
    first, second = torch.triu_indices(count, count)
    limit = 1.7 / focal  # a pixel, so that a pixel at the border is near a point on the border
    overlap = plain_overlap(depth, intrinsics, poses, first, second, limit, samples=16)
    bounds = overlap_bounds(depth, intrinsics, poses, limit, samples=16)[first, second]
    assert (overlap <= bounds).all()
    assert (overlap == bounds).float().mean() > 0.5  # nothing to spare


def test_most_pairs_that_cannot_see_each_other_are_left_out():
    views = box_views(40, field_of_view=40.0, spread=0.3)
    first, second = torch.triu_indices(40, 40, 1)
    overlap, bounds = plain_overlap(*views, first, second), overlap_bounds(*views)[first, second]
    assert (bounds[overlap == 0] < 0.3).float().mean() > 0.8
    assert 0 < (overlap > 0.1).sum() < len(overlap) / 5


def test_depth_that_is_too_near_or_too_far_cannot_be_met():
    depth = torch.full((2, 6, 8), 2.0)
    depth[1] = 2.5  # both cameras are at one place, so each sees the other's points within its image
    intrinsics = torch.tensor([[8.0, 0, 4], [0, 8, 3], [0, 0, 1]]).repeat(2, 1, 1)
    poses = torch.eye(4).repeat(2, 1, 1)
    assert overlap_bounds(depth, intrinsics, poses).tolist() == [[1, 0], [0, 1]]
    assert overlap_bounds(depth, intrinsics, poses, 0.5).tolist() == [[1, 1], [1, 1]]


def test_unknown_depth_and_broken_poses_have_bounds_of_their_own_pairs_only():
    views = box_views(6)
    views[0][1] = 0
    views[2][2, 1, 1] = math.nan
    first, second = torch.triu_indices(6, 6)
    bounds = overlap_bounds(*views)
    assert torch.isfinite(bounds).all()
    assert (plain_overlap(*views, first, second) <= bounds[first, second]).all()
    assert bounds[1, 1] == bounds[1, 2] == 0
