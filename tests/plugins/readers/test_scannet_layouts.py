"""ScanNet's folders and what comes next to frames: labels of three sets, instances, mesh, axis alignment."""

import os
import struct

import numpy as np
import pytest
import scannet_files as made
from PIL import Image

from prior3d.contracts.dataset import DataSpec
from prior3d.data.posed import recognizing
from prior3d.data.posed.recorded import Choice, RecordedScenes
from prior3d.errors import DamagedFile, UserError
from prior3d.registry.schema import construct
from prior3d.testing import check_reader
from prior3d_plugins.datasets.posed import Posed
from prior3d_plugins.readers.scannet import ScanNet

TABLE = "scannetv2-labels.combined.tsv"
ALIGNMENT = np.array([[0.0, 0, 1, 2], [1, 0, 0, 3], [0, 1, 0, 1], [0, 0, 0, 1]])
LABELS, INSTANCES = frozenset({"semantic"}), frozenset({"instances"})


@pytest.fixture
def frames_25k(tmp_path):
    """Two scenes as `scannet_frames_25k` is distributed."""
    root = tmp_path / "scannet_frames_25k"
    for scene in ("scene0000_00", "scene0000_01"):
        folder = made.write_files(root / scene, 3, frames_25k=True)
        made.write_labels(folder / "label", [1, 5, 23, 40], 3, in_25k=True, dtype=np.uint8)
        made.write_labels(folder / "instance", [1, 1001, 5001, 5002], 3, in_25k=True)
    return root


@pytest.fixture
def scan(tmp_path):
    """A `.sens` with everything that ScanNet offers next to it."""
    folder = tmp_path / "scans" / "scene0000_00"
    made.write_sens(folder / "scene0000_00.sens", made.frames_of(3))
    made.write_labels(folder / "label-filt", [1, 2, 22, 1163, 1170], 3)
    made.write_labels(folder / "label", [2, 2, 2, 2, 2], 3)
    made.write_labels(folder / "instance-filt", [1, 2, 3], 3, dtype=np.uint8)
    (tmp_path / TABLE).write_text(made.LABEL_TABLE)
    numbers = " ".join(map(str, ALIGNMENT.ravel()))
    (folder / "scene0000_00.txt").write_text(f"appVersionId = 15\naxisAlignment = {numbers} \ncolorHeight = 968\n")
    vertices = b"".join(struct.pack("<3f4B", i, 2 * i, 3 * i, i, 0, 255, 255) for i in range(4))
    names = "".join(f"property float {axis}\n" for axis in "xyz")
    names += "".join(f"property uchar {color}\n" for color in ("red", "green", "blue", "alpha"))
    header = f"ply\nformat binary_little_endian 1.0\ncomment MLIB generated\nelement vertex 4\n{names}"
    mesh = f"{header}element face 0\nproperty list uchar int vertex_indices\nend_header\n".encode() + vertices
    (folder / "scene0000_00_vh_clean_2.ply").write_bytes(mesh)
    return folder


def columns(image):
    """The values of the first columns, each of one value."""
    assert (image == image[:1]).all()
    return image[0, :6].tolist()


def test_frames_25k_is_read_as_it_is_distributed(frames_25k):
    reader = check_reader(ScanNet, frames_25k)
    assert reader.scenes() == ["scene0000_00", "scene0000_01"]
    assert reader.provides == {"image", "depth", "semantic", "instances"} and reader.class_names[:2] == (
        "wall",
        "floor",
    )
    recording = reader.open("scene0000_01")
    assert [frame.name for frame in recording.frames] == ["0", "100", "200"] and not recording.notes
    for index, frame in enumerate(recording.frames):
        view = recording.read(index, reader.provides)
        np.testing.assert_allclose(frame.world_from_camera, made.pose_of(index), atol=1e-5)
        np.testing.assert_array_equal(view["depth"], (made.depth_of(index) / 1000).astype(np.float32))
        assert np.abs(view["image"].astype(int) - made.color_of(index)).max() <= 12
        assert columns(view["semantic"]) == [255, 0, 4, 22, 39, 255] and view["semantic"].dtype == np.uint8
        assert columns(view["instances"]) == [0, 0, 1001, 5001, 5002, 0]
    camera = recording.frames[0].camera
    np.testing.assert_allclose(camera.intrinsics, [[45, 0, 24], [0, 46, 18], [0, 0, 1]])
    np.testing.assert_allclose(camera.depth_intrinsics, [[30, 0, 16], [0, 31, 12], [0, 0, 1]])
    found = recognizing(frames_25k)
    assert max(found, key=found.get) == "scannet" and list(found.values()).count(max(found.values())) == 1


def test_one_line_of_a_recipe_opens_frames_25k_with_its_split(frames_25k, tmp_path):
    (tmp_path / "val.txt").write_text("scene0000_01\n")
    options = {"root": str(frames_25k), "validation_scenes": str(tmp_path / "val.txt")}
    for split, scene in (("train", "scene0000_00"), ("validation", "scene0000_01")):
        dataset = construct(Posed, DataSpec((36, 48), 1, split, tmp_path / "cache"), key="data", options=options)
        dataset.verify()
        assert dataset.scenes == [scene] and len(dataset) == 3
        assert {"semantic", "instances"} <= dataset.provides and len(dataset.class_names) == 40
        assert dataset.load(0, 0, LABELS)["semantic"].shape == made.COLOR_SIZE


@pytest.mark.parametrize(
    ("labels", "expected"),
    [(None, [255, 0, 4, 22, 39, 255]), ("nyu40", [255, 0, 4, 22, 39, 255]), ("scannet20", [255, 0, 4, 255, 255, 255])],
)
def test_labels_of_a_stream_are_mapped_by_the_table(scan, labels, expected):
    reader = ScanNet(scan.parent, labels=labels)
    recording = reader.open("scene0000_00")
    assert columns(recording.read(0, LABELS)["semantic"]) == expected
    assert columns(recording.read(0, INSTANCES)["instances"]) == [0, 1, 2, 3, 0, 0]
    assert len(reader.class_names) == (20 if labels == "scannet20" else 40)


def test_raw_labels_are_a_field_of_their_own(scan):
    reader = check_reader(ScanNet, scan.parent, labels="raw")
    assert reader.provides == {"image", "depth", "scannet/category", "instances"} and reader.class_names == ()
    view = reader.open("scene0000_00").read(1, frozenset({"scannet/category"}))
    assert columns(view["scannet/category"]) == [0, 1, 2, 22, 1163, 1170]
    dataset = RecordedScenes(DataSpec(made.COLOR_SIZE, 1, "train", scan.parents[1] / "cache"), [reader])
    assert dataset.load(0, 0, frozenset({"scannet/category"}))["scannet/category"].max() == 1170


def test_a_stream_with_everything_next_to_it_keeps_to_the_contract(scan):
    check_reader(ScanNet, scan.parent)


def test_unfiltered_labels_are_the_fallback(scan):
    for path in (scan / "label-filt").iterdir():
        path.unlink()
    assert columns(ScanNet(scan.parent).open("scene0000_00").read(0, LABELS)["semantic"]) == [255, 4, 4, 4, 4, 4]


def test_labels_without_a_table_go_unused_or_are_asked_for_in_one_line(scan, frames_25k):
    table = scan.parents[1] / TABLE
    elsewhere = table.rename(scan / "elsewhere.tsv")
    reader = ScanNet(scan.parent)
    assert reader.provides == {"image", "depth", "instances"}
    assert reader.open("scene0000_00").notes == [f"label-filt goes unused: set label_table to the path of {TABLE}"]
    assert "semantic" in ScanNet(scan.parent, label_table=elsewhere).provides
    with pytest.raises(UserError, match=r"^label_table: scannet20 is asked for, and there is no scannetv2-labels"):
        ScanNet(scan.parent, labels="scannet20")
    with pytest.raises(UserError, match=r"^labels: the labels of scannet_frames_25k are NYU40 ids, not ScanNet's"):
        ScanNet(frames_25k, labels="raw")
    for content, message in (
        (None, r"cannot read .*: No such file"),
        ("id\tcategory\n1\twall\n", "expected a table with whole numbers in the columns id and nyu40id"),
        ("id\tnyu40id\none\t1\n", "expected a table with whole numbers"),
        ("id\tnyu40id\n1\t41\n", "expected ids of 16 bits and NYU40 ids from 0 to 40"),
        ("", "expected ids of 16 bits"),
    ):
        wrong = scan / "wrong.tsv"
        wrong.unlink(missing_ok=True)
        if content is not None:
            wrong.write_text(content)
        with pytest.raises(UserError, match=f"^label_table: {message}"):
            ScanNet(scan.parent, label_table=wrong)


def test_scenes_without_labels_are_ignored_by_probes_and_noted(scan):
    made.write_sens(scan.parent / "scene0707_00" / "scene0707_00.sens", made.frames_of(1))
    recording = ScanNet(scan.parent).open("scene0707_00")
    view = recording.read(0, LABELS | INSTANCES)
    assert (view["semantic"] == 255).all() and (view["instances"] == 0).all()
    assert recording.notes == [
        "it has no semantic images: all its pixels are 255 (none)",
        "it has no instances images: all its pixels are 0 (none)",
    ]


def test_damaged_labels_name_the_file(scan, frames_25k):
    folder = scan / "label-filt"
    made.write_labels(folder, [7], 1)
    Image.fromarray(np.zeros((48, 36), np.uint16)).save(folder / "1.png")
    (folder / "2.png").unlink()
    recording = ScanNet(scan.parent).open("scene0000_00")
    for frame, message in (
        (0, r"label-filt/0\.png: label id 7 is not in scannetv2-labels\.combined\.tsv"),
        (1, r"label-filt/1\.png: 36x48 pixels, which is another field of view than that of color, 48x36"),
        (2, r"scene0000_00, frame 2: it has no semantic image, and others have one"),
    ):
        with pytest.raises(DamagedFile, match=message):
            recording.read(frame, LABELS)
        assert recording.read(frame, frozenset({"image", "depth"}))["depth"].any()  # which needs no label
    (folder / "1.png").write_bytes(b"")
    with pytest.raises(DamagedFile, match=r"label-filt/1\.png: no image"):
        recording.read(1, LABELS)
    made.write_labels(frames_25k / "scene0000_00" / "label", [41], 1, in_25k=True)
    with pytest.raises(DamagedFile, match=r"000000\.png: label id 41 is not in NYU40, which ends at 40"):
        ScanNet(frames_25k).open("scene0000_00").read(0, LABELS)


def test_instances_of_8_bits_in_frames_25k_are_ids_as_they_are(frames_25k):
    made.write_labels(frames_25k / "scene0000_00" / "instance", [1, 2], 3, in_25k=True, dtype=np.uint8)
    view = ScanNet(frames_25k).open("scene0000_00").read(0, INSTANCES)
    assert columns(view["instances"]) == [0, 1, 2, 0, 0, 0]


def test_poses_and_surface_are_aligned(scan):
    aligned = ScanNet(scan.parent).open("scene0000_00")
    as_scanned = ScanNet(scan.parent, axis_alignment=False).open("scene0000_00")
    for index in range(3):
        np.testing.assert_allclose(as_scanned.frames[index].world_from_camera, made.pose_of(index), atol=1e-6)
        expected = ALIGNMENT @ made.pose_of(index)
        np.testing.assert_allclose(aligned.frames[index].world_from_camera, expected, atol=1e-6)
    points = np.arange(4)[:, None] * np.array([1.0, 2, 3])
    np.testing.assert_array_equal(as_scanned.surface().points, points)
    np.testing.assert_allclose(aligned.surface().points, points @ ALIGNMENT[:3, :3].T + ALIGNMENT[:3, 3])
    assert aligned.surface().colors[2].tolist() == [2, 0, 255]
    assert aligned.fingerprint() != as_scanned.fingerprint()
    (scan / "scene0000_00_vh_clean_2.ply").write_bytes(b"ply\nformat")
    with pytest.raises(DamagedFile, match=r"scene0000_00_vh_clean_2\.ply: its header has no end"):
        aligned.surface()
    (scan / "scene0000_00_vh_clean_2.ply").unlink()
    assert aligned.surface() is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("axisAlignment = 1 0 0", "axisAlignment in .* is not 16 numbers: mend it, or set axis_alignment: false"),
        ("axisAlignment = one two", "is not 16 numbers"),
        ("axisAlignment = " + "nan " * 16, "is not finite"),
        ("axisAlignment = " + "2 " * 16, "is not rigid"),
        (None, r"cannot read .*scene0000_00\.txt: Is a directory"),
        (b"\xff\xfe\xff", r"cannot read .*scene0000_00\.txt: it is no text"),
    ],
)
def test_a_wrong_alignment_is_one_line(scan, text, message):
    about = scan / "scene0000_00.txt"
    about.unlink()
    about.mkdir() if text is None else about.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=f"^root: .*{message}"):
        ScanNet(scan.parent).open("scene0000_00")
    assert ScanNet(scan.parent, axis_alignment=False).open("scene0000_00").frames[0].problem is None


def test_scenes_without_an_alignment_keep_their_axes(scan):
    for text in ("appVersionId = 15\n", ""):
        (scan / "scene0000_00.txt").write_text(text)
        frame = ScanNet(scan.parent).open("scene0000_00").frames[1]
        np.testing.assert_allclose(frame.world_from_camera, made.pose_of(1), atol=1e-6)


def test_label_files_of_two_names_for_a_frame_are_refused(frames_25k):
    label = frames_25k / "scene0000_00" / "label"
    (label / "0.png").write_bytes((label / "000000.png").read_bytes())
    with pytest.raises(UserError, match=r"^root: two label files of frame 0 in .*label: 0\.png and 000000\.png"):
        ScanNet(frames_25k).open("scene0000_00")


def test_aligned_depth_agrees_with_the_mesh_in_one_world(scan, tmp_path):
    """What the dataset hands on: aligned poses, so a point in front of the camera lands where the mesh has it."""
    dataset = RecordedScenes(
        DataSpec(made.COLOR_SIZE, 1, "train", tmp_path / "cache"), [ScanNet(scan.parent)], Choice(check_poses="off")
    )
    pose = dataset.load(0, 2, frozenset({"world_from_camera"}))["world_from_camera"]
    point = np.array([0.1, 0.2, 1.5, 1.0])
    np.testing.assert_allclose(pose @ point, ALIGNMENT @ made.pose_of(2) @ point, atol=1e-5)


@pytest.mark.parametrize("locked", ["scannet_frames_25k", "color", "depth", "pose", "label"])
def test_a_folder_that_may_not_be_read_is_one_line(frames_25k, monkeypatch, locked):
    def scandir(path, inner=os.scandir):
        if os.path.basename(path) == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return inner(path)

    monkeypatch.setattr(os, "scandir", scandir)
    spec = DataSpec((36, 48), 1, "train", frames_25k.parent / "cache")
    with pytest.raises(UserError, match=rf"^root: .*{locked}: Permission denied$"):
        Posed(spec, root=frames_25k, format="scannet").verify()


def test_damaged_frames_of_folders_are_named(frames_25k):
    """Damage of single files: the frames next to them can still be used."""
    folder = frames_25k / "scene0000_00"
    for number, text in (("000000", "nan " * 16), ("000100", "-inf " * 16)):
        (folder / "pose" / f"{number}.txt").write_text(text)
    (folder / "pose" / "000200.txt").unlink()
    (folder / "pose" / "000200.txt").mkdir()
    other = frames_25k / "scene0000_01"
    (other / "depth" / "000000.png").write_bytes(b"")
    color = other / "color" / "000100.jpg"
    color.write_bytes(color.read_bytes()[:300])
    (other / "depth" / "000100.png").unlink()
    (other / "depth" / "000100.png").mkdir()
    Image.fromarray(made.depth_of(2)[:, ::2].copy()).save(other / "depth" / "000200.png")
    reader = ScanNet(frames_25k)
    problems = [frame.problem for frame in reader.open("scene0000_00").frames]
    assert problems == ["pose not finite", "pose not finite", "pose no 4x4 matrix"]
    recording = reader.open("scene0000_01")
    for index, field, message in (
        (0, "depth", r"000000\.png: no image"),
        (1, "image", r"000100\.jpg: "),
        (1, "depth", r"000100\.png: .*Is a directory"),
    ):
        with pytest.raises(DamagedFile, match=message):
            recording.read(index, frozenset({field}))
