"""Run a matrix of trainings and probes from one YAML file, and write a report on the results.

    prior3d-study studies/primary.yaml --out runs/primary --jobs 8
    prior3d-study studies/primary.yaml --out runs/primary --report docs/results-primary.md

A unit is one training and the measurement of its backbone, stored as one JSON file. Existing results are not computed
again, so the same command continues after an interruption. A failed unit is recorded and listed, and the next run tries
it again. First, all trials of all rows are measured on the validation split (stage `tune`). Then the trial with the
largest gain is measured, once, on the test split with new seeds (stage `test`). Seed s of a unit sets the initial
weights, the order of the data and the probes' random draws (heads, label subsets), so rows are compared pair by pair.

A complete example of the file:

    title: Which prior helps a small backbone?
    setting: Rooms with disjoint furniture, 120 x 160 pixels.
    initial: initial                    # the row without training
    baseline: augmentation_invariance   # the row that the others have to beat
    base:                               # sections of a recipe that all rows share; priors belong to rows
      backbone: {name: convnext_atto, decoder_stride: 4, channels: 64}
      data:
        name: synthetic_rooms
        size: [120, 160]
        views: 2
        batch_size: 8
        workers: 1
        rooms: 48
        families: disjoint
      optim: {lr: 2.0e-3, warmup: 50}
      trainer: {max_steps: 1500, precision: bf16}
      start: {}                         # noise, batch_norm: see prior3d/study/starting.py; not part of recipes
      probes:
        finetune: {probe: finetune_segmentation}
        depth: {}
        matching: {probe: correspondence}
    rows:
      initial: {about: Random weights.} # no priors: not trained
      augmentation_invariance:
        about: Two augmented crops of one image; no 3D.
        priors: {augmentation_invariance: {}}
        trials: [{optim: {lr: 1.0e-3}}, {optim: {lr: 3.0e-3}}]   # the same number in every row; default: [{}]
      self:
        about: view_invariance with both views the same one.
        priors: {view_invariance: {}}
        data: {control: self}           # any section of a recipe; overrides base
        trials: [{optim: {lr: 1.0e-3}}, {optim: {lr: 3.0e-3}}]
      view_invariance:
        about: Two views of one point have one feature.
        priors: {view_invariance: {}}
        trials: [{}, {priors: {view_invariance: {temperature: 0.2}}}]
    stages:
      tune: {seeds: [100], split: validation, measure: [finetune, depth]}   # measure: labels of base.probes
      test: {seeds: [0, 1, 2, 3, 4], split: test}   # further keys are sections of a recipe; they override all others
    endpoints:
      segmentation: {probe: finetune, metric: "mIoU, 20 % of labels", margin: 0.01}
      depth: {probe: depth, metric: RMSE m, relative_margin: 0.02}
      matching: {probe: matching, metric: "recall@6px, all", primary: false}
    select: [segmentation, depth]       # choose trials by the mean relative gain in these; default: primary endpoints
    holm: [view_invariance]             # p-values adjusted together; default: all trained rows but the baseline
    compare: [{row: view_invariance, against: [self]}]   # of several rows, the best one on validation or, with
                                        # `equal: depth`, the one nearest in that endpoint
    resamples: 2000                     # of the rooms

These trainings plot no figures and keep no run folder.
"""

import argparse
import signal
import sys
from pathlib import Path

from prior3d.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """Run the command; return 0 when all is done, 1 with failures or units left, 2 for a wrong file, 130 on Ctrl-C."""
    options = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # handle SIGTERM like Ctrl-C
    try:
        matrix = read_matrix(options.matrix)
        records = Records(options.out, matrix)
        if options.report is not None:
            from prior3d.study.report import write_report

            write_report(records, options.report)
            return 0
        return run(records, options)
    except UserError as error:
        print(f"prior3d-study: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130


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
    todo = sorted((unit for unit in units if records.done(unit) is None), key=lambda u: -_expected(records, u))
    print(f"{stage}: {len(units)} units, {len(units) - len(todo)} of them done already", flush=True)
    log = _Log(records, stage, len(todo))
    setting = Setting(records.matrix, options.out.absolute(), options.keep_weights)
    run_units(setting, todo, options.jobs, log, until)
    if left := len(todo) - log.count:
        print(f"{stage}: {left} units left for the next run", flush=True)
    return left + log.failed


def _units(records: Records, stage: str, only: list[str] | None) -> list[Unit]:
    matrix = records.matrix
    for name in only or ():
        if name not in matrix.rows:
            raise UserError(f"no row {name!r}; there are {', '.join(matrix.rows)}", "--only")
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
            raise UserError(f"{unit} was not run yet: run the stage {TUNE} first", "--stage")


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

    def __init__(self, records: Records, stage: str, total: int) -> None:
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
            metrics = self.probes[endpoint.probe].summarise(scores.total()) if scores else {endpoint.metric: 0.0}
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="prior3d-study", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("matrix", type=Path, help="the YAML file; see the beginning of this one")
    add("--out", type=Path, required=True, help="folder of the units' results")
    add("--jobs", type=int, default=1, help="units at a time, each in a process of its own")
    add("--stage", choices=["tune", "test"], help="this stage only; by default tune, then test")
    add("--only", nargs="+", metavar="ROW", help="these rows only")
    add("--minutes", type=float, help="begin no unit after this time")
    add("--keep-weights", action="store_true", help="keep the trained encoders below OUT/weights")
    add(
        "--report", type=Path, metavar="FILE.md", help="run nothing; write the report and its figure from what is there"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
