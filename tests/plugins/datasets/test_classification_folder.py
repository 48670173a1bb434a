"""Images by class folder, split and domain: what is listed, labeled and refused."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from prior3d.contracts.dataset import DataSpec
from prior3d.data.images.single_images import SplitFolders
from prior3d.data.sample.augmentation import assemble
from prior3d.errors import DamagedFile, UserError
from prior3d.registry.schema import construct
from prior3d_plugins.datasets.classification_folder import ClassificationFolder

BOTH = frozenset({"image", "label"})
CLASSES = ("cat", "dog", "owl")


def spec(split="train", views=1):
    return DataSpec(size=(8, 10), views=views, split=split, cache=None)


def fill(root, below="", classes=CLASSES, each=4, label=True):
    """Write images whose red value is their class."""
    for number, name in enumerate(classes):
        for index in range(each):
            file = f"{name}/{index}.png" if label else f"{name}_{index}.png"
            path = root / below / file
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((5, 6, 3), number, np.uint8)).save(path)
    return root


def contents(dataset):
    """Return scene name, path and label of every frame; the image is decoded to confirm the label."""
    found = []
    for scene, name in enumerate(dataset.scenes):
        for frame in range(dataset.frame_count(scene)):
            view = dataset.load(scene, frame, BOTH)
            assert view["label"] == view["image"][0, 0, 0] and (view.scene, view.frame) == (scene, frame)
            found.append((name, dataset.path(scene, frame), view["label"]))
    assert len(found) == len(dataset)
    return found


def test_folders_are_classes(tmp_path):
    dataset = ClassificationFolder(spec(), root=fill(tmp_path / "set"))
    dataset.verify()
    assert dataset.provides == BOTH and dataset.splits == ("train",) and dataset.class_names == CLASSES
    assert [label for _, _, label in contents(dataset)] == [0] * 4 + [1] * 4 + [2] * 4
    assert dataset.describe() == ["12 images of the split train, 3 classes of 4 to 4 images (set: 12)"]
    shown = [dataset.sample(draw, BOTH, torch.Generator())[0] for draw in range(12)]
    assert len({view.frame for view in shown}) == 12
    assert len(pickle.loads(pickle.dumps(dataset))) == 12


def test_a_label_alone_needs_no_decoding(tmp_path):
    dataset = ClassificationFolder(spec(), root=fill(tmp_path))
    view = dataset.load(0, 11, frozenset({"label"}))
    assert "image" not in view and view.size == (5, 6)
    sample = assemble([view], (8, 10), None, frozenset({"label"}), torch.Generator())
    assert sample["label"] == 2


def test_splits_are_folders_of_the_usual_names(tmp_path):
    fill(tmp_path, "train"), fill(tmp_path, "val", each=2), fill(tmp_path, "test", each=1)
    for split, count in (("train", 12), ("validation", 6), ("test", 3)):
        dataset = ClassificationFolder(spec(split), root=tmp_path)
        assert dataset.splits == ("train", "validation", "test") and len(contents(dataset)) == count
    other = SplitFolders(train="test", test="train")
    assert len(ClassificationFolder(spec("test"), root=tmp_path, folders=other)) == 12


def test_a_hash_holds_images_out(tmp_path):
    fill(tmp_path, each=40)
    parts = {
        split: {path for _, path, _ in contents(ClassificationFolder(spec(split), root=tmp_path, **shares))}
        for shares in ({"test_fraction": 0.3, "validation_fraction": 0.2},)
        for split in ("train", "validation", "test")
    }
    assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == 120
    assert 20 < len(parts["test"]) < 55 and 10 < len(parts["validation"]) < 40
    everything = ClassificationFolder(spec("test"), root=tmp_path, test_fraction=1.0)
    assert everything.splits == ("test",) and len(everything) == 120


def test_domains_are_scenes(tmp_path):
    for domain in ("art", "cartoon", "photo"):
        fill(tmp_path, domain, each=20)
    options = {"root": tmp_path, "train_domains": ("photo",), "test_fraction": 0.25}
    train, test = (ClassificationFolder(spec(split), **options) for split in ("train", "test"))
    assert train.splits == test.splits == ("train", "test")
    assert train.scenes == ["photo"] and sorted(test.scenes) == ["art", "cartoon", "photo"]
    train_paths, found = {path for _, path, _ in contents(train)}, contents(test)
    assert not train_paths & {path for _, path, _ in found}
    counts = {domain: sum(name == domain for name, _, _ in found) for domain in test.scenes}
    assert counts["art"] == counts["cartoon"] == 60 and counts["photo"] == 60 - len(train_paths) > 0
    without = ClassificationFolder(spec("test"), root=tmp_path, test_domains=("art",))
    assert without.splits == ("train", "test") and without.scenes == ["art"]
    assert ClassificationFolder(spec(), root=tmp_path, test_domains=("art",)).scenes == ["cartoon", "photo"]


def test_names_may_begin_with_the_class(tmp_path):
    dataset = ClassificationFolder(spec(), root=fill(tmp_path, label=False), label="prefix")
    assert dataset.class_names == CLASSES and len(contents(dataset)) == 12


def test_what_is_no_image_of_a_class_is_not_listed(tmp_path):
    fill(tmp_path)
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / "empty").mkdir()
    (tmp_path / ".cache").mkdir()
    fill(tmp_path / "dog", classes=("deeper",))
    fill(tmp_path, classes=("loose",), label=False)
    dataset = ClassificationFolder(spec(), root=tmp_path)
    assert dataset.class_names == CLASSES and len(dataset) == 12


def test_what_a_user_can_get_wrong_is_said(tmp_path):
    plain, split, domains, flat = (tmp_path / name for name in ("plain", "split", "domains", "flat"))
    fill(plain), fill(split, "train"), fill(split, "test", CLASSES[:2]), fill(flat, label=False)
    fill(domains, "photo"), fill(domains, "art", (*CLASSES, "rat"))
    (tmp_path / "empty").mkdir()
    cases = [
        ({"root": tmp_path / "no"}, {}, r"^root: no folder .*no$"),
        ({"root": tmp_path / "empty"}, {}, r"no classes in .*empty: expected a folder of images for each class"),
        ({"root": flat}, {}, r"no classes in .*flat: images lie in it directly; label: prefix takes"),
        ({"root": plain, "label": "prefix"}, {}, r"no classes in .*plain: expected images in it"),
        ({"root": domains}, {}, r"lie one folder deeper; if art, photo are domains, name them in train_domains"),
        (
            {"root": plain},
            {"split": "test"},
            r"this data has no split test, only train: set folders, or te",
        ),
        ({"root": plain}, {"views": 2}, r"^views: single images make samples of 1 view"),
        ({"root": plain, "test_fraction": 1.2}, {}, r"^test_fraction: expected shares from 0 to 1"),
        ({"root": plain, "test_fraction": 1e-6}, {"split": "test"}, r"no images \(\.jpg .*\) for the split test"),
        ({"root": split}, {}, r"3 classes in .*train and 2 in .*test: owl has images in train and none in test; both"),
        ({"root": domains, "train_domains": ("photo",)}, {}, r"rat has images in art and none in photo"),
        ({"root": domains, "train_domains": ("foto",)}, {}, r"^train_domains: no folder foto in .*, only art, ph"),
        ({"root": domains, "train_domains": ("art",), "test_domains": ("art",)}, {}, r"^test_domains: art is also tra"),
        (
            {"root": domains, "train_domains": ("art",), "folders": SplitFolders("a")},
            {},
            r"^folders: folders hold",
        ),
        ({"root": split, "test_fraction": 0.5}, {}, r"^test_fraction: splits come either from sub-folders"),
        ({"root": split, "folders": SplitFolders("train", test="exam")}, {}, r"^root: no folder .*exam"),
    ]
    for options, told, message in cases:
        with pytest.raises(UserError, match=message):
            ClassificationFolder(spec(**told), **options)


def test_a_single_class_is_refused(tmp_path):
    with pytest.raises(UserError, match="at least two classes, got only cat"):
        ClassificationFolder(spec(), root=fill(tmp_path, classes=("cat",)))


def test_a_class_without_a_training_image_is_named(tmp_path):
    fill(tmp_path, each=1)
    dataset = ClassificationFolder(spec(), root=tmp_path, test_fraction=0.75)
    with pytest.raises(UserError, match=r"^test_fraction: \d of 3 classes have no image in the training split"):
        dataset.verify()


def test_damage_is_met_file_by_file(tmp_path):
    dataset = ClassificationFolder(spec(), root=fill(tmp_path))
    (tmp_path / "cat" / "2.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(DamagedFile, match=r"2\.png"):
        dataset.load(0, 2, BOTH)
    assert dataset.load(0, 3, BOTH)["label"] == 0


def test_a_recipe_gives_its_options(tmp_path):
    for domain in ("photo", "art"):
        fill(tmp_path, domain)
    options = {"root": str(tmp_path), "train_domains": ["photo"]}
    assert construct(ClassificationFolder, spec("test"), key="data", options=options).scenes == ["art"]
    with pytest.raises(UserError, match=r"^data\.label: "):
        construct(ClassificationFolder, spec(), key="data", options=options | {"label": "file"})


def test_real_sets(shared_data):
    pacs = {"root": shared_data / "pacs", "train_domains": ("photo",), "test_fraction": 0.2}
    train, test = (ClassificationFolder(spec(split), **pacs) for split in ("train", "test"))
    train.verify()
    assert train.class_names == ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
    assert test.scenes == ["photo", "art_painting", "cartoon"]
    assert [test.frame_count(scene) for scene in (1, 2)] == [2048, 2344]
    assert len(train) + test.frame_count(0) == 1670
    conflicts = ClassificationFolder(spec("test"), root=shared_data / "cue-conflict", test_fraction=1.0)
    assert len(conflicts) == 636 and len(conflicts.class_names) == 16
    photographs = ClassificationFolder(spec(), root=shared_data / "imagenet-1-per-class", label="prefix")
    assert len(photographs) == len(photographs.class_names) == 1000
    assert photographs.path(0, 0).name == "n01440764_tench.jpg" and photographs.load(0, 999, BOTH)["label"] == 999
