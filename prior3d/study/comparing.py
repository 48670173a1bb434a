"""From records to estimates: every row's endpoints with intervals, and the differences between rows."""

from dataclasses import dataclass
from functools import cached_property

from prior3d.contracts.probe import bounds_of
from prior3d.probes.statistics import (
    Estimate,
    MarginVerdict,
    Resampled,
    difference,
    draw_groups,
    estimate,
    holm,
    judge_margin,
    resample,
)
from prior3d.study.choosing import chosen_trials, gain, probes_of
from prior3d.study.matrix import TEST, TUNE, RowComparison, Unit
from prior3d.study.records import Records


@dataclass(frozen=True)
class Change:
    """A row compared with another one, at one endpoint.

    Attributes:
        row, against: Names of the rows.
        estimate: Paired difference, row minus other.
        relative: The same as a share of the other.
        better: Whether the value is on the better side.
        verdict: Verdict by the endpoint's margin; None without one.
    """

    row: str
    against: str
    estimate: Estimate
    relative: Estimate
    better: bool
    verdict: MarginVerdict | None


class Findings:
    """Results of a study's test stage.

    Args:
        records: Records of the study; rows and seeds without a result are left out.
    """

    def __init__(self, records: Records) -> None:
        self.records = records
        self.matrix = records.matrix
        self.probes = probes_of(self.matrix, TEST)
        self.chosen = chosen_trials(records)
        self._resampled: dict[tuple[str, str], tuple[list[int], Resampled] | None] = {}

    def lower_is_better(self, endpoint: str) -> bool:
        """Return whether lower values of an endpoint are better."""
        one = self.matrix.endpoints[endpoint]
        return one.metric in self.probes[one.probe].lower_is_better

    def values(self, row: str, endpoint: str) -> dict[int, float]:
        """Return an endpoint of a row, by seed."""
        found = self._of(row, endpoint)
        if found is None:
            return {}
        seeds, model = found
        return dict(zip(seeds, model.measured[self.matrix.endpoints[endpoint].metric].tolist(), strict=True))

    def estimate(self, row: str, endpoint: str) -> Estimate | None:
        """Return an endpoint of a row with its interval; None if it was not measured."""
        found, one = self._of(row, endpoint), self.matrix.endpoints[endpoint]
        return None if found is None else estimate(found[1], one.metric, bounds_of(self.probes[one.probe], one.metric))

    def change(self, row: str, against: str, endpoint: str) -> Change | None:
        """Return a row compared with another one, over the seeds that both have; None if there are none.

        One seed of several requested ones is no basis for a claim, and also gives None.
        """
        ours, theirs = self._of(row, endpoint), self._of(against, endpoint)
        if ours is None or theirs is None or row == against:
            return None
        shared = [seed for seed in ours[0] if seed in theirs[0]]
        if len(shared) < min(2, len(self.matrix.stages[TEST].seeds)):
            return None
        a, b = (model.take([seeds.index(seed) for seed in shared]) for seeds, model in (ours, theirs))
        one = self.matrix.endpoints[endpoint]
        lower = self.lower_is_better(endpoint)
        absolute = difference(a, b, one.metric)
        relative = difference(a, b, one.metric, relative=True)
        margin = one.margin or one.relative_margin
        judged = absolute if one.margin else relative
        return Change(
            row,
            against,
            absolute,
            relative,
            absolute.value < 0 if lower else absolute.value > 0,
            None if margin is None else judge_margin(judged, margin, lower),
        )

    def adjusted(self, against: str, endpoint: str) -> dict[str, float]:
        """Return Holm's p-values of the rows that are tested together, against one row at one endpoint."""
        changes = {name: self.change(name, against, endpoint) for name in self.matrix.holm}
        known = {name: one.estimate.p for name, one in changes.items() if one is not None}
        return dict(zip(known, holm(list(known.values())), strict=True))

    def best_on_validation(self, rows: tuple[str, ...]) -> str:
        """Return the row whose chosen trial has the largest gain in the tune stage; the first row if there is none."""
        known = [row for row in rows if row in self.chosen]
        if TUNE not in self.matrix.stages or len(known) < 2:
            return (known or list(rows))[0]
        return max(known, key=lambda row: gain(self.records, row, self.chosen[row]))

    def compared_with(self, one: RowComparison) -> str:
        """Return the row to compare with: the only one, the best on validation, or the nearest in a value."""
        ours = self.values(one.row, one.equal) if one.equal else {}
        theirs = {row: self.values(row, one.equal) for row in one.against} if ours else {}
        known = [row for row, values in theirs.items() if values]
        if not known:
            return self.best_on_validation(one.against)
        return min(known, key=lambda row: abs(_mean(theirs[row]) - _mean(ours)))

    def units(self, row: str) -> list[Unit]:
        """Return the test units of a row that have a result."""
        if row not in self.chosen:
            return []
        seeds = self.matrix.stages[TEST].seeds
        units = [Unit(TEST, row, self.chosen[row], seed) for seed in seeds]
        return [unit for unit in units if self.records.done(unit) is not None]

    @cached_property
    def all_units(self) -> list[Unit]:
        """All units of the study; the test stage has only the chosen trials."""
        tuned = list(self.matrix.units(TUNE)) if TUNE in self.matrix.stages else []
        return [*tuned, *self.matrix.units(TEST, self.chosen)]

    def _of(self, row: str, endpoint: str) -> tuple[list[int], Resampled] | None:
        probe = self.matrix.endpoints[endpoint].probe
        if (row, probe) not in self._resampled:
            self._resampled[row, probe] = self._resample(row, probe)
        found = self._resampled[row, probe]
        return found if found and self.matrix.endpoints[endpoint].metric in found[1].measured else None

    def _resample(self, row: str, probe: str) -> tuple[list[int], Resampled] | None:
        by_seed = {unit.seed: self.records.scores(unit, probe) for unit in self.units(row)}
        known = {seed: scores for seed, scores in by_seed.items() if scores is not None}
        if not known:
            return None
        weights = draw_groups(len(next(iter(known.values())).groups), self.matrix.top.resamples)
        return list(known), resample(list(known.values()), self.probes[probe].summarize, weights)


def _mean(by_seed: dict[int, float]) -> float:
    return sum(by_seed.values()) / len(by_seed)
