"""The reader `colmap`: what pycolmap wrote is read as pycolmap reads it, and what is damaged is refused in words."""

import pickle
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prior3d.data.posed import recognizing
from prior3d.errors import DamagedFile, UserError
from prior3d.testing import check_reader
from prior3d_plugins.readers.colmap import Colmap

pycolmap = pytest.importorskip("pycolmap", reason="pycolmap writes the models of these tests")
from colmap_scene import PARAMETERS, SIZE, write_colmap  # noqa: E402

REFUSED = ("FOV", "THIN_PRISM_FISHEYE")
ALL = frozenset({"image", "depth"})


def opened(root: Path, **options):
    reader = Colmap(root, **options)
    return reader.open(reader.scenes()[0])


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("model", [model for model in PARAMETERS if model not in REFUSED])
def test_every_lens_model_is_read_as_pycolmap_reads_it(tmp_path, model, text):
    made = write_colmap(tmp_path / "a", model, text=text)
    recording = opened(tmp_path / "a")
    assert [frame.name for frame in recording.frames] == ["0 view.png", "1 view.png", "2 view.png"]
    theirs = made.cameras[7]
    for index, frame in enumerate(recording.frames):
        image = made.images[10 + index]
        pose = np.vstack([image.cam_from_world().inverse().matrix(), [0, 0, 0, 1]])
        np.testing.assert_allclose(frame.world_from_camera, pose, atol=1e-12)
        np.testing.assert_allclose(frame.camera.intrinsics, theirs.calibration_matrix(), atol=1e-12)
        assert frame.camera.size == frame.camera.depth_size == SIZE
        view = recording.read(index, ALL)
        stored = np.asarray(Image.open(tmp_path / "a" / "images" / image.name))
        np.testing.assert_array_equal(view["image"], stored)
        expected = np.zeros(SIZE)
        seen = [point.point3D_id for point in image.points2D if point.has_point3D()]
        in_camera = np.array([image.cam_from_world() * made.points3D[number].xyz for number in seen])
        pixels = np.floor(theirs.img_from_cam(in_camera)).astype(int)
        for (column, row), depth in sorted(zip(pixels.tolist(), in_camera[:, 2], strict=True), key=lambda one: -one[1]):
            expected[row, column] = depth
        assert (expected > 0).sum() > 20
        np.testing.assert_allclose(view["depth"], expected, atol=1e-6)


@pytest.mark.parametrize("model", REFUSED)
def test_other_lens_models_are_refused_in_one_line(tmp_path, model):
    write_colmap(tmp_path / "a", model)
    with pytest.raises(UserError, match=rf"^root: the camera model {model} cannot be read: run `colmap image_undistor"):
        opened(tmp_path / "a")


@pytest.mark.parametrize("text", [False, True])
def test_the_contract_is_kept(tmp_path, text):
    for scene in ("b", "a/1"):
        write_colmap(tmp_path / "scans" / scene, text=text)
    reader = check_reader(Colmap, tmp_path / "scans", scale=0.5)
    assert reader.scenes() == ["a/1", "b"]
    assert recognizing(tmp_path / "scans") == {"colmap": 20}


@pytest.mark.parametrize("below", ["sparse/0", "sparse", "."])
def test_models_are_found_where_tools_put_them(tmp_path, below):
    write_colmap(tmp_path / "a", below=below)
    assert [frame.problem for frame in opened(tmp_path / "a").frames] == [None] * 3


def test_images_of_a_bare_model_may_lie_above_it_and_another_model_can_be_named(tmp_path):
    write_colmap(tmp_path / "a", below="calibration")
    assert Colmap(tmp_path / "a").scenes() == ["calibration"]
    assert opened(tmp_path / "a").frames[0].problem is None
    shutil.copytree(tmp_path / "a" / "calibration", tmp_path / "a" / "sparse" / "1")
    assert Colmap(tmp_path / "a", model="sparse/1").scenes() == ["a"]
    with pytest.raises(
        UserError, match=r"^root: no scene .*: expected cameras\.bin and images\.bin, or \.txt, in other"
    ):
        Colmap(tmp_path / "a", model="other")
    with pytest.raises(UserError, match=r"^images: none of the model's 3 images is in .*other, such as 0 view\.png"):
        opened(tmp_path / "a", images="other")


def test_poses_of_a_rig_are_those_of_its_cameras(tmp_path):
    made, rig = pycolmap.Reconstruction(), pycolmap.Rig(rig_id=1)
    for number in (1, 2):
        camera = pycolmap.Camera(model="PINHOLE", width=SIZE[1], height=SIZE[0], params=PARAMETERS["PINHOLE"])
        camera.camera_id = number
        made.add_camera(camera)
        sensor = pycolmap.sensor_t(type=pycolmap.SensorType.CAMERA, id=number)
        if number == 1:
            rig.add_ref_sensor(sensor)
        else:
            rig.add_sensor(sensor, pycolmap.Rigid3d(pycolmap.Rotation3d(), np.array([-0.25, 0, 0])))
    made.add_rig(rig)
    frame = pycolmap.Frame(frame_id=1, rig_id=1, rig_from_world=pycolmap.Rigid3d())
    images = [pycolmap.Image(f"{number}.png", np.zeros((0, 2)), number, number) for number in (1, 2)]
    for image in images:
        image.frame_id = 1
        frame.add_data_id(image.data_id)
    made.add_frame(frame)
    (tmp_path / "a" / "sparse").mkdir(parents=True)
    (tmp_path / "a" / "images").mkdir()
    for image in images:
        made.add_image(image)
        Image.new("RGB", SIZE[::-1]).save(tmp_path / "a" / "images" / image.name)
    made.register_frame(1)
    made.write_binary(tmp_path / "a" / "sparse")
    assert (tmp_path / "a" / "sparse" / "rigs.bin").exists()
    assert [one.world_from_camera[0, 3] for one in opened(tmp_path / "a", depth="none").frames] == [0, 0.25]


def test_points_are_surface_and_their_tracks_are_overlap(tmp_path):
    made = write_colmap(tmp_path / "a", views=5)
    recording = opened(tmp_path / "a", scale=2.0)
    cloud, overlap = recording.surface(), recording.overlap()
    points = [made.points3D[number] for number in sorted(made.points3D)]
    order = np.argsort(cloud.colors[:, 0])
    np.testing.assert_allclose(cloud.points[order], [2 * point.xyz for point in points], atol=1e-12)
    np.testing.assert_array_equal(cloud.colors[order], [point.color for point in points])
    seen = [{number for number, p in made.points3D.items() for e in p.track.elements if e.image_id == 10 + index}
            for index in range(5)]  # fmt: skip
    pairs = [(a, b) for a in range(5) for b in range(a + 1, 5) if seen[a] & seen[b]]
    np.testing.assert_array_equal(np.stack([overlap["first"], overlap["second"]], 1), pairs)
    expected = [2 * len(seen[a] & seen[b]) / (len(seen[a]) + len(seen[b])) for a, b in pairs]
    np.testing.assert_allclose(overlap["overlap"], expected, rtol=1e-6)
    assert recording.frames[3].world_from_camera[0, 3] == pytest.approx(
        2 * opened(tmp_path / "a").frames[3].world_from_camera[0, 3]
    )
    fewer = opened(tmp_path / "a", min_track=4)
    assert len(fewer.surface().points) == sum(point.track.length() >= 4 for point in points) < len(points)
    assert len(pickle.dumps(recording)) < 10_000  # its points are left out


def test_the_arbitrary_unit_and_unused_images_are_noted(tmp_path):
    write_colmap(tmp_path / "a")
    shutil.copy(tmp_path / "a" / "images" / "0 view.png", tmp_path / "a" / "images" / "more.png")
    assert [note.split(":")[0] for note in opened(tmp_path / "a").notes] == [
        "the unit of a COLMAP model is arbitrary",
        "1 images are not in the model and go unused, such as more.png",
    ]
    assert len(opened(tmp_path / "a", scale=1.0).notes) == 1


def test_images_that_are_a_pixel_off_are_noted_and_more_is_refused(tmp_path):
    write_colmap(tmp_path / "a", size=(47, 64))
    recording = opened(tmp_path / "a", scale=1.0)
    assert recording.notes == [
        "the images of 1 of 1 cameras are a pixel off: they have 64 x 47 pixels, where the camera has 64 x 48; the"
        " intrinsics are used as they are"
    ]
    assert recording.frames[0].camera.size == (47, 64) and recording.frames[0].camera.intrinsics[1, 2] == 23.5
    assert recording.read(0, ALL)["depth"].shape == (47, 64)
    write_colmap(tmp_path / "b", size=(45, 64))
    with pytest.raises(UserError, match=r"^images: an image of 64 x 45 pixels, where its camera has 64 x 48: set the "):
        opened(tmp_path / "b")
    write_colmap(tmp_path / "c", size=(24, 32))
    with pytest.raises(UserError, match=r"^downscale: an image of 32 x 24 pixels, .* 64 x 48: set downscale: 2$"):
        opened(tmp_path / "c")
    small = opened(tmp_path / "c", downscale=2, scale=1.0)
    assert small.notes == [] and small.frames[0].camera.intrinsics.tolist() == [
        [30, 0, 16.25],
        [0, 30.5, 11.75],
        [0, 0, 1],
    ]
    assert small.read(0, ALL)["depth"].shape == (24, 32)


@pytest.mark.parametrize("kind", ["geometric", "photometric"])
def test_depth_maps_of_multi_view_stereo_are_read(tmp_path, kind):
    write_colmap(tmp_path / "a")
    folder = tmp_path / "a" / "stereo" / "depth_maps"
    folder.mkdir(parents=True)
    depth = np.random.default_rng(0).uniform(1, 3, (24, 32)).astype(np.float32)
    for number in range(2):
        path = folder / f"{number} view.png.{kind}.bin"
        path.write_bytes(b"32&24&1&" + depth.tobytes())
    theirs = pycolmap.DepthMap()
    theirs.read(path)
    np.testing.assert_array_equal(theirs.to_array(), depth)
    recording = opened(tmp_path / "a", depth=kind, scale=2.0)
    assert [frame.problem for frame in recording.frames] == [None, None, f"no {kind} depth map"]
    assert recording.frames[0].camera.depth_size == (24, 32)
    np.testing.assert_array_equal(recording.read(0, ALL)["depth"], 2 * depth)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DamagedFile, match="32x24 depths take 3072 bytes, got 3068"):
        recording.read(1, ALL)
    for path in folder.iterdir():
        path.write_bytes(b"")
    assert opened(tmp_path / "a", depth=kind).frames[0].problem.startswith("no depth map of COLMAP")


def test_frames_without_image_or_pose_say_so(tmp_path):
    write_colmap(tmp_path / "a", views=5, text=True)
    (tmp_path / "a" / "images" / "1 view.png").unlink()
    (tmp_path / "a" / "images" / "2 view.png").unlink()
    (tmp_path / "a" / "images" / "2 view.png").mkdir()
    table = tmp_path / "a" / "sparse" / "0" / "images.txt"
    lines = table.read_text().splitlines()
    for number, pose in (("13", "nan 0 0 0 0 0 0"), ("14", "0 0 0 0 1 1 1")):
        (row,) = (row for row, line in enumerate(lines) if line.startswith(f"{number} ") and line.endswith("png"))
        lines[row] = f"{number} {pose} 7 {int(number) - 10} view.png"
    table.write_text("\n".join(lines) + "\n")
    no_pose = "pose not finite, or no rotation"
    problems = [frame.problem for frame in opened(tmp_path / "a").frames]
    assert problems == [None, "no image file", "no image file", no_pose, no_pose]


def test_a_camera_without_a_readable_image_is_named(tmp_path):
    write_colmap(tmp_path / "a")
    for path in (tmp_path / "a" / "images").iterdir():
        path.write_bytes(b"")
    assert opened(tmp_path / "a").frames[0].problem == "no image, or without its beginning"


@pytest.mark.parametrize("name", ["cameras", "images", "points3D"])
@pytest.mark.parametrize("text", [False, True])
def test_damaged_tables_are_refused_in_one_line(tmp_path, name, text):
    write_colmap(tmp_path / "a", text=text)
    path = tmp_path / "a" / "sparse" / "0" / f"{name}.{'txt' if text else 'bin'}"
    whole = path.read_bytes()

    def read():
        opened(tmp_path / "a").read(0, ALL)

    shorter = b"".join(whole.splitlines(keepends=True)[:-2]) if text else whole[:-1]
    broken = [whole[: len(whole) // 2], shorter, b"\xff" * 99]
    broken += [] if text else [b"", struct.pack("<Q", 2**63) + whole[8:]]
    for content in broken:
        path.write_bytes(content)
        with pytest.raises((UserError, DamagedFile), match=rf"{name}\.(bin|txt)"):
            read()
    path.unlink()
    path.mkdir()
    with pytest.raises((UserError, DamagedFile), match=rf"{name}\.\w\w\w: .*[Dd]irectory"):
        read()


def test_a_model_without_points_has_no_sparse_depth(tmp_path):
    write_colmap(tmp_path / "a")
    (tmp_path / "a" / "sparse" / "0" / "points3D.bin").unlink()
    with pytest.raises(UserError, match=r"^depth: no points3D\.bin in .*: set none"):
        opened(tmp_path / "a")
    recording = opened(tmp_path / "a", depth="none")
    assert recording.surface() is None and recording.overlap() is None
    assert Colmap(tmp_path / "a", depth="none").provides == {"image"}
    assert recording.frames[0].camera.depth_size is None


def test_a_real_model_is_read(shared_data):
    root = shared_data / "formats" / "colmap"
    assert recognizing(root) == {"colmap": 20}
    recording = opened(root)
    theirs = pycolmap.Reconstruction(root / "sparse")
    by_name = {image.name: image for image in theirs.images.values()}
    assert len(recording.frames) == 23 and [frame.problem for frame in recording.frames] == [None] * 23
    for index, frame in enumerate(recording.frames):
        image = by_name[frame.name]
        pose = np.vstack([image.cam_from_world().inverse().matrix(), [0, 0, 0, 1]])
        np.testing.assert_allclose(frame.world_from_camera, pose, atol=1e-12)
        np.testing.assert_allclose(frame.camera.intrinsics, theirs.cameras[image.camera_id].calibration_matrix())
        depth = recording.read(index, frozenset({"depth"}))["depth"]
        own = [theirs.points3D[p.point3D_id].xyz for p in image.points2D if p.has_point3D()]
        range_m = np.array([image.cam_from_world() * point for point in own])[:, 2]
        assert depth.max() == pytest.approx(range_m.max(), rel=1e-6)
        assert 0.8 * len(own) < (depth > 0).sum() <= len(own)  # some share a pixel
