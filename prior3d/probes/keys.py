"""Keys of scores: they change with everything that a score depends on, so nothing is measured twice or mixed up."""

from collections.abc import Mapping, Sequence

import torch

from prior3d.contracts.dataset import Dataset
from prior3d.files import content_key, fingerprint
from prior3d.probes.probe_data import chosen_frames
from prior3d.probes.results import KeyOf
from prior3d.probes.tasks import ProbeTask
from prior3d.recipe.sections import DataSection, ProbeSection
from prior3d.registry import Plugin, Registry
from prior3d.registry.source_digest import source_digest


def keys_of(
    tasks: Sequence[ProbeTask],
    sections: Mapping[str, ProbeSection],
    data: DataSection,
    registry: Registry,
    weights: Mapping[str, str],
    classifiers: Mapping[str, str] | None = None,
) -> KeyOf:
    """Return the keys of the scores that probes measure on models; the datasets must be prepared.

    Args:
        tasks: Probes with their data.
        sections: Section `probes:`, with at least these probes.
        data: Section `data:`.
        registry: Registry of the plugins, whose versions are part of the keys.
        weights: Dict from column to the hash of its weights.
        classifiers: Dict from column to the hash of the classifier of its checkpoint, for probes that need one.
    """
    by_label = {task.label: _key(task, sections[task.label], data, registry) for task in tasks}
    classifying = {task.label for task in tasks if task.probe.needs_classifier}

    def key(label: str, column: str | None) -> str | None:
        if label not in by_label or (column is not None and column not in weights):
            return None
        if column is None:
            return by_label[label]
        classifier = f" {(classifiers or {}).get(column)}" if label in classifying else ""
        return f"{by_label[label]} {weights[column]}{classifier}"

    return key


def _key(task: ProbeTask, section: ProbeSection, data: DataSection, registry: Registry) -> str:
    source = data if section.data is None else section.data
    probe, dataset = registry.find("probes", section.probe), registry.find("datasets", source.name)
    return content_key(
        {
            "probe": [*_identity(probe), dict(section.options)],
            "source": source_digest(type(task.probe)),  # the version stays the same while a checkout is edited
            "seeds": task.seeds if task.probe.seeded else 1,
            "most": task.most,
            "data": [*_identity(dataset), dict(source.options)],
            "parts": {part: _contents(dataset, task) for part, dataset in task.parts.items()},
            "files": fingerprint(task.probe.files()),
            "torch": torch.__version__,
        }
    )


def _identity(plugin: Plugin) -> list[str]:
    """Return the identity of a plugin, wherever its file is: a run keeps a copy, and a run folder may move."""
    return [plugin.name, plugin.target.rpartition(":")[2], plugin.version]


def _contents(dataset: Dataset, task: ProbeTask) -> list[object]:
    """Return which part of a dataset a task reads, and a text that changes with its contents."""
    frames = chosen_frames(dataset, task.most) if task.probe.views == 1 else None  # pairs can use any frame
    counts = [dataset.frame_count(scene) for scene in range(len(dataset.scenes))]
    return [dataset.spec.split, list(dataset.spec.size), list(dataset.scenes), counts, dataset.fingerprint(frames)]
