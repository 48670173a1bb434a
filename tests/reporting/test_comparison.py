import math

import pytest

from prior3d.reporting import compare

LOW, HIGH = [1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3], [7, 8, 9, 7, 8, 9, 8, 7, 9, 9, 8, 7]


def rows(task, results, models=("before", "after"), pairs=(("after", "before"),)):
    (section,) = compare([task], results, models, pairs).sections
    return {row.metric: row for row in section.rows}


def test_metrics_and_differences_are_those_of_the_sums(make_task, make_results):
    row = rows(make_task(), make_results(before=[LOW], after=[HIGH]))["hit"]
    before, after, change = row.columns["before"], row.columns["after"], row.differences["after", "before"]
    assert before.value == pytest.approx(sum(LOW) / 120) and after.value == pytest.approx(sum(HIGH) / 120)
    assert change.value == pytest.approx(after.value - before.value)
    assert before.low < before.value < before.high and change.groups == 12
    # scenes that do well before need not after: Student's interval of the 12 differences, nearly
    differences = [(b - a) / 10 for a, b in zip(LOW, HIGH, strict=True)]
    mean = sum(differences) / 12
    error = math.sqrt(sum((d - mean) ** 2 for d in differences) / 11 / 12)
    assert change.high - change.value == pytest.approx(2.2010 * error, rel=0.1)


def test_intervals_of_values_end_at_the_bounds_of_the_metric(make_task, make_results):
    found = rows(make_task(3), make_results(before=[[0, 0, 3]], after=[[10, 10, 7]]))
    before, after, change = *found["hit"].columns.values(), found["hit"].differences["after", "before"]
    assert (before.low, after.high) == (0, 1) and before.high > 0.2 and after.low < 0.8
    assert change.high - change.value == pytest.approx(change.value - change.low), "a difference has other bounds"
    assert found["missed"].columns["before"].high == 1, "bounds hold for all names with this beginning"


def test_better_and_worse_know_what_less_means(make_task, make_results):
    pair = ("after", "before")
    found = rows(make_task(), make_results(before=[LOW], after=[HIGH]))
    assert (found["hit"].verdict(pair), found["missed"].verdict(pair)) == ("better", "better")
    found = rows(make_task(), make_results(before=[HIGH], after=[LOW]))
    assert (found["hit"].verdict(pair), found["missed"].verdict(pair)) == ("worse", "worse")
    found = rows(make_task(), make_results(before=[LOW], after=[LOW[::-1]]))
    assert found["hit"].verdict(pair) == "unclear"


def test_one_image_and_one_seed_say_nothing(make_task, make_results):
    row = rows(make_task(1), make_results(before=[[2]], after=[[9]]))["hit"]
    assert row.verdict(("after", "before")) == "unclear"


def test_seeds_are_kept_and_their_spread_told(make_task, make_results):
    row = rows(make_task(seeds=2), make_results(before=[LOW, LOW], after=[HIGH, [hits - 2 for hits in HIGH]]))["hit"]
    assert row.by_seed["after"] == pytest.approx((sum(HIGH) / 120, sum(HIGH) / 120 - 0.2))
    assert row.columns["after"].spread == pytest.approx(0.2 / math.sqrt(2))
    assert row.columns["before"].spread == 0


def test_controls_stand_apart_and_pairs_that_are_not_there_are_left_out(make_task, make_results):
    results = make_results(controls=("chance",), before=[LOW], after=[HIGH], chance=[[5] * 12])
    pairs = (("after", "before"), ("before + after", "before + random"))
    comparison = compare([make_task()], results, ["before", "after", "before + after"], pairs)
    (section,) = comparison.sections
    assert (section.models, section.controls, comparison.models) == (("before", "after"), ("chance",),
                                                                     ("before", "after"))  # fmt: skip
    assert comparison.pairs == (("after", "before"),)


def test_a_probe_that_measured_nothing_is_no_section(make_task, make_results):
    assert compare([make_task()], make_results(), ["before"], []).sections == ()
