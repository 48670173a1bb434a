import math

import numpy as np
import pytest
import torch
from scipy import stats

from prior3d.contracts.scores import Scores
from prior3d.probes.statistics import (
    difference,
    draw_groups,
    estimate,
    holm,
    judge_margin,
    resample,
    student_quantile,
    student_tail,
)

SEEDS, GROUPS = 5, 24


def mean_of(totals):
    return {"mean": float(totals["sum"] / totals["count"])}


def scores_of(values):
    """One `Scores` per row of values [S, G], whose metric is the mean over groups."""
    names = tuple(f"room-{index}" for index in range(values.shape[1]))
    return [Scores(names, {"sum": torch.tensor(row), "count": torch.ones(len(row))}) for row in values]


def resampled(values, weights):
    return resample(scores_of(values), mean_of, weights)


def crossed(rng, of_seed, of_group, of_both, seeds=SEEDS, groups=GROUPS):
    """Values [S, G] of mean 0 with known standard deviations of seeds, groups, and what one seed does in one group."""
    return (
        of_seed * rng.normal(size=(seeds, 1))
        + of_group * rng.normal(size=(1, groups))
        + of_both * rng.normal(size=(seeds, groups))
    )


def test_resampled_metrics_are_those_of_repeated_groups():
    values = np.random.default_rng(0).normal(size=(2, 6))
    weights = draw_groups(6, 50)
    assert torch.equal(weights.sum(1), torch.full((50,), 6.0))
    drawn = resampled(values, weights).drawn["mean"]
    for row in range(50):
        repeated = np.repeat(values, weights[row].int().numpy(), axis=1)
        np.testing.assert_allclose(drawn[row], repeated.mean(1))


def test_an_interval_is_cut_at_bounds_and_the_rest_stays():
    model = resampled(np.array([[0.0, 0.0, 0.3, 0.1]]), draw_groups(4, 200))
    whole, cut = estimate(model, "mean"), estimate(model, "mean", (0.0, 1.0))
    assert whole.low < 0 and (cut.low, cut.high) == (0.0, whole.high)
    assert (cut.value, cut.standard_error, cut.p) == (whole.value, whole.standard_error, whole.p)


def test_metrics_that_are_no_means_are_summarized_from_the_resampled_sums():
    counts = torch.tensor([[8.0, 2.0], [1.0, 9.0], [5.0, 5.0]])
    scores = [Scores(("a", "b", "c"), {"confusion": counts})]
    share = resample(scores, lambda t: {"share": float(t["confusion"][0] / t["confusion"].sum())}, torch.eye(3))
    np.testing.assert_allclose(share.drawn["share"][:, 0], [0.8, 0.1, 0.5])
    assert share.measured["share"][0] == pytest.approx(14 / 30)


def test_a_rate_that_some_seeds_lack_is_nan_there():
    scores = [Scores(("a", "b"), {"hits": torch.tensor(hits)}) for hits in ([0.0, 0.0], [1.0, 0.0])]

    def share(total):
        return {"hits": float(total["hits"])} | ({"share": 0.5} if total["hits"] > 0 else {})

    found = resample(scores, share, torch.eye(2))
    assert found.measured["hits"].tolist() == [0, 1]
    assert np.isnan(found.measured["share"]).tolist() == [True, False]
    assert np.isnan(found.drawn["share"]).tolist() == [[True, False], [True, True]]


def test_standard_error_of_one_seed_is_that_of_a_mean():
    values = np.random.default_rng(1).normal(size=(1, 40))
    found = estimate(resampled(values, draw_groups(40, 20_000)), "mean")
    assert found.standard_error == pytest.approx(values.std(ddof=1) / math.sqrt(40), rel=0.02)
    assert found.freedom == pytest.approx(39) and math.isnan(found.spread)


def test_without_scatter_over_groups_it_is_students_interval_over_seeds():
    per_seed = np.array([0.30, 0.34, 0.31, 0.36, 0.33])
    found = estimate(resampled(np.repeat(per_seed[:, None], 10, 1), draw_groups(10, 100)), "mean")
    low, high = stats.t.interval(0.95, 4, per_seed.mean(), per_seed.std(ddof=1) / math.sqrt(5))
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-6), pytest.approx(high, abs=1e-6))
    assert found.p == pytest.approx(stats.ttest_1samp(per_seed, 0).pvalue, rel=1e-3)
    assert found.spread == pytest.approx(per_seed.std(ddof=1))


def test_degrees_of_freedom_are_those_of_the_variance_that_is_used():
    values = crossed(np.random.default_rng(3), 0.0, 0.0, 1.0)  # all scatter is of one seed in one group: in both parts
    found = estimate(resampled(values, draw_groups(GROUPS, 20_000)), "mean")
    seeds = len(values)
    over_seeds = values.mean(1).var(ddof=1) / seeds
    over_groups = values.mean(0).var(ddof=1) / GROUPS
    lost = over_seeds**2 / (seeds - 1) + over_groups**2 / (GROUPS - 1)
    assert found.standard_error**2 < 0.9 * (over_seeds + over_groups)
    assert found.freedom == pytest.approx(found.standard_error**4 / lost, rel=0.05)


@pytest.mark.parametrize(
    ("of_seed", "of_group", "of_both"), [(1, 0, 0.001), (0.001, 1, 0.001), (0.3, 0.7, 0.3), (0, 0, 1), (1, 0, 3)]
)
def test_intervals_cover_the_truth_in_95_of_100_cases(of_seed, of_group, of_both):
    rng, weights = np.random.default_rng(2), draw_groups(GROUPS, 150)
    covered, below = 0, 0
    for _ in range(150):
        found = estimate(resampled(crossed(rng, of_seed, of_group, of_both), weights), "mean")
        covered += found.low <= 0 <= found.high
        below += found.p < 0.05
    assert 0.90 <= covered / 150 <= 0.995  # 0.95 +- 2.8 standard errors, and a little conservative
    assert below == 150 - covered  # the test is the interval's


def test_pairs_tell_apart_what_single_intervals_cannot():
    rng, weights = np.random.default_rng(3), draw_groups(GROUPS, 300)
    ours = crossed(rng, 0.3, 1.0, 0.02)
    theirs = ours - 0.05 + 0.02 * rng.normal(size=ours.shape)
    a, b = resampled(ours, weights), resampled(theirs, weights)
    paired = difference(a, b, "mean")
    alone = [estimate(one, "mean") for one in (a, b)]
    assert paired.value == pytest.approx(alone[0].value - alone[1].value)
    assert paired.low > 0 and paired.p < 0.001
    assert alone[0].low < alone[1].high  # they overlap
    assert paired.standard_error < 0.1 * math.hypot(alone[0].standard_error, alone[1].standard_error)
    swapped = difference(b, a, "mean")
    assert (swapped.low, swapped.high, swapped.p) == pytest.approx((-paired.high, -paired.low, paired.p))


def test_a_relative_difference_is_a_share_of_what_is_compared_with():
    weights, values = draw_groups(8, 50), np.random.default_rng(4).uniform(1, 2, (3, 8))
    found = difference(resampled(1.1 * values, weights), resampled(values, weights), "mean", relative=True)
    assert found.value == pytest.approx(0.1) and found.standard_error == pytest.approx(0, abs=1e-9)


def test_equal_models_are_not_told_apart():
    one = resampled(np.random.default_rng(5).normal(size=(3, 8)), draw_groups(8, 50))
    found = difference(one, one, "mean")
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_what_cannot_be_paired_is_refused():
    values, weights = np.zeros((3, 8)), draw_groups(8, 50)
    with pytest.raises(ValueError, match="same groups, seeds and resamplings"):
        difference(resampled(values, weights), resampled(values[:2], weights), "mean")
    other = Scores(("x",), {"sum": torch.zeros(1), "count": torch.ones(1)})
    with pytest.raises(ValueError, match="of the first seed"):
        resample([*scores_of(values), other], mean_of, weights)


def test_holm_by_hand():
    # sorted .005 .01 .03 .04 times 4 3 2 1: .02 .03 .06 .04, and no later one below an earlier one
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02] and holm([]) == []


def test_holm_rejects_what_its_step_down_rule_rejects():
    rng = np.random.default_rng(6)
    for _ in range(50):
        p = rng.beta(0.4, 4, size=7)
        expected = np.zeros(7, dtype=bool)
        for rank, index in enumerate(np.argsort(p)):
            if p[index] > 0.05 / (7 - rank):
                break
            expected[index] = True
        assert [adjusted <= 0.05 for adjusted in holm(list(p))] == expected.tolist()


@pytest.mark.parametrize("freedom", [1, 2.5, 4, 30, 3000])
def test_students_distribution(freedom):
    for t in (0.0, 0.5, 2.0, 6.0):
        assert student_tail(t, freedom) == pytest.approx(2 * stats.t.sf(t, freedom), rel=1e-4, abs=1e-15)
    assert student_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-5)


def test_margins_are_judged_by_the_interval():
    per_seed = np.array([[0.30], [0.31], [0.30], [0.31]]) + np.zeros((4, 6))
    weights = draw_groups(6, 50)
    theirs = resampled(per_seed, weights)

    def change(by):
        noise = np.array([[0.001], [-0.001], [0.001], [-0.001]])
        return difference(resampled(per_seed + by + noise, weights), theirs, "mean")

    assert judge_margin(change(-0.005), 0.01, lower_is_better=False) == "not inferior"
    assert judge_margin(change(-0.010), 0.01, lower_is_better=False) == "open"
    assert judge_margin(change(-0.020), 0.01, lower_is_better=False) == "inferior"
    assert judge_margin(change(+0.020), 0.01, lower_is_better=True) == "inferior"
    assert judge_margin(change(-0.020), 0.01, lower_is_better=True) == "not inferior"
