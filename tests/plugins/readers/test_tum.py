"""The readers `tum` and `icl`: lists, trajectories and published cameras are read as they are meant."""

import os

import numpy as np
import pytest
from PIL import Image
from reprojection import agreement
from scipy.spatial.transform import Rotation, Slerp

from prior3d.data.posed import TimedPoses, make_reader, mirrored_y, recognizing
from prior3d.errors import DamagedFile, UserError
from prior3d.testing import check_reader
from prior3d_plugins.readers.icl import Icl
from prior3d_plugins.readers.tum import Tum

TIMES = [10.0, 10.033, 10.066, 10.1]
ALL = frozenset({"image", "depth"})


def write_images(folder, color, depth, index, size=(480, 640), kind="png"):
    for name in (color, depth):
        (folder / name).mkdir(parents=True, exist_ok=True)
    flat = np.full((*size, 3), 20 * index, np.uint8)
    Image.fromarray(flat).save(folder / color / f"{index}.png")
    codes = np.full(size, 5000 + 500 * index, np.uint16)
    if kind == "pgm":
        head = f"P5 {size[1]} {size[0]} 65535\n".encode()
        (folder / depth / f"{index}.pgm").write_bytes(head + codes.astype(">u2").tobytes())
    else:
        Image.fromarray(codes).save(folder / depth / f"{index}.png")


def quaternion(turn):
    return Rotation.from_rotvec(turn).as_quat()


def line(time, position, turn):
    return " ".join(f"{value:.8f}" for value in (time, *position, *quaternion(turn)))


@pytest.fixture
def tum(tmp_path):
    folder = tmp_path / "tum" / "rgbd_dataset_freiburg1_desk"
    for index in range(4):
        write_images(folder, "rgb", "depth", index)
    head = "# color images\n# file: 'desk.bag'\n# timestamp filename\n"
    (folder / "rgb.txt").write_text(head + "".join(f"{time} rgb/{i}.png\n" for i, time in enumerate(TIMES)))
    depths = [(time + 0.004, f"depth/{i}.png") for i, time in enumerate(TIMES)]
    (folder / "depth.txt").write_text(head + "".join(f"{time} {name}\n" for time, name in depths))
    poses = [line(9.995 + i / 100, (i / 10, 0, 0), (0, i / 50, 0)) for i in range(13)]
    (folder / "groundtruth.txt").write_text("# timestamp tx ty tz qx qy qz qw\n" + "\n".join(poses) + "\n")
    return folder


def test_tum_keeps_to_the_contract(tum):
    reader = check_reader(Tum, tum.parent)
    assert next(iter(recognizing(tum))) == "tum"
    recording = reader.open("rgbd_dataset_freiburg1_desk")
    camera = recording.frames[0].camera
    np.testing.assert_allclose(camera.intrinsics, [[517.3, 0, 319.1], [0, 516.5, 255.8], [0, 0, 1]])
    assert camera.model == "opencv" and camera.distortion == (0.2624, -0.9531, -0.0054, 0.0026, 1.1633)
    assert Tum(tum, lens="pinhole").open(tum.name).frames[0].camera.model == "pinhole"
    assert [frame.time for frame in recording.frames] == TIMES
    for index in range(4):
        view = recording.read(index, ALL)
        assert (view["image"] == 20 * index).all()
        np.testing.assert_allclose(view["depth"], 1 + index / 10, rtol=1e-6)


def test_poses_are_interpolated_as_scipy_does(tum):
    frames = Tum(tum).open(tum.name).frames
    known = 9.995 + np.arange(13) / 100
    turns = Slerp(known, Rotation.from_rotvec([(0, i / 50, 0) for i in range(13)]))
    for frame in frames:
        np.testing.assert_allclose(frame.world_from_camera[:3, :3], turns(frame.time).as_matrix(), atol=1e-6)
        np.testing.assert_allclose(frame.world_from_camera[0, 3], (frame.time - 9.995) * 10, atol=1e-6)


def test_each_depth_is_used_once_and_the_nearest(tum):
    (tum / "rgb.txt").write_text("10.0 rgb/0.png\n10.006 rgb/1.png\n")
    (tum / "depth.txt").write_text("10.005 depth/2.png\n")
    recording = Tum(tum).open(tum.name)
    assert [frame.name for frame in recording.frames] == ["rgb/1.png"]
    assert recording.notes == ["1 color images have no depth within 0.02 s"]
    (tum / "associations.txt").write_text("10.0 rgb/0.png 10.005 depth/2.png\n10.006 rgb/1.png 10.005 depth/2.png\n")
    assert len(Tum(tum).open(tum.name).frames) == 2


def test_damage_of_tum_is_a_line_or_a_problem(tum):
    images = "10.0 rgb/0.png\n10.0 rgb/1.png\n10.066 rgb/none.png\n10.1 rgb/3.png\n"
    (tum / "rgb.txt").write_text(images)
    (tum / "depth.txt").write_text("10.0 depth/0.png\n10.001 depth/1.png\n10.066 depth/2.png\n10.1 depth/3.png\n")
    poses = (tum / "groundtruth.txt").read_text().splitlines()
    poses[11:12] = [poses[5], poses[11].replace("1.00000000", "nan"), poses[11].replace(" ", " -inf ", 1)[:60]]
    (tum / "groundtruth.txt").write_text("\n".join(poses[:12]))
    recording = Tum(tum).open(tum.name)
    problems = [frame.problem for frame in recording.frames]
    assert problems == [None, "its time stamp does not rise", "no color file", None]
    assert recording.notes == ["1 line of groundtruth.txt left out: its time stamp does not rise, the first in line 12"]
    (tum / "depth" / "0.png").write_bytes(b"")
    with pytest.raises(DamagedFile):
        recording.read(0, ALL)
    (tum / "rgb.txt").write_text("noon rgb/0.png\n")
    with pytest.raises(UserError, match=r"^root: expected a time stamp and a file in line 1 of .*rgb\.txt"):
        Tum(tum).open(tum.name)
    (tum / "groundtruth.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"^root: expected text in .*groundtruth\.txt"):
        Tum(tum).open(tum.name)
    if os.getuid():
        (tum / "groundtruth.txt").chmod(0)
        with pytest.raises(UserError, match=r"^root: cannot read .*groundtruth\.txt: Permission denied"):
            Tum(tum).open(tum.name)


@pytest.mark.parametrize(
    ("numbers", "problem"),
    [("nan 0 0 0 0 0 1", "pose not finite"), ("0 -inf 0 0 0 0 1", "pose not finite"), ("0 0 0 0 0 0 2", "quaternion")],
)
def test_poses_that_make_no_sense_are_problems(tmp_path, numbers, problem):
    (tmp_path / "t.txt").write_text(f"1 {numbers}\n")
    pose, found = TimedPoses(tmp_path / "t.txt").at(1.0, 0.02)
    assert pose is None and found.startswith(problem)


def test_unknown_cameras_are_refused(tum):
    other = tum.rename(tum.with_name("office"))
    with pytest.raises(UserError, match=r"^intrinsics: no intrinsics for scene office, its name has no freiburg1"):
        Tum(other).open("office")
    (other / "calibration.txt").write_text("500 501 320 240\n")
    assert Tum(other).open("office").frames[0].camera.intrinsics[1].tolist() == [0, 501, 240.5]


@pytest.fixture
def icl(tmp_path):
    folder = tmp_path / "icl" / "traj2"
    for index in range(3):
        write_images(folder, "rgb", "depth", index)
    (folder / "associations.txt").write_text("".join(f"{i} depth/{i}.png {i} rgb/{i}.png\n" for i in range(3)))
    poses = [line(i, (0, i, 0), (0.1 * i, 0, 0.2)) for i in (1, 2)]
    (folder / "livingRoom2.gt.freiburg").write_text("\n".join(poses) + "\n")
    return folder


def test_icl_has_a_positive_focal_length_and_poses_turned_over(icl):
    reader = check_reader(Icl, icl.parent)
    assert next(iter(recognizing(icl.parent))) == "icl"
    frames = reader.open("traj2").frames
    assert [frame.problem for frame in frames] == ["no pose within 0.02 s", None, None]
    np.testing.assert_allclose(frames[1].camera.intrinsics, [[481.2, 0, 320], [0, 480, 240], [0, 0, 1]])
    stored = np.eye(4)
    stored[:3, :3], stored[:3, 3] = Rotation.from_rotvec((0.1, 0, 0.2)).as_matrix(), (0, 1, 0)
    np.testing.assert_allclose(frames[1].world_from_camera, mirrored_y(stored), atol=1e-6)
    # the same point of the world is at the same pixel, by the published camera and by ours
    seen = np.array([0.3, 0.2, 2.0])
    x, y, z = (np.linalg.inv(frames[1].world_from_camera) @ [*(stored[:3, :3] @ seen + stored[:3, 3]) * [1, -1, 1], 1])[
        :3
    ]
    u, v, w = frames[1].camera.intrinsics @ [x, y, z]
    np.testing.assert_allclose([u / w, v / w], [481.2 * 0.15 + 320, -480 * 0.1 + 240], atol=1e-4)


def test_folders_with_pose_txt(tmp_path):
    folder = tmp_path / "room"
    for index in (2, 10, 9):
        write_images(folder, "color", "depth", index, (12, 16), "pgm")
    rows = [" ".join(map(str, (index, 0, 0, 0, 0, 0, 1))) for index in range(3)]
    (folder / "pose.txt").write_text("\n".join(rows))
    with pytest.raises(UserError, match=r"^intrinsics: scene room is not as ICL-NUIM published it, its depth is PGM"):
        Icl(folder).open("room")
    reader = check_reader(Icl, tmp_path, intrinsics=(20, 20, 7.5, 5.5))
    recording = reader.open("room")
    assert [(frame.name, frame.world_from_camera[0, 3]) for frame in recording.frames] == [
        ("2", 0),
        ("9", 1),
        ("10", 2),
    ]
    np.testing.assert_allclose(recording.read(0, ALL)["depth"], 6.0, rtol=1e-6)
    (folder / "pose.txt").write_text("\n".join([*rows, rows[0]]))
    with pytest.raises(UserError, match=r"^root: .*pose\.txt has 4 poses for 3 frames"):
        reader.open("room")
    (folder / "pose.txt").write_text(rows[0] + "\nnan " + rows[1][2:])
    assert [frame.problem for frame in reader.open("room").frames] == [None, "pose not finite", "no pose"]


@pytest.mark.parametrize(
    ("name", "options", "pairs", "least"),
    [
        ("icl-style", {}, [(0, 1), (3, 4)], 0.6),
        ("pgm-depth", {"intrinsics": (518.0, 519.0, 325.5, 253.5)}, [(0, 1), (1, 2), (2, 3), (3, 4)], 0.3),
    ],
)
def test_real_frames_agree_far_better_than_without_motion(shared_data, name, options, pairs, least):
    reader = make_reader(shared_data / "formats" / name, "auto", options)
    recording = reader.open(name)
    for first, second in pairs:
        moved, still = (agreement(recording, first, second, moved) for moved in (True, False))
        assert moved > least and moved > 2.5 * still, (first, second, moved, still)
