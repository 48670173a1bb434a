"""From sections to tasks and results: what is refused, what is shared, what is measured again."""

import pytest
import torch

from prior3d.contracts.dataset import DataSpec
from prior3d.contracts.probe import Probe
from prior3d.contracts.scores import by_group
from prior3d.errors import UserError
from prior3d.probes import measuring
from prior3d.probes.measuring import Measuring
from prior3d.probes.models import FrozenModel
from prior3d.probes.results import Results
from prior3d.probes.tasks import ProbeTask, build_tasks
from prior3d.recipe.sections import DataSection, ProbeDataSection, ProbeSection


class Brightness(Probe):
    """The mean feature; with labels, of class 0 only."""

    needs = ("image", "semantic")
    lower_is_better = frozenset({"mean"})

    def measure(self, model, data, seed=0):
        names, groups = data.groups("held_out")
        (features,) = data.features(model, "held_out")
        values = features.take(torch.arange(len(features))).float().mean((1, 2, 3))
        return by_group(names, groups, {"sum": values + seed, "count": torch.ones(len(values))})

    def summarize(self, total):
        return {"mean": float(total["sum"] / total["count"])}

    def controls(self, data):
        names, groups = data.groups("held_out")
        ones = torch.ones(len(groups))
        return {"one": by_group(names, groups, {"sum": ones, "count": ones})}


class Seeded(Brightness):
    seeded = True


class Registry:
    def __init__(self, **classes):
        self.classes = classes

    def get(self, kind, name, key=None):
        return self.classes[name]


@pytest.fixture
def registry(squares):
    cls = type(squares())
    bare = type("Bare", (cls,), {"provides": frozenset({"image"})})
    alone = type("Alone", (cls,), {"splits": ("test",)})
    trains = type("Trains", (Brightness,), {"trains": True})

    class Other(cls):
        @property
        def class_names(self):
            return ("dark", "middle") if self.spec.split == "train" else ("dark", "middle", "bright")

    return Registry(squares=cls, bare=bare, alone=alone, other=Other, brightness=Brightness, trains=trains)


def sections(tmp_path, **own):
    return DataSection(name="squares", size=(16, 24), batch_size=2, cache=tmp_path), {"b": ProbeSection(**own)}


def test_tasks_of_equal_data_share_it(tmp_path, registry):
    data, one = sections(tmp_path, probe="brightness")
    two = {**one, "again": ProbeSection("brightness"), "val": ProbeSection("brightness", split="validation")}
    tasks = build_tasks(two, data, registry)
    assert tasks[0].parts["held_out"] is tasks[1].parts["held_out"] is not tasks[2].parts["held_out"]
    assert tasks[0].parts["train"] is tasks[2].parts["train"]
    assert tasks[2].parts["held_out"].spec.split == "validation"


def test_the_training_data_of_the_run_is_used_where_it_is_given(tmp_path, registry, squares):
    training = squares()
    data, one = sections(tmp_path, probe="brightness")
    assert build_tasks(one, data, registry, training=training)[0].parts["train"] is training


@pytest.mark.parametrize(
    ("name", "probe", "message"),
    [
        ("bare", "brightness", "probes.b: needs semantic, which bare does not provide"),
        ("alone", "trains", "probes.b: trains on labels, but its data has no training split, only test"),
        ("other", "brightness", "probes.b: 2 classes in the training split and 3 in the held-out one"),
    ],
)
def test_data_that_does_not_fit_is_refused(tmp_path, registry, name, probe, message):
    data, one = sections(tmp_path, probe=probe, data=ProbeDataSection(name))
    with pytest.raises(UserError) as caught:
        build_tasks(one, data, registry)
    assert message in str(caught.value)


def test_data_without_training_part_serves_probes_that_do_not_train(tmp_path, registry):
    data, one = sections(tmp_path, probe="brightness", data=ProbeDataSection("alone"))
    assert set(build_tasks(one, data, registry)[0].parts) == {"held_out"}


def test_the_data_itself_may_have_no_training_part(tmp_path, squares):
    class Alone(type(squares())):
        splits = ("test",)

        def __init__(self, spec):
            if spec.split != "test":
                raise UserError(f"this data has no split {spec.split}", "root")
            super().__init__(spec)

    data, one = sections(tmp_path, probe="brightness")
    assert set(build_tasks(one, data, Registry(squares=Alone, brightness=Brightness))[0].parts) == {"held_out"}
    with pytest.raises(UserError, match=r"^data.root: this data has no split validation"):
        build_tasks(
            {"b": ProbeSection("brightness", split="validation")}, data, Registry(squares=Alone, brightness=Brightness)
        )


@pytest.fixture
def tasks(squares):
    parts = {"train": squares(), "held_out": squares("test")}
    return [ProbeTask("b", Brightness(), parts, 3, None), ProbeTask("s", Seeded(), parts, 3, None)]


class Gray(torch.nn.Module):
    size = (16, 24)

    def __init__(self, factor):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor))

    def encode_dense(self, images):
        return images * self.factor

    def forward(self, images, reads):
        from prior3d.backbone import Maps

        return Maps({}, self.encode_dense(images), None)


def test_models_are_measured_once_per_seed_and_not_again(tasks, tmp_path, monkeypatch):
    results = Results()
    one, two = Gray(1.0), Gray(2.0)
    Measuring("cpu").run(tasks, {"before": [one], "after": [two]}, results)
    assert len(results.scores["b"]["before"]) == 1 and len(results.scores["s"]["before"]) == 3
    metrics = results.metrics({"b": tasks[0].probe, "s": tasks[1].probe})
    assert metrics["b"]["after"]["mean"] == pytest.approx(2 * metrics["b"]["before"]["mean"], rel=1e-3)
    assert metrics["s"]["after"]["mean"] == pytest.approx(metrics["b"]["after"]["mean"] + 1, rel=1e-3)
    assert metrics["b"]["one"]["mean"] == 1
    results.save(tmp_path / "scores.json")
    again = Results.load(tmp_path / "scores.json")
    assert again.metrics({"b": tasks[0].probe}) == {"b": metrics["b"]}
    monkeypatch.setattr(measuring, "_by_seed", lambda *_: pytest.fail("measured again"))
    Measuring("cpu").run(tasks, {"before": [one], "after": [two]}, again)


def test_features_of_models_side_by_side_are_those_read_for_each_alone(tasks, monkeypatch):
    reads, read = [], FrozenModel.read
    monkeypatch.setattr(FrozenModel, "read", lambda self, *a: reads.append(len(self.backbones)) or read(self, *a))
    seen, one, two = {}, Gray(1.0), Gray(2.0)

    def plot(task, models, data, shown):
        seen.update({name: data.features(model, "held_out") for name, model in models.items()})

    models = {"before": [one], "after": [two], "before + after": [one, two]}
    two_models = {"before": [one], "after": [two]}
    Measuring("cpu").run(tasks[:1], two_models, Results(), plot=plot, plotted=list(two_models))
    assert reads == [1, 1]  # measured and drawn
    Measuring("cpu").run([Pair.task(tasks)], models, Results(), plot=plot, plotted=list(models))
    assert reads == [1] * 4
    first, second = seen["before + after"]
    assert (first, second) == (*seen["before"], *seen["after"])


class Pair(Brightness):
    """The mean over the features of all backbones."""

    @classmethod
    def task(cls, tasks):
        return ProbeTask("p", cls(), tasks[0].parts, 1, None)

    def measure(self, model, data, seed=0):
        names, groups = data.groups("held_out")
        values = sum(part.take(torch.arange(len(part))).float().mean((1, 2, 3))
                     for part in data.features(model, "held_out"))  # fmt: skip
        return by_group(names, groups, {"sum": values, "count": torch.ones(len(values))})


def test_a_probe_of_classifiers_leaves_models_side_by_side_out(tasks):
    class Named(Brightness):
        needs_classifier = True

    task, results = ProbeTask("n", Named(), tasks[0].parts, 1, None), Results()
    Measuring("cpu").run([task], {"single": [Gray(1.0)], "both": [Gray(1.0), Gray(2.0)]}, results)
    assert not results.has("n", "both") and results.has("n", "single")


def test_no_file_means_no_results(tmp_path):
    assert Results.load(tmp_path / "none.json").scores == {}


def test_a_size_the_model_cannot_take_is_refused():
    from prior3d.backbone import Backbone

    vit = Backbone("vit_tiny_patch16_224", (64, 96))
    with pytest.raises(UserError, match="cannot take images of 60 x 90 pixels"):
        measuring.check_size(vit, (60, 90))


def test_the_spec_is_told_to_every_dataset(tmp_path, registry):
    data, one = sections(tmp_path, probe="brightness", data=ProbeDataSection("squares", size=(8, 8)))
    spec = build_tasks(one, data, registry)[0].parts["held_out"].spec
    assert spec == DataSpec(size=(8, 8), views=1, split="test", cache=tmp_path)
