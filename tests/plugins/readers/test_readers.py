"""Readers: the built-in ones keep to the contract, a made-up format is short, `check_reader` finds what is broken."""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prior3d.contracts.dataset import DataSpec
from prior3d.contracts.reader import BY_MARKER, Camera, Frame, Reader, Recording
from prior3d.contracts.view import View
from prior3d.data.decoding import read_array
from prior3d.data.posed import formats, recognizing
from prior3d.data.posed.cameras import Calibration, pinhole, read_numbers
from prior3d.data.posed.files import FileRecording, find_scenes, has_scene
from prior3d.data.posed.lenses import undistorted_camera
from prior3d.data.posed.recorded import Choice, RecordedScenes
from prior3d.errors import UserError
from prior3d.registry import Registry, in_force
from prior3d.registry.schema import construct
from prior3d.testing import check_reader
from prior3d_plugins.datasets.posed import Posed
from prior3d_plugins.readers.scannet import ScanNet
from prior3d_plugins.readers.sevenscenes import SevenScenes

SIZE = (6, 8)
ALL = frozenset({"image", "depth", "intrinsics", "world_from_camera"})


def is_scene(folder: Path) -> bool:
    return (folder / "poses.csv").is_file()


class Made(Reader):
    """A made-up format: `poses.csv` with a line of f, cx, cy, x, y, z for each frame, `0.png` and `0.npy` next to it.

    Args:
        root: folder of scenes.
        unit: meters per unit of the positions.
    """

    def __init__(self, root: Path, *, unit: float = 1.0) -> None:
        super().__init__(root)
        self._unit = unit
        self._folders = find_scenes(self.root, is_scene, "poses.csv")

    @classmethod
    def recognizes(cls, folder: Path) -> int:
        """Look for `poses.csv`."""
        return BY_MARKER if has_scene(folder, is_scene) else 0

    def scenes(self) -> Sequence[str]:
        """Name the folders."""
        return list(self._folders)

    def open(self, scene: str) -> Recording:
        """Read `poses.csv`."""
        table = self._folders[scene] / "poses.csv"
        numbers = read_numbers(table)
        if numbers is None or numbers.size == 0 or numbers.size % 6:
            raise UserError(f"expected lines of 6 numbers in {table}", "root")
        frames, files = [], []
        for index, (focal, cx, cy, *position) in enumerate(numbers.reshape(-1, 6).tolist()):
            camera = Camera("pinhole", pinhole(focal, focal, cx, cy), SIZE, depth_size=SIZE)
            pose = np.eye(4)
            pose[:3, 3] = np.array(position) * self._unit
            frames.append(Frame(str(index), camera, pose))
            files.append({"image": table.with_name(f"{index}.png"), "depth": table.with_name(f"{index}.npy")})
        return FileRecording(frames, files, {"depth": read_array}, [table], f"unit {self._unit}")


def test_a_reader_of_a_made_up_format_is_short():
    assert len(inspect.getsource(Made).splitlines() + inspect.getsource(is_scene).splitlines()) < 60


@pytest.fixture
def made(tmp_path):
    for scene in ("a", "b/1"):
        folder = tmp_path / "made" / scene
        folder.mkdir(parents=True)
        lines = [f"{10 + index}, 4, 3, {index}, 0, 0" for index in range(3)]
        (folder / "poses.csv").write_text("\n".join(lines))
        for index in range(3):
            noise = np.random.default_rng(index).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / f"{index}.png")
            np.save(folder / f"{index}.npy", np.full(SIZE, 1.5 + index, np.float32))
    return tmp_path / "made"


def rgbd(folder, format, count=3):
    """Write a scene of one of the two built-in formats."""
    names = {
        "sevenscenes": "frame-{:06d}.color.png frame-{:06d}.depth.png frame-{:06d}.pose.txt camera-intrinsics.txt",
        "scannet": "color/{}.jpg depth/{}.png pose/{}.txt intrinsic/intrinsic_depth.txt",
    }[format].split()
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        color, depth, pose = (folder / name.format(index) for name in names[:3])
        noise = np.random.default_rng(index).integers(0, 255, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(color)
        Image.fromarray(np.full((24, 32), 1000 + index, np.uint16)).save(depth)
        matrix = np.eye(4)
        matrix[0, 3] = index
        np.savetxt(pose, matrix)
    (folder / names[3]).write_text("30 30 15.5 11.5")
    return folder


@pytest.mark.parametrize(("cls", "format"), [(SevenScenes, "sevenscenes"), (ScanNet, "scannet")])
def test_the_built_in_readers_keep_to_the_contract(tmp_path, cls, format):
    for scene in ("b", "a/1"):
        rgbd(tmp_path / "scans" / scene, format)
    next((tmp_path / "scans" / "a").rglob("*pose*/1.txt"), tmp_path / "scans/a/1/frame-000001.pose.txt").unlink()
    reader = check_reader(cls, tmp_path / "scans", depth_scale=500.0)
    assert reader.scenes() == ["a/1", "b"]
    assert [frame.problem for frame in reader.open("a/1").frames] == [None, "no pose", None]
    other = ScanNet if cls is SevenScenes else SevenScenes
    assert other.recognizes(tmp_path / "scans") == 0


def test_real_recordings_keep_to_the_contract(shared_data, tmp_path):
    for name in ("camera-intrinsics.txt", *(f"frame-{index:06d}.*" for index in (935, 936))):
        for path in sorted((shared_data / "rgbd" / "office").glob(name)):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    check_reader(SevenScenes, tmp_path)


def test_a_made_up_reader_is_a_dataset(made, tmp_path):
    check_reader(Made, made, unit=0.001)
    spec = DataSpec(SIZE, 1, "train", tmp_path / "cache")
    dataset = RecordedScenes(spec, [Made(made)], Choice(test_scenes=("b",), max_depth=3.0))
    dataset.verify()
    assert dataset.scenes == ["a"] and dataset.splits == ("train", "test") and len(dataset) == 3
    views = [dataset.load(0, frame, ALL) for frame in range(3)]
    assert [view["intrinsics"][0, 0] for view in views] == [10, 11, 12]  # each frame has a camera of its own
    assert [view["depth"].max() for view in views] == [1.5, 2.5, 0]
    assert [view["world_from_camera"][0, 3] for view in views] == [0, 1, 2]
    assert dataset.scene_fingerprint(0) != RecordedScenes(spec, [Made(made, unit=2)]).scene_fingerprint(0)


def with_lens(made, tmp_path, distortion, choice=None):
    class Fisheye(Made):
        def open(self, scene: str) -> Recording:
            recording = super().open(scene)
            for frame in recording.frames:
                object.__setattr__(frame, "camera", replace(frame.camera, model="fisheye", distortion=distortion))
            return recording

    return RecordedScenes(DataSpec(SIZE, 1, "train", tmp_path / "cache"), [Fisheye(made)], choice)


def test_views_of_lenses_are_those_of_pinholes(made, tmp_path):
    dataset = with_lens(made, tmp_path, (0.1,) * 4)
    dataset.verify()
    for frame in range(3):
        original = dataset.scene(0).camera(frame)
        shown, view = undistorted_camera(original), dataset.load(0, frame, ALL)
        assert original.model == "fisheye" and view.size == shown.size != SIZE
        assert view["image"].shape == (*shown.size, 3) and view["depth"].shape == shown.depth_size
        assert np.array_equal(view["intrinsics"], shown.intrinsics)
        assert set(np.unique(view["depth"])) == {1.5 + frame}
    others = with_lens(made, tmp_path, (0.1, 0.1, 0.1, 0.2))
    assert dataset.scene_fingerprint(0) != others.scene_fingerprint(0)


def test_lenses_that_cannot_be_are_refused_in_one_line(made, tmp_path):
    folding = with_lens(made, tmp_path, (-9.0, 0, 0, 0))
    with pytest.raises(UserError, match=r"^root: scene a: the coefficients .* of its lens \(fisheye\) fold the image"):
        folding.verify()
    color = Calibration(10, 10, 4, 3, (0, 0, 0))
    with pytest.raises(UserError, match=r"^depth_to_color: scene a has a lens model"):
        with_lens(made, tmp_path, (0.1,) * 4, Choice(depth_to_color={"*": color})).verify()


def test_a_format_without_depth_makes_no_pairs(made, tmp_path):
    class Flat(Made):
        provides = frozenset({"image"})

    with pytest.raises(UserError, match=r"^views: this format has no depth"):
        RecordedScenes(DataSpec(SIZE, 2, "train", tmp_path / "cache"), [Flat(made)])
    flat = RecordedScenes(DataSpec(SIZE, 1, "train", tmp_path / "cache"), [Flat(made)])
    assert flat.provides == {"image", "intrinsics", "world_from_camera"}


def test_a_lens_that_cannot_be_breaks_the_contract(made):
    class Folds(Made):
        def open(self, scene: str) -> Recording:
            recording = super().open(scene)
            for frame in recording.frames:
                camera = replace(frame.camera, model="opencv", distortion=(-9.0, 0.0, 0.0, 0.0))
                object.__setattr__(frame, "camera", camera)
            return recording

    with pytest.raises(AssertionError, match="fold the image onto itself"):
        check_reader(Folds, made)


class Changed(Recording):
    """A recording of the made-up format with something changed."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.frames = recording.frames

    def read(self, frame: int, fields: frozenset[str]) -> View:
        return self.recording.read(frame, fields)

    def fingerprint(self, frames: Sequence[int] | None = None) -> str:
        return self.recording.fingerprint(frames)


class ReadsWrongDepth(Changed):
    def read(self, frame: int, fields: frozenset[str]) -> View:
        view = super().read(frame, fields)
        return View(
            {name: value.astype(np.float64) if name == "depth" else value for name, value in view.values.items()}
        )


class ReadsNegativeDepth(Changed):
    def read(self, frame: int, fields: frozenset[str]) -> View:
        view = super().read(frame, fields)
        return View({name: -value if name == "depth" else value for name, value in view.values.items()})


class ReadsEverything(Changed):
    def read(self, frame: int, fields: frozenset[str]) -> View:
        return super().read(frame, frozenset({"image", "depth"}))


class ReadsNothing(Changed):
    def read(self, frame: int, fields: frozenset[str]) -> View:
        return super().read(frame, fields - {"depth"})


class HidesDamage(Changed):
    def read(self, frame: int, fields: frozenset[str]) -> View:
        try:
            return super().read(frame, fields)
        except Exception:
            return View({"image": np.zeros((*SIZE, 3), np.uint8), "depth": np.ones(SIZE, np.float32)})


class Crashes(Changed):
    def read(self, frame: int, fields: frozenset[str]) -> View:
        try:
            return super().read(frame, fields)
        except Exception as error:
            raise KeyError(frame) from error


class ConstantFingerprint(Changed):
    def fingerprint(self, frames: Sequence[int] | None = None) -> str:
        return "same"


class RandomFingerprint(Changed):
    def fingerprint(self, frames: Sequence[int] | None = None) -> str:
        return str(np.random.default_rng().random())


class Unpicklable(Changed):
    def __init__(self, recording: Recording) -> None:
        super().__init__(recording)
        self.decode = lambda path: path


def frames_with(**changes):
    class FramesChanged(Changed):
        def __init__(self, recording: Recording) -> None:
            super().__init__(recording)
            self.frames = [
                replace(frame, **{name: change(frame) for name, change in changes.items()})
                for frame in recording.frames
            ]

    return FramesChanged


def scaled_pose(frame):
    return frame.world_from_camera * [[2], [2], [2], [1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (ReadsWrongDepth, "expected depth of float32"),
        (ReadsNegativeDepth, "depth is negative or not finite"),
        (ReadsEverything, "decodes what nobody asked for"),
        (ReadsNothing, r"read does not give \['depth'\]"),
        (HidesDamage, "no file that was cut off gave a DamagedFile"),
        (Crashes, r"0\.npy is cut off: raises KeyError"),
        (ConstantFingerprint, "reads differently, and the fingerprint is the same"),
        (RandomFingerprint, "fingerprint"),
        (Unpicklable, "cannot be pickled"),
        (frames_with(name=lambda frame: "same"), "two frames have one name"),
        (frames_with(world_from_camera=scaled_pose), "its pose not rigid"),
        (frames_with(world_from_camera=lambda frame: None), "neither a pose nor a problem"),
        (frames_with(problem=lambda frame: "lost"), "no frame can be used"),
        (frames_with(camera=lambda frame: replace(frame.camera, size=(5, 8))), "expected uint8 .* as the camera says"),
        (frames_with(camera=lambda frame: replace(frame.camera, depth_size=(3, 4))), "expected depth of float32 "),
        (frames_with(camera=lambda frame: replace(frame.camera, depth_size=None)), "depth_size is None"),
        (
            frames_with(camera=lambda frame: replace(frame.camera, intrinsics=-frame.camera.intrinsics)),
            "a focal length of intrinsics is not positive",
        ),
    ],
)
def test_check_reader_finds_broken_recordings(made, change, message):
    class Broken(Made):
        """A reader with a fault."""

        def open(self, scene: str) -> Recording:
            return change(super().open(scene))

    globals().update(FramesChanged=change, Broken=Broken)  # so that they can be pickled
    Broken.__qualname__ = "Broken"
    change.__qualname__ = "FramesChanged" if change.__name__ == "FramesChanged" else change.__name__
    with pytest.raises(AssertionError, match=message):
        check_reader(Broken, made)


def broken(**methods):
    cls = type("Broken", (Made,), {"__doc__": "A reader with a fault.", "__module__": __name__, **methods})
    globals().update(Broken=cls)
    return cls


def takes_any_folder(self, root, *, unit: float = 1.0):
    Reader.__init__(self, root)
    self._unit, self._folders = unit, find_scenes(root, is_scene, "") if is_scene(root / "a") else {}


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"recognizes": classmethod(lambda cls, folder: 0)}, "does not recognize"),
        ({"recognizes": classmethod(lambda cls, folder: 1)}, "recognizes an empty folder"),
        ({"scenes": lambda self: ["b/1", "a"]}, "scenes are not sorted"),
        ({"scenes": lambda self: []}, "takes the folder 'missing'|finds no scene"),
        ({"provides": frozenset({"image", "depth", "flow"})}, "provides 'flow', which is in no table"),
        ({"__init__": takes_any_folder}, "takes the folder 'missing', which holds no scene"),
        ({"contract": 7}, "written for contract 7"),
    ],
)
def test_check_reader_finds_broken_readers(made, methods, message):
    with pytest.raises(AssertionError, match=message):
        check_reader(broken(**methods), made)


TAPES = """
from prior3d.contracts.reader import Reader
from prior3d.errors import UserError

class Tapes(Reader):
    @classmethod
    def recognizes(cls, folder):
        return 30 * (folder / "tape.bin").is_file()

    def scenes(self):
        raise UserError("no tape drive", "root")

    def open(self, scene):
        raise NotImplementedError
"""


def test_a_reader_of_a_plugin_file_is_asked_whether_it_recognizes_the_data(tmp_path):
    (tmp_path / "tapes.py").write_text(TAPES)
    (tmp_path / "tape.bin").touch()
    spec, options = DataSpec(SIZE, 1, "train", tmp_path / "cache"), {"root": str(tmp_path)}
    with pytest.raises(UserError, match=r"^data\.root: no tape drive"):
        construct(Posed, spec, key="data", options=options, registry=Registry([tmp_path / "tapes.py"]))
    with pytest.raises(UserError, match=r"^data\.root: no format \(.+\) recognizes"):
        construct(Posed, spec, key="data", options=options)


BROKEN = TAPES.replace("return", 'raise PermissionError("no\\n access") #').replace("Tapes", "Locked")


def test_a_reader_that_cannot_recognize_breaks_only_those_who_name_it(tmp_path, caplog):
    (tmp_path / "locked.py").write_text(BROKEN)
    (tmp_path / "tapes.py").write_text(TAPES)
    (tmp_path / "tape.bin").touch()
    formats._warn_once.cache_clear()
    with in_force(Registry([tmp_path / "locked.py", tmp_path / "tapes.py"])):
        assert recognizing(tmp_path) == {"tapes": 30} == recognizing(tmp_path)
    with in_force(Registry([tmp_path / "locked.py"])), pytest.raises(UserError) as caught:
        recognizing(tmp_path)
    assert str(caught.value).endswith("; these are broken: locked")
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith("the reader locked is broken and skipped: PermissionError: no access (")
    assert warning.endswith("locked.py, line 8)")
