"""Running the units of a study, stage by stage, with progress lines."""

import argparse
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

from prior3d.errors import ArgumentError, UserError
from prior3d.registry import Registry
from prior3d.registry.source_digest import source_digest
from prior3d.study.choosing import chosen_trials, keep_choice, probes_of, value
from prior3d.study.matrix import TEST, TUNE, Unit
from prior3d.study.records import FAILED, Records
from prior3d.study.workers import Setting, run_units


def run(records: Records, options: argparse.Namespace) -> int:
    """Run the requested stages."""
    until = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    wrong = 0
    for stage in [options.stage] if options.stage else [TUNE, TEST]:
        if stage in records.matrix.stages:
            wrong += _run_stage(records, stage, options, until)
            if until is not None and time.monotonic() > until:
                break
    return 1 if wrong else 0


def _run_stage(records: Records, stage: str, options: argparse.Namespace, until: float | None) -> int:
    """Run the missing units of a stage; return the number of units that have no result."""
    units = _units(records, stage, options.only)
    log = _Log(records, stage)
    source = cache(lambda plugins, probe: source_digest(Registry(plugins).get("probes", probe)))
    todo = [unit for unit in units if not _is_current(records, unit, source)]
    todo.sort(key=lambda unit: -_expected(records, unit))
    print(f"{stage}: {len(units)} units, {len(units) - len(todo)} of them done already", flush=True)
    if changed := sum(records.done(unit) is not None for unit in todo):
        print(f"{stage}: the source of a probe has changed since {changed} of them ran: they run again", flush=True)
    log.total = len(todo)
    setting = Setting(records.matrix, options.out.absolute(), options.keep_weights)
    run_units(setting, todo, options.jobs, log, until)
    if left := len(todo) - log.count:
        print(f"{stage}: {left} units left for the next run", flush=True)
    return left + log.failed


def _is_current(records: Records, unit: Unit, source: Callable[[tuple[Path, ...], str], str]) -> bool:
    """Return whether a unit has a result of probes whose source is still the same.

    Records of versions that did not write down the source of their probes count.
    """
    record = records.done(unit)
    if record is None or "probe sources" not in record:
        return record is not None
    recipe = records.matrix.recipe(unit)
    return record["probe sources"] == {label: source(recipe.plugins, one.probe) for label, one in recipe.probes.items()}


def _units(records: Records, stage: str, only: list[str] | None) -> list[Unit]:
    matrix = records.matrix
    for name in only or ():
        if name not in matrix.rows:
            raise ArgumentError(f"no row {name!r}; there are {', '.join(matrix.rows)}", "only")
    rows = [name for name in matrix.rows if not only or name in only]
    if stage == TUNE:
        return [unit for unit in matrix.units(TUNE) if unit.row in rows]
    missing = [name for name in rows if name not in chosen_trials(records)]
    if missing:
        print(f"{TEST}: no trial of {', '.join(missing)} has a validation result; left out", flush=True)
    _refuse_half_tuned(records, rows)
    return list(matrix.units(TEST, keep_choice(records, rows)))


def _refuse_half_tuned(records: Records, rows: list[str]) -> None:
    """Refuse to test a row before all its trials were tried; failed ones count as tried."""
    if TUNE not in records.matrix.stages:
        return
    initial = records.matrix.top.initial
    several = [name for name in rows if len(records.matrix.rows[name].trials) > 1]
    for unit in records.matrix.units(TUNE):
        if several and unit.row in (*several, initial) and records.read(unit) is None:
            raise ArgumentError(f"{unit} has not been run yet: run the stage {TUNE} first", "stage")


def _expected(records: Records, unit: Unit) -> float:
    """Return the expected seconds of a unit: those of other units of its row, or a guess from images and priors."""
    stages = records.matrix.stages
    others = [
        records.seconds(Unit(stage, unit.row, trial, seed))
        for stage in (unit.stage, *stages)
        for trial in range(len(records.matrix.rows[unit.row].trials))
        for seed in stages[stage].seeds
    ]
    if measured := [seconds for seconds in others if seconds]:
        return measured[0]
    content = records.matrix.content(unit)
    data = content["data"]
    images = data.get("batch_size", 1) * data.get("views", 2) * content["trainer"].get("max_steps", 1)
    return 1e-3 * images * (1 + len(content.get("priors") or {})) if content.get("priors") else 0.0


class _Log:
    """Writes the record of every finished unit, and a line about it."""

    def __init__(self, records: Records, stage: str, total: int = 0) -> None:
        self.records, self.stage, self.total = records, stage, total
        self.probes = probes_of(records.matrix, stage)
        self.count = self.failed = 0

    def __call__(self, unit: Unit, record: dict[str, object], seconds: float) -> None:
        self.records.write(unit, record)
        if FAILED not in record:
            self._check_metrics(unit)
        self.count += 1
        self.failed += FAILED in record
        said = f"FAILED: {record[FAILED]}" if FAILED in record else self._values(unit)
        print(f"[{self.count:3}/{self.total}] {seconds:6.1f} s  {unit}: {said}", flush=True)

    def _check_metrics(self, unit: Unit) -> None:
        """End the study if an endpoint names a metric that its probe does not have: no trial could be chosen."""
        for name, endpoint in self.records.matrix.endpoints.items():
            scores = self.records.scores(unit, endpoint.probe)
            metrics = self.probes[endpoint.probe].summarize(scores.total()) if scores else {endpoint.metric: 0.0}
            if endpoint.metric not in metrics:
                message = f"{endpoint.probe} gives {', '.join(metrics)}; what was measured counts once this is mended"
                raise UserError(message, f"endpoints.{name}.metric")

    def _values(self, unit: Unit) -> str:
        found = {
            name: value(self.records, self.probes, unit, endpoint)
            for name, endpoint in self.records.matrix.endpoints.items()
            if endpoint.probe in self.probes
        }
        return ", ".join(f"{name} {one:.4f}" for name, one in found.items())
