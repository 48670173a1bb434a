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
    from prior3d.contracts.dataset import Dataset, DataSpec, View
    from prior3d.contracts.engine import Engine, NeighbourEngine, SparseEngine, SplatEngine
    from prior3d.contracts.exporter import Exporter
    from prior3d.contracts.fields import Field
    from prior3d.contracts.prior import BackboneSpec, Features, Prior, Scene, Teacher
    from prior3d.contracts.probe import Probe
    from prior3d.contracts.reader import Camera, Cloud, Frame, Reader, Recording
    from prior3d.contracts.runner import Runner, SceneJob
    from prior3d.contracts.scores import Scores, by_group
    from prior3d.data.images.single_images import SingleImages
    from prior3d.data.posed.dataset import PosedDataset
    from prior3d.errors import DamagedFile, UserError
    from prior3d.pretraining.joint import Joint
    from prior3d.pretraining.run import Run
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
    # what plugins implement
    "Prior",
    "BackboneSpec",
    "Features",
    "Scene",
    "Teacher",
    "Dataset",
    "DataSpec",
    "View",
    "Field",
    "PosedDataset",
    "SingleImages",
    "Reader",
    "Recording",
    "Frame",
    "Camera",
    "Cloud",
    "Probe",
    "Scores",
    "by_group",
    "Engine",
    "SparseEngine",
    "SplatEngine",
    "NeighbourEngine",
    "Exporter",
    "Runner",
    "SceneJob",
    "__version__",
]

_HOME = {
    "prior3d.api": ("train", "prepare", "evaluate", "features", "load", "export"),
    "prior3d.backbone": ("Backbone",),
    "prior3d.contracts.dataset": ("Dataset", "DataSpec", "View"),
    "prior3d.contracts.engine": ("Engine", "SparseEngine", "SplatEngine", "NeighbourEngine"),
    "prior3d.contracts.exporter": ("Exporter",),
    "prior3d.contracts.fields": ("Field",),
    "prior3d.contracts.prior": ("BackboneSpec", "Features", "Prior", "Scene", "Teacher"),
    "prior3d.contracts.probe": ("Probe",),
    "prior3d.contracts.reader": ("Camera", "Cloud", "Frame", "Reader", "Recording"),
    "prior3d.contracts.runner": ("Runner", "SceneJob"),
    "prior3d.contracts.scores": ("Scores", "by_group"),
    "prior3d.data.images.single_images": ("SingleImages",),
    "prior3d.data.posed.dataset": ("PosedDataset",),
    "prior3d.errors": ("DamagedFile", "UserError"),
    "prior3d.pretraining.joint": ("Joint",),
    "prior3d.pretraining.run": ("Run",),
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
