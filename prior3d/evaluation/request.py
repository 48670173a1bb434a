"""From a model's sections and the command line to checked sections and probes: what is measured on what."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from prior3d.errors import UserError
from prior3d.evaluation.subjects import Subject
from prior3d.messages import unknown_key
from prior3d.probes.tasks import DoesNotFit, ProbeTask, build_tasks
from prior3d.recipe.reading import (
    TopLevel,
    or_empty,
    own_options,
    plain_probe,
    plain_section,
    read_plugged,
    read_plugin_files,
    read_probes,
    read_section,
)
from prior3d.recipe.sections import BackboneSection, DataSection, ProbeSection
from prior3d.recipe.source import Source
from prior3d.registry import Registry

DEFAULT_PROBES = ("correspondence", "segmentation", "depth")
"""Of these, the ones that the data fit, where neither a recipe nor the command line names probes."""

ALL_PROBES = "all"
"""In place of names: every probe there is that the data fit."""

_DEFAULT_DATA = {"name": "synthetic_rooms", "size": [96, 128], "batch_size": 1}
_KEYS = ("seed", "backbone", "data", "probes", "plugins")
_OF_TRAINING = ("priors", "optim", "trainer")


@dataclass(frozen=True)
class Request:
    """What is measured on what, every value checked and every default filled in.

    Attributes:
        backbone: the model.
        data: what is measured on, unless a probe has data of its own.
        probes: label to what is measured.
        tasks: the probes, made, with their data.
        left_out: label to why a probe is not among them that nobody asked for by name.
        seed: of weights that are random.
        registry: the plugins.
    """

    backbone: BackboneSection
    data: DataSection
    probes: Mapping[str, ProbeSection]
    tasks: tuple[ProbeTask, ...]
    left_out: Mapping[str, str]
    seed: int
    registry: Registry

    def to_plain(self) -> dict[str, object]:
        """Return the sections on data and probes as plain values, in the form of a recipe."""
        probes = {label: plain_probe(section) for label, section in self.probes.items()}
        return {"seed": self.seed, "data": plain_section(self.data, "data"), "probes": probes}


def build_request(
    subject: Subject, labels: Sequence[str] = (), seeds: int | None = None, plugins: Sequence[str | Path] = ()
) -> Request:
    """Check what a command line asks for; no data is read and no file written.

    Args:
        subject: the model, with the sections it brings.
        labels: probes by name, or by their label in the run's recipe; none for the recipe's or the default ones.
        seeds: how often each probe is measured, where its section does not say.
        plugins: further plugin files, relative to the current folder.

    Raises:
        UserError: with the key of what is wrong.
    """
    content, source = subject.content, subject.source
    for key in content:
        if key not in (*_KEYS, *_OF_TRAINING):
            raise UserError(unknown_key(key, _KEYS), key)
    top = own_options(TopLevel).validate({key: content[key] for key in ("seed", "plugins") if key in content}, "")
    registry = read_plugin_files(top["plugins"], source, plugins)
    backbone = read_section(BackboneSection, content["backbone"], "backbone")
    data = read_plugged(DataSection, _with_defaults(content.get("data")), "data", "datasets", "name", registry)
    wanted, named = _choose(or_empty(content.get("probes")), labels, source, registry)
    probes = _with_seeds(read_probes(wanted, registry), seeds, source.overridden)
    left_out = _unfit({label: probes[label] for label in probes if label not in named}, data, registry, top["seed"])
    if not set(probes) - set(left_out):
        reasons = "; ".join(f"{label} {why}" for label, why in left_out.items())
        others = "" if ALL_PROBES in labels else f" (--probes {ALL_PROBES} takes whatever fits)"
        raise UserError(f"no probe fits this data: {reasons}{others}", "data.name")
    fitting = {label: section for label, section in probes.items() if label not in left_out}
    tasks = build_tasks(fitting, data, registry, top["seed"])
    return Request(backbone, data, fitting, tuple(tasks), left_out, top["seed"], registry)


def _with_defaults(given: object) -> object:
    given = or_empty(given)
    return {**_DEFAULT_DATA, **given} if isinstance(given, Mapping) else given


def _choose(given: object, labels: Sequence[str], source: Source, registry: Registry) -> tuple[object, frozenset[str]]:
    """Return the sections of the probes to measure, and the labels that the command line names.

    Those have to fit the data. A recipe named its probes for data of its own, which may not be these.
    """
    if not isinstance(given, Mapping):
        return given, frozenset()  # for the reader to refuse
    named = set(labels) - {ALL_PROBES}
    taken_away = {key.removeprefix("probes.") for key in source.removed}
    if ALL_PROBES in labels:
        every = dict.fromkeys([*(plugin.name for plugin in registry.list("probes")), *named, *given])
        labels = [label for label in every if label not in taken_away]
    elif not labels:
        in_recipe = [label for label in given if f"probes.{label}" in source.lines]
        labels = [label for label in dict.fromkeys([*(in_recipe or DEFAULT_PROBES), *given]) if label not in taken_away]
        set_here = {key.split(".")[1] for key in source.overridden if key.startswith("probes.")}
        named = (set(given) - set(in_recipe)) | set_here
    for key in sorted(source.overridden):
        section, _, rest = key.partition(".")
        label = rest.partition(".")[0]
        if section == "probes" and label and label not in labels:
            raise UserError(f"command line: {key}: {label} is not among the probes to measure ({', '.join(labels)})")
    return {label: given.get(label) for label in labels}, frozenset(named)


def _with_seeds(
    probes: Mapping[str, ProbeSection], seeds: int | None, overridden: frozenset[str]
) -> dict[str, ProbeSection]:
    if seeds is None:
        return dict(probes)
    if seeds < 1:
        raise UserError(f"expected a number of at least 1, got {seeds}", "--seeds")
    return {
        label: section if f"probes.{label}.seeds" in overridden else replace(section, seeds=seeds)
        for label, section in probes.items()
    }


def _unfit(probes: Mapping[str, ProbeSection], data: DataSection, registry: Registry, seed: int) -> dict[str, str]:
    """Return the probes that the data do not fit, with the reason; what is at fault by itself is refused."""
    found = {}
    for label, section in probes.items():
        try:
            build_tasks({label: section}, data, registry, seed)
        except DoesNotFit as error:
            found[label] = error.message
    return found
