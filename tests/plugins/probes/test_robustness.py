"""Accuracy on other domains and on corrupted images, with features whose weaknesses are known."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from prior3d.backbone import Maps
from prior3d.contracts.dataset import DataSpec
from prior3d.contracts.probe import metrics_of
from prior3d.errors import UserError
from prior3d.probes.models import FrozenModel
from prior3d.probes.probe_data import ProbeData
from prior3d_plugins.datasets.classification_folder import ClassificationFolder
from prior3d_plugins.probes.robustness.corruptions import CORRUPTIONS
from prior3d_plugins.probes.robustness.probe import Robustness

SIDE = 32


def draw(label, domain, number):
    """A bright bar, upright or lying, on gray; in the domain `negative` bright and dark are swapped."""
    rng = np.random.default_rng([label, number])
    image = np.full((SIDE, SIDE), 90.0)
    start = rng.integers(6, 20)
    bar = image.T if label else image
    bar[start : start + 6] = 210
    image = image + rng.normal(0, 4, image.shape)
    image = 255 - image if domain == "negative" else image
    return np.repeat(image.clip(0, 255).astype(np.uint8)[..., None], 3, -1)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("domains")
    for domain in ("photo", "again", "negative"):
        for label, name in enumerate(("lying", "upright")):
            (folder / domain / name).mkdir(parents=True)
            for number in range(30):
                Image.fromarray(draw(label, domain, number)).save(folder / domain / name / f"{number}.png")
    return folder


def opened(root, **options):
    parts = {
        part: ClassificationFolder(DataSpec((SIDE, SIDE), 1, split, root), root=root, **options)
        for part, split in (("train", "train"), ("held_out", "test"))
    }
    return ProbeData(parts)


@pytest.fixture(scope="module")
def data(root):
    made = opened(root, train_domains=("photo",), test_fraction=0.4)
    yield made
    made.close()


class Reads(nn.Module):
    """Stands in for a backbone: a function of images is its pooled feature."""

    size = (SIDE, SIDE)

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, images, reads):
        return Maps({4: images}, None, self.function(images))


def edges(images):
    """Strength of edges along each axis: what bars differ in, dark or bright."""
    gray = images.mean(1)
    return torch.stack([gray.diff(dim=1).abs().amax((1, 2)), gray.diff(dim=2).abs().amax((1, 2))], 1)


def skewed(images):
    """How rows and columns differ, with the sign of the difference: the other way round where bars are dark."""
    gray = images.mean(1)
    means = gray.mean(2), gray.mean(1)
    return torch.stack([((mean - mean.mean(1, keepdim=True)) * 20).pow(3).mean(1) for mean in means], 1)


def strong_edges(images):
    """How many edges of a fixed strength there are along each axis: none once contrast is lost."""
    gray = images.mean(1)
    return torch.stack([(gray.diff(dim=axis).abs() > 0.3).float().mean((1, 2)) for axis in (1, 2)], 1)


def measure(function, data, **options):
    probe = Robustness(**options)
    return metrics_of(probe, probe.measure(FrozenModel([Reads(function)]), data))


def test_what_holds_in_all_domains_is_told_from_what_does_not(data):
    robust, weak = measure(edges, data, corrupted=0), measure(skewed, data, corrupted=0)
    assert set(robust) == {
        "accuracy, in domain",
        "accuracy, again",
        "accuracy, negative",
        "accuracy, other domains",
        "drop, other domains",
    }
    assert min(value for name, value in robust.items() if "accuracy" in name) > 0.95
    assert abs(robust["drop, other domains"]) < 0.05
    assert weak["accuracy, in domain"] > 0.95 and weak["accuracy, again"] > 0.95 and weak["accuracy, negative"] < 0.5
    mean = (weak["accuracy, again"] + weak["accuracy, negative"]) / 2
    assert weak["accuracy, other domains"] == pytest.approx(mean)
    assert weak["drop, other domains"] == pytest.approx(weak["accuracy, in domain"] - mean)


def test_corruptions_cost_features_that_depend_on_what_they_take_away(data):
    found = measure(strong_edges, data)
    corrupted = {name: found[f"accuracy, {name}"] for name in CORRUPTIONS}
    assert found["accuracy, corruptions"] == pytest.approx(sum(corrupted.values()) / 4)
    assert found["drop, corruptions"] == pytest.approx(found["accuracy, in domain"] - found["accuracy, corruptions"])
    assert found["accuracy, in domain"] > 0.95 and corrupted["jpeg"] > 0.95
    assert corrupted["contrast"] == pytest.approx(0.5, abs=0.15)  # nothing is left to tell the classes by


def test_hits_by_level_are_those_of_the_images_themselves(data):
    probe = Robustness(corrupted=7)
    scores = probe.measure(FrozenModel([Reads(edges)]), data)
    corrupted = scores.statistics["corrupted"]
    in_domain = scores.statistics["images, in domain"]
    assert corrupted.sum() == 7 and (corrupted <= in_domain).all()
    assert scores.statistics["noise hits"].shape == (len(scores.groups), 5)
    assert (scores.statistics["noise hits"] <= corrupted[:, None]).all()
    again = probe.measure(FrozenModel([Reads(edges)]), data)
    assert all(torch.equal(values, again.statistics[name]) for name, values in scores.statistics.items())


def test_random_features_are_at_chance_everywhere(data):
    def noise(images):
        keys = (images.sum((1, 2, 3)) * 1e4).round().long().tolist()
        return torch.stack([torch.randn(8, generator=torch.Generator().manual_seed(key)) for key in keys])

    found = measure(noise, data)
    assert all(abs(value - 0.5) < 0.25 for name, value in found.items() if name.startswith("accuracy"))


def test_without_a_held_out_training_domain_all_are_corrupted(root):
    data = opened(root, train_domains=("photo",))
    found = measure(edges, data, corrupted=10)
    assert "accuracy, in domain" not in found and "drop, other domains" not in found
    assert found["accuracy, jpeg"] > 0.5
    data.close()


def test_a_set_without_domains_has_corruptions_alone(root):
    data = opened(root / "photo", test_fraction=0.4)
    found = measure(edges, data)
    assert found["accuracy, in domain"] > 0.95 and "accuracy, other domains" not in found
    assert "accuracy, corruptions" in found
    data.close()


def test_the_control_names_the_most_frequent_class(data):
    found = metrics_of(probe := Robustness(), probe.controls(data)["majority class"])
    assert found["accuracy, again"] == found["accuracy, negative"] == 0.5
    assert "accuracy, corruptions" not in found


def test_a_domain_called_like_a_corruption_is_refused(root, tmp_path):
    (tmp_path / "noise").symlink_to(root / "again")
    (tmp_path / "photo").symlink_to(root / "photo")
    data = opened(tmp_path, train_domains=("photo",))
    with pytest.raises(UserError, match="a domain cannot be called noise"):
        Robustness().measure(FrozenModel([Reads(edges)]), data)
    data.close()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_scores(data):
    probe = Robustness(corrupted=8)
    on_cpu, on_gpu = (probe.measure(FrozenModel([Reads(edges)], device), data) for device in ("cpu", "cuda"))
    for name, values in on_cpu.statistics.items():
        assert (values != on_gpu.statistics[name]).float().mean() <= 0.05  # rounding at the border of two classes
