"""Models by name, with their weights: of a run before and after training, of files, of timm, and untrained ones."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from prior3d.backbone import Backbone, check_name
from prior3d.backbone.fetching import NotFetched
from prior3d.backbone.weights import load_encoder, read_description, read_weights
from prior3d.errors import UserError, argument, refusal_of
from prior3d.pretraining.building import make_backbone
from prior3d.pretraining.folder import RunFolder, load_decoder
from prior3d.randomness import stream_seed
from prior3d.recipe.reading import own_options, read_section
from prior3d.recipe.sections import BackboneSection, DataSection
from prior3d.recipe.source import COMMAND_LINE, Source, override, read_recipe

_WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")

SAYS_ITS_MODEL = (
    "a file that says it: backbone.safetensors of a run, or one of prior3d.backbone.save_weights(file, weights,"
    " {'model': ...})"
)
"""Description, for messages, of a file that can be named as another model. MODEL itself may be any file, since
`backbone.name=...` applies to it only."""

RANDOM_WEIGHTS = "random:"
"""Prefix of a timm name for the model with random weights, as MODEL and as another model."""

_UNREAD = ("priors", "optim", "trainer")


@dataclass(frozen=True)
class Subject:
    """A model that a command line names.

    Attributes:
        name: Name as given.
        content: Recipe sections as plain values; those of the command line override the model's own.
        source: Where these values come from.
        run: The run folder, if it is one.
        file: The weight file, if it is one.
    """

    name: str
    content: dict[str, object]
    source: Source
    run: RunFolder | None = None
    file: Path | None = None

    @property
    def short_name(self) -> str:
        """Name for folders and titles."""
        if self.run is not None:
            return self.run.path.resolve().name
        if self.file is None:
            return self.name.replace(":", "-")
        exported = self.file.name == RunFolder(self.file.parent).backbone.name
        return self.file.resolve().parent.name if exported else self.file.stem


def find_subject(name: str, overrides: Sequence[str] = (), overrides_name: str = COMMAND_LINE) -> Subject:
    """Find the model that a name refers to.

    Args:
        name: A folder, a file, a model of timm, or `random:` and a model of timm.
        overrides: Values `key.path=value` that override those of the model.
        overrides_name: Name of the overrides in messages.

    Raises:
        UserError: The name is none of these, or a run that is not finished.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return _run(name, RunFolder(path), overrides, overrides_name)
    if path.is_file():
        return _file(name, path, overrides, overrides_name)
    if len(path.parts) > 1 or path.suffix in _WEIGHT_FILES:
        raise UserError(f"no such run folder or weight file: {name}")
    return _of_timm(name, overrides, overrides_name)


def _run(name: str, folder: RunFolder, overrides: Sequence[str], overrides_name: str) -> Subject:
    if not folder.recipe.is_file():
        raise UserError(f"{name} is not a run folder: it holds no {folder.recipe.name}")
    for file in (folder.initial, folder.backbone):
        if not file.is_file():
            go_on = f"resume it with: prior3d-train --resume {folder.path}"
            raise UserError(f"the run in {name} is not complete: it holds no {file.name}; {go_on}")
    content, source = read_recipe(folder.recipe, overrides, overrides_name)
    _refuse(source, source.overridden, ("backbone",), "a run is measured with its own model: leave this out")
    _refuse(source, source.overridden | source.removed, _UNREAD, "nothing is trained here: leave this out")
    trained_on, _ = read_recipe(folder.recipe)
    _leave_options_behind(content, trained_on, source.overridden)
    return Subject(name, content, source, run=folder)


def _file(name: str, path: Path, overrides: Sequence[str], overrides_name: str) -> Subject:
    about = read_description(path)
    if about.get("what") not in (None, "encoder"):
        raise UserError(f"{name} holds the {about['what']} of a run: name the run folder, or its backbone.safetensors")
    brought = {key: about[key] for key in ("timm_options", "mean", "std") if key in about}
    brought |= {"name": about["model"]} if "model" in about else {}
    decoder = RunFolder(path.parent).decoder
    if about and decoder.is_file() and path.name == RunFolder(path.parent).backbone.name:
        brought |= read_description(decoder).get("decoder", {})
    content: dict[str, object] = {"backbone": {**brought, "weights": str(path)}}
    source = _override(content, overrides, overrides_name)
    _refuse(source, source.overridden, ("backbone.weights", "backbone.pretrained"), f"{name} already gives the weights")
    if isinstance(content["backbone"], dict) and "name" not in content["backbone"]:  # the reader checks other types
        raise UserError(
            f"{name} does not say which model it belongs to: set backbone.name to a model of timm; as the"
            f" second model or the control, name {SAYS_ITS_MODEL}"
        )
    return Subject(name, content, source, file=path)


def _of_timm(name: str, overrides: Sequence[str], overrides_name: str) -> Subject:
    model = name.removeprefix(RANDOM_WEIGHTS)
    if unknown := refusal_of(partial(check_name, model)):
        raise UserError(f"{name} is neither a run folder nor a weight file, and {unknown.message}") from unknown
    pretrained = model == name and not any(text.startswith("backbone.weights=") for text in overrides)
    content: dict[str, object] = {"backbone": {"name": model, "pretrained": pretrained}}
    source = _override(content, overrides, overrides_name)
    _refuse(source, source.overridden, ("backbone.name",), f"{name} already is the model")
    if model != name:
        _refuse(source, source.overridden, ("backbone.weights", "backbone.pretrained"), f"{name} has random weights")
    return Subject(name, content, source)


def find_other(name: str, key: str) -> Subject:
    """Find the model that a name refers to, other than the first one; errors name the argument `key`."""
    with argument(key):
        return find_subject(name)


def two_names(first: Subject, second: Subject) -> tuple[str, str]:
    """Return distinct names of two models: short ones, or the given ones, or numbered ones."""
    if first.short_name != second.short_name:
        return first.short_name, second.short_name
    if first.name != second.name:
        return first.name, second.name
    return f"{first.name}, 1", f"{second.name}, 2"


def _override(content: dict[str, object], overrides: Sequence[str], overrides_name: str) -> Source:
    source = override(content, overrides, overrides_name=overrides_name)
    _refuse(source, source.overridden | source.removed, _UNREAD, "nothing is trained here: leave this out")
    return source


def _refuse(source: Source, overridden: frozenset[str], keys: Sequence[str], why: str) -> None:
    for key in sorted(overridden):
        if any(key == name or key.startswith(f"{name}.") for name in keys):
            raise UserError(f"{source.overrides}: {key}: {why}")


def _leave_options_behind(content: dict, trained_on: dict, overridden: frozenset[str]) -> None:
    """Drop the options of the dataset that a run was trained on if the command line names another dataset."""
    if not isinstance(content["data"], dict):  # the reader refuses it
        return
    if content["data"].get("name") == trained_on["data"].get("name"):
        return
    given = {key.split(".")[1] for key in overridden if key.startswith("data.")}
    fixed = own_options(DataSection).types
    content["data"] = {key: value for key, value in content["data"].items() if key in fixed or key in given}


@dataclass(frozen=True)
class Model:
    """A backbone with its weights.

    Attributes:
        text: Description of the model and the source of its weights, in words.
        backbone: Backbone with these weights.
        section: Options it was made with.
    """

    text: str
    backbone: Backbone
    section: BackboneSection

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all weights and of the normalization of images."""
        return self.backbone.digest()

    def facts(self) -> dict[str, object]:
        """Return the facts about it for a report."""
        return {
            "backbone": self.section.name,
            "decoder stride": self.backbone.spec.dense_stride if self.backbone.decoder is not None else None,
            "dense channels": self.backbone.spec.dense_channels,
            "dense stride": self.backbone.spec.dense_stride,
            "parameters": sum(parameter.numel() for parameter in self.backbone.parameters()),
            "weights": self.text,
            "sha256": self.digest,
        }


def load_trained(subject: Subject, options: BackboneSection, size: tuple[int, int], seed: int) -> Model:
    """Return a model with the weights that its name refers to: trained, from a file, or timm's.

    Args:
        subject: Model to load.
        options: Its `backbone:` section.
        size: Height and width of the images, pixels.
        seed: Seed of random weights.

    Raises:
        UserError: Weights do not fit, are missing, or cannot be fetched.
    """
    if subject.run is not None:
        backbone = make_backbone(_without_weights(options), size, seed)
        subject.run.load_trained(backbone)
        return Model(f"{options.name}, the trained weights of {subject.name}", backbone, options)
    if subject.file is not None:
        return _from_file(subject.file, options, size, seed)
    backbone = make_backbone(options, size, seed)
    return Model(f"{options.name} with {_weights_of(options, backbone)}", backbone, options)


def load_initial(subject: Subject, options: BackboneSection, size: tuple[int, int], seed: int) -> Model:
    """Return the model of a run with its weights before training."""
    backbone = make_backbone(_without_weights(options), size, seed)
    subject.run.load_initial(backbone)
    text = f"{options.name}, the initial weights of {subject.name} ({_weights_of(options, backbone)})"
    return Model(text, backbone, options)


def load_other(subject: Subject, size: tuple[int, int], seed: int, key: str) -> Model:
    """Return a model other than the first one, with its own `backbone:` section; errors name the argument `key`.

    Keys on the command line belong to the first one, so no error suggests setting `backbone.weights` for this one.
    """
    with argument(key):
        options = read_section(BackboneSection, subject.content["backbone"], "backbone")
        try:
            return load_trained(subject, options, size, seed)
        except NotFetched as error:
            why = str(error.__cause__).partition("\n")[0]
            raise UserError(
                f"cannot fetch timm's weights of {options.name} ({why}); name {RANDOM_WEIGHTS}{options.name} for random"
                f" ones, or {SAYS_ITS_MODEL}"
            ) from error


def make_untrained(like: Model, size: tuple[int, int], seed: int) -> Model:
    """Return a model of the same size with its own random weights."""
    options = _without_weights(like.section)
    backbone = make_backbone(options, size, stream_seed("control", seed))
    return Model(f"{options.name} with random weights", backbone, options)


def _from_file(file: Path, options: BackboneSection, size: tuple[int, int], seed: int) -> Model:
    decoder = RunFolder(file.parent).decoder
    backbone = make_backbone(_without_weights(options), size, seed)
    load_encoder(backbone.encoder.model, read_weights(file, key=None), str(file), key=None)
    text = f"{options.name} with the weights of {file}"
    if backbone.decoder is None:
        return Model(text, backbone, options)
    if not decoder.is_file():
        raise UserError(f"there is no {decoder.name} beside {file}: leave this out", "backbone.decoder_stride")
    load_decoder(backbone, decoder)
    return Model(f"{text} and {decoder.name}", backbone, options)


def _without_weights(options: BackboneSection) -> BackboneSection:
    return replace(options, pretrained=False, weights=None)


def _weights_of(options: BackboneSection, backbone: Backbone) -> str:
    if options.weights is not None:
        return f"the weights of {options.weights}"
    if options.pretrained:
        tag = (getattr(backbone.encoder.model, "pretrained_cfg", None) or {}).get("tag")
        return f"timm's weights{f' ({tag})' if tag else ''}"
    return "random weights"
