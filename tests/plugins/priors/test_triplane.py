"""The tri-plane prior: the contract, what each term is measured against, what it learns, and what it refuses."""

import pytest
import torch
from torch import nn

from prior3d.contracts.fields import missing_fields
from prior3d.contracts.prior import Features
from prior3d.errors import UserError
from prior3d.registry.schema import validate_options
from prior3d.testing import SIZE, check_prior, evaluate, example_backbone, example_batch, example_features
from prior3d.volume import random_pixels, read_pixels
from prior3d_plugins.priors.triplane import Triplane
from prior3d_plugins.priors.triplane.decoders import Seen
from prior3d_plugins.priors.triplane.terms import depth_correlation, distillation

SMALL = {"images": 4, "rays": 64, "samples": 8, "blocks": 1, "width": 32, "plane_size": 8, "plane_channels": 8}


@pytest.fixture(autouse=True)
def one_thread():
    # many small steps: on busy cores two threads spend most of the time waiting for each other
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make(**options):
    torch.manual_seed(0)
    return Triplane(example_backbone(), **{**SMALL, **options})


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"space": "cube"}, marks=pytest.mark.slow),
        {"stride": 4, "images": 1},
        pytest.param({"distill_distance": "cosine"}, marks=pytest.mark.slow),
        pytest.param({"depth_weight": 0.0}, marks=pytest.mark.slow),
        pytest.param({"distill_weight": 0.0}, marks=pytest.mark.slow),
        {"depth_weight": 0.0, "distill_weight": 0.0, "opacity_weight": 0.0},
        pytest.param({"rgb_weight": 0.0}, marks=pytest.mark.slow),
        pytest.param({"decoder": "dpt"}, marks=pytest.mark.slow),
        pytest.param({"decoder": "dpt", "depth_weight": 0.0, "distill_weight": 0.0}, marks=pytest.mark.slow),
        {"decoder": "dpt", "space": "cube", "distill_distance": "l2"},
    ],
    ids=str,
)
def test_keeps_to_the_contract(options):
    check_prior(Triplane, {**SMALL, **options})


@pytest.mark.parametrize("decoder", ["triplane", "dpt"])
def test_the_gradient_reaches_every_cell_of_the_encoder_map_of_every_image(decoder):
    prior, batch = make(decoder=decoder, rays=2048, stride=16, distill_weight=0.0), example_batch()
    features = example_features(batch, ("image",))
    evaluate(prior, batch, features)[0].backward()
    encoder = features["image"].encoder
    assert (encoder[16].grad.abs().sum(2) > 0).all()
    assert encoder[4].grad is None


def test_coarser_maps_are_connected_with_a_zero():
    prior, batch = make(stride=4, distill_weight=0.0), example_batch()
    features = example_features(batch, ("image",))
    evaluate(prior, batch, features)[0].backward()
    assert torch.equal(features["image"].encoder[16].grad, torch.zeros_like(features["image"].encoder[16]))


def disc_before_wall():
    """One image [1, 1, 3, H, W] and its depth [1, 1, H, W] in meters."""
    y, x = torch.meshgrid(*[(torch.arange(side) + 0.5) / side * 2 - 1 for side in SIZE], indexing="ij")
    disc = (x - 0.2) ** 2 + (y + 0.1) ** 2 < 0.5**2
    front = torch.stack([0.9 + 0 * x, 0.3 + 0.3 * x, 0.2 + 0 * x])
    wall = torch.stack([0.2 + 0 * x, 0.4 + 0.2 * y, 0.7 + 0.2 * x])
    return torch.where(disc, front, wall)[None, None], torch.where(disc, 1.4 + 0 * x, 2.5 + 0.2 * y)[None, None]


@pytest.mark.parametrize(
    ("options", "disparity"),
    [
        pytest.param({}, True, id="frustum"),
        pytest.param({"space": "cube"}, False, id="cube", marks=pytest.mark.slow),
        pytest.param({"decoder": "dpt"}, True, id="dpt", marks=pytest.mark.slow),
    ],
)
def test_one_example_is_overfitted(options, disparity):
    image, depth = disc_before_wall()
    file = 900 / depth - 40 if disparity else 30 * depth + 5  # in a unit of its own
    batch = {"image": image, "image_clean": image, "pseudo_depth": file, "pseudo_kind": torch.tensor([int(disparity)])}
    prior = make(stride=4, distill_weight=0.0, width=64, rays=256, samples=16, plane_size=16, **options)
    tokens = nn.Parameter(torch.randn(1, 1, 8, 12, 16) / 2)
    features = {"image": Features(encoder={4: tokens})}
    optimizer = torch.optim.AdamW([tokens, *prior.parameters()], lr=3e-3)
    first = None
    for _ in range(90):
        loss, scalars = prior(batch, features)
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.3 * first
    assert scalars["psnr"] > 20
    with torch.no_grad():
        _, rendered = prior.decoder.picture(tokens.flatten(0, 1), SIZE)
    assert torch.corrcoef(torch.stack([rendered.flatten(), depth.flatten()]))[0, 1] > 0.9
    if "opacity" in scalars:
        assert scalars["opacity"] > 0.8  # 0.4 at the start


def test_the_loss_is_the_weighted_sum_of_its_terms():
    weights = {"rgb_weight": 0.7, "depth_weight": 0.3, "opacity_weight": 0.2, "distill_weight": 0.4}
    batch = example_batch()
    loss, scalars = evaluate(make(**weights), batch, example_features(batch, ("image",)))
    expected = 0.7 * scalars["rgb_loss"] + 0.3 * scalars["depth_loss"] + 0.2 * scalars["opacity_loss"]
    expected = expected + 0.4 * (scalars["distill_map"] + scalars["distill_pooled"])
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(scalars["opacity_loss"], 1 - scalars["opacity"])


def test_the_ablation_has_the_same_terms_without_a_volume():
    batch = example_batch()
    features = example_features(batch, ("image",))
    volume, dense = (evaluate(make(decoder=name), batch, features)[1] for name in ("triplane", "dpt"))
    assert set(volume) - set(dense) == {"opacity", "opacity_loss", "energy_xy", "energy_xz", "energy_yz"}
    assert set(dense) < set(volume)


def test_color_is_compared_with_the_clean_image_and_never_with_the_augmented_one():
    batch = example_batch()
    prior, features = make(), example_features(batch, ("image",))
    before = evaluate(prior, batch, features)[1]
    other_image = evaluate(prior, {**batch, "image": 1 - batch["image"]}, features)[1]
    other_clean = evaluate(prior, {**batch, "image_clean": torch.zeros_like(batch["image"])}, features)[1]
    assert all(torch.equal(before[name], other_image[name]) for name in before)
    assert not torch.equal(before["rgb_loss"], other_clean["rgb_loss"])


def test_metric_depth_counts_as_depth_and_pseudo_depth_goes_first():
    batch = example_batch()
    prior, features = make(), example_features(batch, ("image",))
    metric = {name: value for name, value in batch.items() if not name.startswith("pseudo")}
    loss = evaluate(prior, metric, features)[0]
    as_pseudo = {**metric, "pseudo_depth": 7 * batch["depth"] + 3, "pseudo_kind": torch.tensor([0, 0])}
    # a scale and a shift of its own change nothing, and the metric depth beside it is not looked at
    torch.testing.assert_close(evaluate(prior, as_pseudo, features)[0], loss)
    as_pseudo["depth"] = torch.zeros_like(batch["depth"])
    torch.testing.assert_close(evaluate(prior, as_pseudo, features)[0], loss)
    as_disparity = {**as_pseudo, "pseudo_kind": torch.tensor([1, 1])}
    assert (evaluate(prior, as_disparity, features)[0] - loss).abs() > 1e-3


def test_each_image_is_compared_in_the_space_of_its_own_file():
    batch = example_batch()
    batch["pseudo_depth"][1] = 1 / batch["pseudo_depth"][1]  # the second sample's file holds disparity
    prior, chosen = make(), torch.tensor([3, 0, 2, 1])
    indices = random_pixels(4, 64, *SIZE)
    depth = read_pixels(batch["depth"].flatten(0, 1)[chosen], indices)
    true = Seen(torch.zeros(4, 64, 3), depth, 1 / depth, None, {})
    loss, correlation = prior._compare_depth(batch, true, chosen, indices)
    assert loss < 1e-4 and correlation > 0.999
    swapped = true._replace(depth=1 / depth, inverse_depth=depth)
    loss, correlation = prior._compare_depth(batch, swapped, chosen, indices)
    assert loss > 0.5 and correlation < 0


def test_without_valid_depth_its_loss_is_zero_and_color_still_learns():
    batch = example_batch(known=False)
    prior, features = make(distill_weight=0.0), example_features(batch, ("image",))
    loss, scalars = evaluate(prior, batch, features)
    assert scalars["depth_loss"] == 0 and scalars["depth_correlation"] == 0
    loss.backward()
    gradient = features["image"].encoder[16].grad
    assert gradient.isfinite().all() and gradient.abs().sum() > 0


def test_draws_different_images_and_no_more_than_there_are():
    prior = make(images=3)
    drawn = [prior._choose(5, torch.device("cpu")) for _ in range(30)]
    assert all(len(chosen.unique()) == 3 for chosen in drawn)
    assert torch.cat(drawn).unique().tolist() == [0, 1, 2, 3, 4]
    assert sorted(prior._choose(2, torch.device("cpu")).tolist()) == [0, 1]


def test_distillation_in_closed_form():
    reference = torch.randn(2, 1, 6, 3, 4)
    for distance, equal, doubled, opposite in (("cosine", 0, 0, 2), ("l2", 0, 1, 4), ("both", 0, 1, 6)):
        for factor, expected in ((1, equal), (2, doubled), (-1, opposite)):
            loss = distillation(factor * reference, reference, distance)
            assert loss.item() == pytest.approx(expected, abs=1e-5)
    half = distillation(reference.bfloat16(), reference.bfloat16(), "both")
    assert half.dtype == torch.float32 and half.abs() < 1e-5
    nothing = torch.zeros(2, 1, 6, requires_grad=True)
    distillation(nothing, torch.zeros(2, 1, 6), "both").backward()
    assert nothing.grad.isfinite().all()


def test_distillation_covers_all_images_and_is_zero_at_the_start():
    batch = example_batch()
    features = example_features(batch, ("image",))["image"]
    start = Features(features.encoder, features.dense, features.pooled, reference=features)
    scalars = evaluate(make(images=1), batch, {"image": start})[1]
    assert scalars["distill_map"].abs() < 1e-5 and scalars["distill_pooled"].abs() < 1e-5
    scalars = evaluate(make(images=1), batch, {"image": features})[1]
    (gradient,) = torch.autograd.grad(scalars["distill_map"], features.encoder[16])
    assert (gradient.flatten(2).abs().sum(2) > 0).all()


def test_depth_correlation_is_the_mean_of_each_images():
    torch.manual_seed(0)
    a, b = torch.randn(3, 50), torch.randn(3, 50)
    mask = torch.rand(3, 50) < 0.7
    mask[2] = False
    expected = [torch.corrcoef(torch.stack([a[i][mask[i]], b[i][mask[i]]]))[0, 1] for i in range(2)]
    b[~mask] = torch.nan
    torch.testing.assert_close(depth_correlation(a, b, mask), sum(expected) / 2)


def test_bf16_training_stays_finite_with_rendering_in_float32():
    batch = example_batch()
    features = example_features(batch, ("image",))
    prior = make(stride=4)
    optimizer = torch.optim.AdamW([features["image"].encoder[4], *prior.parameters()], lr=3e-3)
    for _ in range(10):
        with torch.autocast("cpu", torch.bfloat16):
            assert prior.decoder.planes_from_tokens(torch.randn(1, 8, 4, 4)).dtype == torch.bfloat16
            loss, scalars = prior(batch, features)
        assert {loss.dtype, *(value.dtype for value in scalars.values())} == {torch.float32}
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad.isfinite().all() for p in prior.parameters())
        optimizer.step()
    assert loss.isfinite()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("decoder", ["triplane", "dpt"])
def test_a_step_on_the_gpu_is_finite_and_does_not_wait_for_it(decoder):
    batch = {name: value.cuda() for name, value in example_batch().items()}

    def on_gpu(grad):
        encoder = {16: torch.randn(2, 2, 24, 3, 4, device="cuda", requires_grad=grad)}
        return {"encoder": encoder, "pooled": torch.randn(2, 2, 24, device="cuda", requires_grad=grad)}

    features = {"image": Features(**on_gpu(True), reference=Features(**on_gpu(False)))}
    prior = make(decoder=decoder).cuda()
    for step in range(3):  # the first step allocates and chooses kernels
        torch.cuda.set_sync_debug_mode("error" if step else "default")
        try:
            with torch.autocast("cuda", dtype=torch.bfloat16):
                loss, _ = prior(batch, features)
            loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in prior.parameters())


@pytest.mark.parametrize(
    ("decoder", "figures"), [("triplane", {"reconstruction", "orbit"}), ("dpt", {"reconstruction"})]
)
def test_pictures_show_two_images_with_the_depth_there_is(decoder, figures):
    batch = example_batch()
    drawn = make(decoder=decoder).plot(batch, example_features(batch, ("image",)))
    assert set(drawn) == figures
    titles = [axis.get_title() for axis in drawn["reconstruction"].axes[:4]]
    assert titles == ["image", "rendered", "rendered depth", "given depth"]
    color_only = {name: batch[name] for name in ("image", "image_clean")}
    drawn = make(decoder=decoder, depth_weight=0.0).plot(color_only, example_features(batch, ("image",)))
    assert [axis.get_title() for axis in drawn["reconstruction"].axes[:3]] == titles[:3]


def test_needs_and_reads_follow_the_options():
    color_and_depth = ("image", "image_clean", "pseudo_depth|depth")
    assert make().needs == color_and_depth
    assert missing_fields(make().needs, frozenset({"image"})) == ["pseudo_depth|depth"]
    for has in ("depth", "pseudo_depth"):
        assert missing_fields(make().needs, frozenset({"image", has})) == []
    assert missing_fields(make(depth_weight=0.0).needs, frozenset({"image"})) == []
    assert make().reads == {"encoder", "pooled", "reference"}
    assert make(distill_weight=0.0).reads == {"encoder"}


def test_decodes_the_coarsest_map_of_stride_16_or_less():
    spec = example_backbone()
    for strides, chosen in (((4, 8, 16, 32), 16), ((14,), 14), ((2, 4, 8), 8), ((32,), 32)):
        object.__setattr__(spec, "encoder_channels", dict.fromkeys(strides, 8))
        assert Triplane(spec, **SMALL).stride == chosen


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 8}, "^stride: example has no map of stride 8; its strides are 4, 16"),
        ({"rgb_weight": 0.0, "depth_weight": 0.0}, "^rgb_weight: this and depth_weight are both 0: nothing is left"),
    ],
)
def test_options_that_do_not_fit_are_one_line(options, message):
    with pytest.raises(UserError, match=message):
        make(**options)


@pytest.mark.parametrize(
    ("options", "key"), [({"width": 20}, "width"), ({"plane_size": 7}, "plane_size"), ({"rays": 8}, "rays")]
)
def test_sizes_that_do_not_divide_are_refused_by_the_schema(options, key):
    with pytest.raises(UserError) as caught:
        validate_options(Triplane, options, "priors.triplane")
    assert caught.value.key == f"priors.triplane.{key}"
