"""What scores are known by changes with the files of the data, of the probe, and with a model's classifier."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from prior3d.backbone import Backbone
from prior3d.contracts.probe import Probe
from prior3d.errors import UserError
from prior3d.probes.classifier import classifier_digest
from prior3d.probes.keys import keys_of
from prior3d.probes.measuring import measure
from prior3d.probes.tasks import build_tasks
from prior3d.recipe.sections import DataSection, ProbeDataSection, ProbeSection
from prior3d.registry import Registry
from prior3d_plugins.probes.finetune_segmentation import FinetuneSegmentation
from prior3d_plugins.probes.segmentation import Segmentation

SIZE = (32, 32)


@pytest.fixture
def root(tmp_path):
    """Four images with masks: two to train on, two to test on."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("a", "b"):
            for folder, shape, most in (("images", (32, 32, 3), 255), ("labels", (32, 32), 2)):
                path = tmp_path / "set" / split / folder / f"{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, most, shape, np.uint8)).save(path)
    return tmp_path / "set"


def sections(root, probe, own=False, most=None, **options):
    data = {"name": "segmentation_folder", "options": {"root": str(root), "classes": 2}}
    top = DataSection(**data, size=SIZE, batch_size=1, cache=root / "cache")
    section = ProbeSection(
        probe, options=options, max_images=most, data=ProbeDataSection(**data, size=SIZE) if own else None
    )
    return top, {"p": section}


def key_of(root, probe="segmentation", column="m", classifiers=None, **given):
    data, probes = sections(root, probe, **given)
    tasks = build_tasks(probes, data, Registry())
    return keys_of(tasks, probes, data, Registry(), {"m": "weights"}, classifiers)("p", column)


def later(path):
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))


def test_scores_are_of_the_files_they_were_measured_on(root):
    keys = [key_of(root)]
    assert key_of(root) == keys[0]
    for change in (
        lambda: later(root / "train" / "images" / "a.png"),
        lambda: later(root / "test" / "labels" / "b.png"),
        lambda: Image.new("L", (32, 32)).save(root / "test" / "labels" / "b.png"),
        lambda: [
            (root / "test" / kind / "b.png").rename(root / "test" / kind / "c.png") for kind in ("images", "labels")
        ],
    ):
        change()
        keys.append(key_of(root))
        keys.append(key_of(root, column=None))
    assert len(set(keys)) == len(keys)


def test_files_that_are_not_read_do_not_count(root):
    key = key_of(root, most=1)
    later(root / "test" / "images" / "b.png")
    assert key_of(root, most=1) == key
    later(root / "test" / "images" / "a.png")
    assert key_of(root, most=1) != key


def test_files_that_only_the_probe_reads_count(root, tmp_path, monkeypatch):
    clean = tmp_path / "clean" / "n01440764" / "1.JPEG"
    clean.parent.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(clean)
    take_any_data(monkeypatch)
    before = key_of(root, "shape_bias", clean=str(tmp_path / "clean"))
    later(clean)
    assert key_of(root, "shape_bias", clean=str(tmp_path / "clean")) != before


def test_a_classifier_counts_where_it_is_needed(root, monkeypatch):
    take_any_data(monkeypatch)
    one, two = {"m": "1"}, {"m": "2"}
    assert key_of(root, "shape_bias", classifiers=one) != key_of(root, "shape_bias", classifiers=two)
    assert key_of(root, classifiers=one) == key_of(root, classifiers=two)
    backbone = Backbone("resnet10t", (32, 32))
    weights = {"fc.weight": torch.rand(3, 512), "fc.bias": torch.rand(3)}
    found = classifier_digest(backbone, weights)
    assert found == classifier_digest(backbone, {**weights, "conv1.weight": torch.rand(1)})
    assert found != classifier_digest(backbone, {**weights, "fc.bias": torch.rand(3)})
    assert classifier_digest(backbone, {}) is None


def test_a_changed_probe_is_measured_again(root, tmp_path, monkeypatch):
    source = Path(sys.modules[Segmentation.__module__].__file__)
    before = key_of(root)
    edited = tmp_path / "segmentation.py"
    edited.write_text(source.read_text() + "# another map\n")
    monkeypatch.setattr(sys.modules[Segmentation.__module__], "__file__", str(edited))
    assert key_of(root) != before
    edited.write_bytes(source.read_bytes())
    assert key_of(root) == before


def take_any_data(monkeypatch):
    monkeypatch.setattr("prior3d_plugins.probes.shape_bias.probe.ShapeBias.needs", ("image",))
    monkeypatch.setattr("prior3d_plugins.probes.shape_bias.probe.ShapeBias.check_data", Probe.check_data)


class Refusing(Probe):
    """Refuses with the key it is told."""

    def __init__(self, *, stride: int = 1, key: str | None = None):
        self.stride, self.key = stride, key

    def measure(self, model, data, seed=0):
        raise UserError("no", self.key)

    def summarize(self, total):
        return {}


@pytest.mark.parametrize(
    ("key", "own", "expected"),
    [
        (None, False, "probes.p"),
        ("stride", False, "probes.p.stride"),
        ("data", False, "data"),
        ("data.root", False, "data.root"),
        ("data.root", True, "probes.p.data.root"),
        ("backbone.weights", True, "backbone.weights"),
    ],
)
def test_what_a_probe_refuses_has_the_key_of_the_recipe(root, monkeypatch, key, own, expected):
    registry = Registry()
    monkeypatch.setattr(registry, "get", get_instead(registry, Refusing))
    data, probes = sections(root, "refusing", own, key=key)
    (task,) = build_tasks(probes, data, registry)
    with pytest.raises(UserError) as refused:
        measure(task, None, None)
    assert refused.value.key == expected


def get_instead(registry, probe):
    get = registry.get
    return lambda kind, name, key=None: probe if kind == "probes" else get(kind, name, key)


def test_an_option_of_fine_tuning_that_does_not_fit_the_model(root):
    from prior3d.probes.measuring import freeze, opened

    data, probes = sections(root, "finetune_segmentation", decoder="pretrained")
    (task,) = build_tasks(probes, data, Registry())
    assert isinstance(task.probe, FinetuneSegmentation)
    with opened([task]) as images:
        model = freeze([Backbone("convnext_atto", SIZE)], images, "cpu")
        with pytest.raises(UserError, match=r"probes\.p\.decoder: convnext_atto has no decoder of its own"):
            measure(task, model, images)


def test_weights_that_are_not_numbers_are_refused(root):
    from prior3d.probes.measuring import freeze, opened

    data, probes = sections(root, "segmentation")
    backbone = Backbone("resnet10t", SIZE)
    with opened(build_tasks(probes, data, Registry())) as images:
        with torch.no_grad():
            backbone.encoder.model.bn1.weight[0] = torch.nan
        with pytest.raises(UserError, match=r"the weights of resnet10t hold NaN or infinity: encoder\.model\.bn1"):
            freeze([backbone], images, "cpu")
