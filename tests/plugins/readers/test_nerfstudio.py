"""The reader `nerfstudio`: `transforms.json` as nerfstudio, instant-ngp and Blender's exporter write it."""

import json
import math
import struct

import numpy as np
import pytest
from PIL import Image

from prior3d.data.posed import recognizing
from prior3d.errors import DamagedFile, UserError
from prior3d.testing import check_reader
from prior3d_plugins.readers.nerfstudio import Nerfstudio

SIZE = (24, 32)
ALL = frozenset({"image", "depth"})
SHARED = {"w": 32, "h": 24, "fl_x": 30.0, "fl_y": 31.0, "cx": 16.5, "cy": 11.5}


def opengl(number):
    """A pose with OpenGL axes: it looks along -z, y is up."""
    pose = np.eye(4)
    angle = 0.1 * number
    pose[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    pose[:3, 3] = [0.1 * number, -0.2, 0.3]
    return pose


def image(path, number, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = len(mode)
    pixels = np.random.default_rng(number).integers(0, 255, (*SIZE, channels), dtype=np.uint8)
    Image.fromarray(pixels, mode).save(path)
    return pixels


def write(scene, count=3, depth="png", shared=SHARED, each=None, **more):
    """Write a scene and return what is in its file."""
    frames = []
    for number in range(count):
        image(scene / "images" / f"frame_{number}.png", number)
        frame = {"file_path": f"images/frame_{number}.png", "transform_matrix": opengl(number).tolist()}
        if depth:
            path = scene / "depths" / f"frame_{number}.{depth}"
            path.parent.mkdir(exist_ok=True)
            values = np.random.default_rng(number).integers(500, 3000, SIZE).astype(np.uint16)
            values[0, 0] = 0
            Image.fromarray(values).save(path) if depth == "png" else np.save(path, values.astype(np.float32))
            frame["depth_file_path"] = f"depths/frame_{number}.{depth}"
        frames.append(frame | (each(number) if each else {}))
    meta = {**shared, **more, "frames": frames}
    (scene / "transforms.json").write_text(json.dumps(meta))
    return meta


def opened(root, **options):
    reader = Nerfstudio(root, **options)
    return reader.open(reader.scenes()[0])


@pytest.mark.parametrize("depth", ["png", "npy"])
def test_a_scene_is_read_as_it_was_written(tmp_path, depth):
    write(tmp_path / "a", depth=depth, camera_model="OPENCV")
    recording = opened(tmp_path / "a")
    assert [frame.name for frame in recording.frames] == [f"images/frame_{number}.png" for number in range(3)]
    assert recording.notes == []
    for number, frame in enumerate(recording.frames):
        expected = opengl(number)
        expected[:, 1:3] *= -1
        np.testing.assert_array_equal(frame.world_from_camera, expected)
        assert frame.camera is recording.frames[0].camera and frame.camera.model == "pinhole"
        assert frame.camera.intrinsics.tolist() == [[30, 0, 16.5], [0, 31, 11.5], [0, 0, 1]]
        assert frame.camera.size == frame.camera.depth_size == SIZE
        view = recording.read(number, ALL)
        pixels = np.random.default_rng(number).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
        np.testing.assert_array_equal(view["image"], pixels)
        millimeters = np.random.default_rng(number).integers(500, 3000, SIZE)
        millimeters[0, 0] = 0
        np.testing.assert_allclose(view["depth"], millimeters / 1000, rtol=1e-6)


def test_the_contract_is_kept(tmp_path):
    for scene in ("b", "a/1"):
        write(tmp_path / "scans" / scene)
    reader = check_reader(Nerfstudio, tmp_path / "scans", scale=2.0)
    assert reader.scenes() == ["a/1", "b"]
    assert recognizing(tmp_path / "scans") == {"nerfstudio": 25}


def test_a_folder_with_a_model_of_colmap_is_still_nerfstudio(tmp_path):
    write(tmp_path / "a")
    (tmp_path / "a" / "colmap" / "sparse" / "0").mkdir(parents=True)
    for name in ("cameras.bin", "images.bin"):
        (tmp_path / "a" / "colmap" / "sparse" / "0" / name).touch()
    assert next(iter(recognizing(tmp_path / "a"))) == "nerfstudio"


COEFFICIENTS = {"k1": 0.1, "k2": -0.02, "p1": 0.003, "p2": 0.004}


@pytest.mark.parametrize(
    ("given", "model", "distortion"),
    [
        ({"camera_model": "PINHOLE"}, "pinhole", ()),
        ({"camera_model": "SIMPLE_PINHOLE", "k1": 0.0}, "pinhole", ()),
        ({"camera_model": "OPENCV", **COEFFICIENTS}, "opencv", (0.1, -0.02, 0.003, 0.004)),
        ({**COEFFICIENTS, "k3": 0.01, "k4": 0}, "opencv", (0.1, -0.02, 0.003, 0.004, 0.01)),
        ({"camera_model": "SIMPLE_RADIAL", "k1": 0.1}, "opencv", (0.1, 0, 0, 0)),
        ({"camera_model": "OPENCV_FISHEYE", "k1": 0.1, "k4": 0.2}, "fisheye", (0.1, 0, 0, 0.2)),
        ({"is_fisheye": True, "k2": 0.1}, "fisheye", (0, 0.1, 0, 0)),
    ],
)
@pytest.mark.parametrize("shared", [True, False])
def test_lenses_have_opencvs_model_and_order(tmp_path, given, model, distortion, shared):
    write(tmp_path / "a", **given) if shared else write(tmp_path / "a", each=lambda number: given)
    camera = opened(tmp_path / "a").frames[1].camera
    assert (camera.model, camera.distortion) == (model, distortion)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"camera_model": "EQUIRECTANGULAR"},
            "the camera model EQUIRECTANGULAR cannot be read: make perspective images",
        ),
        ({"camera_model": "FISHEYE624"}, "the camera model FISHEYE624 cannot be read"),
        ({"camera_model": 3}, "the camera model 3 cannot be read"),
        ({"is_equirectangular": True}, "the camera model EQUIRECTANGULAR cannot be read"),
        ({"k4": 0.1}, "k4 of OPENCV cannot be read"),
        ({"camera_model": "OPENCV_FISHEYE", "p1": 0.1}, "p1 and p2 of OPENCV_FISHEYE cannot be read"),
        ({"fl_x": "wide"}, "expected a number for fl_x, got 'wide'"),
        ({"fl_x": math.nan}, "expected a number for fl_x, got 'nan'"),
        ({"fl_x": -30.0}, r"focal lengths -30\.0, 31\.0"),
        ({"w": 0}, "expected w and h of at least 1 pixel"),
        ({"w": 64, "h": 48}, "an image has 32 x 24 pixels, where the camera has 64 x 48: give w, h and intrinsics of"),
        ({"applied_scale": 0}, "expected a number above 0 for applied_scale, got '0'"),
        ({"depth_unit_scale_factor": "mm"}, "expected a number above 0 for depth_unit_scale_factor, got 'mm'"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(tmp_path, given, message):
    write(tmp_path / "a", **given)
    with pytest.raises(UserError, match=rf"^root: .*transforms\.json: {message}"):
        opened(tmp_path / "a")


def test_focal_lengths_come_from_angles_and_the_rest_from_the_image(tmp_path):
    write(tmp_path / "a", depth=None, shared={"camera_angle_x": 2 * math.atan(0.5)})
    camera = opened(tmp_path / "a").frames[0].camera
    np.testing.assert_allclose(camera.intrinsics, [[32, 0, 16], [0, 32, 12], [0, 0, 1]])
    assert camera.size == SIZE and camera.depth_size is None
    write(tmp_path / "b", depth=None, shared={"x_fov": 90.0, "camera_angle_y": math.pi / 2})
    np.testing.assert_allclose(np.diag(opened(tmp_path / "b").frames[0].camera.intrinsics), [16, 12, 1])
    write(tmp_path / "c", depth=None, shared={})
    with pytest.raises(UserError, match="no focal length: expected fl_x or camera_angle_x"):
        opened(tmp_path / "c")
    write(tmp_path / "d", depth=None, shared={"camera_angle_x": 4.0})
    with pytest.raises(UserError, match="expected a field of view between 0 and 180 degrees"):
        opened(tmp_path / "d")


def test_frames_may_have_cameras_of_their_own(tmp_path):
    write(tmp_path / "a", each=lambda number: {"fl_x": 30.0 + (number > 0)})
    cameras = [frame.camera for frame in opened(tmp_path / "a").frames]
    assert [camera.intrinsics[0, 0] for camera in cameras] == [30, 31, 31] and cameras[1] is cameras[2]


def test_the_applied_scale_is_undone_and_depth_has_its_own_unit(tmp_path):
    write(tmp_path / "a", applied_scale=0.5, applied_transform=[[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0]])
    recording = opened(tmp_path / "a", scale=3.0)
    assert recording.notes == ["its applied_scale is undone"]
    np.testing.assert_allclose(recording.frames[1].world_from_camera[:3, 3], [0.6, -1.2, 1.8])
    meters = recording.read(1, ALL)["depth"]
    finer = opened(tmp_path / "a", depth_unit_scale_factor=0.0005)
    np.testing.assert_allclose(finer.read(1, ALL)["depth"], meters / 2, rtol=1e-6)
    assert finer.fingerprint() != opened(tmp_path / "a").fingerprint()
    write(tmp_path / "b", integer_depth_scale=0.002)
    np.testing.assert_allclose(opened(tmp_path / "b").read(1, ALL)["depth"], 2 * meters, rtol=1e-6)


def test_the_points_of_a_ply_file_are_the_surface(tmp_path):
    write(tmp_path / "a", ply_file_path="sparse_pc.ply", applied_scale=0.5)
    header = "ply\nformat binary_little_endian 1.0\nelement vertex 2\n" + "".join(
        f"property {kind} {name}\n"
        for kind, names in (("float", "x y z"), ("uchar", "red green blue"))
        for name in names.split()
    )
    rows = struct.pack("<3f3B3f3B", 1, 2, 3, 10, 20, 30, 4, 5, 6, 40, 50, 60)
    path = tmp_path / "a" / "sparse_pc.ply"
    path.write_bytes(f"{header}end_header\n".encode() + rows)
    cloud = opened(tmp_path / "a", scale=2.0).surface()
    assert cloud.points.tolist() == [[2, 4, 6], [8, 10, 12]] and cloud.colors.tolist() == [[10, 20, 30], [40, 50, 60]]
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DamagedFile, match=r"sparse_pc\.ply"):
        opened(tmp_path / "a").surface()
    path.unlink()
    recording = opened(tmp_path / "a")
    assert recording.surface() is None and "its ply_file_path is missing: sparse_pc.ply" in recording.notes


def blender(scene):
    """Write a scene as NeRF's Blender script does: three files, RGBA images, names without an extension."""
    for split, numbers in (("train", (0, 1, 10)), ("val", (0,)), ("test", (0, 2))):
        frames = [
            {"file_path": f"./{split}/r_{number}", "rotation": 0.01, "transform_matrix": opengl(number).tolist()}
            for number in numbers
        ]
        for number in numbers:
            image(scene / split / f"r_{number}.png", number, "RGBA")
        (scene / f"transforms_{split}.json").write_text(json.dumps({"camera_angle_x": 0.69, "frames": frames}))


def test_blender_scenes_are_read(tmp_path):
    blender(tmp_path / "lego")
    recording = opened(tmp_path)
    names = ["test/r_0", "test/r_2", "train/r_0", "train/r_1", "train/r_10", "val/r_0"]
    assert [frame.name for frame in recording.frames] == names
    focal = 16 / math.tan(0.69 / 2)
    np.testing.assert_allclose(recording.frames[0].camera.intrinsics, [[focal, 0, 16], [0, focal, 12], [0, 0, 1]])
    stored = np.asarray(Image.open(tmp_path / "lego" / "train" / "r_1.png"))
    np.testing.assert_array_equal(recording.read(3, ALL)["image"], stored[..., :3])
    assert [note.split(",")[0] for note in recording.notes] == [
        "its images have an opacity",
        "one unit of the poses counts as a meter",
        "it has splits of its own (train",
    ]
    assert [frame.name for frame in opened(tmp_path, split="train").frames] == names[2:5]
    (tmp_path / "lego" / "transforms_val.json").unlink()
    with pytest.raises(UserError, match=r"^split: no transforms_val\.json in"):
        opened(tmp_path, split="val")
    assert check_reader(Nerfstudio, tmp_path).scenes() == ["lego"]


def test_instant_ngps_files_are_read(tmp_path):
    shared = {"camera_angle_x": 0.9, "fl_x": 30.0, "fl_y": 30.0, "w": 32.0, "h": 24.0, "cx": 16.0, "cy": 12.0,
              "k1": 0.1, "aabb_scale": 16, "scale": 0.33, "offset": [0.5, 0.5, 0.5]}  # fmt: skip
    write(tmp_path / "fox", depth=None, shared=shared, each=lambda number: {"sharpness": 300.0})
    recording = opened(tmp_path)
    camera = recording.frames[0].camera
    assert (camera.model, camera.size, camera.intrinsics[0, 0]) == ("opencv", SIZE, 30)
    np.testing.assert_allclose(recording.frames[2].world_from_camera[:3, 3], [0.2, -0.2, 0.3])


def test_splits_and_masks_are_noted_and_a_split_can_be_chosen(tmp_path):
    names = [f"./images/frame_{number}.png" for number in range(3)]
    write(
        tmp_path / "a", train_filenames=names[:2], val_filenames=names[2:], each=lambda number: {"mask_path": "m.png"}
    )
    assert opened(tmp_path / "a").notes == [
        "the mask_path of 3 frames goes unused",
        "it has splits of its own (train, val), and all are read (reader.split)",
    ]
    assert [frame.name for frame in opened(tmp_path / "a", split="val").frames] == ["images/frame_2.png"]
    with pytest.raises(UserError, match=r"^split: .*no list test_filenames; there is train_filenames, val_filenames"):
        opened(tmp_path / "a", split="test")


def test_depth_files_are_read_if_the_scene_names_some_or_as_the_option_says(tmp_path):
    write(tmp_path / "a", depth=None)
    assert Nerfstudio(tmp_path / "a").provides == {"image"}
    assert [frame.problem for frame in opened(tmp_path / "a", depth=True).frames] == ["no depth file"] * 3
    write(tmp_path / "b")
    assert Nerfstudio(tmp_path / "b").provides == {"image", "depth"}
    recording = opened(tmp_path / "b", depth=False)
    assert recording.frames[0].camera.depth_size is None and "depth" not in recording.read(0, ALL)
    assert "the depth files of 3 frames go unused (reader.depth)" in recording.notes


def test_frames_that_cannot_be_used_say_why(tmp_path):
    bad = {
        1: {"transform_matrix": (opengl(1) * np.nan).tolist()},
        2: {"transform_matrix": [[1, 0, 0], [0, 1]]},
        3: {"transform_matrix": (2 * opengl(3)).tolist()},
        4: {"transform_matrix": opengl(4)[:3].tolist()},  # 3x4, which some tools write
        7: {"file_path": "images/frame_0.png"},
    }
    meta = write(tmp_path / "a", count=8, each=lambda number: bad.get(number, {}))
    del meta["frames"][5]["transform_matrix"]
    (tmp_path / "a" / "transforms.json").write_text(json.dumps(meta))
    (tmp_path / "a" / "images" / "frame_6.png").unlink()
    (tmp_path / "a" / "images" / "frame_6.png").mkdir()
    problems = {frame.name: frame.problem for frame in opened(tmp_path / "a").frames}
    assert problems == {
        "images/frame_0.png": None,
        "images/frame_0.png (2)": "listed twice",
        "images/frame_1.png": "pose not finite",
        "images/frame_2.png": "pose no 4x4 matrix",
        "images/frame_3.png": "pose not rigid",
        "images/frame_4.png": None,
        "images/frame_5.png": "no pose",
        "images/frame_6.png": "no image file",
    }


def test_damaged_depth_and_images_of_a_whole_camera_are_named(tmp_path):
    write(tmp_path / "a")
    for path in (tmp_path / "a" / "depths").iterdir():
        path.write_bytes(b"")
    assert opened(tmp_path / "a").frames[0].problem == "no image: the file is empty"
    write(tmp_path / "b")
    for path in (tmp_path / "b" / "depths").iterdir():
        Image.new("L", (32, 24)).save(path)
    assert opened(tmp_path / "b").frames[0].problem == "depth of 8 bits, where at least 16 are expected"
    write(tmp_path / "c", depth="npy")
    for path in (tmp_path / "c" / "depths").iterdir():
        path.write_bytes(path.read_bytes()[:40])
    assert opened(tmp_path / "c").frames[0].problem is not None
    write(tmp_path / "d", shared={"camera_angle_x": 1.0})
    for path in (tmp_path / "d" / "images").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"^root: .*transforms\.json: no image can be read: no image, or without"):
        opened(tmp_path / "d")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read: Expecting value"),
        (b'{"frames": [{"file_path": "images/frame_0', "cannot be read: Unterminated string"),
        (b"\xff\xfe\x00", "cannot be read: "),
        (b"[" * 100_000, "cannot be read: "),
        (b"[]", "expected a list of frames in .*"),
        (b'{"frames": {}}', "expected a list of frames in .*"),
        (b'{"frames": []}', "no frame in .*"),
        (b'{"frames": [{"transform_matrix": []}]}', "expected a file_path of frame 0 in .*"),
        (b'{"frames": [{"file_path": "gone.png"}], "fl_x": 1}', "none of 1 images is there, such as .*gone"),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path, content, message):
    write(tmp_path / "a")
    (tmp_path / "a" / "transforms.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"^root: .*{message}"):
        opened(tmp_path / "a")


def test_images_that_are_a_pixel_off_are_noted(tmp_path):
    write(tmp_path / "a", h=25)
    recording = opened(tmp_path / "a")
    assert recording.frames[0].camera.size == SIZE
    assert recording.notes == [
        "images are a pixel off: they have 32 x 24 pixels, where the camera has 32 x 25; the intrinsics are used as"
        " they are"
    ]
