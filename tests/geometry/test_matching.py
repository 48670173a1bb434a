"""Matches against brute force on real frames, and against closed forms on planes."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from torch import Tensor

from prior3d.geometry import match_views, match_views_batched, matching, project, view_angle

INTRINSICS = torch.tensor([[50.0, 0, 16], [0, 50, 12], [0, 0, 1]])
ZOOMED = INTRINSICS * torch.tensor([[1.3], [1.3], [1.0]])
IDENTITY = torch.eye(4)


def cloud(depth: Tensor, intrinsics: Tensor, world_from_camera: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """World points [M, 3] and pixel centers [M, 2] of all known depth, by matrix algebra in float64."""
    depth, intrinsics, pose = (t.double().numpy() for t in (depth, intrinsics, world_from_camera))
    row, column = np.nonzero(depth > 0)
    pixels = np.stack([column, row], 1) + 0.5
    rays = np.linalg.inv(intrinsics) @ np.concatenate([pixels.T, np.ones((1, len(pixels)))])
    return (pose[:3, :3] @ (rays * depth[row, column]) + pose[:3, 3:]).T, pixels


def inside(points: np.ndarray, depth: Tensor, intrinsics: Tensor, world_from_camera: Tensor) -> np.ndarray:
    """Which world points project into the image, in front of the camera."""
    intrinsics, pose = intrinsics.double().numpy(), world_from_camera.double().numpy()
    camera = (points - pose[:3, 3]) @ pose[:3, :3]
    image = camera @ intrinsics.T
    pixels = image[:, :2] / image[:, 2:]
    return (camera[:, 2] > 0) & (pixels >= 0).all(1) & (pixels < (depth.shape[1], depth.shape[0])).all(1)


def brute_force(view_a: tuple, view_b: tuple, max_distance: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mutual nearest neighbors in world space: [M, 4] pixels in a and b; which a point and which b point is seen."""
    (points_a, pixels_a), (points_b, pixels_b) = cloud(*view_a), cloud(*view_b)
    # Bounded searches are exact for what they find, and much quicker where the views share little.
    distance, in_b = cKDTree(points_b).query(points_a, distance_upper_bound=max_distance)
    _, in_a = cKDTree(points_a).query(points_b, distance_upper_bound=max_distance)
    a = np.nonzero(np.isfinite(distance))[0]
    a = a[in_a[in_b[a]] == a]
    b = in_b[a]
    return np.concatenate([pixels_a[a], pixels_b[b]], 1), inside(points_a[a], *view_b), inside(points_b[b], *view_a)


def distances(view_a: tuple, view_b: tuple, pixels_a: Tensor, pixels_b: Tensor) -> np.ndarray:
    """World distance in meters of each match, in float64."""
    found = []
    for view, pixels in ((view_a, pixels_a), (view_b, pixels_b)):
        points, centers = cloud(*view)
        row_of = np.full(view[0].shape, len(points))
        row_of[tuple(centers.astype(int).T[::-1])] = np.arange(len(points))
        found.append(points[row_of[tuple(pixels.numpy().astype(int).T[::-1])]])
    return np.linalg.norm(found[0] - found[1], axis=1)


REAL_PAIRS = [  # scene, frames, step, zooms, degrees between the optical axes at least
    ("kitchen-a", 50, 66, 1, (1, 1), 30),
    ("office", 1, 25, 2, (1, 1), 15),
    ("kitchen-a", 10, 40, 2, (1, 1), 19),
    ("kitchen-a", 48, 74, 2, (1, 1), 40),
    ("kitchen-a", 10, 40, 2, (1.0, 1.7), 19),
    ("office", 0, 5, 5, (1, 1), 2),
    ("office", 0, 20, 5, (1.3, 1.7), 11),
    ("kitchen-a", 0, 20, 5, (1.7, 1.6), 4),
    ("kitchen-a", 10, 40, 5, (1.6, 1.0), 19),
]


@pytest.mark.parametrize(("scene", "first", "second", "step", "zooms", "degrees"), REAL_PAIRS)
def test_matches_are_the_mutual_neighbors_of_real_frames(
    read_frame: Callable, scene: str, first: int, second: int, step: int, zooms: tuple, degrees: float
) -> None:
    view_a, view_b = read_frame(scene, first, step, zooms[0]), read_frame(scene, second, step, zooms[1], 0.4)
    assert view_angle(view_a.world_from_camera, view_b.world_from_camera) > degrees
    pairs = zip(view_a, view_b, strict=True)
    pixels_a, pixels_b = match_views(*(tensor for pair in pairs for tensor in pair), max_distance=0.02)

    assert len(torch.unique(pixels_a, dim=0)) == len(pixels_a) == len(torch.unique(pixels_b, dim=0)) == len(pixels_b)
    assert torch.equal(pixels_a, pixels_a.floor() + 0.5) and torch.equal(pixels_b, pixels_b.floor() + 0.5)
    assert distances(view_a, view_b, pixels_a, pixels_b).max() <= 0.02

    neighbors, a_is_seen, b_is_seen = brute_force(view_a, view_b, 0.02)
    found = {tuple(match) for match in torch.cat([pixels_a, pixels_b], 1).tolist()}
    recall = [
        np.mean([tuple(match) in found for match in neighbors[seen].tolist()])
        for seen in (a_is_seen, b_is_seen, a_is_seen & b_is_seen)
    ]
    assert len(found) > 100
    assert min(recall) >= 0.95
    assert recall[2] >= 0.99
    true = {tuple(match) for match in neighbors.tolist()}
    assert len(found & true) >= 0.995 * len(found)


def test_a_sideways_step_shifts_a_wall_by_whole_pixels() -> None:
    wall = torch.full((24, 32), 2.0)
    moved = IDENTITY.clone()
    moved[0, 3] = 3 * 2.0 / 50  # three pixels at 2 m
    pixels_a, pixels_b = match_views(wall, wall, INTRINSICS, INTRINSICS, IDENTITY, moved)
    assert len(pixels_a) == 24 * 29
    torch.testing.assert_close(pixels_a - pixels_b, torch.tensor([3.0, 0.0]).expand(24 * 29, 2))


def test_a_view_matches_itself_pixel_by_pixel() -> None:
    depth = torch.rand(24, 32) + 0.5
    pixels_a, pixels_b = match_views(depth, depth, INTRINSICS, INTRINSICS, IDENTITY, IDENTITY)
    assert len(pixels_a) == 24 * 32 and torch.equal(pixels_a, pixels_b)


def test_a_camera_upside_down_sees_the_same_wall() -> None:
    wall = torch.full((24, 32), 2.0)
    turned = IDENTITY.clone()
    turned[:3, :3] = torch.diag(torch.tensor([-1.0, -1.0, 1.0]))
    pixels_a, pixels_b = match_views(wall, wall, INTRINSICS, INTRINSICS, IDENTITY, turned)
    assert len(pixels_a) == 24 * 32
    assert torch.equal(pixels_a + pixels_b, torch.tensor([32.0, 24.0]).expand_as(pixels_a))


def test_views_of_different_size_match_as_many_pixels_as_the_coarser_has() -> None:
    coarse, fine = torch.full((24, 32), 2.0), torch.full((72, 96), 2.0)
    fine_intrinsics = torch.diag(torch.tensor([3.0, 3.0, 1.0])) @ INTRINSICS
    pixels_a, pixels_b = match_views(fine, coarse, fine_intrinsics, INTRINSICS, IDENTITY, IDENTITY)
    assert len(pixels_a) == 24 * 32
    assert torch.equal(pixels_a, 3 * pixels_b)  # the middle one of 3 x 3 fine pixels


@pytest.mark.parametrize("unknown", [0.0, math.nan, math.inf, -math.inf, -1.0])
def test_unknown_depth_is_never_matched(unknown: float) -> None:
    wall = torch.full((24, 32), 2.0)
    holes_a, holes_b = wall.clone(), wall.clone()
    holes_a[:, :5] = unknown
    holes_b[:7] = unknown
    pixels_a, pixels_b = match_views(holes_a, holes_b, INTRINSICS, INTRINSICS, IDENTITY, IDENTITY)
    assert len(pixels_a) == 17 * 27
    assert pixels_a[:, 0].min() > 5 and pixels_b[:, 1].min() > 7
    nothing = torch.full((24, 32), unknown)
    assert match_views(nothing, nothing, INTRINSICS, INTRINSICS, IDENTITY, IDENTITY)[0].shape == (0, 2)


def test_what_something_hides_is_not_matched() -> None:
    wall = torch.full((24, 32), 2.0)
    board_before_wall = wall.clone()
    board_before_wall[8:16, 8:24] = 1.5
    pixels_a, _ = match_views(wall, board_before_wall, INTRINSICS, INTRINSICS, IDENTITY, IDENTITY)
    assert len(pixels_a) == 24 * 32 - 8 * 16


def test_cameras_back_to_back_share_nothing() -> None:
    wall = torch.full((24, 32), 2.0)
    back = torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0]))
    assert len(match_views(wall, wall, INTRINSICS, INTRINSICS, IDENTITY, back)[0]) == 0


@pytest.mark.parametrize(
    ("gap", "max_distance", "relative_distance", "matched"),
    [(0.019, 0.02, 0.0, True), (0.021, 0.02, 0.0, False), (0.021, 0.02, 0.011, True), (0.023, 0.02, 0.011, False)],
)
def test_the_limit_is_the_larger_of_meters_and_share_of_depth(
    gap: float, max_distance: float, relative_distance: float, matched: bool
) -> None:
    near, far = torch.full((24, 32), 2.0), torch.full((24, 32), 2.0 + gap)
    for depths in ((near, far), (far, near)):
        pixels, _ = match_views(*depths, INTRINSICS, INTRINSICS, IDENTITY, IDENTITY, max_distance, relative_distance)
        # Toward the border the walls' pixels drift apart sideways, too.
        assert (len(pixels) > 24 * 32 / 2) == matched
        assert matched or len(pixels) == 0


def random_batch(seed: int = 0) -> list[Tensor]:
    """Three pairs of bumpy walls [3, 24, 32] and [3, 20, 40] seen from random nearby poses, with holes."""
    generator = np.random.default_rng(seed)
    poses = np.tile(np.eye(4), (2, 3, 1, 1))
    poses[..., :3, :3] = Rotation.random(6, random_state=seed).as_matrix().reshape(2, 3, 3, 3)
    poses[1] = poses[0]
    nudges = Rotation.from_euler("xyz", generator.normal(0, 4, (3, 3)), degrees=True).as_matrix()
    poses[1, :, :3, :3] = poses[0, :, :3, :3] @ nudges
    poses[..., :3, 3] = generator.normal(0, 0.01, (2, 3, 3))
    depth_a = 1.0 + 0.03 * generator.random((3, 24, 32))
    depth_a[generator.random((3, 24, 32)) < 0.1] = 0
    depth_b = 1.0 + 0.03 * generator.random((3, 20, 40))
    depth_b[:, 3:6, 3:9] = 0
    arrays = (depth_a, depth_b, np.tile(INTRINSICS.numpy(), (3, 1, 1)), np.tile(ZOOMED.numpy(), (3, 1, 1)))
    return [torch.tensor(array, dtype=torch.float32) for array in (*arrays, *poses)]


def test_a_batch_gives_what_its_pairs_give() -> None:
    batch = random_batch()
    matches = match_views_batched(*batch)
    assert matches.pixels_a.shape == matches.pixels_b.shape == (3, 24 * 32, 2)
    assert matches.valid.dtype == torch.bool and (matches.valid.sum(1) > 50).all()
    for number in range(3):
        pixels_a, pixels_b = match_views(*(tensor[number] for tensor in batch))
        assert torch.equal(pixels_a, matches.pixels_a[number][matches.valid[number]])
        assert torch.equal(pixels_b, matches.pixels_b[number][matches.valid[number]])
    slots = torch.arange(24 * 32)
    assert torch.equal(matches.pixels_a[0], torch.stack([slots % 32, slots // 32], 1) + 0.5)


def test_swapping_the_views_swaps_the_matches() -> None:
    depth_a, depth_b, intrinsics_a, intrinsics_b, world_from_a, world_from_b = (t[0] for t in random_batch())
    there = torch.cat(match_views(depth_a, depth_b, intrinsics_a, intrinsics_b, world_from_a, world_from_b), 1)
    back = torch.cat(match_views(depth_b, depth_a, intrinsics_b, intrinsics_a, world_from_b, world_from_a)[::-1], 1)
    assert len(there) > 50
    assert len(set(map(tuple, there.tolist())) ^ set(map(tuple, back.tolist()))) <= 1  # ties and rounding


def test_a_broken_pose_spoils_only_its_own_pair() -> None:
    batch = random_batch()
    expected = match_views_batched(*batch)
    for broken in (math.nan, math.inf):
        batch[5][1, 0, 3] = broken
        matches = match_views_batched(*batch)
        assert not matches.valid[1].any()
        assert torch.equal(matches.valid[::2], expected.valid[::2]) and expected.valid[1].any()


def test_a_scene_far_from_the_origin_loses_nothing() -> None:
    batch = [tensor.double() for tensor in random_batch()]
    offset = torch.tensor([4e5, -2e5, 30.0], dtype=torch.float64)
    near = match_views_batched(*(tensor.float() for tensor in batch))
    for pose in batch[4:]:
        pose[:, :3, 3] += offset
    far = match_views_batched(*batch)
    assert (near.valid != far.valid).float().mean() < 0.002


def test_autocast_changes_nothing() -> None:
    batch = random_batch()
    outside = match_views_batched(*batch)
    with torch.autocast("cpu", torch.bfloat16):
        within = match_views_batched(*batch)
    assert all(torch.equal(one, other) for one, other in zip(outside, within, strict=True))


def test_autocast_changes_nothing_on_real_frames(read_frame: Callable) -> None:
    pairs = zip(read_frame("kitchen-a", 0, 5), read_frame("kitchen-a", 20, 5), strict=True)
    tensors = [tensor for pair in pairs for tensor in pair]
    outside = match_views(*tensors)
    with torch.autocast("cpu", torch.bfloat16):
        within = match_views(*tensors)
    assert len(outside[0]) > 1000
    assert all(torch.equal(one, other) for one, other in zip(outside, within, strict=True))


def test_both_ways_through_the_window_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = random_batch()
    one_by_one = match_views_batched(*batch, search_radius=3)
    monkeypatch.setattr(matching, "_search_one_by_one", matching._search_by_rows)
    by_rows = match_views_batched(*batch, search_radius=3)
    assert one_by_one.valid.any()
    assert all(torch.equal(one, other) for one, other in zip(one_by_one, by_rows, strict=True))


def test_matches_carry_no_gradient() -> None:
    batch = [tensor.requires_grad_() for tensor in random_batch()]
    assert not any(tensor.requires_grad for tensor in match_views_batched(*batch))


def test_a_wider_window_finds_what_is_further_off() -> None:
    # 2 cm at 0.25 m are 4 pixels; the surfaces are 1.9 cm apart sideways, the points isolated.
    depth_a, depth_b = torch.zeros(24, 32), torch.zeros(24, 32)
    depth_a[12, 16], depth_b[12, 19] = 0.25, 0.25
    pair = (depth_a, depth_b, INTRINSICS, INTRINSICS, IDENTITY, IDENTITY)
    assert len(match_views(*pair, search_radius=3)[0]) == 1
    assert len(match_views(*pair, search_radius=2)[0]) == 0
    assert len(match_views(*pair, max_distance=0.014, search_radius=3)[0]) == 0


def test_wrong_input_is_named() -> None:
    batch = random_batch()
    with pytest.raises(ValueError, match=r"expected depth \[B, H, W\].*got \[\[24, 32\]"):
        match_views_batched(batch[0][0], *batch[1:])
    with pytest.raises(ValueError, match="one B, got"):
        match_views_batched(batch[0], batch[1][:2], *batch[2:])
    with pytest.raises(ValueError, match="expected max_distance > 0"):
        match_views_batched(*batch, max_distance=0.0)
    with pytest.raises(ValueError, match="got nan"):
        match_views_batched(*batch, max_distance=math.nan)
    with pytest.raises(ValueError, match="expected search_radius >= 0, got -1"):
        match_views_batched(*batch, search_radius=-1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_agrees_without_waiting_for_the_device() -> None:
    batch = random_batch()
    on_device = [tensor.cuda() for tensor in batch]
    match_views_batched(*on_device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", torch.bfloat16):
            found = match_views_batched(*on_device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = match_views_batched(*batch)
    assert (found.valid.cpu() != expected.valid).float().mean() < 0.002
    both = found.valid.cpu() & expected.valid
    assert (found.pixels_b.cpu()[both] != expected.pixels_b[both]).float().mean() < 0.002


def test_projection_agrees_with_the_matches() -> None:
    batch = [tensor[0] for tensor in random_batch()]
    pixels_a, pixels_b = match_views(*batch)
    points, pixels = cloud(batch[0], batch[2], batch[4])
    chosen = [pixels.tolist().index(pixel) for pixel in pixels_a.tolist()]
    projected, depth = project(torch.from_numpy(points[chosen]), batch[3], batch[5])
    assert (depth > 0).all()
    assert (projected - pixels_b).abs().max() < 0.02 * 65 / 0.9 + 0.5
