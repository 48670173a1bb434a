"""Models with their weights: of a run before and after training, of files, of timm, and untrained ones."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from prior3d.backbone import Backbone
from prior3d.backbone.weights import load_encoder, read_weights
from prior3d.errors import UserError
from prior3d.evaluation.subjects import SAYS_ITS_MODEL, Subject
from prior3d.pretraining.building import make_backbone
from prior3d.pretraining.folder import RunFolder, load_decoder
from prior3d.randomness import stream_seed
from prior3d.recipe.reading import read_section
from prior3d.recipe.sections import BackboneSection


@dataclass(frozen=True)
class Model:
    """A backbone with its weights.

    Attributes:
        text: what it is and where its weights are from, in words.
        backbone: with these weights.
        section: how it was made.
    """

    text: str
    backbone: Backbone
    section: BackboneSection

    @cached_property
    def digest(self) -> str:
        """A SHA-256 of all weights and of what images are normalised with."""
        return self.backbone.digest()

    def facts(self) -> dict[str, object]:
        """Return what a report says of it."""
        return {
            "backbone": self.section.name,
            "decoder stride": self.backbone.spec.dense_stride if self.backbone.decoder is not None else None,
            "dense channels": self.backbone.spec.dense_channels,
            "dense stride": self.backbone.spec.dense_stride,
            "parameters": sum(parameter.numel() for parameter in self.backbone.parameters()),
            "weights": self.text,
            "sha256": self.digest,
        }


def load_trained(subject: Subject, section: BackboneSection, size: tuple[int, int], seed: int) -> Model:
    """Return a model with the weights it is named for: trained, from a file, or timm's.

    Args:
        subject: the model.
        section: its `backbone:`.
        size: height and width of the images, pixels.
        seed: of weights that are random.

    Raises:
        UserError: weights that do not fit, are missing, or cannot be fetched.
    """
    if subject.run is not None:
        backbone = make_backbone(_without_weights(section), size, seed)
        subject.run.load_trained(backbone)
        return Model(f"{section.name}, the trained weights of {subject.name}", backbone, section)
    if subject.file is not None:
        return _from_file(subject.file, section, size, seed)
    backbone = make_backbone(section, size, seed)
    return Model(f"{section.name} with {_weights_of(section, backbone)}", backbone, section)


def load_initial(subject: Subject, section: BackboneSection, size: tuple[int, int], seed: int) -> Model:
    """Return the model of a run with its weights before training."""
    backbone = make_backbone(_without_weights(section), size, seed)
    subject.run.load_initial(backbone)
    text = f"{section.name}, the initial weights of {subject.name} ({_weights_of(section, backbone)})"
    return Model(text, backbone, section)


def load_other(subject: Subject, size: tuple[int, int], seed: int, flag: str) -> Model:
    """Return a model beside the first one, `backbone:` as it brings it along; errors name the flag.

    Keys on the command line are those of the first one: no error advises to set `backbone.weights` for this one.
    """
    try:
        section = read_section(BackboneSection, subject.content["backbone"], "backbone")
        return load_trained(subject, section, size, seed)
    except UserError as error:
        message = error.message
        if error.key == "backbone.pretrained":
            why = str(error.__cause__).partition("\n")[0]
            message = f"cannot fetch timm's weights of {section.name} ({why}); name {SAYS_ITS_MODEL}"
        raise UserError(message, flag) from error


def make_untrained(like: Model, size: tuple[int, int], seed: int) -> Model:
    """Return a model of the same size with random weights of its own."""
    section = _without_weights(like.section)
    backbone = make_backbone(section, size, stream_seed("control", seed))
    return Model(f"{section.name} with random weights", backbone, section)


def _from_file(file: Path, section: BackboneSection, size: tuple[int, int], seed: int) -> Model:
    decoder = RunFolder(file.parent).decoder
    backbone = make_backbone(_without_weights(section), size, seed)
    load_encoder(backbone.encoder.model, read_weights(file, key=None), str(file), key=None)
    text = f"{section.name} with the weights of {file}"
    if backbone.decoder is None:
        return Model(text, backbone, section)
    if not decoder.is_file():
        raise UserError(f"there is no {decoder.name} beside {file}: leave this out", "backbone.decoder_stride")
    load_decoder(backbone, decoder)
    return Model(f"{text} and {decoder.name}", backbone, section)


def _without_weights(section: BackboneSection) -> BackboneSection:
    return replace(section, pretrained=False, weights=None)


def _weights_of(section: BackboneSection, backbone: Backbone) -> str:
    if section.weights is not None:
        return f"the weights of {section.weights}"
    if section.pretrained:
        tag = (getattr(backbone.encoder.model, "pretrained_cfg", None) or {}).get("tag")
        return f"timm's weights{f' ({tag})' if tag else ''}"
    return "random weights"
