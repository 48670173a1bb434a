"""What `prior3d-eval` is asked for, and what follows from it alone: the device, the folder, the other models."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from prior3d.errors import UserError
from prior3d.evaluation.subjects import Subject, find_subject


@dataclass(frozen=True)
class Arguments:
    """What `prior3d-eval` is asked for.

    Attributes:
        model: a run folder, a weight file or a model of timm.
        against: another such, to compare with; None for the run's initial weights, or nothing.
        control: another such, of the size of the model and trained independently; None for random weights.
        probes: what to measure, by name; none for those of the run's recipe, or the default ones.
        seeds: how often, with other draws of the probe's own each time.
        out: folder for the report.
        overrides: `key.path=value` each.
        plugins: further plugin files.
        device: where to measure.
    """

    model: str
    against: str | None = None
    control: str | None = None
    probes: Sequence[str] = ()
    seeds: int | None = None
    out: Path | None = None
    overrides: Sequence[str] = ()
    plugins: Sequence[str] = ()
    device: Literal["auto", "cpu", "cuda"] = "auto"


def choose_device(device: str) -> str:
    """Return cpu or cuda; auto takes a GPU where there is one."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no GPU that torch can use", "--device")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def check_folder(out: Path) -> None:
    """Raise UserError where a folder cannot be made or written to; nothing is left there."""
    existing = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not existing.is_dir():
        raise UserError(f"{existing} is no folder", "--out")
    try:
        with tempfile.TemporaryDirectory(prefix=".prior3d-", dir=existing):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {existing}: {error.strerror}", "--out") from error


def other_subject(name: str, flag: str) -> Subject:
    """Find what a model beside the first one means; errors name the flag."""
    try:
        return find_subject(name)
    except UserError as error:
        raise UserError(error.message, flag) from error


def default_folder(subject: Subject, against: Subject | None, what: str) -> Path:
    """Return where results go: into the run folder, or beside the current folder's other files."""
    suffix = "" if against is None else f"-against-{against.short_name}"
    if subject.run is not None:
        return subject.run.path / f"{what}{suffix}"
    return Path(f"{what}-{subject.short_name}{suffix}")
