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
    select: [segmentation, depth]       # mean relative gain over `initial` in these chooses trials; default: primary
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

from prior3d.errors import UserError, on_command_line


def main(argv: list[str] | None = None) -> int:
    """Run the command; return 0 when all is done, 1 with failures or units left, 2 for a wrong file, 130 on Ctrl-C."""
    options = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # handle SIGTERM like Ctrl-C
    from prior3d.study.reading import read_matrix  # imported here, so --help does not import torch
    from prior3d.study.records import Records
    from prior3d.study.running import run

    try:
        matrix = read_matrix(options.matrix)
        records = Records(options.out, matrix)
        if options.report is not None:
            from prior3d.study.report import write_report

            write_report(records, options.report)
            return 0
        return run(records, options)
    except UserError as error:
        print(f"prior3d-study: {on_command_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command to continue", file=sys.stderr)
        return 130


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
