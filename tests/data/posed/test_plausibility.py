"""Whether poses, depth and images agree: every usual mistake is named, and what is right is left alone."""

import numpy as np
import pytest

from prior3d.data.posed.plausibility import GIVEN, STILL, PosedDepth, at_resolution, choose_pairs, judge, plot_warped

HEIGHT, WIDTH, FOCAL = 96, 128, 115.0
CAMERA = np.array([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]])
FLIP = np.diag([1.0, -1.0, -1.0, 1.0])


def pose_at(step, turn, walk):
    angle, pose = np.radians(turn * step - 12), np.eye(4)
    pose[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    pose[:3, 3] = [walk * step - 0.6, 0, walk * step / 2 - 1]
    return pose


def walk_through_a_room(read=lambda pose: pose, unit=1.0, turn=1.5, walk=0.02, noise=0.0):
    """Frames of a textured box of 5 x 2.5 x 4 m, its poses and depth written as `read` and `unit` have it."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    rays = np.stack([(x - CAMERA[0, 2]) / FOCAL, (y - CAMERA[1, 2]) / FOCAL, np.ones((HEIGHT, WIDTH))], -1)
    low, high, rng = np.array([-2.5, -1.2, -2]), np.array([2.5, 1.3, 2]), np.random.default_rng(0)
    frames = []
    for step in range(24):
        pose = pose_at(step, turn, walk)
        ray = rays @ pose[:3, :3].T
        z = np.maximum((low - pose[:3, 3]) / ray, (high - pose[:3, 3]) / ray).min(-1)
        point = pose[:3, 3] + ray * z[..., None]
        gray = 120 + 110 * np.sin(point * [3.5, 4.5, 4] + point[..., ::-1] * 1.5).mean(-1)
        z = z * (1 + noise * rng.standard_normal(z.shape))
        frames.append(PosedDepth(gray.astype(np.float32), (z * unit).astype(np.float32), CAMERA, read(pose)))
    return frames


def compared(frames):
    depth = float(np.median(frames[0].depth))
    pairs = choose_pairs(np.stack([frame.world_from_camera for frame in frames]), depth)
    return [(frames[first], frames[second]) for first, second in pairs]


def in_millimeters(pose):
    scaled = pose.copy()
    scaled[:3, 3] *= 1000
    return scaled


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_what_is_right_is_left_alone(noise):
    verdict = judge(compared(walk_through_a_room(noise=noise)))
    assert verdict.better is None
    assert verdict.pairs == 12
    assert verdict.agreements[GIVEN].correlation > 0.95
    assert verdict.agreements[GIVEN].error < 0.02
    assert 0.5 < verdict.depth_range[0] < verdict.depth_range[1] < 4.5


@pytest.mark.parametrize(
    ("mistake", "found"),
    [
        ({"read": np.linalg.inv}, "inverted poses"),
        ({"read": lambda pose: pose @ FLIP}, "OpenGL axes"),
        ({"read": lambda pose: FLIP @ pose @ FLIP}, "OpenGL axes"),  # the world is flipped, too: the same to a camera
        ({"read": lambda pose: np.linalg.inv(pose @ FLIP)}, "inverted poses with OpenGL axes"),
        ({"unit": 5.0}, "depth x 0.2"),
        ({"unit": 0.2}, "depth x 5"),
        ({"unit": 1000.0}, "depth x 0.001"),
        ({"read": in_millimeters}, "depth x 1000"),
    ],
)
def test_every_usual_mistake_is_named(mistake, found):
    verdict = judge(compared(walk_through_a_room(**mistake)))
    assert verdict.better == found
    assert found in verdict.figures()


def test_poses_of_other_frames_fit_worse_than_none():
    frames = walk_through_a_room(turn=0.7)
    order = np.random.default_rng(1).permutation(len(frames))
    poses = [frames[index].world_from_camera for index in order]
    mixed = [PosedDepth(f.gray, f.depth, f.intrinsics, pose) for f, pose in zip(frames, poses, strict=True)]
    assert judge(compared(mixed)).better == STILL


def test_a_camera_that_only_turns_says_nothing_about_scale():
    assert judge(compared(walk_through_a_room(unit=5.0, walk=0.0))).better is None


def test_a_camera_that_stands_still_says_nothing():
    assert judge(compared(walk_through_a_room(turn=0.0, walk=0.0))).better is None


def test_frames_that_do_not_overlap_are_not_judged():
    verdict = judge(compared(walk_through_a_room(turn=80.0)))
    assert verdict.better is None


def test_no_depth_at_all_is_not_judged():
    frames = [PosedDepth(f.gray, 0 * f.depth, f.intrinsics, f.world_from_camera) for f in walk_through_a_room()]
    verdict = judge(list(zip(frames, frames[3:], strict=False)))
    assert verdict.better is None and verdict.depth_range is None and verdict.pairs == 0


def test_single_frames_make_no_pair():
    assert choose_pairs(np.eye(4)[None], 1.0) == []
    assert choose_pairs(np.stack([np.eye(4)] * 2), 1.0) == [(0, 1)]


def test_images_and_depth_are_brought_to_one_size():
    image = np.zeros((480, 640, 3), np.uint8)
    image[:, 320:] = 200
    depth = np.ones((240, 320), np.float32)
    gray, small, intrinsics = at_resolution(image, depth, np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]]))
    assert gray.shape == small.shape == (120, 160)
    assert gray[:, :80].max() == 0 and gray[:, 80:].min() == 200
    np.testing.assert_allclose(intrinsics, [[125, 0, 80], [0, 125, 60], [0, 0, 1]])


def test_the_picture_shows_the_pairs():
    figure = plot_warped(compared(walk_through_a_room()))
    assert len(figure.axes) == 9
    difference = np.asarray(figure.axes[2].images[0].get_array())
    assert np.nanmedian(difference) < 8  # of 255: the warped neighbor is the frame
