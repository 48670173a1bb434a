"""Running probes on a model: statistics re-estimated first, one table of before, after and controls."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy

import torch
from rich.table import Table
from torch import Tensor

from prior3d.backbone import Backbone
from prior3d.batch_norm import reestimate_batch_norm
from prior3d.data.dataset import Dataset, Split
from prior3d.data.loading import DrawnSamples, collate, raise_errors
from prior3d.probes.probe import FrozenModel, Metrics, Probe

_BATCHES = 8
_BATCH = 16
"""Training images whose statistics BatchNorm layers get: 128, without augmentation, as probes see images."""

Results = dict[str, dict[str, Metrics]]
"""Probe name to column (before, after, name of a control) to metrics."""


@contextmanager
def frozen(backbone: Backbone, training: Dataset, device: str, skip_damaged: bool) -> Iterator[FrozenModel]:
    """Give a copy of a backbone as probes see it; the original is left as it is."""
    model = deepcopy(backbone).requires_grad_(False).to(device)
    samples = DrawnSamples(training, frozenset({"image"}), None, 0, skip_damaged)
    reestimate_batch_norm(model, model.encode_dense, (images.to(device) for images in _training_images(samples)))

    @torch.no_grad()
    def encode(images: Tensor) -> Tensor:
        return model.encode_dense(images)

    yield FrozenModel(encode, device)


def measure(probes: Mapping[str, Probe], held_out: Mapping[Split, Dataset], model: FrozenModel) -> dict[str, Metrics]:
    """Measure a model with every probe."""
    return {name: probe.measure(model, held_out[probe.split]) for name, probe in probes.items()}


def tabulate(results: Results, title: str) -> Table:
    """Return a table: a row per metric, a column for before, after, their difference, and each control."""
    columns = list(dict.fromkeys(column for by_column in results.values() for column in by_column))
    table = Table(title=title, title_justify="left")
    table.add_column("metric")
    for column in columns:
        table.add_column(column, justify="right")
        if column == "after":
            table.add_column("change", justify="right")
    for by_column in results.values():
        for metric in next(iter(by_column.values())):
            cells = []
            for column in columns:
                value = by_column.get(column, {}).get(metric)
                cells.append("" if value is None else f"{value:.3f}")
                if column == "after":
                    before = by_column.get("before", {}).get(metric)
                    cells.append("" if value is None or before is None else f"{value - before:+.3f}")
            table.add_row(metric, *cells)
    return table


def to_json(results: Results) -> bytes:
    """Return results as readable JSON."""
    return json.dumps(results, indent=2).encode()


def _training_images(samples: DrawnSamples) -> Iterator[Tensor]:
    views = samples.dataset.spec.views
    per_batch = max(1, _BATCH // views)
    for batch_number in range(_BATCHES):
        first = batch_number * per_batch
        batch = collate([samples[draw] for draw in range(first, first + per_batch)])
        raise_errors(batch)
        yield batch["image"].flatten(0, 1).float() / 255
