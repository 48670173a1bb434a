"""Keys of scores: they change with all that a score depends on, so that nothing is measured twice or mixed up."""

from collections.abc import Mapping, Sequence

import torch

from prior3d.data.dataset import Dataset
from prior3d.data.posed import PosedDataset
from prior3d.data.store import content_key
from prior3d.probes.results import Keys
from prior3d.probes.tasks import ProbeTask
from prior3d.registry import Registry
from prior3d.sections import DataSection, ProbeSection


def keys_of(
    tasks: Sequence[ProbeTask],
    sections: Mapping[str, ProbeSection],
    data: DataSection,
    registry: Registry,
    weights: Mapping[str, str],
) -> Keys:
    """Return the keys of what probes measure of models; the datasets have to be prepared.

    Args:
        tasks: the probes.
        sections: `probes:`, of at least these.
        data: `data:`.
        registry: the plugins, whose versions count.
        weights: column to the hash of its weights.
    """
    by_label = {task.label: _key(task, sections[task.label], data, registry) for task in tasks}

    def key(label: str, column: str | None) -> str | None:
        if label not in by_label or (column is not None and column not in weights):
            return None
        return by_label[label] if column is None else f"{by_label[label]} {weights[column]}"

    return key


def _key(task: ProbeTask, section: ProbeSection, data: DataSection, registry: Registry) -> str:
    source = data if section.data is None else section.data
    probe, dataset = registry.find("probes", section.probe), registry.find("datasets", source.name)
    return content_key(
        {
            "probe": [probe.name, probe.target, probe.version, dict(section.options)],
            "seeds": task.seeds if task.probe.seeded else 1,
            "most": task.most,
            "data": [dataset.name, dataset.target, dataset.version, dict(source.options)],
            "parts": {part: _contents(dataset) for part, dataset in task.parts.items()},
            "torch": torch.__version__,
        }
    )


def _contents(dataset: Dataset) -> list[object]:
    scenes = range(len(dataset.scenes))
    contents = [dataset.cache_key(scene) for scene in scenes] if isinstance(dataset, PosedDataset) else []
    frames = [dataset.frame_count(scene) for scene in scenes]
    return [dataset.spec.split, list(dataset.spec.size), list(dataset.scenes), frames, contents]
