"""Recipes: checked, complete, and able to say in which line something is wrong.

Paths in a recipe file (`data.root`, `backbone.weights`, `plugins`, ...) are relative to the folder of that file; paths
given on the command line, or by standard input, are relative to the current folder. `~` and `$VARIABLES` are expanded,
`$$` is a dollar sign. Resolved recipes hold absolute paths, so that a run can be resumed from anywhere.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prior3d.errors import UserError, dotted
from prior3d.messages import unknown_key
from prior3d.recipe.reading import (
    or_empty,
    own_options,
    plain_probe,
    plain_section,
    read_plugged,
    read_plugin_files,
    read_prepare,
    read_priors,
    read_probes,
    read_section,
)
from prior3d.recipe.sections import (
    PLAIN,
    BackboneSection,
    DataSection,
    OptimSection,
    PrepareSection,
    PriorSection,
    ProbeSection,
    TopLevel,
    TrainerSection,
)
from prior3d.recipe.source import STANDARD_INPUT_NAME, Source, read_recipe
from prior3d.recipe.yaml12 import dump
from prior3d.registry import Kind
from prior3d.registry.schema import plain

_KEYS = ("seed", "backbone", "data", "priors", "optim", "trainer", "prepare", "probes", "plugins")


@dataclass(frozen=True)
class Recipe:
    """A whole recipe, every value checked and every default filled in.

    Attributes:
        backbone: the model that trains.
        data: what is trained on.
        priors: label to prior; at least one.
        optim: optimizer and learning rate.
        trainer: how long, on what, and what is written along the way.
        prepare: where work per scene is done.
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
    prepare: PrepareSection = field(default_factory=PrepareSection)
    seed: int = 0
    probes: Mapping[str, ProbeSection] = field(default_factory=dict)
    plugins: tuple[Path, ...] = ()
    source: Source = field(default_factory=Source, compare=False, repr=False)

    @property
    def name(self) -> str:
        """The name of the recipe's file without its ending, or of its files; run folders are called after it."""
        files = (self.source, *self.source.later)
        return "-".join("input" if file.name == STANDARD_INPUT_NAME else Path(file.name).stem for file in files)

    def uses(self) -> Iterator[tuple[Kind, str, str]]:
        """Yield kind, name and key of every plugin the recipe uses."""
        yield "datasets", self.data.name, dotted("data", "name")
        if self.prepare != PrepareSection():
            yield "runners", self.prepare.runner, dotted("prepare", "runner")
        for label, section in self.priors.items():
            yield "priors", section.prior, dotted("priors", label)
        for label, section in self.probes.items():
            yield "probes", section.probe, dotted("probes", label)
            if section.data is not None:
                yield "datasets", section.data.name, dotted("probes", label, "data", "name")

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain values, in the form of a recipe file."""
        return {
            "seed": self.seed,
            "backbone": plain_section(self.backbone, "backbone"),
            "data": plain_section(self.data, "data"),
            "priors": {label: plain_section(section, "priors") for label, section in self.priors.items()},
            "optim": plain_section(self.optim, "optim"),
            "trainer": plain_section(self.trainer, "trainer"),
            **({} if self.prepare == PrepareSection() else {"prepare": plain_section(self.prepare, "prepare")}),
            "probes": {label: plain_probe(section) for label, section in self.probes.items()},
            "plugins": plain(self.plugins),
        }

    def to_yaml(self) -> str:
        """Return a recipe file that loads as this recipe, from any folder."""
        return dump(self.to_dict())


def load_recipe(
    name: str | Path | Sequence[str | Path], overrides: Sequence[str] = (), plugins: Sequence[str | Path] = ()
) -> Recipe:
    """Read a recipe and check all of it, importing the plugins it names.

    Args:
        name: a YAML file, the bare name of a recipe that ships with prior3d (`joint`), or `-` for standard input;
            several are laid over each other, section by section, later ones over earlier ones.
        overrides: `key.path=value` each, over what the files say; `key=null` takes an entry or an option away.
        plugins: further plugin files, relative to the current folder.

    Raises:
        UserError: with file, line and key of what is wrong.

    >>> load_recipe("view_invariance", ["trainer.max_steps=7"]).trainer.max_steps
    7
    """
    content, source = read_recipe(name, overrides)
    with source.locating():
        return build_recipe(content, source, plugins)


def build_recipe(
    content: Mapping[str, Any],
    source: Source | None = None,
    plugins: Sequence[str | Path] = (),
    *,
    trains: bool = True,
) -> Recipe:
    """Make a recipe of the plain values that a file holds.

    Args:
        content: the sections, as YAML gives them.
        source: where they were given, for messages and for paths; None for the current folder.
        plugins: further plugin files, relative to the current folder.
        trains: False for a backbone that is only measured: without `priors:`, which else need at least one.

    Raises:
        UserError: with the key of what is wrong.
    """
    source = source or Source()
    sections = {key: or_empty(content.get(key)) for key in _KEYS}
    for key in content:
        if key not in _KEYS:
            raise UserError(unknown_key(key, _KEYS), key)
    top = own_options(TopLevel).validate(
        {key: content[key] for key in ("seed", "plugins") if key in content}, source=source
    )
    made = {key: read_section(cls, sections[key], key, source) for key, cls in PLAIN.items()}
    registry = read_plugin_files(top["plugins"], source, plugins)
    return Recipe(
        data=read_plugged(DataSection, sections["data"], "data", "datasets", "name", registry, source=source),
        priors=read_priors(sections["priors"], registry, source) if trains or sections["priors"] else {},
        prepare=read_prepare(sections["prepare"], registry, source),
        probes=read_probes(sections["probes"], registry, source),
        seed=top["seed"],
        plugins=registry.files,
        source=source,
        **made,
    )
