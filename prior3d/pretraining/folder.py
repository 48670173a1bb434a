"""The run folder: the files that a run writes, and their paths for later processes."""

import contextlib
import json
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from prior3d.backbone import Backbone
from prior3d.backbone.weight_files import DECODER_FILE, ENCODER_FILE
from prior3d.backbone.weights import find_mismatches, load_encoder, read_weights, save_weights, summarize
from prior3d.errors import ArgumentError, UserError, argument
from prior3d.files import write_atomically, write_json
from prior3d.version import __version__


@dataclass(frozen=True)
class RunFolder:
    """Paths within a run folder.

    recipe.yaml: the resolved recipe, with plugin origins as comments; plugins/: copies of its plugin files;
    initial.safetensors: encoder and decoder before training; checkpoints/last.ckpt and, with `keep_every`,
    checkpoints/step-N.ckpt; prepared/: data that priors prepared within training, if any; events.* and metrics.csv:
    curves; probes.json and scores.json (results of the probes), report.md, report.json and figures/ (for readers);
    summary.json; and, once training is complete, backbone.safetensors (loads strictly into
    `timm.create_model(name, num_classes=0)`) and decoder.safetensors.
    """

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def plugins(self) -> Path:
        """Copies of the plugin files that the recipe names."""
        return self.path / "plugins"

    @property
    def initial(self) -> Path:
        """Weights of encoder and decoder before training; written once."""
        return self.path / "initial.safetensors"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def backbone(self) -> Path:
        """The trained encoder in timm's format; its presence means that training is complete."""
        return self.path / ENCODER_FILE

    @property
    def decoder(self) -> Path:
        """The trained decoder, if there is one."""
        return self.path / DECODER_FILE

    @property
    def prepared(self) -> Path:
        """Data that priors prepared within training."""
        return self.path / "prepared"

    @property
    def probes(self) -> Path:
        """Metrics before and after training, as in the table."""
        return self.path / "probes.json"

    @property
    def scores(self) -> Path:
        """Scores by scene or image, from which the metrics are computed."""
        return self.path / "scores.json"

    @property
    def report(self) -> Path:
        """Report of the probes for readers; report.json and figures/ lie next to it."""
        return self.path / "report.md"

    @property
    def summary(self) -> Path:
        """Summary of the run: settings, duration and outcome."""
        return self.path / "summary.json"

    @classmethod
    def create(cls, parent: Path, name: str, recipe: str, plugins: Sequence[tuple[Path, str]] = ()) -> "RunFolder":
        """Create a new folder `<parent>/<name>-<time>` with the recipe and copies of its plugin files.

        Args:
            parent: parent folder; created if it is missing.
            name: name of the run.
            recipe: the text of recipe.yaml.
            plugins: pairs of a plugin file and its name in the folder `plugins`.

        Raises:
            UserError: the folder cannot be created.
        """
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        for attempt in range(100):
            path = parent / (f"{name}-{stamp}" + (f"-{attempt}" if attempt else ""))
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                continue  # two runs started within one second
            except OSError as error:
                raise ArgumentError(f"cannot make the run folder {path}: {error.strerror}", "out") from error
            folder = cls(path)
            try:
                with argument("out"):
                    folder._fill(recipe, plugins)
            except (UserError, OSError):
                folder.remove_if_nothing_is_lost()
                raise
            return folder
        raise ArgumentError(f"cannot find a free name for a run folder in {parent}", "out")

    def _fill(self, recipe: str, plugins: Sequence[tuple[Path, str]]) -> None:
        self.copy_plugins(plugins)
        self.write_recipe(recipe)

    def copy_plugins(self, files: Sequence[tuple[Path, str]]) -> None:
        """Copy plugin files into the folder.

        Args:
            files: pairs of a plugin file and its name in the folder `plugins`.
        """
        for file, name in files:
            self.plugins.mkdir(exist_ok=True)
            write_atomically(self.plugins / name, file.read_bytes())

    def write_recipe(self, recipe: str) -> None:
        """Write recipe.yaml, replacing an earlier one."""
        write_atomically(self.recipe, recipe.encode())

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Open the folder of an earlier run.

        Raises:
            UserError: the folder is not a run folder.
        """
        folder = cls(path)
        if not folder.recipe.is_file():
            raise ArgumentError(f"{path} is not a run folder: it holds no {folder.recipe.name}", "resume")
        return folder

    def remove_leftovers(self) -> None:
        """Remove temporary files of killed processes."""
        for file in (*self.path.glob(".*.tmp"), *self.checkpoints.glob(".*.tmp")):
            file.unlink(missing_ok=True)

    def remove_if_nothing_is_lost(self) -> None:
        """Remove the folder of a run that failed before its first checkpoint, and its parent if that becomes empty."""
        if self.checkpoints.exists():
            return
        shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty
            self.path.parent.rmdir()

    def save_initial(self, backbone: Backbone, made_from: str) -> None:
        """Write the initial weights.

        Args:
            backbone: the backbone before training.
            made_from: key of everything that the weights depend on.
        """
        about = {"what": "initial backbone", "model": backbone.spec.name, "made_from": made_from}
        save_weights(self.initial, backbone.state_dict(), about)

    def load_initial(self, backbone: Backbone) -> None:
        """Load the initial weights into a backbone of the same recipe."""
        weights = read_weights(self.initial, key=None)
        mismatches = find_mismatches(backbone.state_dict(), weights)
        if mismatches:
            raise UserError(f"{self.initial} does not fit the recipe's backbone: {summarize(mismatches)}")
        backbone.load_state_dict(weights)

    def load_trained(self, backbone: Backbone) -> None:
        """Load the weights of a complete run into a backbone of the same recipe."""
        load_encoder(backbone.encoder.model, read_weights(self.backbone, key=None), str(self.backbone), key=None)
        if backbone.decoder is not None:
            load_decoder(backbone, self.decoder)

    def export(self, backbone: Backbone) -> None:
        """Write the trained weights for use elsewhere."""
        about = describe(backbone)
        if backbone.decoder is not None:
            shape = {"decoder_stride": backbone.spec.dense_stride, "channels": backbone.spec.dense_channels}
            save_weights(self.decoder, backbone.decoder.state_dict(), {"what": "decoder", "decoder": shape, **about})
        save_weights(self.backbone, backbone.encoder.model.state_dict(), {"what": "encoder", **about})

    def withdraw_export(self) -> None:
        """Remove the exported weights because the run continues."""
        self.backbone.unlink(missing_ok=True)
        self.decoder.unlink(missing_ok=True)

    def write_summary(self, facts: Mapping[str, object]) -> None:
        """Write the summary of the run, with the versions of its software."""
        versions = {"prior3d": __version__, "python": platform.python_version(), "cores": os.cpu_count()}
        write_json(self.summary, {**facts, "versions": versions | _versions()})

    def read_summary(self) -> dict[str, Any]:
        """Return the summary that `write_summary` wrote; empty if it is missing or unreadable."""
        try:
            return json.loads(self.summary.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}


def describe(backbone: Backbone) -> dict[str, object]:
    """Return the description stored in exported weights.

    Args:
        backbone: the backbone whose encoder is exported.
    """
    options = dict(backbone.encoder.timm_options)
    about = {"model": backbone.spec.name, "timm_options": options, "prior3d": __version__}
    return about | {name: getattr(backbone.encoder, name).flatten().tolist() for name in ("mean", "std")}


def load_decoder(backbone: Backbone, path: Path) -> None:
    """Load an exported decoder into a backbone that has one.

    Raises:
        UserError: names are missing, unexpected or of another shape; the message has the first few.
    """
    weights = read_weights(path, key=None)
    mismatches = find_mismatches(backbone.decoder.state_dict(), weights)
    if mismatches:
        raise UserError(f"{path} does not fit the model's decoder: {summarize(mismatches)}")
    backbone.decoder.load_state_dict(weights)


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "timm", "lightning")}
