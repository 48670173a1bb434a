"""What MODEL can be on the command line: a run folder, a weight file or a model of timm, and the sections it brings."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prior3d.backbone import check_name
from prior3d.backbone.weights import read_description
from prior3d.errors import UserError
from prior3d.pretraining.folder import RunFolder
from prior3d.recipe.reading import own_options
from prior3d.recipe.sections import DataSection
from prior3d.recipe.source import Source, override, read_recipe

_WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")

SAYS_ITS_MODEL = (
    "a file that says it: backbone.safetensors of a run, or one of prior3d.backbone.save_weights(file, weights,"
    " {'model': ...})"
)
"""What to name beside MODEL where MODEL itself may be any file: `backbone.name=...` is about MODEL alone."""

_UNREAD = ("priors", "optim", "trainer")


@dataclass(frozen=True)
class Subject:
    """A model that a command line names.

    Attributes:
        name: as it was given.
        content: sections of a recipe, as plain values, the command line's over the model's own.
        source: where they were given.
        run: the run folder, if it is one.
        file: the weight file, if it is one.
    """

    name: str
    content: dict[str, object]
    source: Source
    run: RunFolder | None = None
    file: Path | None = None

    @property
    def short_name(self) -> str:
        """A name for folders and titles."""
        if self.run is not None:
            return self.run.path.resolve().name
        if self.file is None:
            return self.name
        exported = self.file.name == RunFolder(self.file.parent).backbone.name
        return self.file.resolve().parent.name if exported else self.file.stem


def find_subject(name: str, overrides: Sequence[str] = ()) -> Subject:
    """Find what a name means.

    Args:
        name: a folder, a file, or a model of timm.
        overrides: `key.path=value` each, over what the model brings.

    Raises:
        UserError: it is nothing of these, or a run that is not finished.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return _run(name, RunFolder(path), overrides)
    if path.is_file():
        return _file(name, path, overrides)
    if len(path.parts) > 1 or path.suffix in _WEIGHT_FILES:
        raise UserError(f"no such run folder or weight file: {name}")
    return _of_timm(name, overrides)


def _run(name: str, folder: RunFolder, overrides: Sequence[str]) -> Subject:
    if not folder.recipe.is_file():
        raise UserError(f"{name} is no run folder: it holds no {folder.recipe.name}")
    for file in (folder.initial, folder.backbone):
        if not file.is_file():
            go_on = f"go on with: prior3d-train --resume {folder.path}"
            raise UserError(f"the run in {name} is not complete: it holds no {file.name}; {go_on}")
    content, source = read_recipe(folder.recipe, overrides)
    _refuse(source.overridden, ("backbone",), "a run is measured with its own model: leave this out")
    _refuse(source.overridden | source.removed, _UNREAD, "nothing is trained here: leave this out")
    trained_on, _ = read_recipe(folder.recipe)
    _leave_options_behind(content, trained_on, source.overridden)
    return Subject(name, content, source, run=folder)


def _file(name: str, path: Path, overrides: Sequence[str]) -> Subject:
    about = read_description(path)
    if about.get("what") not in (None, "encoder"):
        raise UserError(f"{name} holds the {about['what']} of a run: name the run folder, or its backbone.safetensors")
    section = {key: about[key] for key in ("timm_options", "mean", "std") if key in about}
    section |= {"name": about["model"]} if "model" in about else {}
    decoder = RunFolder(path.parent).decoder
    if about and decoder.is_file() and path.name == RunFolder(path.parent).backbone.name:
        section |= read_description(decoder).get("decoder", {})
    content: dict[str, object] = {"backbone": {**section, "weights": str(path)}}
    source = _override(content, overrides)
    _refuse(source.overridden, ("backbone.weights", "backbone.pretrained"), f"{name} is the weights already")
    if isinstance(content["backbone"], dict) and "name" not in content["backbone"]:  # others are for the reader
        raise UserError(
            f"{name} does not say which model it is of: as MODEL it takes backbone.name=..., a model of timm;"
            f" after --against or --control, name {SAYS_ITS_MODEL}"
        )
    return Subject(name, content, source, file=path)


def _of_timm(name: str, overrides: Sequence[str]) -> Subject:
    try:
        check_name(name)
    except UserError as error:
        raise UserError(f"{name} is no run folder and no weight file, and {error.message}") from error
    given = any(text.startswith("backbone.weights=") for text in overrides)
    content: dict[str, object] = {"backbone": {"name": name, "pretrained": not given}}
    source = _override(content, overrides)
    _refuse(source.overridden, ("backbone.name",), f"{name} is the model already")
    return Subject(name, content, source)


def _override(content: dict[str, object], overrides: Sequence[str]) -> Source:
    source = override(content, overrides)
    _refuse(source.overridden | source.removed, _UNREAD, "nothing is trained here: leave this out")
    return source


def _refuse(overridden: frozenset[str], keys: Sequence[str], why: str) -> None:
    for key in sorted(overridden):
        if any(key == name or key.startswith(f"{name}.") for name in keys):
            raise UserError(f"command line: {key}: {why}")


def _leave_options_behind(content: dict, trained_on: dict, overridden: frozenset[str]) -> None:
    """Drop the options of the dataset a run was trained on where the command line names another one."""
    if not isinstance(content["data"], dict):  # for the reader to refuse
        return
    if content["data"].get("name") == trained_on["data"].get("name"):
        return
    given = {key.split(".")[1] for key in overridden if key.startswith("data.")}
    fixed = own_options(DataSection).types
    content["data"] = {key: value for key, value in content["data"].items() if key in fixed or key in given}
