"""A study's matrix: rows, trials, stages and seeds, and the recipe of each unit."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt

from prior3d.errors import UserError, section
from prior3d.recipe import Recipe, build_recipe
from prior3d.recipe.reading import own_options
from prior3d.recipe.source import Source
from prior3d.study.starting import Start

TUNE, TEST = "tune", "test"
SECTIONS = ("backbone", "data", "priors", "optim", "trainer", "prepare", "probes", "plugins")
"""Sections of recipes that a matrix may set; seeds belong to stages."""
START = "start"
"""An additional section that recipes do not have: see `study.starting.Start`."""

_TRAINER = {"draw_every": 0, "gradients_every": 0, "log_every": 50}
_MACHINE = (("data", "cache"), ("data", "workers"), ("trainer", "accelerator"))
"""Keys of a recipe that set where it runs and change no result: results of one machine count on another.

So does the whole section `prepare`.
"""


@dataclass(frozen=True)
class Stage:
    """One of `stages:`; every further key is a section of recipes that overrides those of rows and trials.

    Attributes:
        seeds: Seeds of the runs; seed s sets initialization, order of the data and the probes' random draws.
        split: Split that the probes measure on.
        measure: Labels of the probes to run; null for all.
    """

    seeds: tuple[Annotated[int, Ge(0)], ...]
    split: Literal["validation", "test"] = "test"
    measure: tuple[str, ...] | None = None
    sections: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Endpoint:
    """One of `endpoints:`, a metric to compare rows by.

    Attributes:
        probe: Label of the probe.
        metric: Name of the probe's metric.
        margin: How much worse still counts as not inferior, in the metric's unit.
        relative_margin: The same as a share of the value of the other row.
        primary: Whether the endpoint was fixed beforehand to judge the study, and to choose trials, by.
    """

    probe: str
    metric: str
    margin: Annotated[float, Gt(0)] | None = None
    relative_margin: Annotated[float, Gt(0)] | None = None
    primary: bool = True


@dataclass(frozen=True)
class RowComparison:
    """One of `compare:`, a row against another, in addition to the comparisons with `initial` and `baseline`.

    Attributes:
        row: Row to compare.
        against: Another row; of several rows, the one with the best validation result is used.
        equal: Endpoint; if set, the one of several rows that is nearest to `row` in it is used instead.
    """

    row: str
    against: tuple[str, ...]
    equal: str | None = None


@dataclass(frozen=True)
class StudyRow:
    """One of `rows:`.

    Attributes:
        name: Name of the row.
        about: A sentence for the report.
        sections: Sections of recipes and `start` that override `base:`; a row without priors is not trained.
        trials: Sections that override the row's, one entry per trial.
    """

    name: str
    about: str
    sections: Mapping[str, object]
    trials: tuple[Mapping[str, object], ...]

    @property
    def trained(self) -> bool:
        """Whether there is anything to train."""
        return bool(self.sections.get("priors"))


@dataclass(frozen=True)
class Unit:
    """One training and its measurement: the smallest step that is run, stored and repeated."""

    stage: str
    row: str
    trial: int
    seed: int

    @property
    def path(self) -> str:
        """Path of its result below the output folder."""
        return f"units/{self.row}/{self.stage}-trial{self.trial}-seed{self.seed}.json"

    def __str__(self) -> str:
        return f"{self.row}, {self.stage}, trial {self.trial}, seed {self.seed}"


@dataclass(frozen=True)
class Top:
    """Keys of a matrix other than `base`, `rows`, `stages`, `endpoints` and `compare`.

    Attributes:
        title: Title of the report.
        setting: Sentences of the report on what was run and on which data.
        initial: Row without training.
        baseline: Row that the others have to beat.
        holm: Rows over whose comparisons p-values are adjusted; null for all trained rows except the baseline.
        select: Endpoints to choose trials by: the trial with the largest mean relative gain over `initial` in the tune
            stage wins; null for all primary endpoints.
        resamples: Number of resamplings of the bootstrap.
    """

    title: str = "Results"
    setting: str = ""
    initial: str = "initial"
    baseline: str = "augmentation_invariance"
    holm: tuple[str, ...] | None = None
    select: tuple[str, ...] | None = None
    resamples: Annotated[int, Ge(100)] = 2000


@dataclass(frozen=True)
class Matrix:
    """A whole study.

    Attributes:
        top: Keys that are not lists.
        base: Sections of recipes that all rows share.
        rows: Rows by name.
        stages: Stages by name, `tune` and `test`.
        endpoints: Endpoints by name, in the report's order.
        compare: Additional comparisons.
        source: File of the study.
    """

    top: Top
    base: Mapping[str, object]
    rows: Mapping[str, StudyRow]
    stages: Mapping[str, Stage]
    endpoints: Mapping[str, Endpoint]
    compare: tuple[RowComparison, ...]
    source: Source

    @property
    def select(self) -> tuple[str, ...]:
        """Endpoints that trials are chosen by."""
        return self.top.select or tuple(name for name, endpoint in self.endpoints.items() if endpoint.primary)

    @property
    def holm(self) -> tuple[str, ...]:
        """Rows whose p-values are adjusted together."""
        trained = (name for name, row in self.rows.items() if row.trained and name != self.top.baseline)
        return tuple(trained) if self.top.holm is None else self.top.holm

    def units(self, stage: str, trials: Mapping[str, int] | None = None) -> Iterator[Unit]:
        """Yield the units of a stage: of all trials, or of the chosen trial of each row."""
        for name, row in self.rows.items():
            chosen = range(len(row.trials)) if trials is None else [trials[name]] if name in trials else []
            for trial in chosen:
                for seed in self.stages[stage].seeds:
                    yield Unit(stage, name, trial, seed)

    def content(self, unit: Unit) -> dict[str, Any]:
        """Return the recipe of a unit as plain values; that of a row without training has no priors."""
        row, stage = self.rows[unit.row], self.stages[unit.stage]
        content = {"trainer": _TRAINER}
        for sections in (self.base, row.sections, row.trials[unit.trial], stage.sections):
            content = merged(content, sections)
        kept = content.get("probes", {}) if stage.measure is None else stage.measure
        content["probes"] = {label: merged(content["probes"][label] or {}, {"split": stage.split}) for label in kept}
        content["trainer"].setdefault("checkpoint_every", content["trainer"].get("max_steps", 1))
        return content | {"seed": unit.seed}

    def key(self, unit: Unit) -> str:
        """Return a text that changes with everything in the file about a unit, but not with the machine it runs on."""
        content = self.content(unit)
        content.pop("prepare", None)
        for part, name in _MACHINE:
            content[part] = {key: value for key, value in content[part].items() if key != name}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def recipe(self, unit: Unit) -> Recipe:
        """Return the recipe of a unit, checked and complete.

        Raises:
            UserError: With the place of the error in the file.
        """
        content = self.content(unit)
        content.pop(START, None)
        with self.source.locating(), self._section(unit):
            recipe = build_recipe(content, self.source, trains=self.rows[unit.row].trained)
            for label, one in recipe.probes.items():
                if one.seeds != 1:
                    raise UserError("a study measures once per seed of a run", f"probes.{label}.seeds")
        return recipe

    def start(self, unit: Unit) -> Start:
        """Return the changes to the initial weights of a unit.

        Raises:
            UserError: With the place of the error in the file.
        """
        with self.source.locating(), self._section(unit):
            return Start(**own_options(Start).validate(self.content(unit).get(START) or {}, START))

    def _section(self, unit: Unit) -> AbstractContextManager[None]:
        """Give recipe errors the key of the place that set the wrong section: stage, trial, row or base."""
        row, trial = f"rows.{unit.row}", f"rows.{unit.row}.trials[{unit.trial}]"
        given = {
            "base": self.base,
            row: self.rows[unit.row].sections,
            trial: self.rows[unit.row].trials[unit.trial],
            f"stages.{unit.stage}": self.stages[unit.stage].sections,
        }
        return section(row, {name: f"{key}.{name}" for key, sections in given.items() for name in sections})


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return `below` overridden by `above`, section by section; neither is changed."""
    result = dict(below)
    for key, value in above.items():
        under = result.get(key)
        both = isinstance(under, Mapping) and isinstance(value, Mapping)
        result[key] = merged(under, value) if both else value
    return result
