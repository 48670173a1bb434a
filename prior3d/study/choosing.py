"""Which trial of a row is tested: chosen on the validation rooms and then fixed."""

import json
import math
from collections.abc import Mapping

from prior3d.contracts.probe import Probe
from prior3d.files import write_atomically
from prior3d.recipe import Recipe
from prior3d.registry import Registry
from prior3d.registry.schema import construct
from prior3d.study.matrix import TEST, TUNE, Endpoint, Matrix, Unit
from prior3d.study.records import Records

_FILE = "chosen.json"


def make_probes(recipe: Recipe) -> dict[str, Probe]:
    """Return the probes of a recipe without their data: they turn scores into metrics."""
    registry = Registry(recipe.plugins)
    return {
        label: construct(
            registry.get("probes", section.probe, f"probes.{label}"),
            key=f"probes.{label}",
            options=section.options,
            registry=registry,
        )
        for label, section in recipe.probes.items()
    }


def probes_of(matrix: Matrix, stage: str) -> dict[str, Probe]:
    """Return the probes of a stage, from the row without training."""
    return make_probes(matrix.recipe(Unit(stage, matrix.top.initial, 0, matrix.stages[stage].seeds[0])))


def value(records: Records, probes: Mapping[str, Probe], unit: Unit, endpoint: Endpoint) -> float:
    """Return an endpoint's value in one unit; NaN if it was not measured."""
    scores = records.scores(unit, endpoint.probe) if endpoint.probe in probes else None
    if scores is None:
        return math.nan
    return float(probes[endpoint.probe].summarize(scores.total()).get(endpoint.metric, math.nan))


def trial_values(records: Records, row: str, trial: int) -> dict[str, list[float]]:
    """Return a trial's validation results: a dict from endpoint to a value per seed, NaN for units without a result."""
    matrix = records.matrix
    probes = probes_of(matrix, TUNE)
    units = [Unit(TUNE, row, trial, seed) for seed in matrix.stages[TUNE].seeds]
    return {
        name: [value(records, probes, unit, endpoint) for unit in units] for name, endpoint in matrix.endpoints.items()
    }


def gain(records: Records, row: str, trial: int) -> float:
    """Return the value that trials are chosen by: the relative gain over `initial`, mean over seeds, then endpoints.

    Seeds are paired, and gains are positive if the trial is better. The value is NaN if a seed of the trial or of
    `initial` has no result: a trial is not judged by the seeds that happened to work.
    """
    matrix, probes = records.matrix, probes_of(records.matrix, TUNE)
    ours, initial = trial_values(records, row, trial), trial_values(records, matrix.top.initial, 0)
    gains = []
    for name in matrix.select:
        endpoint = matrix.endpoints[name]
        sign = -1.0 if endpoint.metric in probes[endpoint.probe].lower_is_better else 1.0
        before = sum(initial[name]) / len(initial[name])
        gains.append(sign * (sum(ours[name]) / len(ours[name]) - before) / abs(before) if before else math.nan)
    return sum(gains) / len(gains)


def choose(records: Records) -> dict[str, int]:
    """Return the trial of each row to test: the only one, or the best one; rows without any gain value are left out."""
    matrix = records.matrix
    if TUNE not in matrix.stages:
        return dict.fromkeys(matrix.rows, 0)
    chosen = {}
    for name, row in matrix.rows.items():
        gains = {trial: gain(records, name, trial) for trial in range(len(row.trials))} if row.trained else {}
        known = {trial: one for trial, one in gains.items() if not math.isnan(one)}
        if not row.trained or len(row.trials) == 1:
            chosen[name] = 0
        elif known:
            chosen[name] = max(known, key=known.get)
    return chosen


def chosen_trials(records: Records) -> dict[str, int]:
    """Return the trials that were tested, or would be tested now.

    A tested trial stays chosen: the test rooms are used once. So a later validation result changes nothing, unless the
    row itself was changed in the file.
    """
    path = records.folder / _FILE
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    kept = {
        name: entry["trial"]
        for name, entry in before.items()
        if name in records.matrix.rows and entry["key"] == _row_key(records.matrix, name)
    }
    return {name: trial for name, trial in (choose(records) | kept).items() if name in records.matrix.rows}


def keep_choice(records: Records, rows: list[str]) -> dict[str, int]:
    """Choose the trials of some rows permanently, and return them."""
    path = records.folder / _FILE
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    chosen = {name: trial for name, trial in chosen_trials(records).items() if name in rows}
    entries = {name: {"trial": trial, "key": _row_key(records.matrix, name)} for name, trial in chosen.items()}
    records.folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(before | entries, indent=2).encode())
    return chosen


def _row_key(matrix: Matrix, name: str) -> str:
    """Return a text that changes with everything in the file about any trial of a row."""
    units = [Unit(TEST, name, trial, matrix.stages[TEST].seeds[0]) for trial in range(len(matrix.rows[name].trials))]
    return "-".join(matrix.key(unit) for unit in units)
