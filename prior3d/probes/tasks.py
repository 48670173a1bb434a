"""From recipe sections to probes with their data; every refusal happens here, before any data is read."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prior3d.contracts.dataset import Dataset, DataSpec, Split, table_of
from prior3d.contracts.fields import missing_fields
from prior3d.contracts.probe import Probe
from prior3d.errors import UserError
from prior3d.probes.probe_data import Part
from prior3d.recipe.sections import DataSection, ProbeSection
from prior3d.registry.schema import construct, options_of

if TYPE_CHECKING:
    from prior3d.registry import Registry


class DoesNotFit(UserError):
    """A probe and its data, neither of them at fault, do not fit together."""


@dataclass(frozen=True)
class ProbeTask:
    """A probe and what it is measured on.

    Attributes:
        label: the probe's key in the recipe.
        probe: what measures.
        parts: the data; tasks of equal data share these objects.
        seeds: how often it is measured, each time with other draws of its own.
        most: images per part at most; None for all.
        data_key: where the recipe says what the data is, for errors.
    """

    label: str
    probe: Probe
    parts: Mapping[Part, Dataset]
    seeds: int
    most: int | None
    data_key: str = "data"

    @contextmanager
    def locating(self) -> Iterator[None]:
        """Give errors that the probe raises, by the names of its own options, the keys of the recipe."""
        try:
            yield
        except UserError as error:
            key = f"probes.{self.label}"
            head, _, rest = (error.key or "").partition(".")
            if head == "data":
                key = ".".join([self.data_key, *([rest] if rest else [])])
            elif head in options_of(type(self.probe)).types:
                key = f"{key}.{error.key}"
            elif head:
                raise
            raise UserError(error.message, key) from error


def build_tasks(
    sections: Mapping[str, ProbeSection],
    data: DataSection,
    registry: "Registry",
    seed: int = 0,
    training: Dataset | None = None,
) -> list[ProbeTask]:
    """Make the probes of a recipe; no data is read and no file written.

    Args:
        sections: `probes:`.
        data: `data:`, which probes are measured on that name no data of their own.
        registry: finds the plugins.
        seed: the run's; the content of data does not depend on it.
        training: the training part of `data`, where it is made already.

    Raises:
        DoesNotFit: with the key path, where a probe and its data do not fit together.
        UserError: with the key path, where either does not exist or is at fault by itself.
    """
    probes = {label: _probe(label, section, registry) for label, section in sections.items()}
    views: dict[str, int] = {}
    for label, section in sections.items():
        name = _data_name(section)
        views[name] = max(views.get(name, 1), probes[label].views)
    made: dict[tuple[str, Split], Dataset] = {} if training is None else {(repr(None), "train"): training}

    def dataset(label: str, section: ProbeSection, split: Split) -> Dataset:
        name = _data_name(section)
        if (name, split) not in made:
            made[name, split] = _dataset(
                label, section, data, split, 1 if split == "train" else views[name], seed, registry
            )
        return made[name, split]

    tasks = [
        ProbeTask(
            label,
            probes[label],
            _parts(label, section, probes[label], dataset),
            section.seeds,
            section.max_images,
            _data_key(label, section),
        )
        for label, section in sections.items()
    ]
    for task in tasks:
        _check_data(task)
    return tasks


def _probe(label: str, section: ProbeSection, registry: "Registry") -> Probe:
    cls = registry.get("probes", section.probe, f"probes.{label}")
    return construct(cls, key=f"probes.{label}", options=section.options, registry=registry)


def _parts(
    label: str, section: ProbeSection, probe: Probe, dataset: Callable[[str, ProbeSection, Split], Dataset]
) -> dict[Part, Dataset]:
    key = f"probes.{label}"
    if section.data is None:
        splits = _splits(label, section, dataset)
        if section.split not in splits:
            raise DoesNotFit(
                f"is measured on the {section.split} split, and this data has only {', '.join(splits)}: hold some of it"
                f" out (data.{section.split}_scenes or data.{section.split}_fraction, by the kind of data) or leave the"
                " probe out",
                key,
            )
    held_out = dataset(label, section, section.split)
    name = section.data.name if section.data else "data.name"
    missing = missing_fields(probe.needs, held_out.provides, table_of(held_out))
    if missing:
        what = f"the data ({type(held_out).__name__})" if section.data is None else name
        raise DoesNotFit(f"needs {', '.join(missing)}, which {what} does not provide", key)
    parts: dict[Part, Dataset] = {"held_out": held_out}
    if "train" in held_out.splits:
        parts["train"] = dataset(label, section, "train")
        _check_classes(key, parts)
    elif probe.trains:
        splits = ", ".join(held_out.splits)
        raise DoesNotFit(f"trains on labels, and its data has no training split, only {splits}", key)
    return parts


def _splits(
    label: str, section: ProbeSection, dataset: Callable[[str, ProbeSection, Split], Dataset]
) -> Sequence[Split]:
    """Return the splits of the data, which its training part knows, or, where it has none, its held-out part."""
    try:
        return dataset(label, section, "train").splits
    except UserError as no_training_part:
        try:
            return dataset(label, section, section.split).splits
        except DoesNotFit:  # such as several views of single images: no fault of the data
            raise
        except UserError:
            raise no_training_part from None


def _check_classes(key: str, parts: Mapping[Part, Dataset]) -> None:
    train, held_out = (parts[part].class_names for part in ("train", "held_out"))
    if train != held_out:
        differing = sorted(set(train) ^ set(held_out))[:5]
        raise DoesNotFit(
            f"{len(train)} classes in the training split and {len(held_out)} in the held-out one"
            f" ({', '.join(differing)} in only one of them): both need the same",
            key,
        )


def _check_data(task: ProbeTask) -> None:
    try:
        with task.locating():
            task.probe.check_data(task.parts)
    except UserError as error:
        raise DoesNotFit(error.message, error.key) from error


def _data_key(label: str, section: ProbeSection) -> str:
    return "data" if section.data is None else f"probes.{label}.data"


def _data_name(section: ProbeSection) -> str:
    return repr(section.data)


def _dataset(
    label: str, section: ProbeSection, data: DataSection, split: Split, views: int, seed: int, registry: "Registry"
) -> Dataset:
    own = section.data
    key = _data_key(label, section)
    name, options = (data.name, data.options) if own is None else (own.name, own.options)
    size = data.size if own is None or own.size is None else own.size
    cls = registry.get("datasets", name, f"{key}.name")
    spec = DataSpec(size=size, views=views, split=split, cache=Path(data.cache), seed=seed)
    try:
        made = construct(cls, spec, key=key, options=options, registry=registry)
    except UserError as error:
        if error.key == f"{key}.views":  # which nobody set
            raise DoesNotFit(f"needs {views} views of a scene: {error.message}", f"probes.{label}") from error
        if own is None:
            raise
        # datasets name their own options `data.<option>`; these are of another section
        names = "|".join(options_of(cls).types)
        message = re.sub(rf"(?<![\w./])data\.(?=(?:{names})\b)", f"{key}.", error.message)
        where = error.key.replace("data", key, 1) if error.key and error.key.startswith("data") else error.key
        raise UserError(message, where) from error
    return made
