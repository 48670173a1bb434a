"""Names of the datasets of a run, in the log and in its progress."""

from types import SimpleNamespace

from prior3d.data.preparing import DatasetUse, each_once


def test_each_dataset_is_named_once_and_names_are_distinct():
    train, one_view, two_views = object(), object(), object()
    uses = [
        DatasetUse("train", train, frozenset({"image"})),
        DatasetUse("test", one_view),
        DatasetUse("train", train, key="probes.depth.data"),
        DatasetUse("test", two_views),
        DatasetUse("test", one_view),
    ]
    found = each_once(uses)
    assert [use.name for use in found] == ["train", "test", "test (2)"]
    assert [use.dataset for use in found] == [train, one_view, two_views]
    assert found[0].fields == {"image"} and found[0].key == "data"


def test_probes_on_the_data_of_the_run_are_named_by_their_split_with_a_control_too():
    from prior3d.pretraining.training import _datasets

    def task(label, split, own=False):
        dataset = SimpleNamespace(spec=SimpleNamespace(split=split))
        return SimpleNamespace(label=label, parts={"held_out": dataset}, has_own_data=own, data_key="data")

    training = SimpleNamespace(provides=frozenset({"image"}), fields=())  # of another type, as with a control
    parts = SimpleNamespace(
        dataset=training,
        objective=SimpleNamespace(fields=["image"]),
        probes=[task("depth", "test"), task("matching", "test"), task("shape", "test", own=True)],
    )
    assert [use.name for use in _datasets(parts)] == ["train", "test", "test (2)", "shape, test"]
