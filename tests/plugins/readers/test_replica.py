"""The reader `replica`: a rendered scene is what its files say, and damage is a line or a problem."""

import json

import numpy as np
import pytest
from PIL import Image
from reprojection import agreement

from prior3d.data.posed import recognizing
from prior3d.errors import UserError
from prior3d.testing import check_reader
from prior3d_plugins.readers.replica import Replica

SIZE = (12, 16)
CAMERA = {"w": 16, "h": 12, "fx": 20.0, "fy": 21.0, "cx": 7.5, "cy": 5.5, "scale": 6553.5}
PLY = (
    "ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\nproperty float z\nend_header\n1 2 3\n"
)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "Replica" / "office0" / "results"
    folder.mkdir(parents=True)
    poses = []
    for index in range(5):
        pose = np.eye(4)
        pose[0, 3] = index / 10
        poses.append(" ".join(f"{value:.18e}" for value in pose.ravel()))
        if index == 1:
            continue  # numbers count lines
        noise = np.random.default_rng(index).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"frame{index:06d}.jpg")
        Image.fromarray(np.full(SIZE, 6553 + index, np.uint16)).save(folder / f"depth{index:06d}.png")
    (folder.parent / "traj.txt").write_text("\n".join(poses) + "\n")
    (tmp_path / "Replica" / "cam_params.json").write_text(json.dumps({"camera": CAMERA}))
    (tmp_path / "Replica" / "office0_mesh.ply").write_text(PLY)
    return tmp_path / "Replica"


def test_frames_are_what_the_files_say(root):
    reader = check_reader(Replica, root)
    assert recognizing(root) == {"replica": 20} == recognizing(root / "office0")
    recording = reader.open("office0")
    assert [frame.name for frame in recording.frames] == ["0", "2", "3", "4"]
    assert [frame.world_from_camera[0, 3] for frame in recording.frames] == [0, 0.2, 0.3, 0.4]
    assert recording.frames[0].camera.intrinsics.tolist() == [[20, 0, 8], [0, 21, 6], [0, 0, 1]]
    depth = recording.read(1, frozenset({"depth"}))["depth"]
    np.testing.assert_allclose(depth, np.full(SIZE, 6555 / 6553.5), rtol=1e-6)
    assert recording.surface().points.tolist() == [[1, 2, 3]]
    alone = Replica(root / "office0").open("office0")
    assert alone.frames[0].camera.intrinsics.tolist() == recording.frames[0].camera.intrinsics.tolist()


def test_damage_is_a_line_or_a_problem(root):
    trajectory = root / "office0" / "traj.txt"
    lines = trajectory.read_text().splitlines()
    lines[0], lines[2] = lines[0].replace("1.000", "-inf ", 1).replace(" 000000", "", 1), "1 2 3"
    trajectory.write_text("\n".join(lines[:4]))
    (root / "office0" / "results" / "depth000003.png").unlink()
    problems = [frame.problem for frame in Replica(root).open("office0").frames]
    assert problems[1:] == ["pose no 4x4 matrix", "no depth file", "no pose"] and problems[0].startswith("pose no")
    (root / "cam_params.json").write_text(json.dumps({"camera": {**CAMERA, "w": 8}}))
    with pytest.raises(UserError, match=r"^root: .*cam_params\.json is of 8x12 pixels, the images have 16x12"):
        Replica(root).open("office0")
    (root / "cam_params.json").unlink()
    with pytest.raises(UserError, match=r"^intrinsics: no intrinsics for scene office0"):
        Replica(root).open("office0")
    assert Replica(root, intrinsics=(1, 1, 1, 1)).open("office0").frames[0].camera.intrinsics[0, 2] == 1.5
    trajectory.unlink()
    trajectory.mkdir()
    with pytest.raises(UserError, match=r"^root: no scene"):
        Replica(root)


def test_real_frames_agree(shared_data):
    root = shared_data / "formats" / "replica"
    assert max(recognizing(root), key=recognizing(root).get) == "replica"
    recording = Replica(root).open("office0")
    assert agreement(recording, 0, 3) > 0.99
