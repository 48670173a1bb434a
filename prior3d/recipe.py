"""Recipes: checked, complete, and able to say in which line something is wrong.

Paths in options (`data.root`, `backbone.weights`, ...) are relative to the CURRENT folder, as on any command line, and
absolute in the resolved recipe, so that a run can be resumed from anywhere. Only `plugins:` is relative to the recipe's
own folder, since those files travel with it (a `plugins=` on the command line is relative to the current folder).
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from annotated_types import Ge, Lt

from prior3d.errors import UserError
from prior3d.recipe_files import Source, read_recipe
from prior3d.registry import Kind, Registry
from prior3d.schema import Options, options_of, plain, read_options
from prior3d.schema_errors import described, unknown_key
from prior3d.sections import (
    ONLY_WITH,
    BackboneSection,
    DataSection,
    OptimSection,
    PriorSection,
    ProbeDataSection,
    ProbeSection,
    TrainerSection,
)
from prior3d.yaml12 import dump

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
class Recipe:
    """A whole recipe, every value checked and every default filled in.

    Attributes:
        backbone: the model that trains.
        data: what is trained on.
        priors: label to prior; at least one.
        optim: optimiser and learning rate.
        trainer: how long, on what, and what is written along the way.
        seed: of everything random; the same recipe with the same seed gives the same weights on the same machine.
        probes: label to what is measured before and after.
        plugins: plugin files, absolute.
        source: where each key was given; two recipes from different files can be equal.
    """

    backbone: BackboneSection
    data: DataSection
    priors: Mapping[str, PriorSection]
    optim: OptimSection
    trainer: TrainerSection
    seed: int = 0
    probes: Mapping[str, ProbeSection] = field(default_factory=dict)
    plugins: tuple[Path, ...] = ()
    source: Source = field(default_factory=Source, compare=False, repr=False)

    @property
    def name(self) -> str:
        """The recipe file's name without its ending; run folders are called after it."""
        return Path(self.source.name).stem

    def uses(self) -> Iterator[tuple[Kind, str, str]]:
        """Yield kind, name and key of every plugin the recipe uses."""
        yield "datasets", self.data.name, "data.name"
        for label, section in self.priors.items():
            yield "priors", section.prior, f"priors.{label}"
        for label, section in self.probes.items():
            yield "probes", section.probe, f"probes.{label}"
            if section.data is not None:
                yield "datasets", section.data.name, f"probes.{label}.data.name"

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain values, in the form of a recipe file."""
        return {
            "seed": self.seed,
            "backbone": _plain_section(self.backbone, "backbone"),
            "data": _plain_section(self.data, "data"),
            "priors": {label: _plain_section(section, "priors") for label, section in self.priors.items()},
            "optim": _plain_section(self.optim, "optim"),
            "trainer": _plain_section(self.trainer, "trainer"),
            "probes": {label: _plain_probe(section) for label, section in self.probes.items()},
            "plugins": plain(self.plugins),
        }

    def to_yaml(self) -> str:
        """Return a recipe file that loads as this recipe, from any folder."""
        return dump(self.to_dict())


def load_recipe(name: str | Path, overrides: Sequence[str] = (), plugins: Sequence[str | Path] = ()) -> Recipe:
    """Read a recipe and check all of it, importing the plugins it names.

    Args:
        name: a YAML file, or the bare name of a recipe that ships with prior3d (`joint`).
        overrides: `key.path=value` each, over what the file says.
        plugins: further plugin files, relative to the current folder.

    Raises:
        UserError: with file, line and key of what is wrong.
    """
    content, source = read_recipe(name, overrides)
    try:
        return build_recipe(content, source, plugins)
    except UserError as error:
        raise source.locate(error) from error


def locate(error: UserError, recipe: Recipe) -> UserError:
    """Return an error about a recipe's key with file and line, or "command line", in front."""
    return recipe.source.locate(error)


def build_recipe(
    content: Mapping[str, Any], source: Source | None = None, plugins: Sequence[str | Path] = ()
) -> Recipe:
    """Make a recipe of the plain values that a file holds.

    Args:
        content: the sections, as YAML gives them.
        source: where they were given, for messages.
        plugins: further plugin files, relative to the current folder.

    Raises:
        UserError: with the key of what is wrong.
    """
    source = source or Source()
    sections = {key: _or_empty(content.get(key)) for key in _KEYS}
    for key in content:
        if key not in _KEYS:
            raise UserError(unknown_key(key, _KEYS), key)
    top = own_options(TopLevel).validate({key: content[key] for key in ("seed", "plugins") if key in content}, "")
    made = {key: _section(cls, sections[key], key) for key, cls in PLAIN_SECTIONS.items()}
    files = _plugin_files(top["plugins"], source)
    registry = _registry(files, [Path(file).absolute() for file in plugins])
    return Recipe(
        data=_plugged(DataSection, sections["data"], "data", "datasets", "name", registry),
        priors=_priors(sections["priors"], registry),
        probes=_probes(sections["probes"], registry),
        seed=top["seed"],
        plugins=registry.files,
        source=source,
        **made,
    )


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
_KEYS = ("seed", "backbone", "data", "priors", "optim", "trainer", "probes", "plugins")


def own_options(section: type) -> Options:
    """Return the schema of a section's fixed keys."""
    names: dict[str, object] = {}
    if section is DataSection:
        from prior3d.data.augmentation import AugmentOptions

        names["AugmentOptions"] = AugmentOptions
    plugged = ("data",) if section is ProbeSection else ()  # a section of a plugin itself
    options = read_options(section, section.__name__, names=names)
    return options.only(name for name in options.types if name not in ("options", *plugged))


def _section(cls: type[_Section], given: object, key: str) -> _Section:
    """Make a section that has fixed keys only."""
    section = cls(**own_options(cls).validate(given, key))
    for path, (other, value) in ONLY_WITH.items():
        name = path.removeprefix(f"{key}.")
        if name in given and getattr(section, other) != value:
            raise UserError(f"only with {other}: {value}, and it is {getattr(section, other)}", path)
    return section


def _plugged(
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


def _priors(given: object, registry: Registry) -> dict[str, PriorSection]:
    if not isinstance(given, Mapping):
        raise UserError(f"expected priors by name, got {described(given)}", "priors")
    if not given:
        raise UserError("a recipe needs at least one prior; `prior3d-train --list` names them", "priors")
    _check_labels(given, "priors")
    priors = {
        label: _plugged(PriorSection, _or_empty(section), f"priors.{label}", "priors", "prior", registry, label)
        for label, section in given.items()
    }
    from torch import nn  # by now loaded with the priors

    for label in priors:
        if hasattr(nn.ModuleDict(), label):
            raise UserError("torch keeps this label for itself; choose another", f"priors.{label}")
    return priors


def _probes(given: object, registry: Registry) -> dict[str, ProbeSection]:
    if not isinstance(given, Mapping):
        raise UserError(f"expected probes by name, got {described(given)}", "probes")
    _check_labels(given, "probes")
    return {label: _probe(label, _or_empty(section), registry) for label, section in given.items()}


def _probe(label: str, given: object, registry: Registry) -> ProbeSection:
    """Make the section of a probe, whose own `data:` is a section within it."""
    key = f"probes.{label}"
    if not isinstance(given, Mapping):
        raise UserError(f"expected a section of keys, got {described(given)}", key)
    data = given.get("data")
    rest = {name: value for name, value in given.items() if name != "data"}
    section = _plugged(ProbeSection, rest, key, "probes", "probe", registry, label)
    if data is None:
        return section
    own = _plugged(ProbeDataSection, data, f"{key}.data", "datasets", "name", registry)
    return dataclasses.replace(section, data=own)


def _check_labels(given: Mapping[str, object], kind: str) -> None:
    for label in given:
        if not _LABEL.fullmatch(label):
            raise UserError(f"labels of {kind} are letters, digits, - and _", f"{kind}.{label}")


def _or_empty(section: object) -> object:
    """Return a section, or an empty one for a key with nothing behind it."""
    return {} if section is None else section


def _plugin_files(given: tuple[str, ...], source: Source) -> list[Path]:
    folder = Path.cwd() if "plugins" in source.overridden else source.folder
    return [folder / Path(file).expanduser() for file in given]


def _registry(files: Sequence[Path], more: Sequence[Path]) -> Registry:
    """Return the registry with the recipe's plugin files and the command line's; says which of them is at fault."""
    try:
        Registry(more)
    except UserError as error:
        raise UserError(error.message, "--plugin") from error
    try:
        return Registry([*files, *more])
    except UserError as error:
        raise UserError(error.message, "plugins") from error


def _plain_probe(section: ProbeSection) -> dict[str, object]:
    described = _plain_section(dataclasses.replace(section, data=None), "probes")
    del described["data"]
    return described | ({} if section.data is None else {"data": _plain_section(section.data, "data")})


def _plain_section(section: _Section, key: str) -> dict[str, object]:
    """Return a section's keys, a plugin's options among them, without those that mean nothing here."""
    names = [item.name for item in dataclasses.fields(section) if item.name != "options"]
    for path, (other, value) in ONLY_WITH.items():
        name = path.removeprefix(f"{key}.")
        if name in names and getattr(section, other) != value:
            names.remove(name)
    return {name: plain(getattr(section, name)) for name in names} | dict(getattr(section, "options", {}))
