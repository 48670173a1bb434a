"""Noise and highlights: what keeps color from solving matching."""

import numpy as np
import pytest
import torch

from prior3d.contracts.dataset import DataSpec
from prior3d.errors import UserError
from prior3d_plugins.datasets.synthetic_rooms import SyntheticRooms
from prior3d_plugins.datasets.synthetic_rooms.rendering import render
from prior3d_plugins.datasets.synthetic_rooms.rooms import Room
from prior3d_plugins.datasets.synthetic_rooms.sensor import Sensor
from prior3d_plugins.datasets.synthetic_rooms.textures import Texture
from prior3d_plugins.datasets.synthetic_rooms.trajectories import draw_trajectory, look_at, pinhole

SIZE = (60, 80)
FIELDS = frozenset({"image", "depth", "intrinsics", "world_from_camera", "semantic", "normals"})


def dataset(folder, frames=4, seed=0, **options) -> SyntheticRooms:
    return SyntheticRooms(DataSpec(SIZE, 2, "train", folder, seed), rooms=1, frames=frames, **options)


def images(rooms: SyntheticRooms) -> np.ndarray:
    return np.stack([rooms.load(0, frame, FIELDS)["image"] for frame in range(rooms.frames)]).astype(float)


def plain_room(gloss: float, shininess: float = 20.0, gray: float = 0.3) -> Room:
    """A room of one gray, its lamp at (2, 2.5, 1.8)."""
    gray = np.full((2, 3), gray)
    surfaces = tuple(Texture("stripes", np.eye(3, 4), gray, np.zeros((8, 4)), gloss, shininess) for _ in range(6))
    size = np.array([4.0, 5.0, 2.5])
    return Room(size, surfaces, (), np.array([2.0, 2.5, 1.8]), draw_trajectory(np.random.default_rng(0), size))


def test_noise_has_the_spread_asked_for_and_is_drawn_anew_for_every_view_and_channel(tmp_path):
    clean, noisy = (images(dataset(tmp_path, noise=noise)) for noise in (0.0, 0.04))
    unclipped = (clean > 45) & (clean < 210)
    difference = (noisy - clean) / 255
    assert difference[unclipped].std() == pytest.approx(0.04, rel=0.03)
    assert abs(difference[unclipped].mean()) < 5e-4
    for a, b in ((difference[0], difference[1]), (difference[..., 0], difference[..., 1])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.05


def test_noise_depends_on_the_content_seed_and_not_on_the_runs_or_the_number_of_frames(tmp_path):
    first = images(dataset(tmp_path / "a", noise=0.05))
    np.testing.assert_array_equal(images(dataset(tmp_path / "b", seed=3, noise=0.05)), first)
    clean = images(dataset(tmp_path / "a"))
    doubled = [images(dataset(tmp_path / "a", frames=8, exposure=0.0, noise=noise)) for noise in (0.0, 0.05)]
    noise = images(dataset(tmp_path / "a", exposure=0.0, noise=0.05)) - images(dataset(tmp_path / "a", exposure=0.0))
    # Frame 0 is the same view whatever the number of frames, frame 1 is not, but its noise is.
    np.testing.assert_array_equal((doubled[1] - doubled[0])[0], noise[0])
    assert np.corrcoef((doubled[1] - doubled[0])[1].ravel(), noise[1].ravel())[0, 1] > 0.6
    assert clean.shape == first.shape


def test_depth_normals_and_classes_stay_exact(tmp_path):
    clean = dataset(tmp_path)
    spoiled = dataset(tmp_path, noise=0.1, highlights=1.0, exposure=0.3)
    for frame in range(4):
        a, b = clean.load(0, frame, FIELDS), spoiled.load(0, frame, FIELDS)
        for name in ("depth", "semantic", "normals", "world_from_camera", "intrinsics"):
            np.testing.assert_array_equal(a[name], b[name])
        assert (a["image"] != b["image"]).mean() > 0.8


def test_a_highlight_lies_where_the_wall_mirrors_the_lamp():
    room, camera = plain_room(gloss=1.0, shininess=400.0), np.array([1.0, 3.5, 1.2])
    poses = look_at(camera[None], np.array([[1.4, 0.0, 1.5]]), np.zeros(1))
    intrinsics = pinhole(SIZE, 70.0)
    one = Sensor(np.ones((1, 3)))
    with_lamp, without = (render(room, poses, intrinsics, SIZE, one, h).image[0, ..., 0] for h in (0.5, 0.0))
    added = with_lamp.astype(float) - without
    row, column = np.unravel_index(added.argmax(), SIZE)
    assert added.max() > 100
    # The lamp at (2, 2.5, 1.8) is mirrored behind the wall y = 0, where the way to (2, -2.5, 1.8) passes it.
    way = np.array([2.0, -2.5, 1.8]) - camera
    point = camera + way * camera[1] / (camera[1] + 2.5)
    in_camera = np.linalg.inv(poses[0]) @ [*point, 1.0]
    pixel = (intrinsics @ in_camera[:3])[:2] / in_camera[2]
    assert np.abs(pixel - [column + 0.5, row + 0.5]).max() < 1.5


def test_highlights_move_with_the_view_and_the_rest_does_not():
    room, intrinsics = plain_room(gloss=0.8), pinhole(SIZE, 70.0)
    cameras = np.array([[0.8, 3.5, 1.2], [3.2, 3.5, 1.6]])
    poses = look_at(cameras, np.array([[2.0, 0.0, 1.4]] * 2), np.zeros(2))
    two = Sensor(np.ones((2, 3)))
    bright, dull = (render(room, poses, intrinsics, SIZE, two, highlights) for highlights in (0.6, 0.0))
    assert (bright.image >= dull.image).all()
    rows, columns = np.indices(SIZE)
    rays = np.stack([columns + 0.5, rows + 0.5, np.ones(SIZE)], -1) @ np.linalg.inv(intrinsics).T @ poses[0, :3, :3].T
    points = cameras[0] + rays * dull.depth[0][..., None]
    in_b = (points - cameras[1]) @ poses[1, :3, :3] @ intrinsics.T
    x, y = np.floor(in_b[..., :2] / in_b[..., 2:]).transpose(2, 0, 1)
    seen = (in_b[..., 2] > 0) & (x >= 0) & (x < SIZE[1]) & (y >= 0) & (y < SIZE[0])
    x, y = x[seen].astype(int), y[seen].astype(int)
    assert seen.sum() > 1500
    gap = {
        name: np.abs(views.image[0][seen].astype(int) - views.image[1][y, x]).mean(-1)
        for name, views in (("dull", dull), ("bright", bright))
    }
    assert np.quantile(gap["dull"], 0.95) < 4  # up to a pixel's width of the shade of corners
    assert np.quantile(gap["bright"], 0.7) > 15


def test_dull_surfaces_and_lamps_out_of_sight_mirror_nothing():
    intrinsics, two = pinhole(SIZE, 70.0), Sensor(np.ones((2, 3)))
    poses = look_at(np.array([[0.8, 3.5, 1.2]] * 2), np.array([[2.0, 0.0, 1.4], [2.0, 4.0, 0.0]]), np.zeros(2))
    dull = [render(plain_room(gloss=0.0), poses, intrinsics, SIZE, two, highlights).image for highlights in (0, 1)]
    np.testing.assert_array_equal(*dull)
    strengths = [render(plain_room(0.5), poses, intrinsics, SIZE, two, h).image.astype(float) for h in (0, 0.2, 0.4)]
    weak, strong = strengths[1] - strengths[0], strengths[2] - strengths[0]
    unclipped = strengths[2] < 250
    np.testing.assert_allclose(strong[unclipped], 2 * weak[unclipped], atol=2.1)


@pytest.mark.parametrize("option", ["noise", "highlights", "exposure"])
@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_options_out_of_range_are_refused(option, value, tmp_path):
    with pytest.raises(UserError, match="expected 0 to 1") as caught:
        dataset(tmp_path, **{option: value})
    assert caught.value.key == option


def test_sensors_work_without_disturbing_global_randomness():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    taken = [Sensor(np.ones((2, 3)), 0.1, (1, 2)).take(torch.full((3, 2, 8, 8), 0.5), 0) for _ in range(2)]
    np.testing.assert_array_equal(*taken)
    late = Sensor(np.ones((3, 3)), 0.1, (1, 2)).take(torch.full((3, 1, 8, 8), 0.5), 1)
    np.testing.assert_array_equal(late[0], taken[0][1])
    assert torch.equal(torch.get_rng_state(), before)
