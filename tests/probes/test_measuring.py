"""From sections to tasks and results: what is refused, what is shared, what is measured again."""

import pytest
import torch

from prior3d.data.dataset import DataSpec
from prior3d.errors import UserError
from prior3d.probes import measuring
from prior3d.probes.measuring import evaluate
from prior3d.probes.probe import Probe
from prior3d.probes.results import Results, tabulate
from prior3d.probes.scores import by_group
from prior3d.probes.tasks import ProbeTask, build_tasks
from prior3d.sections import DataSection, ProbeDataSection, ProbeSection


class Brightness(Probe):
    """The mean feature; with labels, of class 0 only."""

    needs = ("image", "semantic")
    lower_is_better = frozenset({"mean"})

    def measure(self, model, data, seed=0):
        names, groups = data.groups("held_out")
        (features,) = data.features(model, "held_out")
        values = features.take(torch.arange(len(features))).float().mean((1, 2, 3))
        return by_group(names, groups, {"sum": values + seed, "count": torch.ones(len(values))})

    def summarise(self, total):
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
        ("alone", "trains", "probes.b: trains on labels, and its data has no training split, only test"),
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


@pytest.fixture
def tasks(squares):
    parts = {"train": squares(), "held_out": squares("test")}
    return [ProbeTask("b", Brightness(), parts, 3, None), ProbeTask("s", Seeded(), parts, 3, None)]


class Grey(torch.nn.Module):
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
    one, two = Grey(1.0), Grey(2.0)
    evaluate(tasks, {"before": [one], "after": [two]}, results, "cpu")
    assert len(results.scores["b"]["before"]) == 1 and len(results.scores["s"]["before"]) == 3
    metrics = results.metrics({"b": tasks[0].probe, "s": tasks[1].probe})
    assert metrics["b"]["after"]["mean"] == pytest.approx(2 * metrics["b"]["before"]["mean"], rel=1e-3)
    assert metrics["s"]["after"]["mean"] == pytest.approx(metrics["b"]["after"]["mean"] + 1, rel=1e-3)
    assert metrics["b"]["one"]["mean"] == 1
    results.save(tmp_path / "scores.json")
    again = Results.load(tmp_path / "scores.json")
    assert again.metrics({"b": tasks[0].probe}) == {"b": metrics["b"]}
    monkeypatch.setattr(measuring, "measure", lambda *_: pytest.fail("measured again"))
    evaluate(tasks, {"before": [one], "after": [two]}, again, "cpu")


def test_the_table_says_what_is_better_when_lower(tasks):
    results = Results()
    evaluate(tasks[:1], {"before": [Grey(1.0)], "after": [Grey(2.0)]}, results, "cpu")
    table = tabulate(results, {"b": tasks[0].probe}, "title")
    assert [column.header for column in table.columns] == ["metric", "before", "after", "change", "one"]
    assert list(table.columns[0].cells) == ["mean ↓"]


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
