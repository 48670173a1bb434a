"""The renderer against closed forms."""

import math
from itertools import pairwise

import pytest
import torch

from prior3d.volume import ray_weights, render_rays

NEAR, FAR = 1.0, 3.0


def slab(sigma: float, samples: int) -> tuple[torch.Tensor, ...]:
    """One ray through constant density from near to far: density, values, deltas, depth, far."""
    edges = torch.linspace(NEAR, FAR, samples + 1, dtype=torch.float64)
    depth = ((edges[1:] + edges[:-1]) / 2).expand(1, 1, -1)
    return torch.full_like(depth, sigma), depth.unsqueeze(-1), edges.diff(), depth, torch.full_like(depth[..., 0], FAR)


@pytest.mark.parametrize("sigma", [0.05, 1.0, 20.0])
def test_slab_weights_and_depth_in_their_exact_discrete_form(sigma: float) -> None:
    out = render_rays(*slab(sigma, 16))
    edges = [NEAR + (FAR - NEAR) * i / 16 for i in range(17)]
    passed = [math.exp(-sigma * (edge - NEAR)) for edge in edges]
    weights = [a - b for a, b in pairwise(passed)]
    middles = [(a + b) / 2 for a, b in pairwise(edges)]
    torch.testing.assert_close(out.weights[0, 0], torch.tensor(weights, dtype=torch.float64))
    depth = sum(w * t for w, t in zip(weights, middles, strict=True)) + passed[-1] * FAR
    inverse = sum(w / t for w, t in zip(weights, middles, strict=True)) + passed[-1] / FAR
    assert out.depth.item() == pytest.approx(depth, abs=1e-12)
    assert out.inverse_depth.item() == pytest.approx(inverse, abs=1e-12)
    assert out.opacity.item() == pytest.approx(1 - passed[-1], abs=1e-12)
    # values were set to the depth, and nothing stands behind
    assert out.values.item() == pytest.approx(depth - passed[-1] * FAR, abs=1e-12)


@pytest.mark.parametrize("sigma", [0.5, 3.0])
def test_slab_depth_converges_to_the_analytic_integral_at_second_order(sigma: float) -> None:
    length = FAR - NEAR
    passed = math.exp(-sigma * length)
    # integral of t sigma exp(-sigma (t - near)) over the slab, and the leftover at far
    analytic = NEAR * (1 - passed) + 1 / sigma - passed * (length + 1 / sigma) + passed * FAR
    t = torch.linspace(NEAR, FAR, 200001, dtype=torch.float64)
    inverse = torch.trapezoid(sigma * torch.exp(-sigma * (t - NEAR)) / t, t) + passed / FAR
    errors = [abs(render_rays(*slab(sigma, n)).depth.item() - analytic) for n in (32, 64)]
    inverse_errors = [abs(render_rays(*slab(sigma, n)).inverse_depth - inverse).item() for n in (32, 64)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)
    assert inverse_errors[0] / inverse_errors[1] == pytest.approx(4, rel=0.05)
    assert errors[1] < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opaque_plane(dtype: torch.dtype) -> None:
    density, _, deltas, depth, far = (x.to(dtype) for x in slab(0.0, 8))
    density = density.clone()
    density[..., 5], density[..., 6] = 1e30, 7.0  # what lies behind must not matter
    density.requires_grad_()
    values = torch.rand(1, 1, 8, 3, dtype=dtype)
    out = render_rays(density, values, deltas, depth, far, background=torch.ones(3, dtype=dtype))
    torch.testing.assert_close(out.weights[0, 0], torch.eye(8, dtype=dtype)[5])
    torch.testing.assert_close(out.depth, depth[..., 5])
    torch.testing.assert_close(out.inverse_depth, 1 / depth[..., 5])
    torch.testing.assert_close(out.values, values[:, :, 5])
    assert out.opacity.item() == 1
    (out.depth + out.values.sum(-1) + out.inverse_depth).sum().backward()
    assert density.grad.isfinite().all()


def test_empty_ray_ends_at_its_own_far_depth() -> None:
    density, values = torch.zeros(1, 2, 4), torch.rand(1, 2, 4, 3)
    far = torch.tensor([[3.0, 7.0]])
    out = render_rays(density, values, torch.ones(4), torch.linspace(1, 2, 4), far, background=torch.full((3,), 0.5))
    torch.testing.assert_close(out.depth, far)
    torch.testing.assert_close(out.inverse_depth, 1 / far)
    assert out.opacity.abs().max() == 0
    torch.testing.assert_close(out.values, torch.full((1, 2, 3), 0.5))


def test_expected_inverse_depth_is_not_the_inverse_of_expected_depth() -> None:
    density = torch.tensor([[[math.log(2.0), 1e9]]])  # half the light ends at 1, the other half at 3
    out = render_rays(density, torch.zeros(1, 1, 2, 1), torch.ones(2), torch.tensor([1.0, 3.0]), torch.tensor(4.0))
    assert out.depth.item() == pytest.approx(2)
    assert out.inverse_depth.item() == pytest.approx(2 / 3)


def test_rays_do_not_depend_on_each_other() -> None:
    torch.manual_seed(0)
    density, values, depth = torch.rand(2, 3, 8), torch.rand(2, 3, 8, 3), torch.rand(2, 3, 8).sort().values + 1
    far = torch.full((2, 3), 2.5)
    alone = render_rays(density[:1, :1], values[:1, :1], torch.ones(8), depth[:1, :1], far[:1, :1])
    depth[1], far[1], density[0, 1] = 100 * depth[1], 1e4, 0
    together = render_rays(density, values, torch.ones(8), depth, far)
    for one, many in zip(alone, together, strict=True):
        torch.testing.assert_close(one[0, 0], many[0, 0])


def test_weights_and_leftover_sum_to_one_and_match_a_loop() -> None:
    torch.manual_seed(0)
    density, deltas = 3 * torch.rand(5, 12, dtype=torch.float64), torch.rand(5, 12, dtype=torch.float64)
    weights, leftover = ray_weights(density, deltas)
    torch.testing.assert_close(weights.sum(-1) + leftover, torch.ones(5, dtype=torch.float64))
    for ray in range(5):
        light = 1.0
        for sample in range(12):
            stopped = light * (1 - math.exp(-(density[ray, sample] * deltas[ray, sample]).item()))
            assert weights[ray, sample].item() == pytest.approx(stopped, abs=1e-12)
            light -= stopped


def test_gradients() -> None:
    torch.manual_seed(0)
    density, values = torch.rand(2, 3, 5, dtype=torch.float64), torch.rand(2, 3, 5, 2, dtype=torch.float64)
    depth, far = torch.rand(2, 3, 5, dtype=torch.float64) + 1, torch.full((2, 3), 2.5, dtype=torch.float64)
    deltas, background = torch.rand(2, 3, 5, dtype=torch.float64), torch.rand(2, 3, 2, dtype=torch.float64)
    inputs = tuple(x.requires_grad_() for x in (density, values, deltas, depth, far, background))
    assert torch.autograd.gradcheck(render_rays, inputs)


def test_autocast_and_half_precision_do_not_reach_the_renderer() -> None:
    torch.manual_seed(0)
    density, values, depth = torch.rand(2, 3, 16), torch.rand(2, 3, 16, 3), torch.rand(2, 3, 16).sort().values + 1
    expected = render_rays(density, values, torch.ones(16), depth, torch.tensor(2.5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = render_rays(density, values, torch.ones(16), depth, torch.tensor(2.5))
        from_half = render_rays(density.bfloat16(), values.bfloat16(), torch.ones(16), depth, torch.tensor(2.5))
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))
    assert {x.dtype for x in from_half} == {torch.float32}


def test_shapes_that_disagree_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got \[2, 3, 4\] and \[2, 3, 5, 1\]"):
        render_rays(torch.zeros(2, 3, 4), torch.zeros(2, 3, 5, 1), torch.ones(4), torch.ones(4), torch.tensor(2.0))
