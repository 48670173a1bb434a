"""Compute a study's depth metrics for a model that predicts the mean training depth everywhere.

    python tools/constant_depth.py tools/studies/real-kitchen.yaml

A head that is no better than this has learned nothing that transfers to the evaluation data.
"""

import argparse
import sys
from pathlib import Path

from prior3d.contracts.probe import metrics_of
from prior3d.errors import UserError
from prior3d.probes import ProbeData
from prior3d.probes.tasks import ProbeTask, build_tasks
from prior3d.registry import Registry
from prior3d.study.matrix import TEST, Unit
from prior3d.study.reading import read_matrix
from prior3d_plugins.probes.depth import Depth


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("matrix", type=Path)
    try:
        matrix = read_matrix(parser.parse_args().matrix)
        recipe = matrix.recipe(Unit(TEST, matrix.top.initial, 0, matrix.stages[TEST].seeds[0]))
        for task in build_tasks(recipe.probes, recipe.data, Registry(recipe.plugins), recipe.seed):
            if isinstance(task.probe, Depth):
                shown = ", ".join(f"{name} {value:.3f}" for name, value in of_a_constant(task).items())
                print(f"{task.label}: {shown}")
    except UserError as error:
        print(f"constant_depth.py: {error}", file=sys.stderr)
        return 2
    return 0


def of_a_constant(task: ProbeTask) -> dict[str, float]:
    """Return the metrics of a constant prediction: the mean depth of the training part, in the probe's range."""
    data = ProbeData(task.parts, most=task.most)
    try:
        return metrics_of(task.probe, task.probe.controls(data)["constant guess"])
    finally:
        data.close()


if __name__ == "__main__":
    sys.exit(main())
