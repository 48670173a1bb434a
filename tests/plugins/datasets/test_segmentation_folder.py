"""Images with masks: pairing, class ids, splits, and what a user can get wrong."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from prior3d.contracts.dataset import DataSpec
from prior3d.data.images.single_images import SplitFolders
from prior3d.errors import DamagedFile, UserError
from prior3d.registry.schema import construct
from prior3d_plugins.datasets.segmentation_folder import SegmentationFolder

BOTH = frozenset({"image", "semantic"})
CAMVID = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")


def spec(split="train", views=1):
    return DataSpec(size=(8, 10), views=views, split=split, cache=None)


def put(path, values, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values))
    image.convert(mode).save(path) if mode else image.save(path)


def fill(root, split="train", names=("a", "b", "c"), ids=(0, 1, 2), size=(4, 6)):
    """Write images whose pixels tell their place in the list, and masks whose columns cycle through `ids`."""
    mask = np.resize(np.array(ids, np.uint8), (size[1], size[0])).T
    for number, name in enumerate(names):
        put(root / split / "images" / f"{name}.png", np.full((*size, 3), number, np.uint8))
        put(root / split / "labels" / f"{name}.png", mask)
    return root


def test_images_come_with_their_masks(tmp_path):
    dataset = SegmentationFolder(spec(), root=fill(tmp_path, ids=(0, 2, 7, 255)), classes=3, ignore=7)
    dataset.verify()
    assert dataset.provides == BOTH and dataset.splits == ("train",) and len(dataset.class_names) == 3
    assert [dataset.frame_count(scene) for scene in range(len(dataset.scenes))] == [3]
    for frame in range(3):
        view = dataset.load(0, frame, BOTH)
        assert view["image"][0, 0, 0] == frame == view.frame
        assert view["semantic"].dtype == np.uint8
        assert set(np.unique(view["semantic"])) == {0, 2, 255}
        raw = np.asarray(Image.open(dataset.mask_path(frame)))
        assert np.array_equal(view["semantic"] == 255, (raw == 7) | (raw == 255))
    assert "semantic" not in dataset.load(0, 0, frozenset({"image"}))
    seen = [int(dataset.sample(draw, BOTH, torch.Generator())[0]["image"][0, 0, 0]) for draw in range(6)]
    assert sorted(seen[:3]) == sorted(seen[3:]) == [0, 1, 2]
    assert len(pickle.loads(pickle.dumps(dataset))) == 3


def test_masks_of_other_modes(tmp_path):
    fill(tmp_path, names=("a", "b", "c", "d"))
    gray = np.arange(24, dtype=np.uint8).reshape(4, 6) % 3
    palette = Image.fromarray(gray, "P")
    palette.putpalette([200, 10, 10, 0, 0, 0, 255, 255, 255])
    palette.save(tmp_path / "train/labels/a.png")
    put(tmp_path / "train/labels/b.png", gray.astype(np.uint16))
    put(tmp_path / "train/labels/c.png", gray > 0, "1")
    dataset = SegmentationFolder(spec(), root=tmp_path, classes=3)
    assert np.array_equal(dataset.load(0, 0, BOTH)["semantic"], gray)
    assert np.array_equal(dataset.load(0, 1, BOTH)["semantic"], gray)
    assert np.array_equal(dataset.load(0, 2, BOTH)["semantic"], gray > 0)


def test_splits_are_the_folders_that_exist(tmp_path):
    fill(tmp_path), fill(tmp_path, "val", ("v",)), fill(tmp_path, "test", ("s0", "s1", "t0"))
    for split, count in (("train", 3), ("validation", 1), ("test", 3)):
        dataset = SegmentationFolder(spec(split), root=tmp_path, classes=3, class_names=("x", "y", "z"))
        assert dataset.splits == ("train", "validation", "test") and len(dataset) == count
        assert dataset.class_names == ("x", "y", "z")
    matching = SegmentationFolder(spec("test"), root=tmp_path, classes=3, test_match="s*")
    assert [matching.path(0, frame).stem for frame in range(len(matching))] == ["s0", "s1"]
    assert len(SegmentationFolder(spec("train"), root=tmp_path, classes=3, test_match="s*")) == 3
    other = SplitFolders(train="test", test="train")
    assert len(SegmentationFolder(spec("test"), root=tmp_path, classes=3, folders=other)) == 3


def test_without_split_folders_a_hash_holds_out(tmp_path):
    fill(tmp_path, ".", [f"{number}" for number in range(60)])
    parts = [
        {dataset.path(0, frame) for frame in range(len(dataset))}
        for dataset in (
            SegmentationFolder(spec(split), root=tmp_path, classes=3, test_fraction=0.3) for split in ("train", "test")
        )
    ]
    assert len(parts[0] | parts[1]) == 60 and not parts[0] & parts[1] and 8 < len(parts[1]) < 30
    everything = SegmentationFolder(spec("test"), root=tmp_path, classes=3, test_fraction=1.0)
    assert everything.splits == ("test",) and len(everything) == 60


def test_an_id_that_is_no_class_is_named(tmp_path):
    dataset = SegmentationFolder(spec(), root=fill(tmp_path, ids=(0, 1, 11)), classes=3)
    message = r"^classes: .*labels/a\.png holds the class id 11, but the 3 classes have the ids 0 to 2"
    with pytest.raises(UserError, match=message):
        dataset.verify()
    with pytest.raises(UserError, match=message):
        dataset.load(0, 0, BOTH)
    put(tmp_path / "train/labels/a.png", np.full((4, 6), 40000, np.uint16))
    with pytest.raises(UserError, match="class id 40000"):
        dataset.load(0, 0, BOTH)


def test_what_a_user_can_get_wrong_is_said(tmp_path):
    root = fill(tmp_path / "set")
    (tmp_path / "empty/train/images").mkdir(parents=True)
    (tmp_path / "empty/train/labels").mkdir()
    (tmp_path / "flat").mkdir()
    cases = [
        ({"root": tmp_path / "no", "classes": 3}, {}, r"^root: no folder .*no$"),
        ({"root": tmp_path / "empty", "classes": 3}, {}, r"^root: no images for the split train in .*images"),
        (
            {"root": root, "classes": 3, "train_match": "z*"},
            {},
            r"no images whose name matches z\* for the split train",
        ),
        ({"root": root, "classes": 3, "labels": "masks"}, {}, r"^root: no folder .*train/masks"),
        (
            {"root": root, "classes": 3},
            {"split": "test"},
            r"this data has no split test, only train: set folders",
        ),
        (
            {"root": tmp_path / "flat", "classes": 3, "test_fraction": 1.0},
            {},
            r"^root: this data has no split train, only test: lower test_fraction or val",
        ),
        ({"root": root, "classes": 3}, {"views": 2}, r"^views: single images make samples of 1 view"),
        ({"root": root, "classes": 3, "test_fraction": 0.5}, {}, r"^test_fraction: splits come either from"),
        ({"root": root}, {}, r"^classes: say how many classes there are"),
        ({"root": root, "classes": 2, "class_names": ("a", "b", "c")}, {}, r"^class_names: 3 names for 2 classes"),
        ({"root": root, "class_names": ("a", "a")}, {}, r"^class_names: two classes have the same name"),
        ({"root": tmp_path, "classes": 3, "test_fraction": 0.9, "validation_fraction": 0.2}, {}, r"shares from 0 to 1"),
    ]
    for options, told, message in cases:
        with pytest.raises(UserError, match=message):
            SegmentationFolder(spec(**told), **options)


def test_images_and_masks_must_pair_up(tmp_path):
    root = fill(tmp_path)
    (root / "train/labels/b.png").unlink()
    with pytest.raises(UserError, match=r"^root: 1 of 3 images have no mask in .*labels.*, the first: b"):
        SegmentationFolder(spec(), root=root, classes=3)
    (root / "train/images/b.png").unlink()
    (root / "train/images/c.png").unlink()
    with pytest.raises(UserError, match=r"1 of 2 masks have no image in .*images.*, the first: c"):
        SegmentationFolder(spec(), root=root, classes=3)
    put(root / "train/images/a.jpg", np.zeros((4, 6, 3), np.uint8))
    with pytest.raises(UserError, match=r"two files for a in .*: a\.jpg, a\.png"):
        SegmentationFolder(spec(), root=root, classes=3)


def test_a_mask_of_another_size_is_refused(tmp_path):
    dataset = SegmentationFolder(spec(), root=fill(tmp_path), classes=3)
    put(tmp_path / "train/labels/b.png", np.zeros((2, 3), np.uint8))
    with pytest.raises(UserError, match=r"labels/b\.png: the mask is 2 x 3 pixels and its image 4 x 6"):
        dataset.verify()
    with pytest.raises(DamagedFile, match="the mask is 2 x 3 pixels"):
        dataset.load(0, 1, BOTH)


def test_damage_is_met_file_by_file_but_not_for_all_masks(tmp_path):
    dataset = SegmentationFolder(spec(), root=fill(tmp_path), classes=3)
    (tmp_path / "train/labels/b.png").write_bytes(b"\x89PNG broken")
    dataset.verify()
    with pytest.raises(DamagedFile, match=r"b\.png"):
        dataset.load(0, 1, BOTH)
    for name in "abc":
        put(tmp_path / f"train/labels/{name}.png", np.zeros((4, 6, 3), np.uint8))
    with pytest.raises(UserError, match=r"no mask can be read: .*a\.png: expected one id per pixel .* got mode RGB"):
        dataset.verify()


def test_a_recipe_gives_its_options(tmp_path):
    options = {"root": str(fill(tmp_path)), "classes": 3, "ignore": [7, 9], "test_match": "x*"}
    assert construct(SegmentationFolder, spec(), key="data", options=options).class_names[2] == "class 2"
    with pytest.raises(UserError, match=r"^data\.classes: "):
        construct(SegmentationFolder, spec(), key="data", options=options | {"classes": 1})


def test_real_street_images(shared_data):
    root = shared_data / "camvid"
    sizes, seen = {}, np.zeros(256, int)
    for split, match in (("train", None), ("validation", None), ("test", None), ("test", "Seq05VD*")):
        dataset = SegmentationFolder(spec(split), root=root, class_names=CAMVID, ignore=11, test_match=match)
        dataset.verify()
        sizes[split, match] = len(dataset)
        view = dataset.load(0, len(dataset) // 2, BOTH)
        assert view["semantic"].shape == view["image"].shape[:2] == (360, 480)
        seen += np.bincount(view["semantic"].ravel(), minlength=256)
    assert sizes == {("train", None): 184, ("validation", None): 101, ("test", None): 233, ("test", "Seq05VD*"): 171}
    assert seen[3] > 50_000 and seen[11:255].sum() == 0 and seen[255] > 0
    with pytest.raises(UserError, match=r"holds the class id 11, but the 11 classes have the ids 0 to 10"):
        SegmentationFolder(spec(), root=root, class_names=CAMVID).verify()
