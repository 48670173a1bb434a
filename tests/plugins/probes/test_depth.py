"""The depth probe against planted and random features and formulas; its losses against closed forms."""

import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from prior3d.contracts.probe import metrics_of
from prior3d.errors import UserError
from prior3d.losses.log_depth import gradient_loss, scale_invariant_loss
from prior3d.randomness import generator
from prior3d_plugins.probes.depth import Depth, depth_errors

SIZE, CELL = (16, 24), 4


def slopes(rng, frame):
    """Slanted surfaces 1 to 6 m away."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    depth = rng.uniform(2, 5) + (y - 7.5) * rng.uniform(-0.06, 0.06) + (x - 11.5) * rng.uniform(-0.04, 0.04)
    depth[:2] = 0
    return {"depth": depth.astype(np.float32)}


def answer(depth, choice):
    """Depth at the center of each cell, as one channel of two."""
    centers = depth[:, None, 1::CELL, 1::CELL] / 2 + depth[:, None, 2::CELL, 2::CELL] / 2
    centers[:, :, 0] = depth[:, None, 2, 1::CELL]
    return torch.cat([centers, torch.randn(centers.shape, generator=choice)], 1)


def random(depth, choice):
    return torch.randn(len(depth), 8, 4, 6, generator=choice)


@pytest.fixture
def measured(planted):
    def measure(probe, data, look_up):
        return metrics_of(probe, probe.measure(planted(data, "depth", look_up), data))

    return measure


def test_planted_depth_scores_near_perfect(open_data, measured):
    metrics = measured(Depth(steps=600), open_data(slopes), answer)
    assert set(metrics) == {"RMSE m", "AbsRel", "log10", "delta1"}
    assert metrics["AbsRel"] < 0.03
    assert metrics["delta1"] > 0.99
    assert metrics["RMSE m"] < 0.15


def test_random_features_are_no_better_than_the_usual_depth(open_data, measured):
    data = open_data(slopes)
    metrics = measured(Depth(), data, random)
    train, test = (data.field(part, "depth").take(torch.arange(24)) for part in ("train", "held_out"))
    constant = train[train > 0].log().mean().exp().expand_as(test)
    expected = {name: float(values.mean()) for name, values in depth_errors(constant, test, test > 0).items()}
    assert metrics["RMSE m"] == pytest.approx(expected["rmse"], rel=0.2)
    assert metrics["AbsRel"] == pytest.approx(expected["absolute relative"], rel=0.25)


def test_errors_are_those_of_the_field_image_by_image():
    predicted = torch.rand(3, 8, 9, generator=generator("predicted")) * 4 + 1
    truth = torch.rand(3, 8, 9, generator=generator("truth")) * 4 + 1
    known = torch.rand(3, 8, 9, generator=generator("known")) < 0.7
    known[2] = False
    truth[~known] = torch.nan
    errors = depth_errors(predicted, truth, known)
    for image in range(2):
        p, t = (values[image][known[image]].double().numpy() for values in (predicted, truth))
        assert errors["rmse"][image] == pytest.approx(np.sqrt(((p - t) ** 2).mean()))
        assert errors["absolute relative"][image] == pytest.approx((np.abs(p - t) / t).mean())
        assert errors["log10"][image] == pytest.approx(np.abs(np.log10(p) - np.log10(t)).mean())
        assert errors["within 1.25"][image] == pytest.approx((np.maximum(p / t, t / p) < 1.25).mean())
    assert [float(values[2]) for values in errors.values()] == [0] * 5
    assert errors["images"].tolist() == [1, 1, 0]


def test_metrics_are_means_over_images_that_have_depth(open_data, planted):
    def some(rng, frame):
        depth = slopes(rng, frame)["depth"]
        depth[depth > 3.5] = 20.0  # out of range: counts nowhere
        return {"depth": depth * (frame != 1)}

    data, probe = open_data(some, frames=(3,)), Depth(steps=20)
    model = planted(data, "depth", random)
    found = probe.measure(model, data)
    metrics = metrics_of(probe, found)
    truth = data.field("held_out", "depth").take(torch.arange(3))
    predicted = found.shown.float()  # all images: there are three
    known = (truth >= 0.1) & (truth <= 10)
    errors = depth_errors(predicted, truth, known)
    counted = int((known.flatten(1).any(1)).sum())
    assert counted in (1, 2)
    assert metrics["RMSE m"] == pytest.approx(float(errors["rmse"].sum() / counted), rel=1e-3)
    assert metrics["AbsRel"] == pytest.approx(float(errors["absolute relative"].sum() / counted), rel=1e-3)


def test_the_seed_decides(open_data, planted):
    data, probe = open_data(slopes), Depth(steps=10)
    model = planted(data, "depth", answer)
    first, again, other = (probe.measure(model, data, seed).scores for seed in (3, 3, 4))
    assert torch.equal(first.statistics["rmse"], again.statistics["rmse"])
    assert not torch.equal(first.statistics["rmse"], other.statistics["rmse"])
    assert first.groups == ("room-0", "room-1")
    assert first.statistics["images"].tolist() == [12, 12]


def test_less_is_better_of_errors():
    assert Depth.lower_is_better == {"RMSE m", "AbsRel", "log10"}


def test_an_empty_range_is_refused():
    with pytest.raises(ValueError, match="min_depth below max_depth, got 5 and 2"):
        Depth(min_depth=5, max_depth=2)


@pytest.mark.parametrize(
    ("unit", "message"), [(1000.0, "runs from .* to .* m: check the data's unit"), (0.0, "unknown")]
)
def test_depth_that_cannot_be_learned_is_refused_in_words(open_data, measured, unit, message):
    def wrong(rng, frame):
        return {"depth": unit * slopes(rng, frame)["depth"]}

    with pytest.raises(UserError, match=message) as refused:
        measured(Depth(), open_data(wrong), random)
    assert refused.value.key == "data"


def test_the_picture_has_a_column_for_each_model(open_data, planted):
    data, probe = open_data(slopes), Depth(steps=10)
    models = {"one": planted(data, "depth", answer), "other": planted(data, "depth", random)}
    figure = probe.plot(models, data, {name: probe.measure(model, data).shown for name, model in models.items()})[
        "depth"
    ]
    assert isinstance(figure, Figure)
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles == ["image", "truth", "one", "other"]


# losses


def logs(*shape):
    return torch.randn(shape, generator=generator("log ratio"), dtype=torch.float64)


def test_the_gradient_loss_has_a_gradient_where_that_of_fit3d_has_none():
    # one image or two, one channel: differences along images and channels are empty or of one element
    for images in (1, 2):
        error = logs(images, 12, 16).requires_grad_()
        loss = gradient_loss(error, torch.ones(images, 12, 16, dtype=torch.bool))
        assert loss > 0.1
        (slope,) = torch.autograd.grad(loss, error)
        assert (slope != 0).float().mean() > 0.9


def test_the_gradient_loss_is_zero_exactly_where_slopes_agree():
    known = torch.ones(2, 12, 16, dtype=torch.bool)
    assert gradient_loss(torch.tensor([0.3, -2.0])[:, None, None].expand(2, 12, 16), known) == 0
    assert gradient_loss(torch.nn.functional.one_hot(torch.tensor(5), 16).expand(2, 12, 16).double(), known) > 0
    across = torch.zeros(1, 12, 16, dtype=torch.float64)
    across[:, :, 8:] = 1.0  # another constant beyond a gap of unknown pixels
    gap = known[:1].clone()
    gap[:, :, 8 - 1] = gap[:, :, 8] = False
    assert gradient_loss(across, gap, scales=1) == 0
    assert gradient_loss(across, known[:1], scales=1) == pytest.approx(1 / 15)


def test_the_gradient_loss_of_a_ramp():
    ramp = 0.01 * torch.arange(16.0).expand(1, 16, 16)
    known = torch.ones(1, 16, 16, dtype=torch.bool)
    expected = 0.01 * (1 + 2 + 4 + 8)  # every scale sees the step between its own pixels
    assert float(gradient_loss(ramp, known)) == pytest.approx(expected, rel=1e-5)
    assert float(gradient_loss(ramp + 2 * ramp.mT, known)) == pytest.approx(3 * expected, rel=1e-5)


def test_the_gradient_loss_passes_gradcheck():
    known = torch.rand(2, 6, 7, generator=generator("known")) < 0.7
    assert torch.autograd.gradcheck(lambda error: gradient_loss(error, known), logs(2, 6, 7).requires_grad_())


def test_unknown_pixels_touch_neither_loss_nor_gradient():
    known = torch.rand(2, 8, 8, generator=generator("known")) < 0.6
    error = logs(2, 8, 8)
    for loss in (gradient_loss, scale_invariant_loss):
        spoilt = torch.where(known, error, torch.nan).requires_grad_()
        assert loss(spoilt, known) == loss(error, known)
        (slope,) = torch.autograd.grad(loss(spoilt, known), spoilt)
        assert slope.isfinite().all()
        assert (slope[~known] == 0).all()


def test_nothing_known_and_tiny_maps_give_zero_connected():
    for loss in (gradient_loss, scale_invariant_loss):
        error = logs(2, 4, 4).requires_grad_()
        value = loss(error, torch.zeros(2, 4, 4, dtype=torch.bool))
        assert value.item() == 0
        assert (torch.autograd.grad(value, error)[0] == 0).all()
    assert gradient_loss(logs(1, 1, 1), torch.ones(1, 1, 1, dtype=torch.bool)) == 0


def test_the_scale_invariant_loss_is_the_published_one():
    error, known = logs(2, 5, 6), torch.rand(2, 5, 6, generator=generator("known")) < 0.7
    g = error[known]
    expected = math.sqrt(float((g**2).mean() - 0.85 * g.mean() ** 2))
    assert float(scale_invariant_loss(error, known)) == pytest.approx(expected, abs=2e-4)
    assert torch.autograd.gradcheck(lambda e: scale_invariant_loss(e, known), error.requires_grad_())


def test_a_perfect_prediction_has_finite_slopes():
    error = torch.zeros(1, 4, 4, requires_grad=True)
    known = torch.ones(1, 4, 4, dtype=torch.bool)
    loss = scale_invariant_loss(error, known) + gradient_loss(error, known)
    assert loss.item() == pytest.approx(0, abs=1e-7)
    assert torch.autograd.grad(loss, error)[0].isfinite().all()
