"""The contract of a dataset in one function: `check_dataset`."""

import contextlib
import hashlib
import inspect
import os
import pickle
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch

from prior3d.contracts.dataset import Dataset, DataSpec, Split, table_of
from prior3d.contracts.fields import ALWAYS, SURFACE_FIELDS
from prior3d.contracts.view import View
from prior3d.data.posed.surface import SURFACE_NEEDS
from prior3d.data.preparing import prepare
from prior3d.data.sample.loading import DrawnSamples, DrawStream, make_loader, raise_errors
from prior3d.data.spacing import evenly_chosen
from prior3d.errors import UserError, refusal_of
from prior3d.randomness import generator
from prior3d.registry.schema import validate_options
from prior3d.testing.members import check_members
from prior3d.testing.view import check_view

_LARGEST_COPY = 256 * 2**20
"""Maximum size of the files to copy, in bytes; the copies can be changed."""

_SAMPLES = 4
_FRAMES = 12
_CHANGED = 4


def check_dataset(
    cls: type[Dataset], options: Mapping[str, object] | None = None, size: tuple[int, int] = (48, 64)
) -> Dataset:
    """Assert that a dataset keeps its contract, on some of its samples and frames.

    The files and folders in its options are first copied to a temporary folder, so your data is not changed. Use a
    small set.

    It checks that the constructor is a schema; the provided fields have descriptions; every view holds the requested
    fields and no others, and passes `check_view`; a sample has its number of views, all of one scene; the same index
    gives the same sample a second time, in another order, after unpickling, as in another process, under any global
    random state, and in the next epoch; views are the caller's own; `load` gives the same as `sample`; samples collate
    to a batch with the shapes of the table; surfaces hold points, also when limited to a box; splits share no frame;
    the fingerprint is repeatable and changes with any file that a frame is decoded from; missing files and too many
    views raise a `UserError` that names the option.

    Args:
        cls: class of the dataset.
        options: its options, as in a recipe.
        size: height and width of the run's images, in pixels.

    Returns:
        The dataset, of the split "train" if it has one; its copied files are deleted.

    Raises:
        AssertionError: names the rule that is broken.
    """
    assert issubclass(cls, Dataset), f"{cls.__name__} is not a subclass of prior3d.Dataset"
    check_members(cls)
    assert inspect.getdoc(cls), f"{cls.__name__} has no docstring: users read it in the recipe's schema"
    assert cls.contract == Dataset.contract, f"written for contract {cls.contract}, this is {Dataset.contract}"
    keywords = validate_options(cls, dict(options or {}), cls.__name__)
    with tempfile.TemporaryDirectory(prefix="prior3d-check-") as folder:
        make = _Maker(cls, _copied(keywords, Path(folder)), size, Path(folder))
        dataset = make()
        _check_declarations(dataset)
        for views in (1, 2) if make.views_at_most() > 1 else (1,):
            several = make(views=views)
            _check_preparation(several)
            _check_samples(several)
            _check_batches(several)
        if _gives_frames(dataset):
            _check_frames(dataset)
            _check_splits(make, dataset)
        if "surface" in dataset.provides:
            _check_surfaces(dataset)
        _check_fingerprint(make, dataset)
        _check_errors(make)
    return dataset


class _Maker:
    """Makes new instances of the dataset, for any split and number of views."""

    def __init__(self, cls: type[Dataset], keywords: Mapping[str, object], size: tuple[int, int], folder: Path) -> None:
        self.cls, self.keywords, self.size, self.folder = cls, dict(keywords), size, folder
        self.split: Split = "train"
        refusal = refusal_of(self)
        if refusal is not None:
            splits: tuple[Split, ...] = ("test", "validation")
            fitting = next((split for split in splits if refusal_of(partial(self, split)) is None), None)
            assert fitting, f"cannot be made of these options: {refusal}"
            self.split = fitting

    def __call__(self, split: Split | None = None, views: int = 1, **changed: object) -> Dataset:
        spec = DataSpec(self.size, views, split or self.split, self.folder / "cache")
        return self.cls(spec, **(self.keywords | changed))

    def views_at_most(self) -> int:
        """Return 1 if the dataset refuses more views per sample, as single-image datasets do."""
        refusal = refusal_of(partial(self, views=2))
        if refusal is None:
            return 2
        assert refusal.key == "views", f"refuses 2 views with the key {refusal.key!r}, should be 'views'"
        return 1


def _copied(keywords: Mapping[str, object], folder: Path) -> dict[str, object]:
    """Return the options, with the files and folders that they name copied into a folder."""
    left = _LARGEST_COPY
    copies: dict[Path, Path] = {}

    def copy(value: object) -> object:
        nonlocal left
        if isinstance(value, list | tuple):
            return type(value)(copy(item) for item in value)
        if not isinstance(value, Path) or not value.expanduser().exists():
            return value
        source = value.expanduser().resolve()
        if source not in copies:
            files = [path for path in source.rglob("*") if path.is_file()] if source.is_dir() else [source]
            left -= sum(path.stat().st_size for path in files)
            assert left >= 0, f"{source} holds too much to be copied for a check: give a part of it"
            copies[source] = folder / f"files-{len(copies)}" / source.name
            copies[source].parent.mkdir()
            (shutil.copytree if source.is_dir() else shutil.copy2)(source, copies[source])
        return copies[source]

    return {name: copy(value) for name, value in keywords.items()}


def _check_declarations(dataset: Dataset) -> None:
    assert dataset.provides, "provides no field"
    made = sorted(name for name in dataset.provides if name.endswith("_view") or name in ALWAYS)
    assert not made, f"provides {', '.join(made)}, which are made for every dataset"
    refusal = refusal_of(partial(table_of, dataset))
    assert refusal is None, refusal.message
    table = table_of(dataset)
    derived = sorted(name for name in dataset.provides if table[name].made_from is not None)
    assert not derived, f"provides {derived[0]}, which is made from {table[derived[0]].made_from}: provide only that"
    assert dataset.spec.split in dataset.splits, (
        f"was made for {dataset.spec.split}, and its splits are {dataset.splits}"
    )
    assert isinstance(len(dataset), int) and len(dataset) > 0, f"has {len(dataset)} samples"
    assert dataset.scenes, "has no scenes: set `scenes` in the constructor, one name will do"
    names = list(dataset.scenes)
    assert len(set(names)) == len(names), "two scenes have the same name"
    assert all(isinstance(line, str) for line in _lines(dataset)), "describe returns something else than lines"


def _lines(dataset: Dataset) -> list[str]:
    """Return the dataset's own description, prepared as a run prepares it."""
    dataset.verify()
    prepare(dataset, dataset.provides)
    return list(dataset.describe())


def _check_preparation(dataset: Dataset) -> None:
    lines = _lines(dataset)
    again = _lines(dataset)
    assert lines == again, f"says something else when it is prepared a second time: {lines} and {again}"
    assert not dataset.damaged, f"has damaged files: {dataset.damaged[0]}"


def _check_samples(dataset: Dataset) -> None:
    """Check views, and that they depend on the index alone."""
    table, fields = table_of(dataset), _decodable(dataset)
    indices = [*range(min(_SAMPLES, len(dataset))), len(dataset), 10 * len(dataset) + 1]
    first = {}
    for index in indices:
        views = _sample(dataset, index, fields)
        assert len(views) == dataset.spec.views, (
            f"sample {index} has {len(views)} views, should be {dataset.spec.views}"
        )
        scenes = {view.scene for view in views}
        assert len(scenes) == 1, f"sample {index} has views of the scenes {sorted(scenes)}, should be of one"
        for view in views:
            _check_place(dataset, view)
            check_view(view, fields, table, dataset.class_names)
        first[index] = _digest(views)
        _spoil(views)
        same = _digest(_sample(dataset, index, fields)) == first[index]
        assert same, f"sample {index} is another one a second time: it depends on more, or views are not the caller's"
    elsewhere = pickle.loads(_pickled(dataset))
    for index in reversed(indices):
        _disturb()
        same = _digest(_sample(elsewhere, index, fields)) == first[index]
        assert same, f"sample {index} is another one in another process, order, or global random state"
    for name in sorted(fields):
        for view in _sample(dataset, 0, frozenset({name})):
            check_view(view, frozenset({name}), table, dataset.class_names)
    for view in _sample(dataset, 0, frozenset()):
        check_view(view, frozenset(), table, dataset.class_names)


def _check_place(dataset: Dataset, view: View) -> None:
    assert 0 <= view.scene < len(dataset.scenes), f"scene {view.scene} of {len(dataset.scenes)}"
    if _gives_frames(dataset):
        count = dataset.frame_count(view.scene)
        assert 0 <= view.frame < count, f"frame {view.frame} of {count} in scene {view.scene}"


def _check_batches(dataset: Dataset) -> None:
    """Check that two samples collate to a batch with the types and shapes of the table."""
    table, fields = table_of(dataset), _decodable(dataset)
    samples = DrawnSamples(dataset, fields - SURFACE_FIELDS, None, 0, skip_damaged=False)
    batch = next(iter(make_loader(samples, DrawStream(0, 1, 2), 0)))
    raise_errors(batch)
    sizes = {"B": 2, "V": dataset.spec.views, "H": dataset.spec.size[0], "W": dataset.spec.size[1]}
    for name in sorted(fields - SURFACE_FIELDS):
        field, value = table[name], batch[name]
        right = len(field.axes) == value.ndim and all(
            sizes.get(axis, int(axis) if axis.isdigit() else side) == side
            for axis, side in zip(field.axes, value.shape, strict=True)
        )
        assert right, f"{name} is {list(value.shape)} in a batch, should be {field.shape}"
        assert value.dtype == getattr(torch, field.dtype), (
            f"{name} is {value.dtype} in a batch, should be {field.dtype}"
        )


def _check_frames(dataset: Dataset) -> None:
    """Check that single frames equal the frames in samples."""
    table, fields = table_of(dataset), _decodable(dataset)
    counts = [dataset.frame_count(scene) for scene in range(len(dataset.scenes))]
    assert sum(counts) > 0, "frame_count is 0 in every scene"
    for scene, frame in _some_frames(dataset):
        view = dataset.load(scene, frame, fields)
        assert (view.scene, view.frame) == (scene, frame), (
            f"load({scene}, {frame}) returns a view of scene {view.scene}, frame {view.frame}"
        )
        check_view(view, fields, table, dataset.class_names)
    for view in _sample(dataset, 0, fields):
        alone = dataset.load(view.scene, view.frame, fields)
        same = _digest([view]) == _digest([alone])
        assert same, f"load({view.scene}, {view.frame}) is not what sample(0) shows of that frame"


def _check_splits(make: _Maker, dataset: Dataset) -> None:
    """Check that no two splits share a frame, among the samples read here."""
    seen: dict[str, tuple[Split, int, int]] = {}
    for split in dataset.splits:
        try:
            part = make(split)
        except Exception as error:
            raise AssertionError(f"declares the split {split} and cannot be made for it: {error}") from error
        prepare(part, part.provides)
        fields = frozenset({"image"}) if "image" in part.provides else _decodable(part)
        for scene, frame in _some_frames(part):
            content = _digest([part.load(scene, frame, fields)], places=False)
            other = seen.setdefault(content, (split, scene, frame))
            assert other[0] == split, (
                f"frame {frame} of scene {part.scenes[scene]} is in the splits {other[0]} and {split}"
            )


def _check_surfaces(dataset: Dataset) -> None:
    missing = sorted(SURFACE_NEEDS - dataset.provides)
    assert not missing, f"provides surface without {', '.join(missing)}, which say what part of it a view gets"
    surface = dataset.surface(0)
    points = np.asarray(surface.points)
    assert points.ndim == 2 and points.shape[1] == 3, f"a surface's points are {list(points.shape)}, should be [N, 3]"
    assert points.dtype == np.float32, f"a surface's points are {points.dtype}, should be float32"
    assert np.isfinite(points).all(), "a surface's points are not finite"
    if "surface_color" in dataset.provides:
        colors = np.asarray(surface.colors)
        right = colors.shape == points.shape and colors.dtype == np.uint8
        assert right, (
            f"a surface's colors are {colors.dtype} {list(colors.shape)}, should be uint8 {list(points.shape)}"
        )
    if len(points):
        low, high = np.percentile(points, 25, axis=0), np.percentile(points, 90, axis=0)
        inside = np.flatnonzero(((points >= low) & (points <= high)).all(1))
        found = np.sort(np.asarray(surface.within(low, high)))
        assert np.array_equal(found, inside), "surface.within returns other rows than those of the points in the box"


def _check_fingerprint(make: _Maker, dataset: Dataset) -> None:
    """Check the fingerprint: equal for equal data, different after a file changes."""
    whole = dataset.fingerprint()
    assert isinstance(whole, str), f"fingerprint returns {type(whole).__name__}, should be a text"
    assert make().fingerprint() == whole, "fingerprint differs between two objects of the same data"
    assert pickle.loads(_pickled(dataset)).fingerprint() == whole, "fingerprint differs after pickling"
    if not _gives_frames(dataset):
        return
    places = _some_frames(dataset)
    assert dataset.fingerprint(iter(places)) == dataset.fingerprint(places), "fingerprint reads `frames` more than once"
    for place, file in _files_of_frames(make, dataset, places[:_CHANGED]):
        before = make().fingerprint([place])
        content, status = file.read_bytes(), file.stat()
        file.write_bytes(content + b"\0")
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
        try:
            after = {make().fingerprint([place]), make().fingerprint()}
        except (UserError, ValueError, OSError):  # the dataset noticed the change
            after = set()
        file.write_bytes(content)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert not after & {before, whole}, f"fingerprint stays the same when {file.name} changes, which load reads"


def _files_of_frames(
    make: _Maker, dataset: Dataset, places: list[tuple[int, int]]
) -> Iterator[tuple[tuple[int, int], Path]]:
    """Yield each binary data file opened to decode some frames, with its scene and frame."""
    fields = _decodable(dataset)
    for place in places:
        with _opened(make.folder) as files:
            make().load(*place, fields)
        for file in sorted(files):
            if file.is_file() and make.folder / "cache" not in file.parents and b"\0" in file.read_bytes()[:4096]:
                yield place, file


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[set[Path]]:
    """Collect the files below a folder that Python opens within the block."""
    _WATCHING.append((folder, found := set()))
    if not _IS_HOOKED:
        sys.addaudithook(_note)  # audit hooks cannot be removed
        _IS_HOOKED.append(True)
    try:
        yield found
    finally:
        _WATCHING.pop()


_WATCHING: list[tuple[Path, set[Path]]] = []
_IS_HOOKED: list[bool] = []


def _note(event: str, arguments: tuple) -> None:
    if _WATCHING and event == "open" and isinstance(arguments[0], str | bytes):
        folder, found = _WATCHING[-1]
        path = Path(os.fsdecode(arguments[0])).absolute()
        if folder in path.parents:
            found.add(path)


def _check_errors(make: _Maker) -> None:
    """Check that a user's error gives one line about the option."""
    for name, value in make.keywords.items():
        several = isinstance(value, list | tuple)
        paths = [item for item in (value if several else [value]) if isinstance(item, Path)]
        if not paths:
            continue
        nowhere = make.folder / "nowhere"
        wrong = type(value)([nowhere] * len(paths)) if several else nowhere
        try:
            refusal = refusal_of(lambda changed={name: wrong}: make(**changed).verify())
        except Exception as error:
            raise AssertionError(f"a {name} that does not exist raises {type(error).__name__}: {error}") from error
        assert refusal, f"a {name} that does not exist is refused neither when it is made nor by verify"
        _check_key(refusal, name)


def _check_key(error: UserError, name: str) -> None:
    key = error.key or ""
    assert key.partition(".")[0] == name, (
        f"a {name} that does not exist is refused with the key {error.key!r}, should be {name!r}: keys are relative to"
        " the section in hand"
    )
    assert "data." not in error.message, f"names an option by a path from the root: {error.message}"


def _gives_frames(dataset: Dataset) -> bool:
    return type(dataset).load is not Dataset.load


def _decodable(dataset: Dataset) -> frozenset[str]:
    return frozenset(dataset.provides) - SURFACE_FIELDS


def _some_frames(dataset: Dataset) -> list[tuple[int, int]]:
    counts = [dataset.frame_count(scene) for scene in range(len(dataset.scenes))]
    every = [(scene, frame) for scene, count in enumerate(counts) for frame in range(count)]
    return [every[row] for row in evenly_chosen(len(every), _FRAMES)]


def _sample(dataset: Dataset, index: int, fields: frozenset[str]) -> list[View]:
    return dataset.sample(index, fields, generator("check", index))


def _digest(views: list[View], places: bool = True) -> str:
    """Return the content of views as text."""
    digest = hashlib.sha256()
    for view in views:
        digest.update(f"{view.scene} {view.frame};".encode() if places else b";")
        for name, value in sorted(view.values.items()):
            array = np.asarray(value)
            digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def _spoil(views: list[View]) -> None:
    """Write into arrays, as augmentation may do."""
    for view in views:
        for value in view.values.values():
            if isinstance(value, np.ndarray) and value.flags.writeable:
                value.fill(1)


def _disturb() -> None:
    """Change every global random state: a sample must depend on its index alone."""
    for seed in (random.seed, torch.manual_seed, np.random.seed):
        seed(int.from_bytes(os.urandom(2), "little"))


def _pickled(dataset: Dataset) -> bytes:
    try:
        return pickle.dumps(dataset)
    except Exception as error:
        raise AssertionError(f"cannot be pickled for a loader's worker: {error}") from error
