"""A run: its recipe, the parts built from it, its initial weights and its folder; built once, then only read."""

import json
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from prior3d.backbone import Backbone
from prior3d.errors import section
from prior3d.files import content_key
from prior3d.pretraining.building import Parts
from prior3d.pretraining.data_record import record_data
from prior3d.pretraining.folder import RunFolder
from prior3d.pretraining.progress import make_console
from prior3d.recipe.reading import plain_section
from prior3d.recipe.yaml12 import dump
from prior3d.reporting.report import Report

if TYPE_CHECKING:
    from prior3d.recipe import Recipe
    from prior3d.registry import Kind, Registry


@dataclass
class Run:
    """A training run, as `prior3d.train` returns it.

    Attributes:
        recipe: recipe of the run.
        registry: where to find the plugins that it names.
        parts: dataset, backbone, priors and probes.
        console: where to print lines and bars.
        files: paths of the run folder; None before it exists.
        history: changes at each resume, one mapping of step and keys per resume.
        steps: number of optimizer steps done.
        stopped_by: signal that stopped the run at a resumable step; None otherwise.
        idle: labels of the priors whose loss was 0 at every step.
        initial: frozen copy of the backbone before training; None if nothing reads it.
    """

    recipe: "Recipe"
    registry: "Registry"
    parts: Parts
    console: Console = field(default_factory=make_console)
    files: RunFolder | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 0
    stopped_by: str | None = None
    idle: list[str] = field(default_factory=list)
    initial: Backbone | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.parts.probes or "reference" in self.parts.objective.reads:
            self.initial = deepcopy(self.parts.backbone).requires_grad_(False).eval()

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, {self.recipe.backbone.name}, step {self.steps} of {self.max_steps})"

    @property
    def max_steps(self) -> int:
        """Number of optimizer steps of the whole run."""
        return self.recipe.trainer.max_steps

    @property
    def folder(self) -> Path | None:
        """The run folder."""
        return None if self.files is None else self.files.path

    @property
    def backbone(self) -> Backbone:
        """The backbone in its current state of training."""
        return self.parts.backbone

    @property
    def report(self) -> Report | None:
        """Report of the probes before and after training; None if nothing was measured."""
        return Report.find(self.folder) if self.folder is not None else None

    @property
    def metrics(self) -> dict[str, dict[str, dict[str, float]]]:
        """Nested mapping: probe to `before`, `after` or a control, to metric, to value; empty without measurements."""
        if self.files is None or not self.files.probes.is_file():
            return {}
        return json.loads(self.files.probes.read_text(encoding="utf-8"))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the weights before training."""
        if self.initial is None:
            raise ValueError("nothing in this run reads its initial weights, so that they were not kept")
        return self.initial.digest()

    @cached_property
    def data(self) -> dict[str, Any]:
        """Record of the prepared training data, by which a resumed run notices other data."""
        with section("data"):
            return record_data(self.parts.dataset)

    def begin_folder(self, parent: Path) -> None:
        """Create the run folder and write the run's initial files."""
        plugins = name_plugins(self.recipe.plugins)
        comments = origins(self.recipe.uses(), self.registry)
        text = recipe_text(self.recipe.to_dict(), list(plugins.values()), comments)
        copies = [(file, name) for file, name in plugins.items()]
        self.files = RunFolder.create(parent, self.recipe.name, text, copies)


def start_key(backbone: object, seed: int) -> str:
    """Return a key of everything that the initial weights depend on.

    Args:
        backbone: the section `backbone:`.
        seed: seed of random weights.
    """
    return content_key({"backbone": plain_section(backbone, "backbone"), "seed": seed})


def name_plugins(files: tuple[Path, ...]) -> dict[Path, str]:
    """Return plugin files with their unique names in a run folder."""
    names: dict[Path, str] = {}
    for file in files:
        name, count = file.name, 1
        while name in names.values():
            count += 1
            name = f"{file.stem}_{count}{file.suffix}"
        names[file] = name
    return names


def recipe_text(content: Mapping[str, Any], plugins: list[str], comments: list[str]) -> str:
    """Return the text of a run folder's recipe.yaml.

    Args:
        content: content of the recipe, as plain values.
        plugins: names of the copies of its plugin files.
        comments: lines at the top.
    """
    plain = {**content, "plugins": [f"plugins/{name}" for name in plugins]}
    return "".join(f"# {line}\n" for line in comments) + dump(plain)


def origins(uses: "Iterable[tuple[Kind, str, str]]", registry: "Registry") -> list[str]:
    """Return one line for every plugin of a recipe: kind and name, origin and version.

    Args:
        uses: kind, name and key of each plugin, from `Recipe.uses`.
        registry: where to find them.
    """
    used = dict.fromkeys(registry.find(kind, name, key) for kind, name, key in uses)
    return [f"{plugin}" if plugin.version in plugin.origin else f"{plugin}, {plugin.version}" for plugin in used]
