"""The contract of a reader in one function: `check_reader`."""

import inspect
import os
import pickle
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from prior3d.contracts.fields import FIELDS
from prior3d.contracts.reader import Camera, Frame, Reader, Recording
from prior3d.contracts.view import View
from prior3d.data.posed.cameras import pose_problem
from prior3d.data.posed.lenses import lens_problem
from prior3d.data.spacing import evenly_chosen
from prior3d.errors import DamagedFile, refusal_of
from prior3d.registry.schema import validate_options
from prior3d.testing.members import check_members

_MOST_FILES = 60
"""Number of files to damage, one at a time, evenly spaced over the files of the folder."""

_LATER_NS = 2_000_000_000
_MODELS = ("pinhole", "opencv", "fisheye")


def check_reader(cls: type[Reader], root: Path | str, **options: object) -> Reader:
    """Assert that a reader keeps its contract, on a small folder of its format.

    It checks that the constructor is a schema; the reader recognizes the folder and not an empty one; scenes are sorted
    and can be opened; cameras are finite, with positive focal lengths and sizes; poses are rigid, and missing only with
    a problem; every frame gives the fields of `provides` and no others, in their dtypes, shapes and ranges, at the
    sizes of its camera; reading is repeatable and survives pickling; fingerprints are equal for equal files and change
    with every file that affects the result. Then files are truncated and deleted, one at a time. Each case must give a
    `DamagedFile`, a frame with a problem, a `UserError` or no change, but never another exception, nor other values
    under the same fingerprint. A missing folder must give a `UserError` about `root`.

    Args:
        cls: class of the reader.
        root: folder of its format, with a scene of a few frames; it is copied and not changed.
        options: its options, as in a recipe.

    Returns:
        The reader of the folder, for further tests.

    Raises:
        AssertionError: names the rule that is broken.
    """
    root = Path(root)
    assert issubclass(cls, Reader), f"{cls.__name__} is not a subclass of prior3d's Reader"
    check_members(cls)
    assert inspect.getdoc(cls), f"{cls.__name__} has no docstring: it is what users read about the format"
    assert cls.contract == Reader.contract, f"written for contract {cls.contract}, this is {Reader.contract}"
    keywords = validate_options(cls, options, cls.__name__)
    reader = cls(root, **keywords)
    _check_provides(reader)
    _check_recognition(cls, root, keywords)
    scenes = list(reader.scenes())
    assert scenes, f"finds no scene in {root}"
    assert scenes == sorted(set(scenes)), f"scenes are not sorted, or one is named twice: {scenes}"
    assert scenes == list(cls(root, **keywords).scenes()), "finds other scenes the second time"
    for scene in scenes:
        _check_recording(reader, reader.open(scene))
    recording = reader.open(scenes[0])
    sent = _pickled((reader, recording))
    for what, other in (("a second", cls(root, **keywords).open(scenes[0])), ("a pickled", sent[1])):
        assert _read_all(reader, other) == _read_all(reader, recording), f"{what} recording reads other values"
        assert other.fingerprint() == recording.fingerprint(), f"{what} recording has another fingerprint"
    assert list(sent[0].scenes()) == scenes, "a pickled reader has other scenes"
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / root.name
        shutil.copytree(root, copy)
        _check_damage(cls, copy, scenes[0], keywords)
    return reader


def _pickled(objects: tuple[Reader, Recording]) -> tuple[Reader, Recording]:
    """Return the reader as it arrives in a loader's worker."""
    try:
        return pickle.loads(pickle.dumps(objects))
    except Exception as error:
        raise AssertionError(f"a reader and its recordings cannot be pickled: {error}") from error


def _check_provides(reader: Reader) -> None:
    own = {field.name for field in reader.fields}
    for name in own:
        assert "/" in name, f"brings a field {name!r}: a plugin's own are called <plugin>/<field>"
    for name in reader.provides:
        assert name in FIELDS or name in own, f"provides {name!r}, which is in no table: add it to `fields`"


def _check_recognition(cls: type[Reader], root: Path, options: dict[str, object]) -> None:
    sure = cls.recognizes(root)
    assert isinstance(sure, int) and sure > 0, f"does not recognize {root}: recognizes gives {sure!r}"
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder)
        assert cls.recognizes(empty) == 0, "recognizes an empty folder"
        (empty / "notes").mkdir()
        (empty / "notes" / "notes.txt").write_text("not a recording\n", encoding="utf-8")
        assert cls.recognizes(empty) == 0, "recognizes a folder with a text file"
        for missing in (empty / "missing", empty / "notes"):
            refusal = refusal_of(lambda missing=missing: cls(missing, **options).scenes())
            assert refusal, f"takes the folder {missing.name!r}, which holds no scene, without a UserError"
            assert refusal.key == "root", f"the error about a wrong folder has the key {refusal.key!r}, not 'root'"


def _check_recording(reader: Reader, recording: Recording) -> None:
    frames = [recording.frames[index] for index in range(len(recording.frames))]
    names = [frame.name for frame in frames]
    assert len(set(names)) == len(names), f"two frames have one name: {names}"
    assert any(frame.problem is None for frame in frames), "no frame can be used"
    assert all(isinstance(note, str) and "\n" not in note for note in recording.notes), "a note is not one line"
    known = False
    for index, frame in enumerate(frames):
        _check_frame(frame, "depth" in reader.provides)
        if frame.problem is None:
            view = recording.read(index, reader.provides)
            _check_view(reader, frame, view)
            known |= "depth" not in view or bool(view["depth"].any())
            assert not recording.read(index, frozenset()).values, f"{frame.name}: decodes what nobody asked for"
            for name in reader.provides:
                alone = set(recording.read(index, frozenset({name})).values)
                assert name in alone, f"{frame.name}: {name} is not read where it alone is asked for"
    assert known, "no depth map has a known value"
    indices = [index for index, frame in enumerate(frames) if frame.problem is None]
    assert recording.fingerprint(indices) == recording.fingerprint(indices), "fingerprints of some frames differ"


def _check_frame(frame: Frame, has_depth: bool) -> None:
    where, camera = f"frame {frame.name}", frame.camera
    assert isinstance(frame.name, str) and frame.name, f"{where} has no name"
    assert frame.problem is None or isinstance(frame.problem, str), f"{where}: its problem is not text"
    if frame.problem is None:
        assert frame.world_from_camera is not None, f"{where} has neither a pose nor a problem"
        pose = np.asarray(frame.world_from_camera)
        assert pose.shape == (4, 4), f"{where}: expected a pose [4, 4], got {list(pose.shape)}"
        assert pose.dtype == np.float64, f"{where}: expected a pose of float64, got {pose.dtype}"
        assert pose_problem(pose) is None, f"{where} has no problem, and its {pose_problem(pose)}: {pose.tolist()}"
    assert frame.time is None or np.isfinite(frame.time), f"{where}: its time is {frame.time}"
    assert isinstance(camera, Camera), f"{where}: its camera is {type(camera).__name__}"
    assert camera.model in _MODELS, f"{where}: expected a lens model of {_MODELS}, got {camera.model!r}"
    assert (camera.depth_size is not None) == has_depth, f"{where}: depth_size is {camera.depth_size}"
    for name, matrix in (("intrinsics", camera.intrinsics), ("depth_intrinsics", camera.depth_intrinsics)):
        if matrix is not None:
            good = matrix.shape == (3, 3) and matrix.dtype == np.float64 and np.isfinite(matrix).all()
            assert good, f"{where}: expected {name} [3, 3] float64, finite, got {matrix}"
            assert matrix[0, 0] > 0 and matrix[1, 1] > 0, f"{where}: a focal length of {name} is not positive"
            assert matrix[2].tolist() == [0, 0, 1], f"{where}: the last row of {name} is {matrix[2].tolist()}"
    for name, size in (("size", camera.size), ("depth_size", camera.depth_size)):
        assert size is None or (len(size) == 2 and min(size) > 0), f"{where}: {name} is {size}"
    lens = None if frame.problem is not None else lens_problem(camera)
    assert lens is None, f"{where}: {lens}"
    if camera.color_from_depth is not None:
        problem = pose_problem(np.asarray(camera.color_from_depth))
        assert problem is None, f"{where}: color_from_depth: {problem}"


def _check_view(reader: Reader, frame: Frame, view: View) -> None:
    where, camera, provided = f"frame {frame.name}", frame.camera, set(reader.provides)
    assert isinstance(view, View), f"{where}: read gives {type(view).__name__}, not a View"
    missing = provided - set(view.values)
    assert not missing, f"{where}: read does not give {sorted(missing)}, which the reader provides"
    surplus = set(view.values) - provided - {field.name for field in FIELDS.values() if field.made_from in provided}
    assert not surplus, f"{where}: read gives {sorted(surplus)}, which the reader does not provide"
    if "image" in view:
        image = view["image"]
        good = image.dtype == np.uint8 and image.shape == (*camera.size, 3)
        expected = f"expected uint8 {[*camera.size, 3]} as the camera says"
        assert good, f"{where}: {expected}, got {image.dtype} {list(image.shape)}"
    if "depth" in view:
        depth = view["depth"]
        good = depth.dtype == np.float32 and depth.shape == tuple(camera.depth_size)
        expected = f"expected depth of float32 {list(camera.depth_size)} as the camera says"
        assert good, f"{where}: {expected}, got {depth.dtype} {list(depth.shape)}"
        assert np.isfinite(depth).all() and (depth >= 0).all(), f"{where}: depth is negative or not finite; 0 = unknown"
    table = {**FIELDS, **{field.name: field for field in reader.fields}}
    for name in provided - {"image", "depth"}:
        value = np.asarray(view[name])
        if table[name].is_map:
            axes = 3 if len(table[name].axes) == 5 else 2
            assert value.ndim == axes, f"{where}: expected {name} with {axes} axes, got {list(value.shape)}"
        assert value.dtype.kind in "fiub", f"{where}: {name} holds {value.dtype}"
        assert value.dtype.kind != "f" or np.isfinite(value).all(), f"{where}: {name} is not finite"


def _read_all(reader: Reader, recording: Recording) -> list[object]:
    """Return everything that can be read of a scene, in a comparable form; damage counts as a value."""
    found: list[object] = []
    for index in range(len(recording.frames)):
        frame = recording.frames[index]
        camera = frame.camera
        matrices = (frame.world_from_camera, camera.intrinsics, camera.depth_intrinsics, camera.color_from_depth)
        found.append([frame.name, frame.problem, camera.size, camera.depth_size, camera.model, camera.distortion])
        found.append([None if matrix is None else np.asarray(matrix).tolist() for matrix in matrices])
        if frame.problem is None:
            try:
                view = recording.read(index, reader.provides)
            except DamagedFile as damage:
                found.append(damage.why)
            else:
                arrays = {name: np.asarray(value) for name, value in view.values.items()}
                found.append({name: (str(a.dtype), a.shape, a.tobytes()) for name, a in arrays.items()})
    return found


def _check_damage(cls: type[Reader], root: Path, scene: str, options: dict[str, object]) -> None:
    def read() -> Iterator[tuple[list[object], str]]:
        reader = cls(root, **options)
        if scene in reader.scenes():
            recording = reader.open(scene)
            yield _read_all(reader, recording), recording.fingerprint()

    def look(what: str) -> tuple[list[object], str] | None:
        """Return the content and its fingerprint, or None for a UserError."""
        found: list[tuple[list[object], str]] = []
        try:
            refusal_of(lambda: found.extend(read()))
        except Exception as error:
            kind = type(error).__name__
            raise AssertionError(f"{what}: raises {kind} ({error}), not DamagedFile or UserError") from error
        return found[0] if found else None

    whole, before = look("untouched")
    files = sorted(path for path in root.rglob("*") if path.is_file())
    chosen = [files[row] for row in evenly_chosen(len(files), _MOST_FILES)]
    damaged = 0
    for path in chosen:
        name, status, content = path.relative_to(root), path.stat(), path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        later = status.st_mtime_ns + _LATER_NS
        os.utime(path, ns=(later, later))
        found = look(f"{name} is cut off")
        damaged += found is not None and any(isinstance(value, str) for value in found[0])
        if found is not None and found[0] != whole:
            assert found[1] != before, f"{name} is cut off and reads differently, and the fingerprint is the same"
        path.unlink()
        look(f"{name} is missing")
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        again = look(f"{name} is back")
        assert again == (whole, before), f"{name} is back as it was, and its scene or fingerprint is not"
    assert damaged, "no file that was cut off gave a DamagedFile"
    changed = 0
    for path in chosen:
        status = path.stat()
        os.utime(path, ns=(status.st_mtime_ns + _LATER_NS,) * 2)
        found = look(f"{path.name} has another time")
        changed += found is not None and found[1] != before
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert changed, "no file's time of change changes the fingerprint"
