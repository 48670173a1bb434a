"""From the plain values of a recipe's sections to checked sections, the options of the plugins they name included."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

from annotated_types import Ge, Lt

from prior3d.errors import UserError
from prior3d.messages import described
from prior3d.recipe.sections import (
    ONLY_WITH,
    BackboneSection,
    DataSection,
    OptimSection,
    PriorSection,
    ProbeDataSection,
    ProbeSection,
    TrainerSection,
)
from prior3d.recipe.source import Source
from prior3d.registry import Kind, Registry
from prior3d.registry.schema import Options, options_of, plain, read_options

_Section = TypeVar(
    "_Section",
    BackboneSection,
    DataSection,
    PriorSection,
    ProbeDataSection,
    ProbeSection,
    OptimSection,
    TrainerSection,
)
_LABEL = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class TopLevel:
    """Keys of a recipe that are no sections.

    Attributes:
        seed: of everything random.
        plugins: Python files with priors, datasets or probes of yours, relative to the recipe's folder.
    """

    seed: Annotated[int, Ge(0), Lt(2**63)] = 0
    plugins: tuple[str, ...] = ()


PLAIN_SECTIONS = {"backbone": BackboneSection, "optim": OptimSection, "trainer": TrainerSection}


def own_options(section: type) -> Options:
    """Return the schema of a section's fixed keys."""
    names: dict[str, object] = {}
    if section is DataSection:
        from prior3d.data.sample.augmentation import AugmentOptions

        names["AugmentOptions"] = AugmentOptions
    plugged = ("data",) if section is ProbeSection else ()  # a section of a plugin itself
    options = read_options(section, section.__name__, names=names)
    return options.only(name for name in options.types if name not in ("options", *plugged))


def read_section(cls: type[_Section], given: object, key: str) -> _Section:
    """Make a section that has fixed keys only."""
    section = cls(**own_options(cls).validate(given, key))
    for path, (other, value) in ONLY_WITH.items():
        name = path.removeprefix(f"{key}.")
        if name in given and getattr(section, other) != value:
            raise UserError(f"only with {other}: {value}, and it is {getattr(section, other)}", path)
    return section


def read_plugged(
    cls: type[_Section], given: object, key: str, kind: Kind, naming: str, registry: Registry, name: str | None = None
) -> _Section:
    """Make a section of fixed keys and of a plugin's own options.

    Args:
        cls: the section.
        given: what the recipe says.
        key: dotted path of the section.
        kind: of the plugin.
        naming: the fixed key that names the plugin.
        registry: finds it.
        name: of the plugin, where the section does not name one.
    """
    if not isinstance(given, Mapping):
        raise UserError(f"expected a section of keys, got {described(given)}", key)
    own = own_options(cls)
    fixed = {other: value for other, value in given.items() if other in own.types}
    if name is not None:
        fixed.setdefault(naming, name)
    name = own.only([naming]).validate({naming: fixed[naming]} if naming in fixed else {}, key)[naming]
    named_at = f"{key}.{naming}" if naming in given else key
    theirs = _options(kind, name, named_at, registry, reserved=_keys(cls))
    # unknown keys before all else: a misspelt key explains why another one seems to be missing
    options = theirs.validate({n: value for n, value in given.items() if n not in fixed}, key, beside=own.types)
    return cls(**own.validate(fixed, key), options=plain(options))


def _keys(section: type) -> tuple[str, ...]:
    return tuple(item.name for item in dataclasses.fields(section))


def _options(kind: Kind, name: str, key: str, registry: Registry, reserved: Sequence[str] = ()) -> Options:
    plugin = registry.get(kind, name, key)
    return options_of(plugin, str(registry.find(kind, name)), reserved, key)


def read_priors(given: object, registry: Registry) -> dict[str, PriorSection]:
    """Make the sections of `priors:`, at least one, by label."""
    if not isinstance(given, Mapping):
        raise UserError(f"expected priors by name, got {described(given)}", "priors")
    if not given:
        raise UserError("a recipe needs at least one prior; `prior3d-train --list` names them", "priors")
    _check_labels(given, "priors")
    priors = {
        label: read_plugged(PriorSection, or_empty(section), f"priors.{label}", "priors", "prior", registry, label)
        for label, section in given.items()
    }
    from torch import nn  # by now loaded with the priors

    for label in priors:
        if hasattr(nn.ModuleDict(), label):
            raise UserError("torch keeps this label for itself; choose another", f"priors.{label}")
    return priors


def read_probes(given: object, registry: Registry) -> dict[str, ProbeSection]:
    """Make the sections of `probes:`, by label."""
    if not isinstance(given, Mapping):
        raise UserError(f"expected probes by name, got {described(given)}", "probes")
    _check_labels(given, "probes")
    return {label: _probe(label, or_empty(section), registry) for label, section in given.items()}


def _probe(label: str, given: object, registry: Registry) -> ProbeSection:
    """Make the section of a probe, whose own `data:` is a section within it."""
    key = f"probes.{label}"
    if not isinstance(given, Mapping):
        raise UserError(f"expected a section of keys, got {described(given)}", key)
    data = given.get("data")
    rest = {name: value for name, value in given.items() if name != "data"}
    section = read_plugged(ProbeSection, rest, key, "probes", "probe", registry, label)
    if data is None:
        return section
    own = read_plugged(ProbeDataSection, data, f"{key}.data", "datasets", "name", registry)
    return dataclasses.replace(section, data=own)


def _check_labels(given: Mapping[str, object], kind: str) -> None:
    for label in given:
        if not _LABEL.fullmatch(label):
            raise UserError(f"labels of {kind} are letters, digits, - and _", f"{kind}.{label}")


def or_empty(section: object) -> object:
    """Return a section, or an empty one for a key with nothing behind it."""
    return {} if section is None else section


def read_plugin_files(given: tuple[str, ...], source: Source, more: Sequence[str | Path]) -> Registry:
    """Return the registry with a recipe's plugin files and the command line's; says which of them is at fault.

    Args:
        given: `plugins:`.
        source: where it was given, which decides what the files are relative to.
        more: further plugin files, relative to the current folder.
    """
    folder = Path.cwd() if "plugins" in source.overridden else source.folder
    files = [folder / Path(file).expanduser() for file in given]
    named = [Path(file).absolute() for file in more]
    # one that was given by hand stands in for one of its name that is gone
    files = [file for file in files if file.exists() or file.name not in {other.name for other in named}]
    try:
        Registry(named)
    except UserError as error:
        raise UserError(error.message, "--plugin") from error
    try:
        return Registry([*files, *named])
    except UserError as error:
        raise UserError(error.message, "plugins") from error


def plain_probe(section: ProbeSection) -> dict[str, object]:
    """Return a probe's keys, those of its own `data:` within it."""
    described = plain_section(dataclasses.replace(section, data=None), "probes")
    del described["data"]
    return described | ({} if section.data is None else {"data": plain_section(section.data, "data")})


def plain_section(section: _Section, key: str) -> dict[str, object]:
    """Return a section's keys, a plugin's options among them, without those that mean nothing here."""
    names = [item.name for item in dataclasses.fields(section) if item.name != "options"]
    for path, (other, value) in ONLY_WITH.items():
        name = path.removeprefix(f"{key}.")
        if name in names and getattr(section, other) != value:
            names.remove(name)
    return {name: plain(getattr(section, name)) for name in names} | dict(getattr(section, "options", {}))
