"""Conversion of the plain values of a recipe to checked sections, with the options of the plugins they name."""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from prior3d.errors import UserError, argument, section, several
from prior3d.messages import described
from prior3d.recipe.sections import (
    ONLY_WITH,
    BackboneSection,
    DataSection,
    OptimSection,
    PrepareSection,
    PriorSection,
    ProbeDataSection,
    ProbeSection,
    TopLevel,
    TrainerSection,
)
from prior3d.recipe.source import Source
from prior3d.registry import Kind, Registry, in_force
from prior3d.registry.schema import Options, OptionsOf, expand, options_of, plain, read_options

__all__ = [
    "TopLevel",
    "or_empty",
    "own_options",
    "plain_probe",
    "plain_section",
    "read_plugged",
    "read_plugin_files",
    "read_priors",
    "read_probes",
    "read_section",
]

_Section = TypeVar(
    "_Section",
    BackboneSection,
    DataSection,
    PriorSection,
    ProbeDataSection,
    ProbeSection,
    OptimSection,
    PrepareSection,
    TrainerSection,
)
_LABEL = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


def own_options(section: type) -> Options:
    """Return the schema of a section's fixed keys."""
    plugged = ("data",) if section is ProbeSection else ()  # `data:` is the section of a plugin
    options = read_options(section, section.__name__)
    return options.only(name for name in options.types if name not in ("options", *plugged))


def read_section(cls: type[_Section], given: object, key: str, source: Source | None = None) -> _Section:
    """Build a section that has fixed keys only.

    Args:
        cls: class of the section.
        given: the section's values in the recipe.
        key: dotted path of the section.
        source: where its keys were given, which decides the folder of relative paths; None for the current folder.
    """
    values = own_options(cls).validate(given, key, source=source)
    with section(key):
        made = cls(**values)
        for path, (other, value) in ONLY_WITH.items():
            name = path.removeprefix(f"{key}.")
            if name in given and getattr(made, other) != value:
                raise UserError(f"needs {other}: {value}, but {other} is {getattr(made, other)}", name)
    return made


def read_plugged(
    cls: type[_Section],
    given: object,
    key: str,
    kind: Kind,
    naming: str,
    registry: Registry,
    name: str | None = None,
    source: Source | None = None,
) -> _Section:
    """Build a section that has fixed keys and a plugin's own options.

    Args:
        cls: class of the section.
        given: the section's values in the recipe.
        key: dotted path of the section.
        kind: kind of the plugin.
        naming: the fixed key that names the plugin.
        registry: where to find the plugin.
        name: name of the plugin, if the section does not name one.
        source: where its keys were given, which decides the folder of relative paths; None for the current folder.
    """
    if not isinstance(given, Mapping):
        raise UserError(f"expected a section of keys, got {described(given)}", key)
    own = own_options(cls)
    fixed = {other: value for other, value in given.items() if other in own.types}
    if name is not None:
        if source is not None and source.removes(f"{key}.{naming}") and fixed.get(naming) is None:
            fixed.pop(naming, None)
        fixed.setdefault(naming, name)
    name = own.only([naming]).validate({naming: fixed[naming]} if naming in fixed else {}, key)[naming]
    plugin = registry.get(kind, name, f"{key}.{naming}" if naming in given else key)
    with section(key):
        theirs = options_of(plugin, str(registry.find(kind, name)), reserved=_keys(cls))
    # check for unknown keys first: a misspelled key explains why another one seems to be missing
    rest = {other: value for other, value in given.items() if other not in fixed}
    options = theirs.validate(rest, key, beside=own.types, source=source)
    for option, mark in theirs.nested():
        options[option] = _read_nested(options, option, mark, key, registry, source)
    values = own.validate(fixed, key, source=source)
    with section(key):
        return cls(**values, options=plain(options))


def _read_nested(
    options: Mapping[str, object], option: str, mark: OptionsOf, key: str, registry: Registry, source: Source | None
) -> object:
    """Return an option that holds another plugin's options, checked, with absolute paths and without defaults."""
    with in_force(registry):
        name = mark.chosen(options)
    given = options[option]
    if name is None:
        return given
    plugin = registry.get(mark.kind, name, f"{key}.{mark.naming}")
    if not given:
        return given
    within = f"{key}.{option}"
    with section(within):
        theirs = options_of(plugin, str(registry.find(mark.kind, name)))
    read = theirs.validate(given, within, source=source)
    return {other: plain(read[other]) for other in given}


def _keys(section: type) -> tuple[str, ...]:
    return tuple(item.name for item in dataclasses.fields(section))


def read_prepare(given: object, registry: Registry, source: Source | None = None) -> PrepareSection:
    """Build the section `prepare:`, which may be absent or empty."""
    if given == {}:
        return PrepareSection()
    return read_plugged(PrepareSection, given, "prepare", "runners", "runner", registry, source=source)


def read_priors(given: object, registry: Registry, source: Source | None = None) -> dict[str, PriorSection]:
    """Build the sections of `priors:`, at least one, by label."""
    if not isinstance(given, Mapping):
        raise UserError(f"expected priors by name, got {described(given)}", "priors")
    if not given:
        raise UserError("a recipe needs at least one prior; `prior3d-train --list` names them", "priors")
    _check_labels(given, "priors")
    priors = {
        label: read_plugged(
            PriorSection, or_empty(section), f"priors.{label}", "priors", "prior", registry, label, source
        )
        for label, section in given.items()
    }
    from torch import nn  # already loaded with the priors

    for label in priors:
        if hasattr(nn.ModuleDict(), label):
            raise UserError("torch reserves this label: choose another", f"priors.{label}")
    return priors


def read_probes(given: object, registry: Registry, source: Source | None = None) -> dict[str, ProbeSection]:
    """Build the sections of `probes:`, by label."""
    if not isinstance(given, Mapping):
        raise UserError(f"expected probes by name, got {described(given)}", "probes")
    _check_labels(given, "probes")
    return {label: _probe(label, or_empty(section), registry, source) for label, section in given.items()}


def _probe(label: str, given: object, registry: Registry, source: Source | None) -> ProbeSection:
    """Build the section of a probe, whose own `data:` is a nested section."""
    key = f"probes.{label}"
    if not isinstance(given, Mapping):
        raise UserError(f"expected a section of keys, got {described(given)}", key)
    data = given.get("data")
    rest = {name: value for name, value in given.items() if name != "data"}
    made = read_plugged(ProbeSection, rest, key, "probes", "probe", registry, label, source)
    if data is None:
        return made
    own = read_plugged(ProbeDataSection, data, f"{key}.data", "datasets", "name", registry, source=source)
    return dataclasses.replace(made, data=own)


def _check_labels(given: Mapping[str, object], kind: str) -> None:
    for label in given:
        if not _LABEL.fullmatch(label):
            raise UserError(f"labels of {kind} may have only letters, digits, - and _", f"{kind}.{label}")


def or_empty(section: object) -> object:
    """Return a section, or an empty one if its key has no value."""
    return {} if section is None else section


def read_plugin_files(given: Sequence[str], source: Source, more: Sequence[str | Path] = ()) -> Registry:
    """Return the registry with the plugin files of a recipe and of the command line.

    Args:
        given: the value of `plugins:`.
        source: where `plugins:` was given, which decides the folder of relative paths.
        more: additional plugin files, relative to the current folder.

    Raises:
        UserError: a file is missing, is not Python, or has no plugin; the error has the key of the file.
    """
    registry, more = Registry(), several(more, "plugins")
    # an additional file replaces a missing one of the same name
    stand_ins = {Path(file).name for file in more}
    for index, name in enumerate(given):
        with section(f"plugins[{index}]"):
            file = source.folder_of(f"plugins[{index}]") / expand(name)
            if os.path.exists(file) or file.name not in stand_ins:
                registry.add(file)
    for file in more:
        with argument("plugins"):
            registry.add(file)
    return registry


def plain_probe(section: ProbeSection) -> dict[str, object]:
    """Return a probe's keys, with those of its own `data:` nested in it."""
    described = plain_section(dataclasses.replace(section, data=None), "probes")
    del described["data"]
    return described | ({} if section.data is None else {"data": plain_section(section.data, "data")})


def plain_section(section: _Section, key: str) -> dict[str, object]:
    """Return a section's keys, including the plugin's options, without keys that do not apply."""
    names = [item.name for item in dataclasses.fields(section) if item.name != "options"]
    for path, (other, value) in ONLY_WITH.items():
        name = path.removeprefix(f"{key}.")
        if name in names and getattr(section, other) != value:
            names.remove(name)
    return {name: plain(getattr(section, name)) for name in names} | dict(getattr(section, "options", {}))
