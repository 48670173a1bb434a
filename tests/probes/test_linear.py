"""The linear head and its training."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prior3d.probes import Fitting, FrozenMaps, LinearHead, Schedule, Standardization, at_pixels, upsample
from prior3d.randomness import generator


class Held:
    """Stands in for an array in a file."""

    def __init__(self, values):
        self.values, self.shape = values, values.shape

    def __len__(self):
        return len(self.values)

    def take(self, rows, device="cpu"):
        return self.values[rows].to(device)


def maps_of(*parts):
    data = SimpleNamespace(features=lambda model, part, kind: tuple(Held(values) for values in parts))
    return FrozenMaps(SimpleNamespace(device=torch.device("cpu")), data, "train", "dense")


def draw(*shape, stream="numbers"):
    return torch.randn(shape, generator=generator(stream))


@pytest.fixture
def problem():
    """Labels 8 x 12 of two classes that a linear map of 5 channels at 4 x 6 tells apart."""
    features = draw(20, 5, 4, 6)
    labels = (features[:, 1] - features[:, 3] > 0).long().repeat_interleave(2, 1).repeat_interleave(2, 2)
    return features, labels


def fit(features, labels, schedule=None, seed=0, **options):
    fitting = Fitting("test", torch.zeros(2), lambda rows: labels[rows], F.cross_entropy, **options)
    return fitting.fit(features, schedule or Schedule(60, 4, 0.05), seed)


def test_the_head_is_batch_normalization_and_a_1x1_convolution():
    features = draw(6, 5, 4, 6) * 3 + 7
    norm, convolution = nn.BatchNorm2d(5, affine=False, momentum=1.0, eps=1e-12), nn.Conv2d(5, 3, 1)
    norm(features)
    head = LinearHead(Standardization.of(norm.running_mean, norm.running_var.sqrt()), convolution.bias, nn.Identity())
    with torch.no_grad():
        head.weight.copy_(convolution.weight[..., 0, 0])
        torch.testing.assert_close(head(features), convolution(norm.eval()(features)), rtol=1e-4, atol=1e-5)


def test_channels_are_standardized_by_the_whole_training_part():
    features = draw(30, 4, 3, 5) * torch.tensor([1.0, 50.0, 1e-3, 2.0])[:, None, None] + 9
    labels = torch.zeros(30, 6, 10, dtype=torch.long)
    head = fit(maps_of(features.half()), labels, Schedule(1, 4, 0.1))
    kept = features.half().double()
    torch.testing.assert_close(head.mean.double(), kept.mean((0, 2, 3)), rtol=1e-6, atol=0)
    expected = 1 / kept.var((0, 2, 3), correction=0).sqrt()
    expected[2] = 0  # 1e-3 around 9 is less than half precision holds: rounding
    torch.testing.assert_close(head.scale.double(), expected, rtol=1e-5, atol=0)


def test_neither_scale_nor_shift_of_the_features_matters(problem):
    features, labels = problem
    factors = torch.tensor([1e-3, 30.0, 0.5, 1000.0, 2.0])[:, None, None]
    plain, moved = fit(maps_of(features), labels), fit(maps_of(features * factors + 4 * factors), labels)
    torch.testing.assert_close(plain.weight, moved.weight, rtol=1e-2, atol=1e-3)


def test_training_finds_the_classes_and_reads_all_parts(problem):
    features, labels = problem
    maps = maps_of(features[:, :2], features[:, 2:])
    assert (maps.channels, maps.size, len(maps)) == (5, (4, 6), 20)
    head = fit(maps, labels, Schedule(300, 4, 0.05))
    predicted = head(maps.take(torch.arange(20))).argmax(1)
    assert (predicted == labels[:, ::2, ::2]).float().mean() > 0.97
    assert not any(parameter.requires_grad for parameter in head.parameters())


def test_the_seed_decides(problem):
    features, labels = problem
    first, again, other = (fit(maps_of(features), labels, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)


def test_no_gradient_reaches_the_features_and_none_is_left_over(problem):
    features, labels = problem
    features.requires_grad_()
    fit(maps_of(features.detach()), labels)
    assert features.grad is None
    with torch.no_grad():
        fit(maps_of(features.detach()), labels)  # also where the caller switched gradients off


def test_training_leaves_the_global_random_state_and_precision_alone(problem):
    before, precision = torch.get_rng_state(), torch.get_float32_matmul_precision()
    fit(maps_of(problem[0]), problem[1])
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_float32_matmul_precision() == precision


def test_before_the_first_step_it_gives_the_bias():
    bias = torch.tensor([3.0, -1.0])
    fitting = Fitting("test", bias, lambda rows: torch.zeros(len(rows), 4, 4).long(), F.cross_entropy)
    head = fitting.fit(maps_of(torch.zeros(3, 2, 2, 2)), Schedule(1, 1, 1e-12), 0)
    torch.testing.assert_close(head(torch.zeros(1, 2, 1, 1)).flatten(), bias)


def test_what_is_activated_is_interpolated(problem):
    seen = []

    def loss(predicted, truth):
        seen.append(predicted)
        return predicted.square().mean()

    fitting = Fitting(
        "test", torch.zeros(2), lambda rows: problem[1][rows], loss, lambda x: x.softmax(-1).sum(-1, keepdim=True)
    )
    fitting.fit(maps_of(problem[0]), Schedule(3, 4, 0.1), 0)
    assert all(predicted.shape[:2] == (4, 1) for predicted in seen)
    torch.testing.assert_close(torch.cat([predicted.flatten() for predicted in seen]).mean(), torch.tensor(1.0))


def test_every_pixel_is_learned_from_in_some_step():
    labels = torch.arange(2 * 24 * 32).view(2, 24, 32)
    seen = torch.zeros(labels.numel(), dtype=torch.bool)

    def loss(predicted, truth):
        assert predicted.shape[-2:] == truth.shape[-2:] == (6, 8)  # half of 3 x 4 cells
        seen[truth.flatten()] = True
        return predicted.mean()

    fitting = Fitting("test", torch.zeros(2), lambda rows: labels[rows], loss)
    fitting.fit(maps_of(draw(2, 5, 3, 4)), Schedule(120, 2, 0.1), 0)
    assert seen.all()


@pytest.mark.parametrize("size", [(8, 12), (9, 14), (3, 5)])
def test_single_pixels_are_as_upsampled(size):
    maps = draw(2, 3, 4, 6).requires_grad_()
    whole = upsample(maps, size)
    y, x = torch.arange(1, size[0], 2), torch.arange(0, size[1], 3)
    some = at_pixels(maps, size, y, x)
    torch.testing.assert_close(some, whole[:, :, y][..., x])
    torch.testing.assert_close(
        *(torch.autograd.grad(v.square().sum(), maps)[0] for v in (some, whole[:, :, y][..., x]))
    )


def test_all_images_come_equally_often():
    seen = []
    labels = torch.arange(10)[:, None, None].expand(10, 4, 4)

    def loss(predicted, truth):
        seen.append(truth[:, 0, 0])
        return predicted.mean()

    fitting = Fitting("test", torch.zeros(2), lambda rows: labels[rows], loss)
    fitting.fit(maps_of(draw(10, 2, 2, 2)), Schedule(10, 4, 0.1), 0)
    assert [len(rows) for rows in seen] == [4] * 10
    assert torch.bincount(torch.cat(seen), minlength=10).tolist() == [4] * 10


def test_a_batch_is_at_most_all_images():
    seen = []
    fitting = Fitting(
        "test", torch.zeros(2), lambda rows: seen.append(rows) or torch.zeros(len(rows), 2, 2), lambda p, t: p.mean()
    )
    fitting.fit(maps_of(draw(3, 2, 2, 2)), Schedule(2, 8, 0.1), 0)
    assert [sorted(rows.tolist()) for rows in seen] == [[0, 1, 2]] * 2


def test_the_learning_rate_rises_and_falls_to_nothing():
    schedule = Schedule(100, 8, 0.1)
    rates = [schedule.at(step, 64) for step in range(101)]
    assert rates[0] < rates[3] < max(rates) == pytest.approx(0.1)
    assert rates[20] > rates[60] > rates[99] > 0
    assert rates[100] == pytest.approx(0, abs=1e-12)
    assert schedule.at(50, 256) == pytest.approx(schedule.at(50, 64) / 4)
    assert schedule.at(50, 3) == schedule.at(50, 64)
