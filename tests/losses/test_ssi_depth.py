"""Scale-and-shift-invariant loss: alignment, robustness, degenerate images."""

import numpy
import pytest
import torch

from prior3d.losses import fit_scale_and_shift, in_file_space, scale_and_shift_invariant_loss

ALL = torch.ones(3, 64, dtype=torch.bool)


def correlated(noise: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    prediction = 1 + 2 * torch.rand(3, 64, generator=generator, dtype=torch.float64)
    target = 5 * prediction - 3 + noise * torch.randn(3, 64, generator=generator, dtype=torch.float64)
    return prediction, target


def test_alignment_is_least_squares_over_the_mask() -> None:
    prediction, target = correlated()
    mask = torch.rand(3, 64, generator=torch.Generator().manual_seed(1)) > 0.3
    scale, shift = fit_scale_and_shift(prediction, target, mask)
    for image in range(3):
        p, t = prediction[image][mask[image]].numpy(), target[image][mask[image]].numpy()
        solution = numpy.linalg.lstsq(numpy.stack([p, numpy.ones_like(p)], axis=1), t, rcond=None)[0]
        assert [scale[image].item(), shift[image].item()] == pytest.approx(solution.tolist(), rel=1e-5)


def test_loss_is_the_mean_residual_in_units_of_the_targets_deviation() -> None:
    prediction, target = correlated()
    expected = []
    for p, t in zip(prediction.numpy(), target.numpy(), strict=True):
        fit = numpy.polyfit(p, t, 1)
        expected.append(numpy.abs(numpy.polyval(fit, p) - t).mean() / numpy.abs(t - t.mean()).mean())
    loss = scale_and_shift_invariant_loss(prediction, target, ALL)
    assert loss.item() == pytest.approx(numpy.mean(expected), rel=1e-5)


def test_neither_sides_scale_nor_shift_matters() -> None:
    prediction, target = correlated()
    loss = scale_and_shift_invariant_loss(prediction, target, ALL, trim=0.2)
    other = scale_and_shift_invariant_loss(0.01 * prediction + 7, 300 * target - 20, ALL, trim=0.2)
    torch.testing.assert_close(loss, other, rtol=1e-2, atol=0)
    exact = scale_and_shift_invariant_loss(prediction, 300 * prediction - 20, ALL)
    assert exact < 1e-6


def test_inverted_depth_is_penalized_and_pulled_back_not_mirrored() -> None:
    _, target = correlated()
    prediction = (0.3 * torch.randn(3, 64, generator=torch.Generator().manual_seed(2)).double() - target / 5).detach()

    def correlations() -> torch.Tensor:
        return torch.stack([torch.corrcoef(torch.stack([p, t]))[0, 1] for p, t in zip(prediction, target, strict=True)])

    assert (correlations() < -0.8).all()
    assert scale_and_shift_invariant_loss(prediction, target, ALL) > 1
    for _ in range(150):
        prediction.requires_grad_()
        (grad,) = torch.autograd.grad(scale_and_shift_invariant_loss(prediction, target, ALL), prediction)
        prediction = (prediction - 0.2 * grad / grad.norm()).detach()
    assert (correlations() > 0.5).all()


def test_scale_has_no_jump_where_its_floor_begins() -> None:
    generator = torch.Generator().manual_seed(0)
    target, noise = (torch.randn(1, 4096, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.ones_like(target, dtype=torch.bool)
    mixes = torch.linspace(-0.5, 0.5, 101, dtype=torch.float64)
    losses = torch.stack([scale_and_shift_invariant_loss(m * target + noise, target, mask) for m in mixes])
    assert (losses.diff() < 0).all()
    assert losses.diff().abs().max() < 0.01


def test_trimming_ignores_gross_outliers() -> None:
    prediction, target = correlated(0.0)
    target[:, :6] += torch.tensor([40.0, -30, 50, 60, -40, 30], dtype=torch.float64)
    plain = scale_and_shift_invariant_loss(prediction, target, ALL)
    trimmed = scale_and_shift_invariant_loss(prediction, target, ALL, trim=0.2)
    assert plain > 0.5
    assert trimmed < 0.05 * plain


def test_trimming_drops_the_stated_share_per_image() -> None:
    prediction = torch.rand(2, 40, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(2, 40, dtype=torch.bool)
    mask[1, 20:] = False
    scale_and_shift_invariant_loss(prediction, torch.rand(2, 40, dtype=torch.float64), mask, trim=0.25).backward()
    assert (prediction.grad != 0).sum(dim=1).tolist() == [30, 15]


def test_images_that_say_nothing_contribute_zero() -> None:
    prediction, target = correlated()
    mask = ALL.clone()
    mask[1, 15:] = False  # 15 valid pixels: one too few
    target[2] = 4.0  # a constant
    prediction = prediction.clone().requires_grad_()
    loss = scale_and_shift_invariant_loss(prediction, target, mask, trim=0.1)
    alone = scale_and_shift_invariant_loss(prediction[:1], target[:1], mask[:1], trim=0.1)
    torch.testing.assert_close(loss, alone)
    loss.backward()
    assert prediction.grad[0].abs().sum() > 0
    assert (prediction.grad[1:] == 0).all()


@pytest.mark.parametrize("shape", [(2, 64), (2, 8, 8)])
def test_nothing_valid_is_exactly_zero_and_connected(shape: tuple[int, ...]) -> None:
    prediction = torch.rand(shape, requires_grad=True)
    target = torch.full(shape, torch.nan)
    weight = 0.5 if len(shape) == 3 else 0.0
    mask = torch.ones(shape, dtype=torch.bool)
    for valid in (mask, ~mask):
        loss = scale_and_shift_invariant_loss(prediction, target, valid, trim=0.2, gradient_weight=weight)
        assert loss.item() == 0
        (grad,) = torch.autograd.grad(loss, prediction)
        assert (grad == 0).all()


def test_what_the_mask_hides_may_be_anything() -> None:
    prediction, target = correlated()
    mask = ALL.clone()
    mask[:, ::3] = False
    expected = scale_and_shift_invariant_loss(prediction, target, mask, trim=0.1)
    prediction[:, ::3], target[:, ::3] = torch.nan, torch.inf
    prediction.requires_grad_()
    loss = scale_and_shift_invariant_loss(prediction, target, mask, trim=0.1)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert prediction.grad.isfinite().all()
    # values that are not finite count as invalid even where the mask forgot them
    torch.testing.assert_close(
        scale_and_shift_invariant_loss(prediction.nan_to_num(0), target, ALL, trim=0.1), expected
    )


@pytest.mark.parametrize("value", [0.0, 2.5])
def test_constant_prediction_has_a_finite_loss_and_a_gradient(value: float) -> None:
    prediction = torch.full((3, 64), value, requires_grad=True)
    loss = scale_and_shift_invariant_loss(prediction, correlated()[1].float(), ALL)
    assert loss.item() == pytest.approx(1, abs=1e-3)
    loss.backward()
    assert prediction.grad.isfinite().all()
    assert prediction.grad.abs().sum() > 0


def test_multi_scale_gradient_term_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.rand(2, 1, 12, 10, generator=generator, dtype=torch.float64)
    mask = torch.rand(1, 12, 10, generator=generator) > 0.2
    p, t, m = prediction[0].numpy(), target[0].numpy(), mask[0].numpy()
    scale, shift = (x.item() for x in fit_scale_and_shift(*(x.flatten(1) for x in (prediction, target, mask))))
    residual = (scale * p + shift - t) / numpy.abs(t[m] - t[m].mean()).mean()
    expected = 0.0
    for step in (1, 2, 4):
        r, valid = residual[::step, ::step], m[::step, ::step]
        for a, b, both in (
            (r[:, 1:], r[:, :-1], valid[:, 1:] & valid[:, :-1]),
            (r[1:], r[:-1], valid[1:] & valid[:-1]),
        ):
            expected += numpy.abs(a - b)[both].mean()
    plain = scale_and_shift_invariant_loss(prediction, target, mask)
    with_term = scale_and_shift_invariant_loss(prediction, target, mask, gradient_weight=0.5, gradient_scales=3)
    assert (with_term - plain).item() == pytest.approx(0.5 * expected, rel=1e-6)


def test_multi_scale_gradient_term_has_a_gradient_of_its_own() -> None:
    torch.manual_seed(0)
    prediction, target = torch.rand(1, 8, 8, requires_grad=True), torch.rand(1, 8, 8)
    mask = torch.ones(1, 8, 8, dtype=torch.bool)
    grads = [
        torch.autograd.grad(scale_and_shift_invariant_loss(prediction, target, mask, gradient_weight=w), prediction)[0]
        for w in (0.0, 0.5)
    ]
    assert (grads[1] - grads[0]).abs().max() > 1e-3


def test_gradients() -> None:
    torch.manual_seed(0)
    prediction, target = torch.rand(2, 5, 5, dtype=torch.float64, requires_grad=True), torch.rand(2, 5, 5).double()
    mask = torch.rand(2, 5, 5) > 0.2
    for trim in (0.0, 0.25):
        assert torch.autograd.gradcheck(
            lambda p, trim=trim: scale_and_shift_invariant_loss(p, target, mask, trim=trim, gradient_weight=0.5),
            (prediction,),
        )
    inverted = (-target + 0.05 * torch.rand(2, 5, 5)).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: scale_and_shift_invariant_loss(p, target, mask), (inverted,))


def test_kind_chooses_depth_or_disparity_per_image() -> None:
    depth, inverse = torch.rand(3, 4) + 1, torch.rand(3, 4)
    chosen = in_file_space(depth, inverse, torch.tensor([0, 1, 0]))
    assert torch.equal(chosen, torch.stack([depth[0], inverse[1], depth[2]]))
    maps = in_file_space(depth[:, None], inverse[:, None], torch.tensor([1, 1, 0]))
    assert torch.equal(maps[:, 0], torch.stack([inverse[0], inverse[1], depth[2]]))


def test_wrong_inputs_are_refused() -> None:
    x, mask = torch.rand(2, 20), torch.ones(2, 20, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"all \[N, R\] or all \[N, H, W\], got \[2, 20\], \[2, 19\], \[2, 20\]"):
        scale_and_shift_invariant_loss(x, x[:, 1:], mask)
    with pytest.raises(ValueError, match=r"expected a bool mask, got torch\.float32"):
        scale_and_shift_invariant_loss(x, x, mask.float())
    with pytest.raises(ValueError, match=r"expected trim in \[0, 1\), got 1.0"):
        scale_and_shift_invariant_loss(x, x, mask, trim=1.0)
    with pytest.raises(ValueError, match=r"expected maps \[N, H, W\] for the gradient term, got \[2, 20\]"):
        scale_and_shift_invariant_loss(x, x, mask, gradient_weight=0.5)
