"""From a model's sections and the command line to checked sections and probes."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from prior3d.errors import ArgumentError, UserError, refusal_of, section
from prior3d.evaluation.models import Subject
from prior3d.messages import unknown_key
from prior3d.probes.tasks import ProbeTask, build_fitting_tasks
from prior3d.recipe.reading import (
    TopLevel,
    or_empty,
    own_options,
    plain_probe,
    plain_section,
    read_plugged,
    read_plugin_files,
    read_prepare,
    read_probes,
    read_section,
)
from prior3d.recipe.sections import BackboneSection, DataSection, PrepareSection, ProbeSection
from prior3d.recipe.source import Source
from prior3d.recipe.yaml12 import load
from prior3d.registry import Registry
from prior3d.registry.members import refuse_unusable

DEFAULTS = Path(__file__).with_name("defaults.yaml")
"""Default data and probes, used if neither a recipe nor the command line sets them."""

ALL_PROBES = "all"
"""Name for all available probes that the data fit."""

_KEYS = ("seed", "backbone", "data", "prepare", "probes", "plugins")
_OF_TRAINING = ("priors", "optim", "trainer")


@dataclass(frozen=True)
class Request:
    """Probes and data of an evaluation, with every value checked and every default filled in.

    Attributes:
        backbone: Section of the model.
        data: Data to measure on, unless a probe has its own data.
        probes: Dict from label to the section of a probe.
        tasks: The probes with their data.
        left_out: Dict from label to the reason why a probe that was not requested by name is left out.
        seed: Seed of random weights.
        prepare: Section of the runner that runs the one-time jobs of the data.
        registry: Registry of the plugins.
    """

    backbone: BackboneSection
    data: DataSection
    probes: Mapping[str, ProbeSection]
    tasks: tuple[ProbeTask, ...]
    left_out: Mapping[str, str]
    seed: int
    prepare: PrepareSection
    registry: Registry

    def to_plain(self) -> dict[str, object]:
        """Return the sections on data and probes as plain values, in the form of a recipe."""
        probes = {label: plain_probe(section) for label, section in self.probes.items()}
        return {"seed": self.seed, "data": plain_section(self.data, "data"), "probes": probes}


def build_request(
    subject: Subject, labels: Sequence[str] = (), seeds: int | None = None, plugins: Sequence[str | Path] = ()
) -> Request:
    """Check a command line's request; no data is read and no file written.

    Args:
        subject: Model, with its sections.
        labels: Probes by name, or by their label in the run's recipe; none for the recipe's or the default probes.
        seeds: Number of measurements per probe, if its section does not set it.
        plugins: Further plugin files, relative to the current folder.

    Raises:
        UserError: With the key of the wrong value.
    """
    content, source = subject.content, subject.source
    for key in content:
        if key not in (*_KEYS, *_OF_TRAINING):
            raise UserError(unknown_key(key, _KEYS), key)
    top = own_options(TopLevel).validate({key: content[key] for key in ("seed", "plugins") if key in content}, "")
    registry = read_plugin_files(top["plugins"], source, plugins)
    backbone = read_section(BackboneSection, content["backbone"], "backbone")
    defaults = load(DEFAULTS.read_text(encoding="utf-8"), DEFAULTS.name).value
    given = or_empty(content.get("data"))
    given = {**defaults["data"], **given} if isinstance(given, Mapping) else given
    data = read_plugged(DataSection, given, "data", "datasets", "name", registry)
    prepare = read_prepare(or_empty(content.get("prepare")), registry)
    broken = _broken_probes(registry) if ALL_PROBES in labels else {}
    wanted, named = _choose(or_empty(content.get("probes")), labels, source, registry, defaults["probes"], broken)
    probes = _with_seeds(read_probes(wanted, registry), seeds, source.overridden)
    tasks, unfit = build_fitting_tasks(probes, data, registry, top["seed"], wanted=named)
    left_out = {label: why for label, why in broken.items() if label not in {*wanted, *_taken_away(source)}} | unfit
    if not tasks:
        reasons = "; ".join(f"{label} {why}" for label, why in left_out.items())
        others = "" if ALL_PROBES in labels else f" (the name {ALL_PROBES} takes whatever fits)"
        with section("data"):
            raise UserError(f"no probe fits this data: {reasons}{others}", "name")
    fitting = {label: one for label, one in probes.items() if label not in left_out}
    return Request(backbone, data, fitting, tuple(tasks), left_out, top["seed"], prepare, registry)


def _broken_probes(registry: Registry) -> dict[str, str]:
    """Return why probes cannot be used, by name: those that cannot be imported, or do not fill their contract."""
    found = {}
    for name in dict.fromkeys(plugin.name for plugin in registry.list("probes")):
        error = refusal_of(lambda name=name: refuse_unusable(registry.get("probes", name)))
        if error is not None:
            found[name] = error.message
    return found


def _choose(
    given: object,
    labels: Sequence[str],
    source: Source,
    registry: Registry,
    defaults: Mapping[str, object],
    broken: Collection[str],
) -> tuple[object, frozenset[str]]:
    """Return the sections of the probes to measure, and the labels that the command line names.

    Named probes must fit the data. A recipe chose its probes for its own data, which may not be these data. Of all
    probes, those in `broken` are left out unless they are named.
    """
    if not isinstance(given, Mapping):
        return given, frozenset()  # the reader refuses it
    named = set(labels) - {ALL_PROBES}
    taken_away = _taken_away(source)
    if ALL_PROBES in labels:
        usable = (plugin.name for plugin in registry.list("probes") if plugin.name not in broken)
        every = dict.fromkeys([*usable, *named, *given])
        labels = [label for label in every if label not in taken_away]
    elif not labels:
        in_recipe = [label for label in given if f"probes.{label}" in source.lines]
        set_here = {key.split(".")[1] for key in source.overridden if key.startswith("probes.")}
        named = (set(given) - set(in_recipe)) | set_here
        given = given if in_recipe else {**defaults, **given}
        every = dict.fromkeys([*(in_recipe or defaults), *given])
        labels = [label for label in every if label not in taken_away]
    for key in sorted(source.overridden):
        section, _, rest = key.partition(".")
        label = rest.partition(".")[0]
        if section == "probes" and label and label not in labels:
            why = f"{label} is not among the probes to measure ({', '.join(labels)})"
            raise UserError(f"{source.overrides}: {key}: {why}")
    return {label: given.get(label) for label in labels}, frozenset(named)


def _taken_away(source: Source) -> set[str]:
    """Return the labels of probes that the command line removes."""
    return {key.removeprefix("probes.") for key in source.removed}


def _with_seeds(
    probes: Mapping[str, ProbeSection], seeds: int | None, overridden: frozenset[str]
) -> dict[str, ProbeSection]:
    if seeds is None:
        return dict(probes)
    if seeds < 1:
        raise ArgumentError(f"expected a number of at least 1, got {seeds}", "seeds")
    return {
        label: section if f"probes.{label}.seeds" in overridden else replace(section, seeds=seeds)
        for label, section in probes.items()
    }
