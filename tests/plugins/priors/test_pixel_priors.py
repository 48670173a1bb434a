"""The three pixel priors: the contract, and their losses against values worked out by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from prior3d.contracts.prior import Features
from prior3d.geometry import match_views_batched, unproject
from prior3d.losses import gather_pairs
from prior3d.losses.contrastive import point_info_nce
from prior3d.testing import check_prior, evaluate, example_backbone, example_batch, example_features
from prior3d_plugins.priors.augmentation_invariance import AugmentationInvariance
from prior3d_plugins.priors.depth_regression import DepthRegression
from prior3d_plugins.priors.view_invariance import ViewInvariance


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (ViewInvariance, {}),
        (ViewInvariance, {"negatives": "batch", "exclude_radius": 0.1}),
        (ViewInvariance, {"exclude_radius": 0.1, "points": 500}),
        (ViewInvariance, {"negatives": "ranks", "exclude_radius": 0.1}),
        (AugmentationInvariance, {}),
        (AugmentationInvariance, {"negatives": "batch", "points": 20}),
        (DepthRegression, {}),
    ],
)
def test_keeps_to_the_contract(cls, options):
    check_prior(cls, options)


def position_code(pixels, channels=16):
    """A feature that tells every place from every other: random projections of scaled coordinates."""
    directions = torch.randn(2, channels // 2, generator=torch.Generator().manual_seed(1)) * 2.5
    phase = pixels @ directions
    return torch.cat([phase.sin(), phase.cos()], -1)


def test_view_invariance_is_small_for_features_of_the_3d_point_and_large_for_others():
    batch, spec = example_batch(), example_backbone()
    prior = ViewInvariance(spec, temperature=0.05)
    rows, columns = spec.dense_size
    y, x = torch.meshgrid(torch.arange(rows) * 4 + 2, torch.arange(columns) * 4 + 2, indexing="ij")
    depth = batch["depth"][..., y, x]
    points_x = (x + 0.0 - 32) / 50 * depth + batch["world_from_camera"][..., 0, 3][..., None, None]
    points_y = (y + 0.0 - 24) / 50 * depth
    code = position_code(torch.stack([points_x + depth, points_y], -1)).movedim(-1, 2)
    features = {"image": Features(dense=code)}
    right = evaluate(prior, batch, features)[0]
    # the other view's features reversed: every match is wrong now
    wrong = evaluate(prior, batch, {"image": Features(dense=torch.stack([code[:, 0], code[:, 1].flip(-1)], 1))})[0]
    assert right < 0.4 * wrong


def test_view_invariance_vanishes_where_views_do_not_meet():
    batch = example_batch()
    batch["world_from_camera"][:, 1, :3, :3] = torch.diag(torch.tensor([-1.0, 1.0, -1.0]))  # looks the other way
    prior = ViewInvariance(example_backbone())
    loss, scalars = evaluate(prior, batch, example_features(batch, ("image",)))
    assert loss.item() == 0 and scalars["matches"].item() == 0


def test_view_invariance_passes_over_pairs_outside_its_angles():
    batch = example_batch()
    features = example_features(batch, ("image",))
    assert evaluate(ViewInvariance(example_backbone()), batch, features)[1]["matches"] > 0
    assert evaluate(ViewInvariance(example_backbone(), min_angle=30.0), batch, features)[1]["matches"] == 0


def test_view_invariance_uses_every_further_view():
    batch = example_batch()
    three = {
        name: torch.cat([value, value[:, 1:]], 1) if name not in ("scene", "pseudo_kind") and value.ndim > 1 else value
        for name, value in batch.items()
    }
    features = example_features(three, ("image",))
    loss, _ = evaluate(ViewInvariance(example_backbone()), three, features)
    gradient = torch.autograd.grad(loss, features["image"].dense)[0]
    assert all(gradient[:, view].abs().sum() > 0 for view in range(3))


def test_view_invariance_matches_every_other_view_with_the_first():
    batch = example_batch()
    moved = batch["world_from_camera"][:, 1:].clone()
    moved[..., 0, 3] += 0.1
    more = batch | {name: torch.cat([batch[name], batch[name][:, 1:]], 1) for name in ("depth", "intrinsics")}
    more["world_from_camera"] = torch.cat([batch["world_from_camera"], moved], 1)
    match, points, scene = ViewInvariance(example_backbone(), exclude_radius=0.1)._labels(more)
    assert torch.equal(scene, batch["scene"].repeat(2))
    for view in (1, 2):
        groups = slice(2 * view - 2, 2 * view)
        fields = ("depth", "intrinsics", "world_from_camera")
        alone = match_views_batched(*(more[name][:, at] for name in fields for at in (0, view)), 0.05, 0.02)
        seen = unproject(more["depth"][:, 0], more["intrinsics"][:, 0], more["world_from_camera"][:, 0]).flatten(1, 2)
        for sample in range(2):
            picked = match.valid[groups][sample]
            index = match.index[groups][sample][picked]
            assert len(index) > 50 and alone.valid[sample][index].all()
            for found, wanted in ((match.pixels_a, alone.pixels_a), (match.pixels_b, alone.pixels_b)):
                assert torch.equal(found[groups][sample][picked], wanted[sample][index])
            torch.testing.assert_close(points[groups][sample][picked], seen[sample][index])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("views", [2, 3])
def test_labels_of_view_invariance_take_few_launches_in_a_cuda_graph(views):
    batch = {name: value.cuda() for name, value in example_batch().items() if isinstance(value, torch.Tensor)}
    fields = ("depth", "intrinsics", "world_from_camera")
    batch = {name: torch.cat([batch[name], batch[name][:, 1:]], 1)[:, :views] for name in fields}
    prior = ViewInvariance(example_backbone())
    rows, columns = prior.backbone.dense_size
    dense = torch.randn(2, views, 16, rows, columns, device="cuda", requires_grad=True)

    def run():
        match, _, _ = prior._labels(batch)
        queries, keys = gather_pairs(dense, match.cells_a, match.cells_b)
        loss = ((queries * keys).sum(-1) * match.valid).sum()
        return match, torch.autograd.grad(loss, dense)[0]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        prior._labels(batch)
    launched = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    assert 0 < len(launched) <= (20 if views == 2 else 30), [event.name for event in launched]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        match, gradient = run()
    drawn = []
    for _ in range(2):
        graph.replay()
        assert match.valid.any() and gradient.isfinite().all() and gradient.abs().sum() > 0
        drawn.append(match.index.clone())
    assert not torch.equal(*drawn)  # a replay draws other matches


def test_augmentation_invariance_matches_the_same_pixel_of_the_image():
    batch = example_batch()
    scale, shift = 1.5, torch.tensor([-4.0, 3.0])
    batch["crop_from_image"][:, 0] = torch.eye(3)
    batch["crop_from_image"][:, 1] = torch.tensor([[scale, 0, shift[0]], [0, scale, shift[1]], [0, 0, 1]])
    match = AugmentationInvariance(example_backbone())._sample(batch)
    assert match.valid.any()
    expected = match.pixels_a * scale + shift
    torch.testing.assert_close(match.pixels_b[match.valid], expected[match.valid])
    inside = (match.pixels_b[match.valid] >= 0).all() and (
        match.pixels_b[match.valid] < torch.tensor([64.0, 48.0])
    ).all()
    assert inside
    for cells in (match.cells_a, match.cells_b):
        kept = cells[0][match.valid[0]]
        assert len(kept.unique()) == len(kept)


def test_augmentation_invariance_equals_point_info_nce_on_identical_crops():
    batch = example_batch()
    batch["crop_from_image"][:] = torch.eye(3)
    features = example_features(batch, ("image_crops",))
    spec = example_backbone()
    cells = spec.dense_size[0] * spec.dense_size[1]
    loss, scalars = evaluate(AugmentationInvariance(spec, points=cells, temperature=0.2), batch, features)
    assert scalars["matches"] == 1
    dense = features["image_crops"].dense.flatten(3)
    expected = torch.stack([point_info_nce(dense[b, 0].T, dense[b, 1].T, 0.2) for b in range(2)]).mean()
    torch.testing.assert_close(loss, expected)


def test_depth_regression_is_zero_for_the_true_depth_and_known_for_a_constant_error():
    batch = example_batch()
    prior = DepthRegression(example_backbone(), alpha=0.5)
    target = F.interpolate(batch["depth"].flatten(0, 1)[:, None], prior.backbone.dense_size, mode="nearest-exact")
    with torch.no_grad():  # a head that reads the logarithm of depth (in focal lengths per width) off channel 0
        prior.head.weight.zero_()
        prior.head.weight[0, 0] = 1
        prior.head.bias.zero_()

    def loss_at(depth):
        dense = torch.zeros(4, 16, *prior.backbone.dense_size)
        dense[:, :1] = (depth * 64 / 50).log()
        return evaluate(prior, batch, {"image": Features(dense=dense.unflatten(0, (2, 2)))})

    assert loss_at(target)[0].item() == pytest.approx(0, abs=1e-5)
    loss, terms = loss_at(target + 0.25)
    assert terms["value"].item() == pytest.approx(math.log(1 + 0.25 / 0.5), rel=1e-4)
    assert terms["gradient"].item() == pytest.approx(0, abs=1e-4)
    assert loss.item() == pytest.approx(terms["value"].item() / 3, rel=1e-3)


def test_depth_regression_ignores_unknown_depth():
    batch = example_batch()
    prior = DepthRegression(example_backbone())
    features = example_features(batch, ("image",))
    batch["depth"][:, :, :24] = 0
    loss, _ = evaluate(prior, batch, features)
    gradient = torch.autograd.grad(loss, features["image"].dense)[0]
    assert gradient[:, :, :, :5].abs().sum() == 0 and gradient[:, :, :, 7:].abs().sum() > 0


def test_depth_regression_follows_the_focal_length():
    batch = example_batch()
    prior = DepthRegression(example_backbone())
    dense = torch.zeros(2, 2, 16, *prior.backbone.dense_size)
    near = prior._predict(batch, dense)
    batch["intrinsics"][..., 0, 0] *= 2
    torch.testing.assert_close(prior._predict(batch, dense), 2 * near)
