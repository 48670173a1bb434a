"""Classification of whole images: planted, random and small cases with independent answers."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression as Reference
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import nn

from prior3d.backbone import Maps
from prior3d.contracts.dataset import DataSpec
from prior3d.contracts.probe import metrics_of
from prior3d.errors import UserError
from prior3d.probes import FrozenVectors, labels_of
from prior3d.probes.logistic import choose_penalty, fit_logistic
from prior3d.probes.models import FrozenModel
from prior3d.probes.probe_data import ProbeData
from prior3d.randomness import generator
from prior3d_plugins.datasets.classification_folder import ClassificationFolder
from prior3d_plugins.probes.classification import Classification

CLASSES = ("cat", "dog", "owl", "rat")


class Codes(nn.Module):
    """Stands in for a backbone: the red value of an image is its class, the green one its number; `code` of both."""

    size = (4, 4)

    def __init__(self, code):
        super().__init__()
        self.code = code

    def forward(self, images, reads):
        values = (images[:, :2, 0, 0] * 255).round().long()
        vectors = torch.stack([self.code(int(label), int(number)) for label, number in values])
        return Maps({4: images}, None, vectors.to(images.device))


def random_code(label, number, size=16):
    return torch.randn(size, generator=generator("code", label, number))


def mixed(label, number):
    """A direction for the class, noise as strong in all, and one channel that never varies."""
    direction = torch.randn(16, generator=generator("direction", label))
    return torch.cat([0.6 * direction + random_code(label, number), torch.ones(1)])


def planted(label, number):
    return torch.cat([nn.functional.one_hot(torch.tensor(label), 4).float(), 0.3 * random_code(label, number)])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("set")
    for label, name in enumerate(CLASSES):
        for number in range(20 + 15 * label):
            (root / name).mkdir(exist_ok=True)
            Image.fromarray(np.full((4, 4, 3), (label, number, 0), np.uint8)).save(root / name / f"{number}.png")
    parts = {
        part: ClassificationFolder(DataSpec((4, 4), 1, split, root), root=root, test_fraction=0.4)
        for part, split in (("train", "train"), ("held_out", "test"))
    }
    opened = ProbeData(parts)
    yield opened
    opened.close()


def measured(code, data, **options):
    return metrics_of(Classification(**options), Classification(**options).measure(FrozenModel([Codes(code)]), data))


def vectors(code, data, part):
    found = FrozenVectors(FrozenModel([Codes(code)]), data, part)
    return found.take(torch.arange(len(found))), labels_of(data, part)


def test_features_that_hold_the_class_score_perfectly_and_random_ones_at_chance(data):
    found = measured(planted, data)
    assert set(found) == {"top-1, linear", "mean per class, linear", "top-1, k-NN", "mean per class, k-NN"}
    assert min(found.values()) > 0.97
    chance = measured(random_code, data)
    assert max(chance["mean per class, linear"], chance["mean per class, k-NN"]) < 0.42


def test_the_regression_is_scikit_learns(data):
    (x, y), (x_test, _) = vectors(mixed, data, "train"), vectors(mixed, data, "held_out")
    for penalty in (0.1, 0.003):
        ours = fit_logistic(lambda rows: x[rows], y, 4, penalty)
        scaler = StandardScaler().fit(x.double())
        theirs = Reference(C=1 / (penalty * len(y)), tol=1e-8, max_iter=2000).fit(scaler.transform(x), y)
        np.testing.assert_allclose(ours.weight[:, :16], theirs.coef_[:, :16], atol=2e-3)
        np.testing.assert_allclose(
            ours.logits(x_test).log_softmax(1), theirs.predict_log_proba(scaler.transform(x_test)), atol=5e-3
        )


def test_metrics_are_those_of_scikit_learn(data):
    (x, y), (x_test, y_test) = vectors(mixed, data, "train"), vectors(mixed, data, "held_out")
    found = measured(mixed, data, penalty=0.01, k=1)
    scaler = StandardScaler().fit(x)
    linear = Reference(C=1 / (0.01 * len(y)), max_iter=2000).fit(scaler.transform(x), y)
    nearest = KNeighborsClassifier(1, metric="cosine").fit(x, y)
    for name, guess in (("linear", linear.predict(scaler.transform(x_test))), ("k-NN", nearest.predict(x_test))):
        assert found[f"top-1, {name}"] == pytest.approx(accuracy_score(y_test, guess))
        assert found[f"mean per class, {name}"] == pytest.approx(balanced_accuracy_score(y_test, guess))
    assert 0.3 < found["top-1, k-NN"] < 0.95


def test_neighbors_vote_as_counted_by_hand(data):
    (x, y), (x_test, y_test) = vectors(mixed, data, "train"), vectors(mixed, data, "held_out")
    cosine = nn.functional.normalize(x_test, dim=1) @ nn.functional.normalize(x, dim=1).T
    right = 0
    for row, truth in zip(cosine, y_test, strict=True):
        nearest = row.argsort(descending=True)[:7]
        votes = [sum(float((row[i] / 0.1).exp()) for i in nearest if y[i] == label) for label in range(4)]
        right += votes.index(max(votes)) == truth
    assert measured(mixed, data, k=7, temperature=0.1)["top-1, k-NN"] == pytest.approx(right / len(y_test))
    assert "top-1, k-NN" not in measured(mixed, data, k=0)


def test_a_penalty_is_chosen_that_suits_the_features(data):
    x, y = vectors(mixed, data, "train")
    noise = torch.randn(len(x), 200, generator=generator("noise"))
    clear = nn.functional.one_hot(y, 4).float()
    assert choose_penalty(lambda rows: noise[rows], y, 4) > choose_penalty(lambda rows: clear[rows], y, 4)
    assert choose_penalty(lambda rows: x[rows], y, 4) == choose_penalty(lambda rows: x[rows], y, 4)


def test_scores_are_of_single_images_and_add_up(data):
    probe = Classification(k=0)
    scores = probe.measure(FrozenModel([Codes(mixed)]), data)
    assert len(scores.groups) == len(set(scores.groups)) == len(data.frames["held_out"])
    assert scores.statistics["images"].sum(1).eq(1).all()
    assert (scores.statistics["linear hits"] <= scores.statistics["images"]).all()


def test_several_models_are_told_together(data):
    one = measured(lambda label, number: planted(label % 2, number), data, k=0)["top-1, linear"]
    both = FrozenModel([Codes(lambda label, n: planted(label % 2, n)), Codes(lambda label, n: planted(label // 2, n))])
    assert one < 0.8 < 0.97 < metrics_of(probe := Classification(k=0), probe.measure(both, data))["top-1, linear"]


def test_the_control_names_the_most_frequent_class(data):
    found = metrics_of(probe := Classification(), probe.controls(data)["majority class"])
    share = (labels_of(data, "held_out") == 3).double().mean()
    assert found == {"top-1, linear": pytest.approx(float(share)), "mean per class, linear": 0.25}


def test_a_single_training_class_is_refused(data):
    lonely = ProbeData(data.parts, most=2)
    lonely.frames["train"] = lonely.frames["train"][:1]
    with pytest.raises(UserError, match="all training images are of one class"):
        Classification().measure(FrozenModel([Codes(planted)]), lonely)
    lonely.close()


def test_random_features_of_many_channels_do_not_break_the_regression():
    x, y = torch.randn(30, 500, generator=generator("wide")) * 1e3 + 1e4, torch.arange(30) % 3
    head = fit_logistic(lambda rows: x[rows], y, 3, 1e-5)
    assert torch.isfinite(head.weight).all() and (head.predict(lambda rows: x[rows], 30) == y).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_scores(data):
    probe = Classification(penalty=0.01)
    on_cpu, on_gpu = (probe.measure(FrozenModel([Codes(mixed)], device), data) for device in ("cpu", "cuda"))
    for name, values in on_cpu.statistics.items():
        assert (values != on_gpu.statistics[name]).any(1).sum() <= 1  # an image between two classes
