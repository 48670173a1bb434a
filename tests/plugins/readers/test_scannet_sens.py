"""ScanNet's `.sens`: read as written, lazily and quickly; every kind of damage is a line or a frame's problem."""

import pickle
import struct
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import scannet_files as made
from PIL import Image

from prior3d.contracts.dataset import DataSpec
from prior3d.data.posed import recognizing
from prior3d.data.posed.recorded import Choice, RecordedScenes
from prior3d.errors import DamagedFile, UserError
from prior3d.testing import check_reader
from prior3d_plugins.readers.scannet import ScanNet
from prior3d_plugins.readers.sevenscenes import SevenScenes

BOTH = frozenset({"image", "depth"})


def opened(path: Path, **options):
    return ScanNet(path.parent, **options).open(path.parent.name)


@pytest.fixture
def sens(tmp_path):
    """The place of a `.sens` file."""
    return tmp_path / "scans" / "scene0000_00" / "scene0000_00.sens"


def test_pixels_depth_poses_and_cameras_are_those_written(sens):
    made.write_sens(sens, made.frames_of(3))
    recording = opened(sens)
    assert len(recording.frames) == 3 and not recording.notes
    for index, frame in enumerate(recording.frames):
        view = recording.read(index, BOTH)
        assert frame.name == str(index) and frame.problem is None and frame.time == pytest.approx(0.033 * (index + 1))
        assert np.abs(view["image"].astype(int) - made.color_of(index)).max() <= 12  # JPEG
        np.testing.assert_array_equal(view["depth"], (made.depth_of(index) / 1000).astype(np.float32))
        np.testing.assert_allclose(frame.world_from_camera, made.pose_of(index), atol=1e-6)
    camera = recording.frames[0].camera
    assert recording.frames[2].camera is camera
    assert (camera.size, camera.depth_size) == (made.COLOR_SIZE, made.DEPTH_SIZE)
    np.testing.assert_allclose(camera.intrinsics, [[45, 0, 24], [0, 46, 18], [0, 0, 1]])
    np.testing.assert_allclose(camera.depth_intrinsics, [[30, 0, 16], [0, 31, 12], [0, 0, 1]])


@pytest.mark.parametrize("codecs", [(0, 1), (1, 1), (2, 0)])
def test_other_compressions(sens, codecs):
    color = {0: made.color_of(0).tobytes(), 1: made.jpeg(made.color_of(0), "PNG"), 2: made.jpeg(made.color_of(0))}
    depth = made.depth_of(0).astype("<u2").tobytes()
    frame = made.frame_bytes(np.eye(4), color[codecs[0]], depth if codecs[1] == 0 else zlib.compress(depth), 1)
    view = opened(made.write_sens(sens, [frame], codecs=codecs, shift=500.0)).read(0, BOTH)
    assert np.abs(view["image"].astype(int) - made.color_of(0)).max() <= (12 if codecs[0] == 2 else 0)
    np.testing.assert_array_equal(view["depth"], (made.depth_of(0) / 500).astype(np.float32))
    assert opened(sens, depth_scale=2000.0).read(0, BOTH)["depth"].max() == pytest.approx(view["depth"].max() / 4)


def test_a_folder_of_streams_has_a_scene_for_each_and_exported_files_come_first(tmp_path):
    for name in ("flat/scene0001_00", "flat/scene0001_01"):
        made.write_sens(tmp_path / "scans" / f"{name}.sens", made.frames_of(1))
    made.write_sens(tmp_path / "scans" / "scene0000_00" / "scene0000_00.sens", made.frames_of(1))
    made.write_files(tmp_path / "scans" / "scene0000_00", 2)
    (tmp_path / "scans" / "scene0002_00" / "pose").mkdir(parents=True)
    made.write_sens(tmp_path / "scans" / "scene0002_00" / "scene0002_00.sens", made.frames_of(3))
    np.savetxt(tmp_path / "scans" / "scene0002_00" / "pose" / "0.txt", np.eye(4))
    reader = ScanNet(tmp_path / "scans")
    counts = {name: len(reader.open(name).frames) for name in reader.scenes()}
    assert counts == {"flat/scene0001_00": 1, "flat/scene0001_01": 1, "scene0000_00": 2, "scene0002_00": 3}
    assert ScanNet(tmp_path / "scans" / "flat").scenes() == ["scene0001_00", "scene0001_01"]


def test_only_this_reader_recognizes_it(sens):
    made.write_sens(sens, made.frames_of(1))
    for folder in (sens.parent, sens.parent.parent):
        found = recognizing(folder)
        assert max(found, key=found.get) == "scannet" and list(found.values()).count(max(found.values())) == 1


def test_lost_tracking_and_missing_pixels_are_problems_of_frames(sens, tmp_path):
    frames = made.frames_of(4)
    depth = zlib.compress(made.depth_of(0).astype("<u2").tobytes())
    frames[1] = made.frame_bytes(made.LOST, made.jpeg(made.color_of(1)), depth, 2)
    frames[2] = made.frame_bytes(np.eye(4), made.jpeg(made.color_of(2)), b"", 3)
    frames += [made.frame_bytes(np.eye(4), b"", depth, 4), made.frame_bytes(2 * np.eye(4), b"x", depth, 5)]
    frames += [made.frame_bytes(np.full((4, 4), np.nan), b"x", depth, 6)]
    made.write_sens(sens, frames)
    problems = [frame.problem for frame in opened(sens).frames]
    lost = "pose not finite"
    assert problems == [None, lost, "no depth", None, "no color", "pose not rigid", lost]
    dataset = RecordedScenes(DataSpec(made.COLOR_SIZE, 1, "train", tmp_path / "cache"), [ScanNet(sens.parent.parent)])
    assert dataset.frame_count(0) == 2
    assert "scene0000_00: 5 frames left out (no color: 1, frame 4, " in "\n".join(dataset.describe())


def test_a_cut_off_file_has_the_whole_frames_before_its_end(sens):
    frames = made.frames_of(5)
    made.write_sens(sens, frames)
    whole, content = opened(sens), sens.read_bytes()
    end_of_third = len(made.header_bytes(5)) + sum(map(len, frames[:3]))
    for end in (end_of_third, end_of_third + 50, end_of_third + len(frames[3]) - 1):
        sens.write_bytes(content[:end])
        recording = opened(sens)
        (note,) = recording.notes
        assert len(recording.frames) == 3
        assert note.startswith(
            "scene0000_00.sens ends after 3 of the 5 frames that its header promises: the rest is not"
        )
        assert recording.read(2, BOTH)["depth"].any() and recording.fingerprint() != whole.fingerprint()
    with pytest.raises(DamagedFile, match=r"scene0000_00\.sens, frame 4: the file was cut off after it was opened"):
        whole.read(4, BOTH)
    sens.unlink()
    with pytest.raises(DamagedFile, match=r"scene0000_00\.sens, frame 0: the file is missing"):
        whole.read(0, BOTH)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"version": 3}, r"expected a \.sens file of version 4, got version 3"),
        ({"codecs": (2, 2)}, "depth is compressed as occi_ushort; raw_ushort and zlib_ushort are read: export it"),
        ({"codecs": (-1, 1)}, "color is compressed as unknown; raw, png and jpeg are read"),
        ({"codecs": (9, 1)}, "color is compressed as 9"),
        ({"shift": 0.0}, r"expected sizes and a positive depth shift .* and 0\.0"),
        ({"shift": float("nan")}, "expected sizes and a positive depth shift"),
        ({"sizes": (0, 48, 24, 32)}, "expected sizes"),
        ({"sizes": (36, 48, 24, 1 << 30)}, "expected sizes"),
    ],
)
def test_headers_that_cannot_be_read_are_refused_in_one_line(sens, header, message):
    made.write_sens(sens, made.frames_of(1), **header)
    with pytest.raises(UserError, match=rf"^root: cannot read .*scene0000_00\.sens: {message}"):
        opened(sens)


def test_files_that_are_none_are_refused_in_one_line(sens, monkeypatch):
    made.write_sens(sens, made.frames_of(1))
    content, header = sens.read_bytes(), made.header_bytes(1)
    cases = [
        (b"", "it ends within its header"),
        (header[:200], "it ends within its header"),
        (header, "it has no whole frame; its header promises 1"),
        (header[:-8] + struct.pack("<Q", 2**63) + b"\0" * 4, f"it has no whole frame; its header promises {2**63}"),
        (content[:4] + b"\xff" * 100, r"the sensor's name has \d+ bytes: this is no \.sens file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(300), "expected a .sens file of version 4, got version 1196314761"),
    ]
    for damaged, message in cases:
        sens.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"^root: cannot read .*scene0000_00\.sens: {message}"):
            opened(sens)
    sens.unlink()
    sens.mkdir()
    with pytest.raises(UserError, match=r"^root: cannot read .*scene0000_00\.sens: Is a directory"):
        opened(sens)

    def locked(*_args, **_more):
        raise PermissionError(13, "Permission denied")

    reader = ScanNet(sens.parent)
    monkeypatch.setattr(Path, "open", locked)
    with pytest.raises(UserError, match=r"^root: cannot read .*: Permission denied"):
        reader.open("scene0000_00")


def test_pixels_that_cannot_be_decoded_name_the_frame(sens):
    packed = zlib.compress(made.depth_of(0).astype("<u2").tobytes())
    image, other = made.jpeg(made.color_of(0)), made.jpeg(made.color_of(0)[:-4])
    flipped = packed[:40] + bytes([packed[40] ^ 255]) + packed[41:]
    long = zlib.compress(bytes(1 << 20))
    pixels = [
        (image[: len(image) // 2], packed, "color: .*(t|T)runcated"),
        (b"no image", packed, "color: cannot identify image file$"),
        (other, packed, "color: color of 48x32 pixels, where the header says 48x36"),
        (image, packed[:-10], "depth: .*(end is missing|got)"),
        (image, packed[:-2], "depth: its end is missing"),
        (image, flipped, "depth: "),
        (image, zlib.compress(b"short"), "depth: expected 1536 bytes for 32x24 pixels, got 5"),
        (image, long, "depth: expected 1536 bytes for 32x24 pixels, got more"),
    ]
    made.write_sens(sens, [made.frame_bytes(np.eye(4), *both, i + 1) for i, (*both, _) in enumerate(pixels)])
    recording = opened(sens)
    for index, (*_, message) in enumerate(pixels):
        with pytest.raises(DamagedFile, match=rf"scene0000_00\.sens, frame {index}: {message}") as caught:
            recording.read(index, BOTH)
        assert "\n" not in caught.value.why and len(str(caught.value.path)) > len(str(sens))


def test_time_stamps_that_make_no_order_are_left_out_with_a_note(sens):
    packed = zlib.compress(made.depth_of(0).astype("<u2").tobytes())
    for stamps, noted in (([5, 5, 6], True), ([9, 8, 7], True), ([0, 0, 0], False)):
        made.write_sens(sens, [made.frame_bytes(np.eye(4), made.jpeg(made.color_of(0)), packed, at) for at in stamps])
        recording = opened(sens)
        assert [frame.time for frame in recording.frames] == [None] * 3
        assert bool(recording.notes) is noted
        assert all("repeat or decrease and are not used" in note for note in recording.notes)


def test_extrinsics_and_unused_intrinsics_are_noted(sens):
    made.write_sens(sens, made.frames_of(1), extrinsics=made.pose_of(1))
    first, second = opened(sens, intrinsics=(1.0, 1.0, 2.0, 2.0)).notes
    assert first.startswith("intrinsics goes unused") and second.startswith(
        "the extrinsics in scene0000_00.sens are not"
    )
    content = bytearray(sens.read_bytes())
    at = 4 + 8 + len("StructureSensor")
    content[at : at + 4] = struct.pack("<f", -45)
    sens.write_bytes(content)
    with pytest.raises(UserError, match=r"^root: the header of .* has no intrinsics: its focal lengths are -45 and 46"):
        opened(sens)


def test_a_long_recording_opens_at_once_in_little_memory(sens):
    """5,000 frames of about 100 kB are 500 MB; holes in the file stand for their pixels."""
    head = made.frame_bytes(np.eye(4), b"", b"", 1)[:-16] + struct.pack("<QQ", 60_000, 40_000)
    sens.parent.mkdir(parents=True)
    with sens.open("wb") as file:
        file.write(made.header_bytes(5000))
        start = file.tell()
        for index in range(5000):
            file.seek(start + index * (len(head) + 100_000))
            file.write(head)
        file.truncate(start + 5000 * (len(head) + 100_000))
    times = []
    for _ in range(3):
        started = time.perf_counter()
        recording = opened(sens)
        times.append(time.perf_counter() - started)
    assert len(recording.frames) == 5000 and min(times) < 0.5
    tracemalloc.start()
    recording = opened(sens)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5e6
    assert len(pickle.dumps(recording)) < 2e6


def test_the_reader_keeps_to_the_contract(sens):
    made.write_sens(sens, made.frames_of(3))
    made.write_files(sens.parent.parent / "a", 2)
    reader = check_reader(ScanNet, sens.parent.parent)
    assert reader.scenes() == ["a", "scene0000_00"]
    dataset = RecordedScenes(
        DataSpec(made.COLOR_SIZE, 1, "train", sens.parents[2] / "cache"), [reader], Choice(scenes=("scene*",))
    )
    view = dataset.load(0, 1, frozenset({"image", "depth", "intrinsics", "world_from_camera"}))
    assert view["depth"].shape == made.DEPTH_SIZE and (view["depth"] > 0).mean() > 0.5


def test_a_real_recording_packed_as_a_stream_is_the_same_data(shared_data, sens, tmp_path):
    office, frames = shared_data / "rgbd" / "office", []
    for path in sorted(office.glob("*.color.*"))[:12]:
        color, depth = (next(office.glob(f"{path.name.split('.')[0]}.{kind}.*")) for kind in ("color", "depth"))
        pose = np.loadtxt(office / f"{path.name.split('.')[0]}.pose.txt")
        packed = zlib.compress(np.asarray(Image.open(depth)).astype("<u2").tobytes())
        frames.append(
            made.frame_bytes(pose, made.jpeg(np.asarray(Image.open(color).convert("RGB"))), packed, len(frames))
        )
    matrix = np.eye(4)
    matrix[[0, 1, 0, 1], [0, 1, 2, 2]] = 570.342205, 570.342205, 320, 240
    made.write_sens(sens, frames, sizes=(480, 640) * 2, intrinsics=(matrix, matrix))
    spec = DataSpec((120, 160), 2, "train", tmp_path / "cache")
    stream = RecordedScenes(spec, [ScanNet(sens.parent)])
    folder = RecordedScenes(spec, [SevenScenes(office, pixel_centers="integer")], Choice(max_frames=12))
    stream.verify()
    for _ in stream.jobs(BOTH):  # the check of poses, depth and images agrees, or refuses
        pass
    for frame in range(stream.frame_count(0)):
        first, second = (data.load(0, frame, BOTH | {"world_from_camera", "intrinsics"}) for data in (stream, folder))
        # Depth is looked up along the rays of the color camera, which here is the same camera.
        assert (first["depth"] == second["depth"]).mean() > 0.99
        assert np.abs(first["image"].astype(int) - second["image"]).mean() < 3
        np.testing.assert_allclose(first["world_from_camera"], second["world_from_camera"], atol=1e-5)
        np.testing.assert_allclose(first["intrinsics"], second["intrinsics"], atol=1e-3)
    np.testing.assert_array_equal(stream.pairs(0).first, folder.pairs(0).first)
