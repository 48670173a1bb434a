"""Recipes: checked, complete, and able to locate an error by file and line.

Paths in a recipe file (`data.root`, `backbone.weights`, `plugins`, ...) are relative to the folder of that file; paths
given on the command line or on standard input are relative to the current folder. `~` and `$VARIABLES` are expanded;
`$$` is a dollar sign. Resolved recipes hold absolute paths, so a run can be resumed from any folder.
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
from prior3d.recipe.source import COMMAND_LINE, STANDARD_INPUT_NAME, Source, read_recipe
from prior3d.recipe.yaml12 import dump
from prior3d.registry import Kind
from prior3d.registry.schema import plain

_KEYS = ("seed", "backbone", "data", "priors", "optim", "trainer", "prepare", "probes", "plugins")


@dataclass(frozen=True)
class Recipe:
    """A complete recipe: every value is checked and every default is filled in.

    Attributes:
        backbone: the model that trains.
        data: the training data.
        priors: label to prior, at least one.
        optim: optimizer and learning rate.
        trainer: length of the training, devices, checkpoints and logs.
        prepare: the runner of work per scene.
        seed: seed of everything random; the same recipe with the same seed gives the same weights on the same machine.
        probes: label to probe, measured before and after training.
        plugins: plugin files, as absolute paths.
        source: where each key was given; it is ignored when recipes are compared.
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
        """The file name of the recipe without its extension, or those of its files; run folders are named after it."""
        files = (self.source, *self.source.later)
        return "-".join("input" if file.name == STANDARD_INPUT_NAME else Path(file.name).stem for file in files)

    def uses(self) -> Iterator[tuple[Kind, str, str]]:
        """Yield kind, name and key of every plugin that the recipe uses."""
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
        """Return the recipe as plain values, in the structure of a recipe file."""
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
        """Return the text of a recipe file that loads as this recipe from any folder."""
        return dump(self.to_dict())


def load_recipe(
    name: str | Path | Sequence[str | Path],
    overrides: Sequence[str] = (),
    plugins: Sequence[str | Path] = (),
    overrides_name: str = COMMAND_LINE,
) -> Recipe:
    """Read a recipe and check it completely, importing the plugins it names.

    Args:
        name: a YAML file, the bare name of a recipe that ships with prior3d (`joint`), or `-` for standard input;
            several are merged, section by section, and later ones override earlier ones.
        overrides: `key.path=value` each, which override the files; `key=null` removes an entry or an option.
        plugins: additional plugin files, relative to the current folder.
        overrides_name: name of the overrides in messages.

    Raises:
        UserError: something is wrong; the error gives file, line and key.

    >>> load_recipe("view_invariance", ["trainer.max_steps=7"]).trainer.max_steps
    7
    """
    content, source = read_recipe(name, overrides, overrides_name)
    with source.locating():
        return build_recipe(content, source, plugins)


def build_recipe(
    content: Mapping[str, Any],
    source: Source | None = None,
    plugins: Sequence[str | Path] = (),
    *,
    trains: bool = True,
) -> Recipe:
    """Build a recipe from the plain values of a file.

    Args:
        content: the sections, as parsed from YAML.
        source: where the sections were given, for messages and relative paths; None for the current folder.
        plugins: additional plugin files, relative to the current folder.
        trains: False for a backbone that is only measured and has no `priors:`; otherwise `priors:` needs at least one.

    Raises:
        UserError: something is wrong; the error has the key.
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
