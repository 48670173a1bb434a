"""`check_dataset` passes the built-in datasets and a stranger's, and catches each way to break the contract."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from prior3d.contracts.dataset import Dataset, DataSpec, View
from prior3d.contracts.fields import Field
from prior3d.data.images import SingleImages
from prior3d.data.posed.surface import Surface
from prior3d.errors import DamagedFile, UserError
from prior3d.files import fingerprint
from prior3d.testing import check_dataset, check_view
from prior3d_plugins.datasets.classification_folder import ClassificationFolder
from prior3d_plugins.datasets.image_folder import ImageFolder
from prior3d_plugins.datasets.segmentation_folder import SegmentationFolder
from prior3d_plugins.datasets.synthetic_rooms import SyntheticRooms

SHAPE = (12, 16)
FLOW = Field("acme/flow", "[B, V, 2, H, W]", "float32", "shares of the image's size", moves="vectors")


class Good(Dataset):
    """Scenes with all fields that can be: an `.npy` image and an `.npz` for each frame.

    Args:
        spec: what every dataset gets.
        root: folder of the scenes.
    """

    splits = ("train", "test")
    fields = (FLOW,)
    class_names = ("wall", "floor", "box")
    provides = frozenset(
        {
            *("image", "depth", "pseudo_depth", "intrinsics", "world_from_camera", "semantic", "instances", "normals"),
            *("label", "boxes", "box_labels", "box_instances", "acme/flow", "surface", "surface_color"),
        }
    )

    def __init__(self, spec, *, root: Path):
        super().__init__(spec)
        if not root.is_dir():
            raise UserError(f"no folder {root}", "root")
        self.root = root
        self.scenes = sorted(folder.name for folder in (root / spec.split).iterdir())

    def files(self, scene, frame):
        return [self.root / self.spec.split / self.scenes[scene] / f"{frame}.{ending}" for ending in ("npy", "npz")]

    def __len__(self):
        return 3 * len(self.scenes)

    def fingerprint(self, frames=None):
        frames = [(s, f) for s in range(len(self.scenes)) for f in range(3)] if frames is None else frames
        return fingerprint(file for frame in frames for file in self.files(*frame))

    def frame_count(self, scene):
        return 3

    def sample(self, index, fields, generator):
        scene, frame = divmod(index % len(self), 3)
        return [self.load(scene, (frame + view) % 3, fields) for view in range(self.spec.views)]

    def load(self, scene, frame, fields):
        image, others = self.files(scene, frame)
        view = View(scene=scene, frame=frame, size=SHAPE)
        if "image" in fields:
            view["image"] = np.load(image)
        with np.load(others) as arrays:
            names = {name for name in fields - {"image"} if name.replace("/", "-") in arrays}
            for name in names | ({"pseudo_kind"} if "pseudo_depth" in fields else set()):
                view[name] = arrays[name.replace("/", "-")]
        return view

    def surface(self, scene):
        folder = self.spec.cache / f"surface-{self.spec.split}-{scene}"
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(scene)
        Surface.save(rng.random((50, 3)), folder, rng.integers(0, 255, (50, 3), np.uint8))
        return Surface(folder)


@pytest.fixture
def root(tmp_path):
    """Two scenes to train on and one to test on, of three frames each."""
    for split, scenes in (("train", 2), ("test", 1)):
        for scene in range(scenes):
            folder = tmp_path / "set" / split / f"{split}-{scene}"
            folder.mkdir(parents=True)
            for frame in range(3):
                rng = np.random.default_rng([split == "test", scene, frame])
                np.save(folder / f"{frame}.npy", rng.integers(0, 255, (*SHAPE, 3), np.uint8))
                np.savez(folder / f"{frame}.npz", **frame_of(rng, frame))
    return tmp_path / "set"


def frame_of(rng, frame):
    angle, pose = 0.1 * frame, np.eye(4)
    pose[[0, 0, 2, 2], [0, 2, 0, 2]] = np.cos(angle), np.sin(angle), -np.sin(angle), np.cos(angle)
    return {
        "depth": rng.uniform(1, 3, SHAPE).astype(np.float32),
        "pseudo_depth": rng.uniform(1, 3, (6, 8)).astype(np.float32),
        "pseudo_kind": np.int64(1),
        "intrinsics": np.array([[14.0, 0, 8], [0, 14, 6], [0, 0, 1]]),
        "world_from_camera": pose,
        "semantic": np.where(rng.random(SHAPE) < 0.1, 255, rng.integers(0, 3, SHAPE)).astype(np.uint8),
        "instances": (np.indices(SHAPE).sum(0) < 10).astype(np.uint16),
        "normals": np.broadcast_to(np.float32([0, 0, -1]), (*SHAPE, 3)),
        "label": np.int64(2),
        "boxes": np.float32([[0, 0, 10, 10], [3, 4, 9, 12]]),
        "box_labels": np.array([2, -1]),
        "box_instances": np.array([1, 0]),
        "acme-flow": rng.normal(size=(*SHAPE, 2)).astype(np.float32),
    }


def test_a_strangers_dataset_that_keeps_to_everything(root):
    before = {path: path.read_bytes() for path in root.rglob("*.np*")}
    dataset = check_dataset(Good, {"root": str(root)})
    assert dataset.provides == Good.provides and dataset.spec.split == "train"
    assert {path: path.read_bytes() for path in root.rglob("*.np*")} == before, "files of the author were touched"


def write_images(folder, names, size=(40, 60)):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)


def test_image_folders_keep_the_contract(tmp_path):
    write_images(tmp_path / "images", [f"{n}.png" for n in range(12)])
    for number in range(12):
        (tmp_path / "pseudo").mkdir(exist_ok=True)
        np.save(tmp_path / "pseudo" / f"{number}.npy", np.random.default_rng(number).random((20, 30)))
    options = {"root": str(tmp_path / "images"), "test_fraction": 0.5}
    check_dataset(ImageFolder, options)
    check_dataset(ImageFolder, options | {"pseudo_depth": str(tmp_path / "pseudo"), "pseudo_kind": "depth"})


def test_segmentation_and_classification_folders_keep_the_contract(tmp_path):
    for number, split in enumerate(("train", "test")):
        names = [f"{number}-{n}.png" for n in range(3)]
        write_images(tmp_path / "s" / split / "images", names)
        (tmp_path / "s" / split / "labels").mkdir()
        for n, name in enumerate(names):
            image = np.asarray(Image.open(tmp_path / "s" / split / "images" / name))
            Image.fromarray(image[..., 0] % 3 + 0).save(tmp_path / "s" / split / "labels" / name)
            image = (image.astype(int) + 7 * number + n).astype(np.uint8)
            Image.fromarray(image).save(tmp_path / "s" / split / "images" / name)
    check_dataset(SegmentationFolder, {"root": str(tmp_path / "s"), "classes": 3})
    write_images(tmp_path / "c", [f"{kind}/{n}.png" for kind in ("cat", "dog") for n in range(8)])
    check_dataset(ClassificationFolder, {"root": str(tmp_path / "c"), "test_fraction": 0.4})


def test_rooms_keep_the_contract():
    check_dataset(SyntheticRooms, {"rooms": 1, "test_rooms": 1, "validation_rooms": 1, "frames": 6})


def changed(name, function):
    """A dataset whose field of this name is another one."""

    def load(self, scene, frame, fields):
        view = Good.load(self, scene, frame, fields)
        if name in fields:
            view[name] = function(view[name])
        return view

    return {"load": load}


def loading(function):
    """A dataset whose views are something else."""
    return {"load": lambda self, scene, frame, fields: function(self, Good.load(self, scene, frame, fields), fields)}


def replaced(array, place, value):
    array = array.copy()
    array[place] = value
    return array


def added(view, name, value):
    view[name] = value
    return view


def moved(view, **where):
    for name, value in where.items():
        setattr(view, name, value)
    return view


class Counting:
    """Hands out other numbers every time."""

    count = 0

    def __call__(self, *_):
        self.count += 1
        return str(self.count)


def by_global_state(self, index, fields, generator):
    scene = random.randrange(len(self.scenes))
    return [self.load(scene, view, fields) for view in range(self.spec.views)]


def by_memory(self, index, fields, generator):
    self.before = getattr(self, "before", 0) + 1
    return [self.load(self.before % 2, view, fields) for view in range(self.spec.views)]


def from_memory(self, scene, frame, fields):
    kept = self.__dict__.setdefault("kept", {})
    if (scene, frame, fields) not in kept:
        kept[scene, frame, fields] = Good.load(self, scene, frame, fields)
    return View(dict(kept[scene, frame, fields].values), scene, frame, SHAPE)


def only_once(self, scene, frame, fields):
    self.loads = getattr(self, "loads", 0) + 1
    if self.loads > 20:
        raise DamagedFile("x.png", "gone")
    return Good.load(self, scene, frame, fields)


def with_absolute_key(self, spec, *, root: Path):
    if not root.is_dir():
        raise UserError(f"no folder {root}", "data.root")
    Good.__init__(self, spec, root=root)


def without_check(self, spec, *, root: Path):
    Dataset.__init__(self, spec)
    self.root, self.scenes = root, ["train-0", "train-1"] if spec.split == "train" else ["test-0"]


def with_os_error(self, spec, *, root: Path):
    without_check(self, spec, root=root)
    next(root.iterdir())


def with_test_of_train(self, spec, *, root: Path):
    Good.__init__(self, spec, root=root)
    if spec.split == "test":
        self.scenes = [f"../train/{name}" for name in ("train-0",)]


def refusing_views(self, spec, *, root: Path):
    Good.__init__(self, spec, root=root)
    if spec.views > 1:
        raise UserError("one view only", "data.views")


def unpicklable(self, spec, *, root: Path):
    Good.__init__(self, spec, root=root)
    self.read = lambda: None


def without_scenes(self, spec, *, root: Path):
    Good.__init__(self, spec, root=root)
    self.scenes = []


def with_two_of_a_name(self, spec, *, root: Path):
    Good.__init__(self, spec, root=root)
    self.scenes = self.scenes * 2


def saying(self):
    self.said = getattr(self, "said", 0) + 1
    return [f"prepared {self.said} times"]


class Elsewhere(Surface):
    def within(self, low, high):
        return np.arange(3)


def elsewhere(self, scene):
    return Elsewhere(Good.surface(self, scene).folder)


def colorless(self, scene):
    surface = Good.surface(self, scene)
    (surface.folder / "colors.npy").unlink()
    return Surface(surface.folder)


def first_file_only(self, frames=None):
    frames = [(0, 0)] if frames is None else frames
    return fingerprint(self.files(*frame)[1] for frame in frames)


def by_size(self, frames=None):
    return " ".join(str(len(self.scenes)) for _ in frames or "a")


BROKEN = {
    "no docstring": ({"__doc__": ""}, "has no docstring"),
    "an old contract": ({"contract": 2}, "written for contract 2, this is 3"),
    "a field that nothing describes": ({"fields": ()}, "provides acme/flow, and nothing says what that is"),
    "nothing provided": ({"provides": frozenset()}, "provides no field"),
    "a derived field": ({"provides": Good.provides | {"image_clean"}}, "image_clean, which is made from image"),
    "the view of a row": ({"provides": Good.provides | {"boxes_view"}}, "boxes_view, which are made for every dataset"),
    "no sample": ({"__len__": lambda self: 0}, "has 0 samples"),
    "no scenes": ({"__init__": without_scenes}, "has (no scenes|0 samples)"),
    "two scenes of a name": ({"__init__": with_two_of_a_name}, "two scenes have the same name"),
    "a split that is none of its own": ({"splits": ("test",)}, "was made for train, and its splits are"),
    "no lines": ({"describe": lambda self: [3]}, "describe returns something else than lines"),
    "another description": ({"describe": saying}, "says something else when it is prepared a second time"),
    "a missing field": (
        loading(lambda self, view, fields: View({}, view.scene, view.frame, SHAPE)),
        "asked for and not",
    ),
    "a field too many": (
        loading(lambda self, view, fields: added(view, "depth", np.ones(SHAPE, np.float32))),
        "depth decoded and not asked for",
    ),
    "no size": (loading(lambda self, view, fields: moved(view, size=None)), "size is not set, and no image says it"),
    "another size": (
        loading(lambda self, view, fields: moved(view, size=(16, 12))),
        r"size is \(16, 12\), the image's",
    ),
    "a scene that is none": (loading(lambda self, view, fields: moved(view, scene=9)), "scene 9 of 2"),
    "a frame that is none": (loading(lambda self, view, fields: moved(view, frame=9)), "frame 9 of 3"),
    "too few views": (
        {"sample": lambda self, index, fields, generator: Good.sample(self, index, fields, generator)[:1]},
        "sample 0 has 1 views, should be 2",
    ),
    "views of two scenes": (
        {"sample": lambda self, i, fields, _: [self.load(s % 2, i % 3, fields) for s in range(self.spec.views)]},
        r"has views of the scenes \[0, 1\], should be of one",
    ),
    "samples by the global random state": (
        {"sample": by_global_state},
        "is another one a second time|is another one in",
    ),
    "samples by memory": ({"sample": by_memory}, "sample 0 is another one a second time"),
    "views that are not the caller's own": (
        {"load": from_memory},
        "sample 0 is another one a second time: .* views are not the caller's",
    ),
    "an epoch that ends": (
        {"sample": lambda self, i, fields, _: [self.load(*divmod(i, 3), fields) for _ in range(self.spec.views)]},
        "IndexError|list index out of range",
    ),
    "no pickling": ({"__init__": unpicklable}, "cannot be pickled for a loader's worker"),
    "frames counted from 1": (
        {
            "load": lambda self, s, f, fields: moved(Good.load(self, s, (f + 1) % 3, fields), frame=f),
            "sample": lambda self, i, fields, _: [Good.load(self, 0, f, fields) for f in range(self.spec.views)],
        },
        r"load\(0, 0\) is not what sample\(0\) shows of that frame",
    ),
    "load of another frame": (
        {
            "load": lambda self, s, f, fields: Good.load(self, s, (f + 1) % 3, fields),
            "sample": lambda self, i, fields, _: [Good.load(self, 0, f, fields) for f in range(self.spec.views)],
        },
        r"load\(0, 0\) returns a view of scene 0, frame 1",
    ),
    "no frames": ({"frame_count": lambda self, scene: 0}, "frame 0 of 0 in scene 0"),
    "a test split of training frames": ({"__init__": with_test_of_train}, "is in the splits train and test"),
    "a split that cannot be made": ({"splits": ("train", "validation")}, "declares the split validation and cannot be"),
    "a surface of other points": ({"surface": elsewhere}, "surface.within returns other rows"),
    "a surface without colors": ({"surface": colorless}, "a surface's colors are"),
    "a surface that no view says the part of": (
        {"provides": frozenset({"image", "surface"})},
        "provides surface without depth, intrinsics, world_from_camera",
    ),
    "a fingerprint of chance": ({"fingerprint": Counting()}, "fingerprint differs between two objects"),
    "a fingerprint that is no text": ({"fingerprint": lambda self, frames=None: 3}, "fingerprint returns int"),
    "a fingerprint that forgets files": ({"fingerprint": first_file_only}, r"stays the same when \d.npy changes"),
    "a fingerprint of names": ({"fingerprint": by_size}, "stays the same when"),
    "an absolute key": ({"__init__": with_absolute_key}, "refused with the key 'data.root', should be 'root'"),
    "an error that is no user's": ({"__init__": with_os_error}, "does not exist raises FileNotFoundError"),
    "no error": ({"__init__": without_check}, "refused neither when it is made nor by verify"),
    "an absolute key of views": ({"__init__": refusing_views}, "refuses 2 views with the key 'data.views'"),
    "damage": (
        {"jobs": lambda self, fields: self.damaged.append(DamagedFile("x", "y")) or iter(())},
        "damaged files: x",
    ),
    "bytes as numbers": (changed("image", lambda v: v / 255), "image of scene 0, frame 0: float64, should be uint8"),
    "channels first": (
        changed("image", lambda v: v.transpose(2, 0, 1).copy()),
        r"\[3, 12, 16\], should be \[h, w, 3\]|size",
    ),
    "gray images": (changed("image", lambda v: v[..., 0].copy()), r"image of .*\[12, 16\], should be \[h, w, 3\]"),
    "millimeters as whole numbers": (
        changed("depth", lambda v: (1000 * v).astype(np.uint16)),
        "should be floating point",
    ),
    "millimeters": (changed("depth", lambda v: 1000 * v), "is it in meters"),
    "negative depth": (changed("depth", lambda v: replaced(v, (0, 0), -1)), "depth of .*: holds -1"),
    "unknown depth as NaN": (changed("depth", lambda v: replaced(v, (0, 0), np.nan)), "numbers that are not finite"),
    "depth of another aspect": (changed("depth", lambda v: v[:, :10].copy()), "another aspect than the image's"),
    "depth with channels": (changed("depth", lambda v: v[..., None]), r"\[12, 16, 1\], should be \[h, w\]"),
    "negative pseudo-depth": (changed("pseudo_depth", lambda v: -v), "pseudo_depth of .*: holds -"),
    "a kind that is none": (
        loading(lambda s, v, f: added(v, "pseudo_kind", 2) if "pseudo_depth" in f else v),
        "pseudo_kind is 2, should be 0 or 1",
    ),
    "intrinsics in shares": (changed("intrinsics", lambda v: v / 16), "no pinhole matrix"),
    "focal lengths of another image": (changed("intrinsics", lambda v: replaced(v, (0, 0), 1400)), "in its pixels"),
    "a center elsewhere": (changed("intrinsics", lambda v: replaced(v, (0, 2), 320)), "outside the image 12 x 16"),
    "a pose of 3 rows": (changed("world_from_camera", lambda v: v[:3].copy()), r"\[3, 4\], should be \[4, 4\]"),
    "a transposed pose": (
        changed("world_from_camera", lambda v: (v + replaced(np.zeros((4, 4)), (0, 3), 2)).T),
        "last row .*, should be 0, 0, 0, 1",
    ),
    "a scaled pose": (changed("world_from_camera", lambda v: v * [[2], [2], [2], [1]]), "not rigid"),
    "a left-handed pose": (changed("world_from_camera", lambda v: v * [-1, 1, 1, 1]), "mirrors the world"),
    "a class too many": (changed("semantic", lambda v: replaced(v, (0, 0), 3)), "the id 3, and there are 3 classes"),
    "a class below 0": (changed("semantic", lambda v: replaced(v.astype(int), (0, 0), -1)), "holds -1 to 255"),
    "a label too many": (changed("label", lambda v: v + 1), "label of .*: holds the id 3, and there are 3 classes"),
    "a label per class": (changed("label", lambda v: np.zeros(3, int)), r"label of .*: \[3\], should be \[\]"),
    "objects below 0": (changed("instances", lambda v: np.where(v, 1, -1)), "instances of .*: holds an id below 0"),
    "long normals": (changed("normals", lambda v: 2 * v), "of length 2, should be 1"),
    "normals in other axes": (changed("normals", lambda v: -v), "most point away from the camera"),
    "boxes of width and height": (
        changed("boxes", lambda v: np.float32([[8, 8, 4, 4], [3, 4, 9, 12]])),
        "has no area: left, top, right, bottom",
    ),
    "boxes in shares": (changed("boxes", lambda v: v / 16), "within 0 to 1: they are in pixels"),
    "boxes outside": (changed("boxes", lambda v: v + 10), "is outside the image 12 x 16"),
    "box labels too few": (changed("box_labels", lambda v: v[:1]), "1 rows, boxes has 2"),
    "a box label too many": (changed("box_labels", lambda v: v + 4), "box_labels of .*: holds the id 6"),
    "a box of no object": (changed("box_instances", lambda v: v + 4), "the object 4 has no pixel|the object 5 has no"),
    "a field of its own of another shape": (changed("acme/flow", lambda v: v[..., :1]), r"should be \[h, w, 2\]"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_each_way_to_break_the_contract_is_caught(root, name, monkeypatch):
    members, expected = BROKEN[name]
    broken = type("Broken", (Good,), {"__doc__": Good.__doc__, "__module__": __name__, **members})
    monkeypatch.setitem(globals(), "Broken", broken)  # where pickling looks for it
    with pytest.raises((AssertionError, IndexError), match=expected):
        check_dataset(broken, {"root": str(root)})


def test_one_view_can_be_checked_alone():
    view = View({"image": np.zeros((4, 6, 3), np.uint8)}, 1, 2)
    check_view(view, frozenset({"image"}))
    with pytest.raises(AssertionError, match="scene 1, frame 2: depth asked for and not there"):
        check_view(view, frozenset({"image", "depth"}))


def test_options_are_those_of_a_recipe(root):
    with pytest.raises(UserError, match=r"Good\.rot: unknown key, did you mean 'root'"):
        check_dataset(Good, {"rot": str(root)})
    with pytest.raises(AssertionError, match="cannot be made of these options: root: no folder"):
        check_dataset(Good, {"root": str(root / "no")})
    torch.manual_seed(0)


class Unheld(SingleImages):
    """Forgets to call `hold`."""

    def load(self, scene, frame, fields):
        raise NotImplementedError


def test_single_images_without_hold_say_so(tmp_path):
    dataset = Unheld(DataSpec((12, 16), 1, "train", tmp_path))
    with pytest.raises(RuntimeError, match="Unheld holds no images: call `hold` in its constructor"):
        dataset.sample(0, frozenset({"image"}), torch.Generator())


class Drawn(SingleImages):
    """Images that are drawn: names stand for them, and no file is opened."""

    def __init__(self, spec):
        super().__init__(spec)
        self.offer(("train",))
        self.scenes = ["all"]
        self.hold([Path("drawn")], [["0", "1", "2"]])

    def load(self, scene, frame, fields):
        view = View(scene=scene, frame=frame, size=SHAPE)
        if "image" in fields:
            view["image"] = np.random.default_rng(frame).integers(0, 255, (*SHAPE, 3), dtype=np.uint8)
        return view

    def fingerprint(self, frames=None):
        return "three"


def test_drawn_images_keep_the_contract():
    check_dataset(Drawn)
