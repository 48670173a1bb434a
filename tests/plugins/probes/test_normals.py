"""The normals probe against planted and random features, and counts by hand."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch.nn import functional as F

from prior3d.contracts.fields import missing_fields
from prior3d.contracts.probe import metrics_of
from prior3d.errors import UserError
from prior3d.geometry.normals import normals_from_depth
from prior3d_plugins.probes.normals import Normals, angle_deg

SIZE, CELL = (16, 24), 4
CAMERA = np.array([[20.0, 0, 12], [0, 20, 8], [0, 0, 1]])


def planes(rng, frame):
    """One plane, seen with exact normals."""
    normal = np.array([rng.uniform(-0.6, 0.6), rng.uniform(-0.6, 0.6), -1.0])
    normal /= np.linalg.norm(normal)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    rays = np.stack([(x - 12) / 20, (y - 8) / 20, np.ones(SIZE)], -1)
    normals = np.broadcast_to(normal, (*SIZE, 3)).astype(np.float32).copy()
    normals[:3] = 0
    return {"normals": normals, "depth": (-2 / (rays @ normal)).astype(np.float32), "intrinsics": CAMERA}


def planes_with(*fields):
    """The same planes, with some of what is known of them."""
    return lambda rng, frame: {name: value for name, value in planes(rng, frame).items() if name in fields}


def answer(normals, choice):
    return 7 * normals[:, :, 3::CELL, 3::CELL] + 3


def random(normals, choice):
    return torch.randn(len(normals), 8, 4, 6, generator=choice)


def test_planted_normals_score_near_perfect(open_data, planted):
    data, probe = open_data(planes), Normals(steps=600)
    metrics = metrics_of(probe, probe.measure(planted(data, "normals", answer), data))
    assert list(metrics) == ["mean deg", "median deg", "under 11.25 deg", "under 22.5 deg", "under 30 deg"]
    assert metrics["mean deg"] < 3
    assert metrics["under 11.25 deg"] > 0.99


def test_random_features_are_no_better_than_the_mean_normal(open_data, planted):
    data, probe = open_data(planes), Normals()
    metrics = metrics_of(probe, probe.measure(planted(data, "normals", random), data))
    train, test = (data.field(part, "normals").take(torch.arange(24)).float() for part in ("train", "held_out"))
    constant = angle_deg(train.sum((0, 2, 3))[None, :, None, None].expand_as(test), test)[(test != 0).any(1)]
    assert metrics["mean deg"] == pytest.approx(float(constant.mean()), rel=0.15)


def test_metrics_are_those_of_all_known_pixels_together(open_data, planted):
    data, probe = open_data(planes, frames=(3,)), Normals(steps=10)
    model = planted(data, "normals", random)
    found = probe.measure(model, data)
    metrics, scores = metrics_of(probe, found), found.scores
    truth = data.field("held_out", "normals").take(torch.arange(3)).double()
    predicted = found.shown.double()  # all images: there are three
    cosine = (F.normalize(predicted, dim=1) * F.normalize(truth, dim=1)).sum(1)
    angles = torch.rad2deg(torch.acos(cosine.clamp(-1, 1)))[(truth != 0).any(1)]
    assert len(angles) == 3 * 13 * 24
    assert scores.groups == ("room-0/0", "room-0/1", "room-0/2")
    assert metrics["mean deg"] == pytest.approx(float(angles.mean()), abs=0.05)
    assert metrics["median deg"] == pytest.approx(float(angles.median()), abs=0.5)
    for limit in (11.25, 22.5, 30.0):
        assert metrics[f"under {limit:g} deg"] == pytest.approx(float((angles < limit).float().mean()), abs=0.01)


def test_the_median_is_interpolated_within_its_bin():
    histogram = torch.zeros(360)
    histogram[20], histogram[21], histogram[300] = 3, 4, 1  # of 8 pixels, the 4th is a quarter into 10.5 .. 11
    total = {
        "pixels": torch.tensor(8.0),
        "degrees": torch.tensor(80.0),
        "within": torch.tensor([7.0, 7.0, 7.0]),
        "histogram": histogram,
    }
    found = Normals().summarize(total)
    assert found["median deg"] == pytest.approx(10.5 + 0.5 * 1 / 4)
    assert found["mean deg"] == 10
    assert found["under 30 deg"] == 7 / 8


def test_angles():
    a = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 1], [0, 0, 0]])[:, :, None, None]
    b = torch.tensor([[1.0, 1e-4, 0], [-1, 0, 0], [0, 1, 1], [0, 0, 1], [0, 0, 1]])[:, :, None, None]
    expected = torch.tensor([np.rad2deg(1e-4), 180, 45, 0, 90], dtype=torch.float32)
    torch.testing.assert_close(angle_deg(a, b).flatten(), expected, rtol=1e-4, atol=1e-5)


def test_without_normals_they_come_from_depth(open_data, planted):
    with_normals, without = open_data(planes), open_data(planes_with("depth", "intrinsics"))
    truth = Normals()._truth(without, "held_out", torch.device("cpu"))(torch.arange(24))
    expected = with_normals.field("held_out", "normals").take(torch.arange(24)).float()
    known = (expected != 0).any(1)
    assert (truth != 0).any(1)[known].float().mean() > 0.95
    both = known & (truth != 0).any(1)
    assert angle_deg(truth, expected)[both].max() < 0.1
    camera = torch.from_numpy(CAMERA).float().expand(24, 3, 3)
    depth = without.field("held_out", "depth").take(torch.arange(24))
    assert torch.equal(truth, normals_from_depth(depth, camera, 0.05))
    model = planted(with_normals, "normals", answer)
    probe = Normals(steps=300)
    assert metrics_of(probe, probe.measure(model, without))["mean deg"] < 6


def test_either_normals_or_depth_will_do():
    assert missing_fields(Normals.needs, frozenset({"image", "depth"})) == []
    assert missing_fields(Normals.needs, frozenset({"image", "normals"})) == []
    assert missing_fields(Normals.needs, frozenset({"image"})) == ["normals|depth"]


def test_depth_without_intrinsics_and_no_known_normal_are_refused_in_words(open_data, planted):
    def unknown(rng, frame):
        return {"normals": 0 * planes(rng, frame)["normals"]}

    plain, uncalibrated = open_data(planes), planes_with("depth")
    for labels, message in ((uncalibrated, "intrinsics"), (unknown, "train split has no pixel with a known normal")):
        with pytest.raises(UserError, match=message) as refused:
            Normals().measure(planted(plain, "normals", random), open_data(labels))
        assert refused.value.key == "data"


def test_the_seed_decides_and_the_picture_shows_unknown_white(open_data, planted):
    data, probe = open_data(planes), Normals(steps=10)
    model = planted(data, "normals", answer)
    first, again, other = (probe.measure(model, data, seed).scores for seed in (3, 3, 4))
    assert torch.equal(first.statistics["degrees"], again.statistics["degrees"])
    assert not torch.equal(first.statistics["degrees"], other.statistics["degrees"])
    figure = probe.plot({"it": model}, data, {"it": probe.measure(model, data).shown})["normals"]
    assert isinstance(figure, Figure)
    assert [axis.get_title() for axis in figure.axes[:3]] == ["image", "truth", "it"]
    truth = np.asarray(figure.axes[1].images[0].get_array())
    assert (truth[:3] == 1).all()
    assert truth[5, 5, 2] > 0.8  # toward the camera is blue
