"""What `check_probe` catches, and that the built-in probes pass."""

import pytest
import torch

from prior3d.contracts.probe import Measured, Probe, by_group
from prior3d.errors import UserError
from prior3d.testing import check_probe
from prior3d_plugins.probes.classification import Classification
from prior3d_plugins.probes.correspondence import Correspondence
from prior3d_plugins.probes.depth import Depth
from prior3d_plugins.probes.normals import Normals
from prior3d_plugins.probes.segmentation import Segmentation

QUICK = {"steps": 20}


@pytest.mark.parametrize(
    ("cls", "options", "informed"),
    [
        (Depth, {"steps": 100}, ["RMSE m", "delta1"]),
        (Segmentation, {**QUICK, "memory": 500}, ["mIoU, linear", "mIoU, k-NN", "pixel accuracy, linear"]),
        (Normals, QUICK, ["mean deg"]),
        (Correspondence, {}, ["recall@6px, all", "feature distance ratio, all"]),
        (Classification, {"penalty": 0.01, "k": 1}, ["top-1, linear"]),
    ],
)
def test_the_built_in_probes_keep_the_contract(cls, options, informed):
    assert isinstance(check_probe(cls, options, informed=informed), cls)


class Glow(Probe):
    """How bright features are."""

    meanings = {"glow": "mean of the features"}  # noqa: RUF012
    bounds = {"glow": (-1.0, 2.0)}  # noqa: RUF012

    def measure(self, model, data, seed=0):
        (features,) = data.features(model, "held_out")[:1]
        values = features.take(torch.arange(len(features))).float().mean((1, 2, 3))
        return by_group(*data.groups("held_out"), {"sum": values, "count": torch.ones(len(values))})

    def summarize(self, total):
        return {"glow": float(total["sum"] / total["count"])}


def test_a_good_probe_passes():
    check_probe(Glow)


class Total(Glow):
    """Returns a sum for a rate."""

    bounds = {}  # noqa: RUF012

    def summarize(self, total):
        return {"glow": float(total["sum"])}


class Unbounded(Glow):
    """Leaves its bounds."""

    def summarize(self, total):
        return {"glow": 7.0}


class Unexplained(Glow):
    """Has a metric that nothing explains."""

    def summarize(self, total):
        return {**super().summarize(total), "shine": 0.0}


class NotANumber(Glow):
    """Divides by nothing."""

    def summarize(self, total):
        return {"glow": float("nan")}


class Remembers(Glow):
    """Adds what it measured before."""

    def __init__(self):
        self.before = 0.0

    def measure(self, model, data, seed=0):
        scores = super().measure(model, data, seed)
        scores.statistics["sum"].add_(self.before)
        self.before += 1.0
        return scores


class Draws(Glow):
    """Draws without saying so."""

    def measure(self, model, data, seed=0):
        scores = super().measure(model, data, seed)
        scores.statistics["sum"].add_(seed / 100)
        return scores


class Global(Glow):
    """Draws from the global generator."""

    def measure(self, model, data, seed=0):
        scores = super().measure(model, data, seed)
        scores.statistics["sum"].add_(torch.rand(()))
        return scores


class Trains(Glow):
    """Changes the model."""

    def measure(self, model, data, seed=0):
        scores = super().measure(model, data, seed)
        model.backbones[0].gain.data.add_(1)
        return scores


class Paints(Glow):
    """Changes the labels."""

    def measure(self, model, data, seed=0):
        data.field("held_out", "semantic").put(0, torch.ones(1, *data.size))
        return super().measure(model, data, seed)


class Absolute(Glow):
    """Refuses with a key that is not its own."""

    def measure(self, model, data, seed=0):
        if not data.field("held_out", "depth").take(torch.arange(1)).any():
            raise UserError("no depth", "probes.glow.depth")
        return super().measure(model, data, seed)


class Elsewhere(Glow):
    """Has a control of other groups."""

    def controls(self, data):
        ones = torch.ones(1)
        return {"one": by_group(["room"], torch.zeros(1, dtype=torch.int64), {"sum": ones, "count": ones})}


class Sketch(Glow):
    """Plots something else than a figure."""

    def measure(self, model, data, seed=0):
        return Measured(super().measure(model, data, seed), "nothing")

    def plot(self, models, data, shown):
        return {"glow": shown[next(iter(models))]}


class Closure(Glow):
    """Cannot be pickled."""

    def __init__(self):
        self.function = lambda value: value


class Unknown(Glow):
    """Needs what no data has."""

    needs = ("image", "smell")


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (Total, "no rate of sums"),
        (Unbounded, "beyond -1.0 to 2.0"),
        (Unexplained, "nothing in `meanings` says what 'shine' is"),
        (NotANumber, "no finite float"),
        (Remembers, "kept between measurements"),
        (Draws, "`seeded` is not declared"),
        (Global, "kept between measurements"),
        (Trains, "changes the model|otherwise after another"),
        (Paints, "changes the data"),
        (Absolute, "expected an option of the probe, or data"),
        (Elsewhere, "of other groups"),
        (Sketch, "something else than figures"),
        (Unknown, "needs the field 'smell'"),
    ],
)
def test_what_breaks_the_contract_is_named(cls, words):
    with pytest.raises(AssertionError, match=words):
        check_probe(cls)


def test_a_probe_that_cannot_be_pickled_is_named():
    with pytest.raises(AssertionError, match="cannot be pickled"):
        check_probe(Closure)


class Backwards(Depth):
    """Says that more error is better."""

    lower_is_better = frozenset({"AbsRel", "log10"})


def test_features_that_hold_the_labels_have_to_be_better_where_that_is_asked_for():
    with pytest.raises(AssertionError, match="'RMSE m' of features that hold the labels"):
        check_probe(Backwards, {"steps": 100}, informed=["RMSE m"])
