"""Resuming a run: its original settings, the changes that are allowed, and the keys that affect its steps."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prior3d.backbone.weights import read_description
from prior3d.errors import UserError
from prior3d.messages import described
from prior3d.pretraining.checkpoints import LAST, read_checkpoint, step_of
from prior3d.pretraining.folder import RunFolder
from prior3d.pretraining.run import name_plugins, recipe_text, start_key
from prior3d.recipe import build_recipe, load_recipe
from prior3d.recipe.source import COMMAND_LINE, Source
from prior3d.recipe.yaml12 import load

if TYPE_CHECKING:
    from prior3d.recipe import Recipe

_FREE = re.compile(
    r"trainer\.(max_steps|accelerator|devices|num_nodes|cuda_graphs|checkpoint_every|keep_every|log_every|loggers|gradients_every|draw_every"
    r"|probe_before|probe_after)|data\.(workers|cache|on_damage)|(probes|prepare)(\..*)?"
)
"""Keys that may change when a run is resumed.

Most do not affect any step. `trainer.max_steps` sets the learning rates of the steps to come unless the schedule is
constant, `trainer.accelerator` changes the last bits of sums, `trainer.devices` and `trainer.num_nodes` change the
number of samples per step (no sample is skipped or repeated), and `data.on_damage` decides whether a damaged file ends
the run.
"""


@dataclass(frozen=True)
class Begun:
    """A run that an earlier process started.

    Attributes:
        files: the run folder.
        recipe: recipe of the run, with the changes.
        step: step of its last checkpoint, 0 without one.
        changes: dotted key to its value in the checkpoint and its value now.
        history: earlier such changes, with their steps.
        threads: number of threads of the earlier process; None if not recorded.
        keeps_start: whether its initial weights belong to this recipe.
        data: record of the data that the run began with; None if its checkpoint has none.
    """

    files: RunFolder
    recipe: "Recipe"
    step: int = 0
    changes: Mapping[str, tuple[object, object]] | None = None
    history: Sequence[Mapping[str, Any]] = ()
    threads: int | None = None
    keeps_start: bool = True
    data: Mapping[str, Any] | None = None

    @property
    def is_complete(self) -> bool:
        """Whether all its steps are done and the weights are exported."""
        return self.files.backbone.exists() and self.step >= self.recipe.trainer.max_steps

    def record(self) -> list[dict[str, Any]]:
        """Update the folder's recipe if something has changed; return the history of changes.

        If a finished run is extended, its export is removed first, so a run killed in between is exported again.
        """
        history = [dict(entry) for entry in self.history]
        outside = [file for file in self.recipe.plugins if not file.is_relative_to(self.files.plugins.resolve())]
        if not self.changes and not outside:
            return history
        if self.changes:
            history.append({"step": self.step, **{key: list(values) for key, values in self.changes.items()}})
        if self.files.backbone.exists() and self.step and self.step < self.recipe.trainer.max_steps:
            self.files.withdraw_export()
        names = name_plugins(self.recipe.plugins)
        self.files.copy_plugins([(file, names[file]) for file in outside])
        comments = [line[2:] for line in _comments(self.files.recipe)]
        for key, (old, new) in (self.changes or {}).items():
            comments.append(f"since step {self.step}: {key} is {described(new)}, it was {described(old)}")
        self.files.write_recipe(recipe_text(self.recipe.to_dict(), list(names.values()), comments))
        return history


def find_begun(
    path: Path,
    overrides: Sequence[str] = (),
    plugins: Sequence[str | Path] = (),
    overrides_name: str = COMMAND_LINE,
) -> Begun:
    """Read a run folder and compare its recipe with that of its checkpoint.

    Args:
        path: path of the run folder.
        overrides: `key.path=value` each, which override the run's recipe.
        plugins: additional plugin files; each may replace a missing plugin file of the recipe with the same name.
        overrides_name: name of the overrides in messages.

    Raises:
        UserError: it is not a run folder, its files are damaged, or a change affects its steps.
    """
    files = RunFolder.open(Path(path))
    recipe = load_recipe(files.recipe, overrides, plugins, overrides_name)
    last = files.checkpoints / LAST
    if not last.exists():
        kept = sorted(files.checkpoints.glob("step-*.ckpt"), key=step_of)
        if kept:
            raise UserError(f"{last} is missing; to resume from step {step_of(kept[-1])}, copy {kept[-1].name} to it")
        if files.backbone.exists():  # the run is complete, but its checkpoint was removed
            before = load_recipe(files.recipe, (), plugins)
            changes = _differences(before.to_dict(), recipe.to_dict())
            _refuse(recipe.source, changes, files, is_final=True)
            return Begun(files, recipe, recipe.trainer.max_steps, changes)
        return Begun(files, recipe, keeps_start=_keeps_start(files, recipe.backbone, recipe.seed))
    checkpoint = read_checkpoint(last)
    about, step = checkpoint["prior3d"], checkpoint["global_step"]
    content = load(about["recipe"], f"the recipe in {last}").value
    before = build_recipe({**content, "plugins": [str(file) for file in recipe.plugins]})
    changes = _differences(before.to_dict(), recipe.to_dict())
    _refuse(recipe.source, changes, files)
    if recipe.trainer.max_steps < step:
        raise recipe.source.locate(UserError(f"the run is already at step {step}", "trainer.max_steps"))
    return Begun(files, recipe, step, changes, about.get("history", ()), about.get("threads"), data=about.get("data"))


def _refuse(
    source: Source, changes: Mapping[str, tuple[object, object]], files: RunFolder, is_final: bool = False
) -> None:
    """Raise UserError if a change is not allowed; a run that is final has no checkpoint to add steps to."""
    refused = {
        key: values
        for key, values in changes.items()
        if not _is_free(key, values) or (is_final and key == "trainer.max_steps")
    }
    if not refused:
        return
    texts = [f"{key} was {described(old)} and is {described(new)}" for key, (old, new) in refused.items()]
    error = UserError(
        f"a resumed run must not change: {'; '.join(texts[:3])}{'; ...' if len(texts) > 3 else ''}. Change this back"
        f" or start a new run from its weights: backbone.weights={files.path}",
        next(iter(refused)),
    )
    raise source.locate(error)


def _is_free(key: str, values: tuple[object, object]) -> bool:
    """Return whether a key may change.

    Files may have moved. Those of the data may also have other names: the data are compared by what they hold.
    """
    if _FREE.fullmatch(key):
        return True
    if not all(isinstance(value, str) and value.startswith("/") for value in values):
        return False
    return key.startswith("data.") or len({Path(value).name for value in values}) == 1


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[object, object]]:
    """Return the dotted keys whose values differ, with both values; plugin files are not compared."""
    old, new = dict(_flat(before)), dict(_flat(now))
    keys = [key for key in dict.fromkeys([*old, *new]) if key != "plugins"]
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        elif value != {}:
            yield f"{prefix}{name}", value


def _keeps_start(files: RunFolder, backbone: object, seed: int) -> bool:
    """Whether initial weights exist from which a run without a checkpoint can continue."""
    if not files.initial.exists():
        return False
    return read_description(files.initial).get("made_from") in (None, start_key(backbone, seed))


def _comments(file: Path) -> list[str]:
    return [line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
