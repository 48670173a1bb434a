"""Scores by group add up to the same whatever the grouping, and survive JSON."""

import json

import pytest
import torch

from prior3d.contracts.probe import Probe, measured, metrics_of
from prior3d.contracts.scores import Scores, by_group
from prior3d.errors import UserError


def test_statistics_are_summed_by_group_and_groups_without_images_are_left_out():
    values = {"hits": torch.tensor([1.0, 2, 3]), "confusion": torch.arange(12).reshape(3, 2, 2)}
    scores = by_group(["a", "b", "c"], torch.tensor([2, 0, 2]), values)
    assert scores.groups == ("a", "c")
    assert scores.statistics["hits"].tolist() == [2, 4]
    assert scores.statistics["confusion"][1].tolist() == [[8, 10], [12, 14]]
    assert scores.total()["hits"] == 6


def test_weights_count_groups_several_times():
    scores = Scores(("a", "b"), {"hits": torch.tensor([1.0, 10.0]), "table": torch.ones(2, 3)})
    total = scores.total(torch.tensor([2, 1]))
    assert total["hits"] == 12 and total["table"].tolist() == [3, 3, 3]


def test_json_keeps_every_number():
    scores = Scores(("a",), {"squares": torch.tensor([[0.1, 1e9]], dtype=torch.float64)})
    again = Scores.from_plain(json.loads(json.dumps(scores.to_plain())))
    assert again.groups == scores.groups and torch.equal(again.statistics["squares"], scores.statistics["squares"])


def test_a_statistic_of_another_number_of_groups_is_refused():
    with pytest.raises(ValueError, match="expected hits of 2 groups, got 3"):
        Scores(("a", "b"), {"hits": torch.zeros(3)})


def test_what_a_probe_must_not_return_is_one_line():
    class Wrong(Probe):
        def measure(self, model, data, seed=0): ...

        def summarize(self, total):
            return 3.0

    with pytest.raises(UserError, match=r"^measure returned dict, expected Scores, as by_group makes them"):
        measured({"sum": 1.0})
    scores = by_group(["a"], torch.zeros(1, dtype=torch.long), {"sum": torch.ones(1)})
    with pytest.raises(UserError, match=r"^Wrong\.summarize returned float, expected a dict of metrics by name"):
        metrics_of(Wrong(), scores)
