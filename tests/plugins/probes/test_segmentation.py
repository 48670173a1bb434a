"""The segmentation probe against planted and random features, torchmetrics and counts by hand."""

from functools import partial

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from prior3d.contracts.probe import metrics_of
from prior3d.contracts.scores import Scores
from prior3d.errors import UserError
from prior3d.probes import FrozenMaps
from prior3d_plugins.probes.segmentation import Segmentation, _remember

SIZE, CELL = (16, 24), 4


def blocks(rng, frame):
    """Blocks of 4 x 4 pixels, each of a class."""
    return {"semantic": np.kron(rng.integers(0, 4, (4, 6)), np.ones((CELL, CELL))).astype(np.uint8)}


def sparse(rng, frame):
    """The same, partly unlabeled."""
    classes = blocks(rng, frame)["semantic"]
    classes[rng.random(SIZE) < 0.3] = 255
    return {"semantic": classes}


def one_hot(labels, choice):
    return torch.nn.functional.one_hot(labels[:, ::CELL, ::CELL].clamp_max(4), 5).movedim(-1, 1).float()


def random(labels, choice):
    return torch.randn(len(labels), 8, 4, 6, generator=choice)


def noisy(labels, choice):
    return one_hot(labels, choice) + torch.randn(len(labels), 5, 4, 6, generator=choice)


@pytest.fixture
def open_data(open_data):
    return partial(open_data, class_names=("floor", "wall", "chair", "lamp", "never"))


@pytest.fixture
def measured(planted):
    def measure(probe, data, *look_ups):
        return metrics_of(probe, probe.measure(planted(data, "semantic", *look_ups), data))

    return measure


def test_planted_classes_score_near_perfect(open_data, measured):
    metrics = measured(Segmentation(memory=200), open_data(blocks), one_hot)
    assert list(metrics) == ["mIoU, linear", "pixel accuracy, linear", "mIoU, k-NN"]
    assert min(metrics.values()) > 0.93  # between four cells of four classes, interpolation may find another one


def test_random_features_score_at_chance(open_data, measured):
    metrics = measured(Segmentation(memory=500), open_data(blocks), random)
    assert metrics["pixel accuracy, linear"] < 0.32  # of four classes
    assert metrics["mIoU, linear"] < 0.2 > metrics["mIoU, k-NN"]


def test_all_backbones_are_read(open_data, measured):
    data = open_data(blocks)
    metrics = measured(Segmentation(memory=500), data, random, one_hot)
    assert metrics["mIoU, linear"] > 0.9
    assert metrics["mIoU, k-NN"] > measured(Segmentation(memory=500), data, random)["mIoU, k-NN"] + 0.2


def test_metrics_equal_torchmetrics(open_data, planted):
    # three images: the predictions of all of them are kept for the picture
    data, probe = open_data(sparse, frames=(3,)), Segmentation(steps=20, memory=0)
    model = planted(data, "semantic", noisy)
    found = probe.measure(model, data)
    metrics, predicted = metrics_of(probe, found), found.shown.long()
    truth = data.field("held_out", "semantic").take(torch.arange(3)).long()
    assert 0.1 < metrics["mIoU, linear"] < 0.9
    expected = MulticlassJaccardIndex(5, average="macro", ignore_index=255)(predicted, truth)
    assert metrics["mIoU, linear"] == pytest.approx(float(expected), abs=1e-6)
    expected = MulticlassAccuracy(5, average="micro", ignore_index=255)(predicted, truth)
    assert metrics["pixel accuracy, linear"] == pytest.approx(float(expected), abs=1e-6)


def test_a_count_by_hand():
    # truth 0 0 0 1 1 3, predicted 0 0 1 1 2 3, class 4 nowhere
    counts = {"linear hits": [2, 1, 0, 1, 0], "linear predicted": [2, 2, 1, 1, 0], "labelled": [3, 2, 0, 1, 0]}
    scores = Scores(("room",), {name: torch.tensor([values]) for name, values in counts.items()})
    found = metrics_of(Segmentation(), scores)
    assert found == pytest.approx({"mIoU, linear": (2 / 3 + 1 / 3 + 0 + 1) / 4, "pixel accuracy, linear": 4 / 6})


def test_groups_are_scenes_and_their_counts_add_up(open_data, planted):
    data, probe = open_data(blocks), Segmentation(steps=5, memory=50)
    scores = probe.measure(planted(data, "semantic", noisy), data).scores
    assert scores.groups == ("room-0", "room-1")
    assert all(values.shape == (2, 5) for values in scores.statistics.values())
    pixels = 12 * SIZE[0] * SIZE[1]
    for name in ("labelled", "linear predicted", "k-NN predicted"):
        assert scores.statistics[name].sum(1).tolist() == [pixels, pixels]
    assert (scores.statistics["linear hits"] <= scores.statistics["labelled"]).all()


def test_the_seed_decides(open_data, planted):
    data, probe = open_data(blocks), Segmentation(steps=10, memory=30)
    model = planted(data, "semantic", noisy)
    first, again, other = (probe.measure(model, data, seed).scores for seed in (3, 3, 4))
    for name, values in first.statistics.items():
        assert torch.equal(values, again.statistics[name])
    for name in ("linear hits", "k-NN hits"):
        assert not torch.equal(first.statistics[name], other.statistics[name])


def test_the_memory_is_even_over_images_and_leaves_the_ignored_out(open_data, planted):
    def half(rng, frame):
        classes = blocks(rng, frame)["semantic"]
        classes[:, :12] = 255
        return {"semantic": classes}

    data = open_data(half)
    # a feature that says image and class, whose angle tells which
    model = planted(
        data,
        "semantic",
        lambda labels, choice: torch.stack(
            [
                torch.arange(len(labels)).float()[:, None, None].expand(-1, 4, 6) + 1,
                labels[:, ::CELL, ::CELL].float(),
            ],
            1,
        ),
    )
    rows, labels = _remember(FrozenMaps(model, data, "train", "dense"), data, 60, 0)
    assert rows.shape == (60, 2)
    assert labels.max() < 4
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(60))
    image = labels / (rows[:, 1] / rows[:, 0])
    per_image = torch.bincount((image[labels > 0]).round().long(), minlength=25)
    assert per_image.max() <= 3  # 60 of 24 images: 2 or 3 of each
    fewer, _ = _remember(FrozenMaps(model, data, "train", "dense"), data, 5, 0)
    assert len(fewer) == 5
    most, _ = _remember(FrozenMaps(model, data, "train", "dense"), data, 10_000, 0)
    assert len(most) == 24 * 12


@pytest.mark.parametrize(("wrong", "message"), [(255, "train split has no labeled pixel"), (5, "only 5 classes have")])
def test_labels_that_cannot_be_learned_are_refused_in_words(open_data, measured, wrong, message):
    def all_wrong(rng, frame):
        return {"semantic": np.full(SIZE, wrong, np.uint8)}

    with pytest.raises(UserError, match=message) as refused:
        measured(Segmentation(), open_data(all_wrong), random)
    assert refused.value.key == "data"


def test_without_names_the_labels_say_how_many_classes_there_are(open_data, planted):
    data = open_data(blocks, class_names=())
    scores = Segmentation(steps=2, memory=0).measure(planted(data, "semantic", one_hot), data).scores
    assert scores.statistics["labelled"].shape == (2, 4)


def test_the_picture_has_a_column_for_each_model_and_names_the_classes(open_data, planted):
    data, probe = open_data(blocks), Segmentation(steps=30, memory=0)
    good, bad = planted(data, "semantic", one_hot), planted(data, "semantic", random)
    models = {"good": good, "bad": bad}
    shown = {name: probe.measure(model, data).shown for name, model in models.items()}
    figure = probe.plot(models, data, shown)["segmentation"]
    assert isinstance(figure, Figure)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[:4] == ["image", "truth", "good", "bad"]
    assert len(figure.axes) == 3 * 4
    shown = {text.get_text() for text in figure.legends[0].get_texts()}
    assert shown == {"floor", "wall", "chair", "lamp"}
    truth, predicted = (np.asarray(figure.axes[index].images[0].get_array()) for index in (1, 2))
    assert np.abs(truth - predicted).mean() < 0.02
