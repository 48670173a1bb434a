import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from prior3d.contracts.dataset import DataSpec
from prior3d.data.images.single_images import split_of
from prior3d.errors import DamagedFile, UserError
from prior3d_plugins.datasets.image_folder import ImageFolder, SplitFolders

IMAGE = frozenset({"image"})


def spec(split="train", views=1, seed=0, tmp_path=None):
    return DataSpec(size=(8, 10), views=views, split=split, cache=tmp_path, seed=seed)


def fill(folder, names, size=(6, 5)):
    """Write images whose pixels all tell their place in the list of names."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((*size, 3), number, dtype=np.uint8)).save(path)
    return folder


NAMES = [f"{folder}/{name}.png" for folder in ("a", "b/c", "b") for name in ("x", "y", "z", "w")]


def shown(dataset, draws):
    return [int(dataset.sample(draw, IMAGE, torch.Generator())[0]["image"][0, 0, 0]) for draw in draws]


def test_each_epoch_shows_every_image_once_in_an_order_of_its_own(tmp_path):
    dataset = ImageFolder(spec(), root=fill(tmp_path, NAMES))
    first, second = shown(dataset, range(12)), shown(dataset, range(12, 24))
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second
    assert first != sorted(first)


def test_a_draw_decides_alone_what_is_shown(tmp_path):
    fill(tmp_path, NAMES)
    in_order = shown(ImageFolder(spec(), root=tmp_path), range(48))
    jumping = ImageFolder(spec(), root=tmp_path)
    draws = torch.randperm(48, generator=torch.Generator().manual_seed(0)).tolist()
    assert shown(jumping, draws) == [in_order[draw] for draw in draws]
    assert shown(pickle.loads(pickle.dumps(jumping)), range(48)) == in_order
    assert shown(ImageFolder(spec(seed=1), root=tmp_path), range(48)) != in_order


def test_views_say_where_they_come_from(tmp_path):
    roots = [fill(tmp_path / "one", NAMES[:4]), fill(tmp_path / "two", NAMES[4:7])]
    dataset = ImageFolder(spec(), root=roots)
    assert dataset.scenes == ["one", "two"] and len(dataset) == 7
    seen = set()
    for draw in range(7):
        (view,) = dataset.sample(draw, IMAGE, torch.Generator())
        path = dataset.path(view.scene, view.frame)
        assert np.array_equal(np.asarray(Image.open(path)), view["image"])
        assert path.is_relative_to(roots[view.scene])
        seen.add((view.scene, view.frame))
    assert len(seen) == 7
    assert dataset.describe() == ["7 images of the split train (one: 4, two: 3)"]


def test_only_images_are_listed(tmp_path):
    fill(tmp_path, ["a.png", "b.JPG", "deep/er/c.jpeg", ".hidden.png", ".cache/d.png", "e.bmp"])
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "deep" / "loop").symlink_to(tmp_path)
    (tmp_path / "linked.png").symlink_to(tmp_path / "a.png")
    dataset = ImageFolder(spec(), root=tmp_path)
    assert [dataset.path(0, i).relative_to(tmp_path).as_posix() for i in range(len(dataset))] == [
        "a.png",
        "b.JPG",
        "deep/er/c.jpeg",
        "linked.png",
    ]
    assert len(ImageFolder(spec(), root=tmp_path, extensions=("bmp",))) == 1


def test_names_that_are_not_utf8_are_found(tmp_path):
    fill(tmp_path, ["ok.png"])
    (tmp_path / "ok.png").rename(str(tmp_path) + "/\udcff.png")
    assert shown(ImageFolder(spec(), root=tmp_path), range(1)) == [0]


def test_hashed_splits_are_disjoint_complete_and_stable(tmp_path):
    names = [f"{i // 50}/{i}.png" for i in range(200)]
    fill(tmp_path / "one", names, size=(1, 1))

    def split(root, name):
        dataset = ImageFolder(spec(name), root=root, test_fraction=0.3, validation_fraction=0.2)
        assert dataset.splits == ("train", "validation", "test")
        return {dataset.path(0, i).relative_to(root).as_posix() for i in range(len(dataset))}

    parts = {name: split(tmp_path / "one", name) for name in ("train", "validation", "test")}
    assert set.union(*parts.values()) == set(names) and sum(map(len, parts.values())) == 200
    assert 40 <= len(parts["test"]) <= 80 and 22 <= len(parts["validation"]) <= 58
    fill(tmp_path / "moved", [*names[::2], "new.png"], size=(1, 1))
    for name, part in parts.items():
        assert split(tmp_path / "moved", name) - {"new.png"} == part & set(names[::2])


def test_hash_fractions_are_met_on_many_names():
    counts = {"train": 0, "validation": 0, "test": 0}
    for number in range(20000):
        counts[split_of(f"n{number // 1000:08d}/img_{number}.jpg", 0.1, 0.05)] += 1
    assert counts["test"] == pytest.approx(2000, abs=150)  # 3.5 standard deviations
    assert counts["validation"] == pytest.approx(1000, abs=110)


def test_splits_may_be_folders(tmp_path):
    fill(tmp_path, ["train/images/a.png", "train/images/b.png", "test/c.png", "train/labels/a.png"])
    folders = SplitFolders(train="train/images", test="test")
    train, test = (ImageFolder(spec(split), root=tmp_path, folders=folders) for split in ("train", "test"))
    assert train.splits == ("train", "test")
    assert len(train) == 2 and len(test) == 1
    assert test.path(0, 0) == tmp_path / "test" / "c.png"


def with_pseudo(tmp_path, kind="disparity"):
    fill(tmp_path / "images", NAMES, size=(6, 8))
    for number, name in enumerate(NAMES):
        path = (tmp_path / "pseudo" / name).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.full((3, 4), 300 + number, dtype=np.uint16)
        values[0, 0] = 0
        if number % 2:
            np.save(path.with_suffix(".npy"), values.astype(np.float64) / 7)
        else:
            Image.fromarray(values).save(path)
    if kind:
        (tmp_path / "pseudo" / "kind.json").write_text(json.dumps({"kind": kind}))
    return {"root": tmp_path / "images", "pseudo_depth": tmp_path / "pseudo"}


def test_pseudo_depth_comes_with_its_kind(tmp_path):
    dataset = ImageFolder(spec(), **with_pseudo(tmp_path))
    dataset.verify()
    assert dataset.provides == {"image", "pseudo_depth"}
    for draw in range(12):
        (view,) = dataset.sample(draw, frozenset({"image", "pseudo_depth"}), torch.Generator())
        number = int(view["image"][0, 0, 0])
        expected = 300 + number if number % 2 == 0 else np.float32((300 + number) / 7)
        assert view["pseudo_kind"] == 1
        assert view["pseudo_depth"].dtype == np.float32 and view["pseudo_depth"].shape == (3, 4)
        assert view["pseudo_depth"][0, 0] == 0 and (view["pseudo_depth"].ravel()[1:] == expected).all()
    assert "pseudo_depth" not in dataset.sample(0, IMAGE, torch.Generator())[0]
    assert "with pseudo-disparity" in dataset.describe()[0]


def test_pseudo_depth_below_the_images_is_not_an_image(tmp_path):
    options = with_pseudo(tmp_path)
    dataset = ImageFolder(spec(), root=tmp_path, pseudo_depth=options["pseudo_depth"])
    assert len(dataset) == 12


def test_the_kind_may_be_declared_in_the_recipe(tmp_path):
    options = with_pseudo(tmp_path, kind=None)
    dataset = ImageFolder(spec(), **options, pseudo_kind="depth")
    (view,) = dataset.sample(0, frozenset({"pseudo_depth"}), torch.Generator())
    assert view["pseudo_kind"] == 0


@pytest.mark.parametrize(
    ("kind_file", "declared", "message"),
    [
        (None, None, r"^pseudo_kind: say whether the pseudo-depth is depth or disparity"),
        ('{"kind": "depth"}', "disparity", r"^pseudo_kind: pseudo-depth is said to be both depth and disparity"),
        ('{"kind": "meters"}', None, r'^pseudo_depth: expected \{"kind": "depth"\} or .* in .*kind\.json'),
        ('["depth"]', "depth", r"^pseudo_depth: expected"),
        ("{kind", None, r"^pseudo_depth: .*kind\.json is not JSON"),
    ],
)
def test_an_unclear_kind_is_refused(tmp_path, kind_file, declared, message):
    options = with_pseudo(tmp_path, kind=None)
    if kind_file is not None:
        (tmp_path / "pseudo" / "kind.json").write_text(kind_file)
    with pytest.raises(UserError, match=message):
        ImageFolder(spec(), **options, pseudo_kind=declared)


def test_missing_pseudo_depth_is_named(tmp_path):
    dataset = ImageFolder(spec(), **with_pseudo(tmp_path))
    (tmp_path / "pseudo" / "a" / "x.png").unlink()
    with pytest.raises(UserError, match=r"^pseudo_depth: 1 of 12 images have no \.png or \.npy in .*: a/x\.png"):
        dataset.verify()


def test_what_a_user_can_get_wrong_is_said(tmp_path):
    fill(tmp_path / "images", NAMES)
    (tmp_path / "empty").mkdir()
    root = tmp_path / "images"
    cases = [
        ({"root": tmp_path / "nowhere"}, {}, r"^root: no folder .*nowhere"),
        ({"root": tmp_path / "empty"}, {}, r"^root: no images \(\.jpg .*\) for the split train in .*empty"),
        ({"root": root}, {"views": 2}, r"^views: single images make samples of 1 view, got 2"),
        ({"root": root}, {"split": "test"}, r"^test_fraction: this data has no split test: set this share or"),
        ({"root": root, "test_fraction": 1.0}, {}, r"^test_fraction: expected shares from 0"),
        ({"root": root, "test_fraction": -0.1}, {}, r"^test_fraction: expected shares from 0"),
        ({"root": root, "folders": SplitFolders("a"), "test_fraction": 0.1}, {}, r"^folders: splits come either"),
        ({"root": root, "folders": SplitFolders("t")}, {}, r"^folders\.train: no folder .*t"),
        ({"root": root, "pseudo_kind": "depth"}, {}, r"^pseudo_kind: there is no pseudo_depth"),
        ({"root": root, "pseudo_depth": tmp_path / "no"}, {}, r"^pseudo_depth: no folder"),
        ({"root": [root, root / "a"], "pseudo_depth": root}, {}, r"^pseudo_depth: expected one folder for each"),
    ]
    for options, told, message in cases:
        with pytest.raises(UserError, match=message):
            ImageFolder(spec(**told), **options)


def test_damage_is_reported_when_met(tmp_path):
    dataset = ImageFolder(spec(), **with_pseudo(tmp_path))
    (tmp_path / "images" / "a" / "x.png").write_bytes(b"\x89PNG broken")
    (tmp_path / "pseudo" / "a" / "z.png").unlink()
    damaged = {}
    for draw in range(12):
        try:
            dataset.sample(draw, frozenset({"image", "pseudo_depth"}), torch.Generator())
        except DamagedFile as damage:
            damaged[damage.path.relative_to(tmp_path).as_posix()] = damage.why
    assert set(damaged) == {"images/a/x.png", "pseudo/a/z.png"}
    assert damaged["pseudo/a/z.png"] == "missing"


@pytest.mark.parametrize("ending", ["npy", "png"])
@pytest.mark.parametrize(
    ("values", "why"),
    [
        (np.full((120, 90), 7), "90 x 120 pixels cannot show the field of view of an image of 120 x 90"),
        (np.zeros((90, 120)), "no pixel has a known value"),
        (np.full((90, 120), np.nan), "no pixel has a known value"),
    ],
)
def test_pseudo_depth_that_cannot_be_of_its_image_is_damage(tmp_path, ending, values, why):
    fill(tmp_path / "images", ["a.png"], size=(90, 120))
    (tmp_path / "maps").mkdir()
    if ending == "npy":
        np.save(tmp_path / "maps" / "a.npy", values.astype(np.float32))
    else:
        Image.fromarray(np.nan_to_num(values).astype(np.uint16)).save(tmp_path / "maps" / "a.png")
    options = {"root": tmp_path / "images", "pseudo_depth": tmp_path / "maps", "pseudo_kind": "depth"}
    with pytest.raises(DamagedFile, match=why) as caught:
        ImageFolder(spec(), **options).load(0, 0, frozenset({"pseudo_depth"}))
    assert caught.value.path == tmp_path / "maps" / f"a.{ending}"


def test_pseudo_depth_at_the_size_of_a_network_is_of_its_image(tmp_path):
    fill(tmp_path / "images", ["a.png"], size=(427, 640))
    (tmp_path / "maps").mkdir()
    np.save(tmp_path / "maps" / "a.npy", np.ones((350, 518), np.float32))  # multiples of 14
    options = {"root": tmp_path / "images", "pseudo_depth": tmp_path / "maps", "pseudo_kind": "depth"}
    assert ImageFolder(spec(), **options).load(0, 0, frozenset({"pseudo_depth"}))["pseudo_depth"].shape == (350, 518)


def test_photographs_are_turned_upright(tmp_path):
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :30] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera stood on its side: to be turned clockwise
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif)
    image = ImageFolder(spec(), root=tmp_path).load(0, 0, IMAGE)["image"]
    assert image.shape == (60, 40, 3) and image[:25].min() > 150 and image[35:].max() < 50


def test_real_photographs_load(shared_data):
    folders = SplitFolders(train="train/images", validation="val/images", test="test/images")
    sizes = {}
    for split in ("train", "validation", "test"):
        dataset = ImageFolder(spec(split), root=shared_data / "camvid", folders=folders)
        sizes[split] = len(dataset)
        (view,) = dataset.sample(5, IMAGE, torch.Generator())
        assert view["image"].shape == (360, 480, 3) and 20 < view["image"].mean() < 230
    assert sizes == {"train": 184, "validation": 101, "test": 233}
