"""The columns of a comparison: one model, the other, both together, and a control of the same size."""

from collections.abc import Mapping
from dataclasses import dataclass

from prior3d.backbone import Backbone
from prior3d.errors import ArgumentError
from prior3d.evaluation.models import (
    Model,
    Subject,
    find_other,
    load_initial,
    load_other,
    load_trained,
    make_untrained,
    two_names,
)
from prior3d.evaluation.request import Request
from prior3d.probes.results import AFTER, BEFORE

ALONE = "model"
"""Column name of a model without a comparison."""

RANDOM, GIVEN = "random", "control"
"""Column name of the control."""

_ONLY_THE_MODEL_HAS_ONE = (
    "it has no decoder, the model has one: name a run, or its backbone.safetensors with decoder.safetensors beside it"
)
_ONLY_IT_HAS_ONE = (
    "it has a decoder, the model has none: name a copy of backbone.safetensors without a decoder.safetensors beside it"
)


@dataclass(frozen=True)
class Column:
    """One column of a comparison: a model, or several whose features are concatenated."""

    models: tuple[Model, ...]
    text: str

    @property
    def backbones(self) -> list[Backbone]:
        """Backbones of its models."""
        return [model.backbone for model in self.models]

    @property
    def key(self) -> str:
        """Text that changes with the weights."""
        return " ".join(model.digest for model in self.models)


def build_columns(
    subject: Subject, request: Request, against: Subject | None = None, control: str | None = None
) -> dict[str, Column]:
    """Return the columns that a command line requests, by name.

    Args:
        subject: Model to evaluate.
        request: Probes and data.
        against: Model to compare with; None for the initial weights of a run, and for no comparison otherwise.
        control: Name of a third model; None for random weights.

    Raises:
        UserError: Weights do not fit or do not exist, or there is a control without a comparison or of another size.
    """
    size, seed, names = request.data.size, request.seed, (BEFORE, AFTER)
    after = load_trained(subject, request.backbone, size, seed)
    if against is not None:
        before, names = load_other(against, size, seed, "against"), two_names(against, subject)
    else:
        before = None if subject.run is None else load_initial(subject, request.backbone, size, seed)
    if control is None:
        return columns_of(before, after, make_untrained(after, size, seed), RANDOM, names)
    if before is None:
        why = "a control needs two models to compare: name a second one (against), or a run folder"
        raise ArgumentError(why, "control")
    trained = load_other(find_other(control, "control"), size, seed, "control")
    return columns_of(before, after, trained, GIVEN, names)


def columns_of(
    before: Model | None,
    after: Model,
    control: Model,
    control_name: str,
    names: tuple[str, str] = (BEFORE, AFTER),
) -> dict[str, Column]:
    """Return the columns of a comparison, by name.

    Args:
        before: Model to compare with; None for a single column.
        after: Model to evaluate.
        control: Replaces `after` in the combination with `before`: it has the same number of channels, but nothing that
            `after` has learned.
        control_name: Name of the control.
        names: Names of `before` and `after`.

    Raises:
        UserError: The control and `after` differ in size.
    """
    if before is None:
        return {ALONE: Column((after,), after.text)}
    first, second = names
    columns = {first: Column((before,), before.text), second: Column((after,), after.text)}
    _check_size_of(control, after)
    text = f"features of {first} and of {control.text}, concatenated: the gain from as many more channels alone"
    columns[f"{first} + {second}"] = Column((before, after), f"features of {first} and {second}, concatenated")
    columns[f"{first} + {control_name}"] = Column((before, control), text)
    return columns


def single_names(columns: Mapping[str, Column]) -> list[str]:
    """Return the names of the columns that are one model each."""
    return [name for name, column in columns.items() if len(column.models) == 1]


def pairs_of(columns: Mapping[str, Column]) -> list[tuple[str, str]]:
    """Return the pairs of columns to compare: the model with the other one, and both together with the control."""
    single = single_names(columns)
    combined = [name for name in columns if name not in single]
    return [tuple(reversed(single)), tuple(combined)] if len(single) == 2 else []


def notes_on_models(columns: Mapping[str, Column]) -> list[str]:
    """Return notes about the models that readers should know."""
    if len(columns) == 1:
        return []
    first, second = single_names(columns)
    before, after = (columns[name].models[0] for name in (first, second))
    notes = []
    if before.digest == after.digest:
        notes.append(f"{first} and {second} have the same weights.")
    if before.backbone.spec.dense_stride != after.backbone.spec.dense_stride:
        notes.append(
            f"The maps of {first} have a cell for every {_stride_of(before)}, those of {second} for every"
            f" {_stride_of(after)}: part of the difference is resolution, not what was learned."
        )
    if f"{first} + {RANDOM}" in columns:
        notes.append(
            "The control's features are random: more channels help a little whatever they hold. --control takes an"
            " independently trained model of the same size, a harder control."
        )
    return notes


def _stride_of(model: Model) -> str:
    spec = model.backbone.spec
    return f"{spec.dense_stride} pixels ({'a decoder' if spec.has_decoder else 'no decoder'})"


def _check_size_of(control: Model, after: Model) -> None:
    theirs, ours = control.backbone.spec, after.backbone.spec
    if theirs.encoder_channels == ours.encoder_channels and theirs.has_decoder != ours.has_decoder:
        words = _ONLY_IT_HAS_ONE if theirs.has_decoder else _ONLY_THE_MODEL_HAS_ONE
        channels = f"dense channels {theirs.dense_channels}, the model {ours.dense_channels}"
        raise ArgumentError(f"the control must be as large as the model: {words} ({channels})", "control")
    for what in ("encoder_channels", "pooled_channels", "dense_channels"):  # a decoder cannot fix a different encoder
        if getattr(theirs, what) != getattr(ours, what):
            words = f"{what.replace('_', ' ')} {getattr(theirs, what)}, the model {getattr(ours, what)}"
            raise ArgumentError(f"the control must be as large as the model: it has {words}", "control")
