"""Description of models, data, device and versions in a report."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version

import torch

from prior3d.probes.tasks import ProbeTask
from prior3d.version import __version__

_MEASURED_WITH = ("torch", "timm", "faiss-cpu", "faiss-gpu")
"""Packages whose versions affect the numbers."""


@dataclass(frozen=True)
class About:
    """Content of a report in addition to the numbers.

    Attributes:
        title: Title of the report.
        columns: Dict from model to its description, in words.
        models: Dict from model to facts about it: backbone, weights, their hash, parameters.
        notes: Notes for the reader, a sentence each.
        facts: Facts about the measurement: device, seconds, seed.
        sections: The recipe's sections on data and probes, as plain values.
        key: Key that changes with everything that the numbers depend on.
    """

    title: str
    columns: Mapping[str, str]
    models: Mapping[str, Mapping[str, object]]
    notes: tuple[str, ...] = ()
    facts: Mapping[str, object] = field(default_factory=dict)
    sections: Mapping[str, object] = field(default_factory=dict)
    key: str | None = None


def describe_data(task: ProbeTask) -> dict[str, object]:
    """Return the data of a probe: dataset, image size, and for each part its split, images and scenes."""
    held_out = task.parts["held_out"]
    parts = {}
    for part, dataset in task.parts.items():
        images = sum(dataset.frame_count(scene) for scene in range(len(dataset.scenes)))
        read = images if task.most is None else min(images, task.most)
        parts[part] = {"split": dataset.spec.split, "images": read, "scenes": len(dataset.scenes)}
    return {"dataset": type(held_out).__name__, "image size": list(held_out.spec.size), **parts}


def device_name(device: str) -> str:
    """Return the name of a device, cpu or cuda, in words."""
    threads = torch.get_num_threads()
    return torch.cuda.get_device_name() if device == "cuda" else f"CPU, {threads} thread{'' if threads == 1 else 's'}"


def versions() -> dict[str, str]:
    """Return the versions of the packages used: a dict from package to version."""
    found = {"prior3d": __version__, "python": platform.python_version()}
    for name in _MEASURED_WITH:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
