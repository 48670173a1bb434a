"""Views as linear maps: an engine that only renders against the entries, and least squares that stream."""

import pytest
import torch

from prior3d.splat import compositing_weights, lift_average, lift_cg, lifting, render_feature_targets, view_operator
from prior3d.splat.operator import RenderedViews
from prior3d_plugins.engines.splat_torch import SplatTorch

SIZE = (24, 32)
GRIDS = [None, (6, 8), (5, 7)]


def cameras(camera, views=3):
    return tuple(torch.stack(part) for part in zip(*(camera(0.15 * view) for view in range(views)), strict=True))


def both(scene, intrinsics, poses, grid):
    """The torch engine's operator, and one made from its rendering and the gradient of that."""
    held = view_operator(scene, intrinsics, poses, SIZE, grid)
    return held, RenderedViews(SplatTorch(), scene, intrinsics, poses, SIZE, grid)


@pytest.mark.parametrize("grid", GRIDS)
def test_rendering_and_its_gradient_are_the_matrix_and_its_transpose(random_scene, camera, grid):
    scene, values = random_scene(40, 3)
    held, rendered = both(scene, *cameras(camera), grid)
    maps = torch.randn(3, 5, *(grid or SIZE), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert (
        (rendered.views, rendered.count, rendered.size) == (held.views, held.count, held.size) == (3, 40, grid or SIZE)
    )
    for wanted, found in (
        (held.render(values), rendered.render(values)),
        (held.gather(maps), rendered.gather(maps)),
        (held.mass(), rendered.mass()),
        (held.seen(), rendered.seen()),
    ):
        assert wanted.abs().sum() > 1
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    assert torch.equal(rendered.areas, held.areas)


def test_an_operator_of_several_views_is_those_of_each(random_scene, camera):
    scene, values = random_scene(40, 3)
    intrinsics, poses = cameras(camera)
    whole = view_operator(scene, intrinsics, poses, SIZE, (6, 8))
    single = [compositing_weights(scene, *one, SIZE).pooled((6, 8)) for one in zip(intrinsics, poses, strict=True)]
    for name in ("mass", "seen"):
        assert torch.equal(getattr(whole, name)(), torch.cat([getattr(view, name)() for view in single]))
    assert torch.equal(whole.render(values), torch.cat([view.render(values) for view in single]))


@pytest.fixture
def problem(random_scene, camera):
    """Operators of six views by either engine, with maps that the Gaussians can almost explain."""
    scene, truth = random_scene(25, 4)
    draws = torch.Generator().manual_seed(0)
    views = [(camera(0.12 * view)) for view in range(6)]
    pairs = [both(scene, *(part[None] for part in view), (6, 8)) for view in views]
    means = [held.render(truth) / held.mass().clamp(min=1e-9) for held, _ in pairs]
    maps = [m + 0.01 * torch.randn(m.shape, generator=draws, dtype=m.dtype) for m in means]
    return [[(pair[which], m) for pair, m in zip(pairs, maps, strict=True)] for which in (0, 1)]


def test_lifting_sees_the_operator_alone(problem):
    held, rendered = problem
    wanted, found = lift_average(held), lift_average(iter(rendered))
    torch.testing.assert_close(found.features, wanted.features, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.mass, wanted.mass, rtol=1e-9, atol=1e-12)
    assert torch.equal(found.views, wanted.views)


@pytest.mark.parametrize("ridge", [0.1, 1e-3])
def test_streamed_least_squares_are_those_that_hold_everything(problem, monkeypatch, ridge):
    held, rendered = problem
    wanted = lift_cg(held, ridge=ridge, iterations=12, held_out=0)
    average = lift_average(held).features
    assert (wanted.features - average).norm() > 0.05 * average.norm()
    found = {"rendered": lift_cg(iter(rendered), ridge=ridge, iterations=12, held_out=0)}
    monkeypatch.setattr(lifting, "HELD_VALUES", 500)  # the second view is one too many
    found["streamed"] = lift_cg(iter(held), ridge=ridge, iterations=12, held_out=0)
    monkeypatch.undo()
    monkeypatch.setattr("prior3d.splat.weights.HELD_ENTRIES", 10)
    found["too many entries"] = lift_cg(iter(held), ridge=ridge, iterations=12, held_out=0)
    for name, lifted in found.items():
        torch.testing.assert_close(lifted.features, wanted.features, rtol=1e-6, atol=1e-8, msg=name)
        torch.testing.assert_close(lifted.mass, wanted.mass)
        assert torch.equal(lifted.views, wanted.views)


def test_streamed_least_squares_choose_their_iterations_on_cells_held_out(problem):
    held, rendered = problem
    wanted, found = (lift_cg(views, ridge=1e-3, iterations=5) for views in (held, rendered))
    assert found.iterations > 2 and found.held_out_error[found.iterations] == min(found.held_out_error)
    # other cells, the same noise: how far the fit gets is the same
    assert found.held_out_error[found.iterations] < 0.05 * found.held_out_error[0]
    assert wanted.held_out_error[wanted.iterations] < 0.05 * wanted.held_out_error[0]
    draws = torch.Generator().manual_seed(0)
    noise = [(operator, torch.randn(maps.shape, generator=draws)) for operator, maps in rendered]
    errors = lift_cg(noise, ridge=1e-3, iterations=5).held_out_error
    assert min(errors) > 0.9 * errors[0]  # what is noise cannot be predicted, however long it is fitted
    again = lift_cg(rendered, ridge=1e-3, iterations=5)
    assert torch.equal(again.features, found.features) and again.held_out_error == found.held_out_error


def test_the_held_out_error_is_that_of_the_definition(problem):
    _, rendered = problem
    found = lift_cg(rendered, held_out=0.5, iterations=0, seed=3)
    draws, out, kept = torch.Generator().manual_seed(3), [], []
    for operator, maps in rendered:
        mask = torch.rand((1, 1, 6, 8), generator=draws) < 0.5
        out.append((operator, maps, mask * operator.mass()[:, None]))
        kept.append((operator, maps, ~mask))
    sums = sum(operator.gather(maps * mask) for operator, maps, mask in kept)
    mass = sum(operator.gather(mask.to(maps)) for operator, maps, mask in kept)
    average = torch.where(mass > 0, sums / mass, 0.0)
    error = size = 0.0
    for operator, maps, mass in out:
        shown = operator.render(average) / operator.mass()[:, None].clamp(min=1e-300)
        error += (mass * (shown - maps).square()).sum()
        size += (mass * maps.square()).sum()
    assert found.held_out_error == pytest.approx(((error / size).item(),), rel=1e-6)


def test_views_of_nothing_are_lifted_by_either(random_scene, camera):
    scene, _ = random_scene(25, 1)
    intrinsics, pose = camera()
    pose[2, 3] += 50
    for operator in both(scene, intrinsics[None], pose[None], (6, 8)):
        assert not operator.mass().any() and not operator.seen().any()
        for lift in (lift_average, lift_cg):
            assert not lift([(operator, torch.ones(2, 6, 8))]).features.any()


def test_a_grid_finer_than_the_image_is_refused(random_scene, camera):
    with pytest.raises(ValueError, match="at most 24 x 32 cells, got 25 x 30"):
        view_operator(random_scene(5, 1)[0], *camera(), SIZE, (25, 30))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("lift", [lift_average, lift_cg])
def test_gsplat_lifts_and_renders_targets_as_torch_does(random_scene, camera, lift):
    pytest.importorskip("gsplat")
    scene, truth = random_scene(200, 40)
    scene, truth = scene.to(torch.float32).to("cuda"), truth.float().cuda()
    views = [tuple(part.float().cuda() for part in camera(0.1 * view)) for view in range(6)]
    lifted, targets = {}, {}
    for engine in ("torch", "gsplat"):
        operators = [view_operator(scene, *view, SIZE, (6, 8), engine=engine) for view in views]
        maps = [view_operator(scene, *view, SIZE, (6, 8)).render(truth) for view in views]
        options = {"held_out": 0, "iterations": 8} if lift is lift_cg else {}
        lifted[engine] = lift(list(zip(operators, maps, strict=True)), **options)
        targets[engine] = render_feature_targets(
            scene, lifted["torch"], *views[3], SIZE, (6, 8), min_views=2, engine=engine
        )
    wanted, found = lifted["torch"], lifted["gsplat"]
    assert (found.features - wanted.features).norm() < 1e-2 * wanted.features.norm()
    assert (found.mass - wanted.mass).norm() < 1e-3 * wanted.mass.norm()
    assert (found.views != wanted.views).float().mean() < 0.02  # on either side of what counts as seen
    wanted, found = targets["torch"], targets["gsplat"]
    assert torch.allclose(found.mass, wanted.mass, atol=1e-3)
    seen = wanted.mass > 1e-2
    assert seen.any()
    assert (found.values - wanted.values)[:, seen].norm() < 2e-3 * wanted.values[:, seen].norm()
