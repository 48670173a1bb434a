"""What was measured is kept under keys: taken over where they agree, put aside or forgotten where they do not."""

import torch

from prior3d.contracts.scores import Scores
from prior3d.probes.results import Results


def one(value):
    return [Scores(("room",), {"sum": torch.tensor([float(value)])})]


def keys(**wanted):
    """Probe `p` of models with these weights; its controls have the key c."""
    return lambda label, column: None if label != "p" else "c" if column is None else wanted.get(column)


def test_columns_are_written_as_they_come_and_read_again(tmp_path):
    results = Results(file=tmp_path / "new" / "scores.json")
    results.keep_only(keys(before="b1"))
    results.put("p", "before", one(1), seconds=2.5)
    assert Results.load(results.file).measured["p"]["before"].seconds == 2.5
    results.put("p", "chance", one(0), control=True)
    again = Results.load(results.file)
    again.keep_only(keys(before="b1"))
    assert again.has("p", "before") and again.has_controls("p")
    assert again.scores["p"]["before"][0].statistics["sum"].tolist() == [1]


def test_what_was_measured_of_other_weights_is_forgotten(tmp_path):
    results = Results()
    results.keep_only(keys(before="b1", after="a1"))
    results.put("p", "before", one(1))
    results.put("p", "after", one(2))
    results.keep_only(keys(before="b1", after="a2"))
    assert results.has("p", "before") and not results.has("p", "after")
    results.save(tmp_path / "scores.json")
    assert set(Results.load(tmp_path / "scores.json").scores["p"]) == {"before"}


def test_what_nobody_asks_for_now_is_put_aside_and_stays_in_the_file(tmp_path):
    results = Results(file=tmp_path / "scores.json")
    results.keep_only(keys(before="b", after="a"))
    results.put("p", "after", one(2))
    for_before = Results.load(tmp_path / "scores.json")
    for_before.file = tmp_path / "scores.json"
    for_before.keep_only(keys(before="b"))
    assert not for_before.has("p", "after")
    for_before.put("p", "before", one(1))
    both = Results.load(tmp_path / "scores.json")
    both.keep_only(keys(before="b", after="a"))
    assert both.has("p", "before") and both.has("p", "after")


def test_the_same_measurement_is_taken_over_from_elsewhere():
    run, mine = Results(), Results()
    run.keep_only(keys(before="b", after="a"))
    for column, value in (("before", 1), ("after", 2)):
        run.put("p", column, one(value))
    run.put("p", "chance", one(0), control=True)
    mine.keep_only(keys(before="b", after="other"))
    mine.adopt(run, ["before", "after"])
    assert set(mine.scores["p"]) == {"before", "chance"}


def test_scores_without_a_key_are_taken_for_nothing():
    results = Results()
    results.put("p", "before", one(1))
    results.keep_only(keys(before="b"))
    assert not results.has("p", "before")


def test_a_file_of_another_version_is_no_result(tmp_path):
    (tmp_path / "scores.json").write_text('{"correspondence": {}}')
    assert Results.load(tmp_path / "scores.json").scores == {}
