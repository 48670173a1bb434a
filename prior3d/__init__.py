"""prior3d gives any 2D vision backbone a sense of 3D: composable prior objectives on one backbone pass.

    import prior3d

    run = prior3d.train("joint", {"trainer.max_steps": 50})
    report = prior3d.evaluate(run, probes=["depth"])
    maps = prior3d.features(run, ["photo.jpg"])

This package holds the building blocks (geometry, losses, data, training, probes) and never imports a plugin;
the priors themselves live in `prior3d_plugins` or in packages and files of yours.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prior3d.api import evaluate, export, features, load, prepare, train
    from prior3d.backbone import Backbone
    from prior3d.contracts.dataset import Dataset, DataSpec, Split, View
    from prior3d.contracts.engine import Engine, NeighborEngine, SparseEngine, SplatEngine
    from prior3d.contracts.exporter import Exporter
    from prior3d.contracts.fields import FIELDS, IGNORE_CLASS, Field, FieldTable
    from prior3d.contracts.prior import BackboneSpec, Batch, Features, Prior, Scene, Teacher
    from prior3d.contracts.probe import Measured, Part, Probe
    from prior3d.contracts.reader import BY_MARKER, BY_METADATA, BY_NAMES, Camera, Cloud, Frame, Reader, Recording
    from prior3d.contracts.runner import Progress, Runner, SceneJob, Work
    from prior3d.contracts.scores import Metrics, Scores, Totals, by_group
    from prior3d.data.images.single_images import SingleImages
    from prior3d.data.posed.dataset import PosedDataset
    from prior3d.errors import DamagedFile, DoesNotFit, UserError
    from prior3d.pretraining.joint import Joint
    from prior3d.pretraining.run import Run
    from prior3d.probes import FrozenModel, ProbeData
    from prior3d.recipe import Recipe, load_recipe
    from prior3d.reporting.report import Report

from prior3d.version import __version__

__all__ = [
    # what one does
    "train",
    "prepare",
    "evaluate",
    "features",
    "load",
    "export",
    "Joint",
    # what comes back
    "Run",
    "Report",
    "Backbone",
    "Recipe",
    "load_recipe",
    "UserError",
    "DamagedFile",
    "DoesNotFit",
    # priors
    "Prior",
    "BackboneSpec",
    "Batch",
    "Features",
    "Scene",
    "Teacher",
    # datasets and their fields
    "Dataset",
    "DataSpec",
    "Split",
    "View",
    "Field",
    "FieldTable",
    "FIELDS",
    "IGNORE_CLASS",
    "PosedDataset",
    "SingleImages",
    # readers
    "Reader",
    "Recording",
    "Frame",
    "Camera",
    "Cloud",
    "BY_NAMES",
    "BY_METADATA",
    "BY_MARKER",
    # probes
    "Probe",
    "FrozenModel",
    "ProbeData",
    "Part",
    "Measured",
    "Scores",
    "Metrics",
    "Totals",
    "by_group",
    # engines, exporters, runners
    "Engine",
    "SparseEngine",
    "SplatEngine",
    "NeighborEngine",
    "Exporter",
    "Runner",
    "SceneJob",
    "Work",
    "Progress",
    "__version__",
]

_HOME = {
    "prior3d.api": ("train", "prepare", "evaluate", "features", "load", "export"),
    "prior3d.backbone": ("Backbone",),
    "prior3d.contracts.dataset": ("Dataset", "DataSpec", "View", "Split"),
    "prior3d.contracts.engine": ("Engine", "SparseEngine", "SplatEngine", "NeighborEngine"),
    "prior3d.contracts.exporter": ("Exporter",),
    "prior3d.contracts.fields": ("Field", "FIELDS", "IGNORE_CLASS", "FieldTable"),
    "prior3d.contracts.prior": ("BackboneSpec", "Features", "Prior", "Scene", "Teacher", "Batch"),
    "prior3d.contracts.probe": ("Probe", "Measured", "Part"),
    "prior3d.contracts.reader": (
        "Camera",
        "Cloud",
        "Frame",
        "Reader",
        "Recording",
        "BY_MARKER",
        "BY_METADATA",
        "BY_NAMES",
    ),
    "prior3d.contracts.runner": ("Runner", "SceneJob", "Progress", "Work"),
    "prior3d.contracts.scores": ("Scores", "by_group", "Metrics", "Totals"),
    "prior3d.data.images.single_images": ("SingleImages",),
    "prior3d.data.posed.dataset": ("PosedDataset",),
    "prior3d.errors": ("DamagedFile", "UserError", "DoesNotFit"),
    "prior3d.pretraining.joint": ("Joint",),
    "prior3d.pretraining.run": ("Run",),
    "prior3d.probes": ("FrozenModel", "ProbeData"),
    "prior3d.recipe": ("Recipe", "load_recipe"),
    "prior3d.reporting.report": ("Report",),
}
"""Module to the public names that are imported from it on first use."""

_PACKAGES = ("geometry", "losses", "sparse", "splat", "testing", "volume")
"""Packages that are usable alone; `prior3d.losses` imports one on first use."""


def __getattr__(name: str) -> object:
    """Import public names on first use, so that `import prior3d` and `prior3d-train --list` do not pay for torch."""
    import importlib

    if name in _PACKAGES:
        return importlib.import_module(f"prior3d.{name}")
    home = next((module for module, names in _HOME.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'prior3d' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    """Name what there is, for completion in a notebook."""
    return sorted([*__all__, *_PACKAGES])
