"""From recipe sections to probes with their data; every check happens here, before any data is read."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prior3d.contracts.dataset import Dataset, DataSpec, Split, table_of
from prior3d.contracts.fields import missing_fields
from prior3d.contracts.probe import Part, Probe
from prior3d.data.preparing import DatasetUse
from prior3d.errors import DoesNotFit, UserError, section
from prior3d.recipe.sections import DataSection, ProbeSection
from prior3d.registry.schema import construct

if TYPE_CHECKING:
    from prior3d.registry import Registry


@dataclass(frozen=True)
class ProbeTask:
    """A probe and the data to measure it on.

    Attributes:
        label: Key of the probe in the recipe.
        probe: Probe to measure with.
        parts: Datasets of the parts; tasks with equal data share these objects.
        seeds: Number of measurements, each with a different probe seed.
        most: Largest number of images per part; None for all.
        has_own_data: Whether the data is in the probe's own section, not the run's.
    """

    label: str
    probe: Probe
    parts: Mapping[Part, Dataset]
    seeds: int
    most: int | None
    has_own_data: bool = False

    @property
    def data_key(self) -> str:
        """Key of the recipe's section that describes the data."""
        return f"probes.{self.label}.data" if self.has_own_data else "data"

    def section(self) -> AbstractContextManager[None]:
        """Turn the option names in errors of the probe or its data into keys of the recipe."""
        return probe_section(self.label, self.has_own_data)


def probe_section(label: str, has_own_data: bool) -> AbstractContextManager[None]:
    """Give errors the keys of a probe's section; those about `data` get the run's keys if the probe has no own data."""
    elsewhere = {"backbone": "backbone"} | ({} if has_own_data else {"data": "data"})
    return section(f"probes.{label}", elsewhere)


def uses_of(tasks: Iterable[ProbeTask], name: Callable[[ProbeTask, Dataset], str]) -> Iterator[DatasetUse]:
    """Yield the use of each dataset of probes, in their order; a dataset may occur several times.

    Args:
        tasks: The probes.
        name: Returns the name of a task's dataset for messages.
    """
    for task in tasks:
        for dataset in task.parts.values():
            yield DatasetUse(name(task, dataset), dataset, key=task.data_key)


def build_tasks(
    sections: Mapping[str, ProbeSection],
    data: DataSection,
    registry: "Registry",
    seed: int = 0,
    training: Dataset | None = None,
) -> list[ProbeTask]:
    """Make the probes of a recipe; no data is read and no file written.

    Args:
        sections: Section `probes:`.
        data: Section `data:`, for probes that name no data of their own.
        registry: Registry of the plugins.
        seed: Seed of the run; the content of data does not depend on it.
        training: The training part of `data`, if it already exists.

    Raises:
        DoesNotFit: With the key path, if a probe and its data do not fit together.
        UserError: With the key path, if either does not exist or is wrong by itself.
    """
    return build_fitting_tasks(sections, data, registry, seed, training, wanted=sections)[0]


def build_fitting_tasks(
    sections: Mapping[str, ProbeSection],
    data: DataSection,
    registry: "Registry",
    seed: int = 0,
    training: Dataset | None = None,
    wanted: Collection[str] = (),
) -> tuple[list[ProbeTask], dict[str, str]]:
    """Make the probes of a recipe that fit their data; see `build_tasks`.

    Args:
        sections: Section `probes:`.
        data: Section `data:`.
        registry: Registry of the plugins.
        seed: Seed of the run.
        training: The training part of `data`, if it already exists.
        wanted: Labels of probes that are requested by name: these must fit.

    Returns:
        The tasks, and a dict from label to the reason for each probe that is left out.

    Raises:
        DoesNotFit: A requested probe does not fit its data.
        UserError: A probe or data do not exist, or are wrong by themselves.
    """
    probes = {label: _make_probe(label, one, registry) for label, one in sections.items()}
    datasets = _Datasets(data, registry, seed, training)
    fitting, left_out = {}, {}
    for label, one in sections.items():
        try:
            fitting[label] = _fit(label, one, probes[label], datasets, probes[label].views)
        except DoesNotFit as error:
            if label in wanted:
                raise
            left_out[label] = error.message
    views: dict[str, int] = {}
    for label in fitting:  # probes share data with the number of views that the most demanding one needs
        name = repr(sections[label].data)
        views[name] = max(views.get(name, 1), probes[label].views)
    tasks = []
    for label, task in fitting.items():
        most = views[repr(sections[label].data)]
        shared = most == probes[label].views
        tasks.append(task if shared else _fit(label, sections[label], probes[label], datasets, most))
    return tasks, left_out


class _Datasets:
    """The datasets of probes, each made once.

    Args:
        data: Section `data:`.
        registry: Registry of the plugins.
        seed: Seed of the run.
        training: The training part of `data`, if it already exists.
    """

    def __init__(self, data: DataSection, registry: "Registry", seed: int, training: Dataset | None) -> None:
        self._data, self._registry, self._seed = data, registry, seed
        self._made: dict[tuple[str, Split, int], Dataset] = {}
        if training is not None:
            self._made[repr(None), "train", 1] = training

    def get(self, probe: ProbeSection, split: Split, views: int = 1) -> Dataset:
        """Return one split of the data of a probe; errors have keys relative to the probe's section.

        Args:
            probe: Section of the probe.
            split: Split to return.
            views: Views per sample.
        """
        key = repr(probe.data), split, views
        if key not in self._made:
            self._made[key] = self._make(probe, split, views)
        return self._made[key]

    def _make(self, probe: ProbeSection, split: Split, views: int) -> Dataset:
        source = self._data if probe.data is None else probe.data
        with section("data"):
            cls = self._registry.get("datasets", source.name, "name")
        size = source.size or self._data.size
        spec = DataSpec(size=size, views=views, split=split, cache=Path(self._data.cache), seed=self._seed)
        return construct(cls, spec, key="data", options=source.options, registry=self._registry)


def _make_probe(label: str, one: ProbeSection, registry: "Registry") -> Probe:
    key = f"probes.{label}"
    return construct(registry.get("probes", one.probe, key), key=key, options=one.options, registry=registry)


def _fit(label: str, one: ProbeSection, probe: Probe, datasets: _Datasets, views: int) -> ProbeTask:
    has_own_data = one.data is not None
    with probe_section(label, has_own_data):
        parts = _parts(one, probe, datasets, views)
        probe.check_data(parts)
    return ProbeTask(label, probe, parts, one.seeds, one.max_images, has_own_data)


def _parts(one: ProbeSection, probe: Probe, datasets: _Datasets, views: int) -> dict[Part, Dataset]:
    train = None
    with suppress(UserError):  # if data lacks a training part, the held-out part reports the problem
        train = datasets.get(one, "train")
    if train is not None:
        _check_needs(one, probe, train)
        if one.data is None and one.split not in train.splits:
            splits = ", ".join(train.splits)
            raise DoesNotFit(
                f"is measured on the {one.split} split, but this data has only {splits}: hold some of it out"
                f" ({one.split}_scenes or {one.split}_fraction, by the kind of data) or leave the probe out"
            )
    held_out = datasets.get(one, one.split, views)
    _check_needs(one, probe, held_out)
    parts: dict[Part, Dataset] = {"held_out": held_out}
    if "train" in held_out.splits:
        parts["train"] = datasets.get(one, "train")
        _check_classes(parts)
    elif probe.trains:
        splits = ", ".join(held_out.splits)
        raise DoesNotFit(f"trains on labels, but its data has no training split, only {splits}")
    return parts


def _check_needs(one: ProbeSection, probe: Probe, dataset: Dataset) -> None:
    what = f"the data ({type(dataset).__name__})" if one.data is None else one.data.name
    missing = missing_fields(probe.needs, dataset.provides, table_of(dataset))
    for method in ("frame_count", "load"):
        if getattr(type(dataset), method) is getattr(Dataset, method):
            raise DoesNotFit(f"reads frames one by one, and {what} has no {method}")
    if missing:
        raise DoesNotFit(f"needs {', '.join(missing)}, which {what} does not provide")


def _check_classes(parts: Mapping[Part, Dataset]) -> None:
    train, held_out = (parts[part].class_names for part in ("train", "held_out"))
    if train != held_out:
        differing = sorted(set(train) ^ set(held_out))[:5]
        raise DoesNotFit(
            f"{len(train)} classes in the training split and {len(held_out)} in the held-out one"
            f" ({', '.join(differing)} in only one of them): both need the same"
        )
