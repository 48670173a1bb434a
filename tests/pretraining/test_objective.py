import pytest
import torch

from prior3d.backbone import Backbone, set_trainable
from prior3d.contracts.prior import Prior
from prior3d.errors import UserError
from prior3d.pretraining.health import compare_gradients
from prior3d.pretraining.objective import JointObjective, TeachingBackbone, Term, encode
from prior3d.randomness import reseed, stream_seed


class Mean(Prior):
    """The mean of the dense features of a field, times a random number."""

    def __init__(self, backbone, *, field="image", sign=1.0):
        super().__init__(backbone)
        self.encodes = (field,)
        self.sign = sign

    def forward(self, batch, features):
        value = features[self.encodes[0]].dense.mean() * self.sign
        return value, {"draw": torch.rand(())}


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    made = Backbone("resnet10t", (32, 32), decoder_stride=4)
    set_trainable(made, "full", 1, {"dense"})
    return made


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return {"image": torch.rand(2, 3, 3, 32, 32), "image_crops": torch.rand(2, 2, 3, 32, 32)}


def make(backbone, **terms):
    priors = {
        "a": Mean(backbone.spec),
        "b": Mean(backbone.spec, sign=-2.0),
        "crops": Mean(backbone.spec, field="image_crops"),
    }
    return JointObjective({name: priors[name] for name in terms}, terms)


def seed(use):
    reseed("test", use)


def count_calls(module):
    calls = []
    handle = module.register_forward_hook(lambda *_: calls.append(1))
    return calls, handle


def count_images(module):
    seen = []
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    return seen, handle


def test_the_backbone_runs_once_whatever_is_encoded(backbone, batch):
    objective = make(backbone, a=Term(1.0), b=Term(1.0), crops=Term(1.0))
    calls, handle = count_calls(backbone.encoder.model.layer1)
    result = encode(backbone, batch, objective.encodes, objective.reads)
    handle.remove()
    assert len(calls) == 1
    assert result.features["image"].dense.shape[:2] == (2, 3)
    assert result.features["image_crops"].dense.shape[:2] == (2, 2)


def test_every_field_gets_its_own_features(backbone, batch):
    backbone.eval()
    features = encode(backbone, batch, ["image", "image_crops"], frozenset({"dense", "encoder", "pooled"})).features
    alone = backbone(batch["image_crops"][1, :1], {"dense", "pooled"})
    torch.testing.assert_close(features["image_crops"].dense[1, :1], alone.dense, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(features["image_crops"].pooled[1, :1], alone.pooled, rtol=1e-3, atol=1e-5)
    backbone.train()


def test_only_what_is_read_is_given(backbone, batch):
    features = encode(backbone, batch, ["image"], frozenset({"dense"})).features["image"]
    assert features.pooled is None and not features.encoder and features.reference is None


def test_the_reference_runs_once_and_without_gradient(backbone, batch):
    calls, handle = count_calls(backbone.encoder.model.layer1)
    teachers = {
        "reference": TeachingBackbone(backbone, frozenset({"image", "image_crops"}), frozenset({"dense", "pooled"}))
    }
    features = encode(backbone, batch, ["image", "image_crops"], frozenset({"dense", "reference"}), teachers).features
    handle.remove()
    assert len(calls) == 2  # itself, and once as its own reference
    assert not features["image"].reference.dense.requires_grad
    assert features["image"].reference.pooled is not None and features["image_crops"].reference.dense is not None


def test_a_teacher_computes_what_its_readers_read_and_nothing_else(backbone, batch):
    objective = make(backbone, a=Term(1.0), crops=Term(1.0))
    assert objective.teachers(reference=backbone, ema=backbone) == {}
    objective.priors["crops"].reads = frozenset({"pooled", "encoder", "reference"})
    teachers = objective.teachers(reference=backbone, ema=None)
    assert teachers == {
        "reference": TeachingBackbone(backbone, frozenset({"image_crops"}), frozenset({"pooled", "encoder"}))
    }
    calls, handle = count_calls(backbone.decoder)
    seen, other = count_images(backbone.encoder)
    backbone.eval()
    features = encode(backbone, batch, objective.encodes, objective.reads, teachers).features
    backbone.train(), handle.remove(), other.remove()
    assert len(calls) == 1 and seen == [10, 4]  # the teacher's decoder does not run, and it sees the crops alone
    assert features["image"].reference is None
    reference = features["image_crops"].reference
    assert reference.dense is None and set(reference.encoder) == set(features["image_crops"].encoder)
    torch.testing.assert_close(reference.pooled, features["image_crops"].pooled.detach(), rtol=1e-3, atol=1e-5)


def test_total_is_the_weighted_sum_with_linear_warm_up(backbone, batch):
    objective = make(backbone, a=Term(2.0), b=Term(1.0, warmup=3))
    features = encode(backbone, batch, objective.encodes, objective.reads).features
    for step, factor in ((0, 0.25), (1, 0.5), (3, 1.0), (100, 1.0)):
        losses = objective(batch, features, step, seed)
        expected = 2 * losses.by_label["a"] + factor * losses.by_label["b"]
        torch.testing.assert_close(losses.total, expected)
    assert set(losses.scalars) == {"a/draw", "b/draw"}


def test_adding_a_prior_changes_no_others_draws(backbone, batch):
    alone, joint = make(backbone, b=Term(1.0)), make(backbone, a=Term(1.0), b=Term(1.0))
    features = encode(backbone, batch, ["image"], joint.reads).features
    draws = [objective(batch, features, 0, seed).scalars["b/draw"] for objective in (alone, joint)]
    assert draws[0] == draws[1]


def test_cosines_of_opposed_and_of_unrelated_priors(backbone, batch):
    objective = make(backbone, a=Term(1.0), b=Term(1.0), crops=Term(1.0))
    result = encode(backbone, batch, objective.encodes, objective.reads)
    losses = objective(batch, result.features, 0, seed)
    compared = compare_gradients(losses, result.maps.encoder, objective)
    assert compared["cosine/a/b"].item() == pytest.approx(-1, abs=1e-4)
    assert compared["norm/b"].item() == pytest.approx(2 * compared["norm/a"].item(), rel=1e-4)
    assert not any("crops" in name for name in compared if name.startswith("cosine"))
    losses.total.backward()  # the graph is still there


def test_streams_differ_by_every_part_and_never_change():
    seeds = {stream_seed(*parts) for parts in (("a", 0), ("a", 1), ("b", 0), ("a", 0, 0), (0, "a"))}
    assert len(seeds) == 5
    assert stream_seed("step", 0, 1) == 7531875650895689201  # the same on every machine: runs resume elsewhere


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (
            lambda dense: dense.mean(),
            "forward returned a tensor of shape [], expected a loss and a dict of scalars",
        ),
        (lambda dense: (dense.mean(), 3), "forward returned tuple, expected a loss and a dict of scalars"),
        (lambda dense: (dense.mean((0, 1)), {}), "forward returned a loss of shape [64, 8, 8], expected a scalar"),
        (lambda dense: (dense.mean(), {"a": "much"}), "forward logs 'a' as str, expected a scalar tensor"),
        (
            lambda dense: (dense.mean().detach(), {}),
            "the loss is not connected to the features: it trains nothing; for a batch with nothing to learn from, "
            "return self.zero(features)",
        ),
    ],
)
def test_what_a_prior_must_not_return_is_one_line(backbone, batch, returned, message):
    class Wrong(Mean):
        def forward(self, batch, features):
            return returned(features["image"].dense)

    objective = JointObjective({"a": Wrong(backbone.spec)}, {"a": Term(1.0)})
    features = encode(backbone, batch, objective.encodes, objective.reads).features
    with pytest.raises(UserError) as refused:
        objective(batch, features, 0, seed)
    assert str(refused.value) == f"priors.a: {message}"


def test_frozen_features_need_no_gradient(backbone, batch):
    objective = JointObjective({"a": Mean(backbone.spec)}, {"a": Term(1.0)})
    with torch.no_grad():
        features = encode(backbone, batch, objective.encodes, objective.reads).features
    assert not objective(batch, features, 0, seed).total.requires_grad
