"""Writing a report: figures first, then what refers to them, each file whole or not there."""

import io
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from prior3d import __version__
from prior3d.files import write_atomically
from prior3d.reporting.comparison import Comparison
from prior3d.reporting.markdown import to_markdown
from prior3d.reporting.plain import to_plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

JSON, MARKDOWN, FIGURES = "report.json", "report.md", "figures"


@dataclass(frozen=True)
class About:
    """What a report says beside the numbers.

    Attributes:
        title: of the report.
        columns: model to what it is, in words.
        models: model to facts about it: backbone, weights, their hash, parameters.
        notes: what a reader has to mind, a sentence each.
        facts: how it was measured: device, seconds, seed.
        sections: the recipe's sections on data and probes, as plain values.
        key: changes with all that the numbers depend on.
    """

    title: str
    columns: Mapping[str, str]
    models: Mapping[str, Mapping[str, object]]
    notes: tuple[str, ...] = ()
    facts: Mapping[str, object] = field(default_factory=dict)
    sections: Mapping[str, object] = field(default_factory=dict)
    key: str | None = None


def write_report(folder: Path, comparison: Comparison, figures: "Mapping[str, Figure]", about: About) -> Path:
    """Write figures/*.png, report.json and report.md into a folder; return the last.

    Args:
        folder: made if it is missing; figures of an earlier report are removed.
        comparison: the numbers.
        figures: name to figure; `depth/predictions` becomes figures/depth-predictions.png.
        about: the rest.
    """
    (folder / FIGURES).mkdir(parents=True, exist_ok=True)
    files = {name: f"{FIGURES}/{_file_name(name)}.png" for name in figures}
    for name, figure in figures.items():
        content = io.BytesIO()
        figure.savefig(content, format="png")
        write_atomically(folder / files[name], content.getvalue())
    plain = {**to_plain(comparison, about, files), "versions": _versions()}
    write_atomically(folder / JSON, json.dumps(plain, indent=1, allow_nan=False).encode())
    write_atomically(folder / MARKDOWN, to_markdown(comparison, about, files, _versions()).encode())
    for stale in set((folder / FIGURES).glob("*.png")) - {folder / file for file in files.values()}:
        stale.unlink()
    return folder / MARKDOWN


def device_name(device: str) -> str:
    """Return what a device, cpu or cuda, is in words."""
    return torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)


def _versions() -> dict[str, str]:
    found = {name: version(name) for name in ("torch", "timm", "torchmetrics", "faiss-cpu") if _is_installed(name)}
    return {"prior3d": __version__, "python": platform.python_version(), **found}


def _is_installed(name: str) -> bool:
    from importlib.metadata import PackageNotFoundError

    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True
