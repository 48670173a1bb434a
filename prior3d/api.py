"""The Python API: train, evaluate, features, load, export; the commands are thin layers over these functions."""

import json
import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prior3d.backbone import Backbone
from prior3d.data.pictures import Picture, as_batch
from prior3d.errors import ArgumentError, UserError, several
from prior3d.pretraining.folder import describe
from prior3d.pretraining.run import Run
from prior3d.recipe import Recipe, build_recipe, load_recipe
from prior3d.recipe.source import override
from prior3d.registry import Registry
from prior3d.registry.schema import construct, plain
from prior3d.reporting.report import Report

Overrides = Mapping[str, object] | Sequence[str]
"""Overrides of a recipe: a mapping of dotted keys to values, `{"optim.lr": 1e-3}`, or `key=value` texts."""

_OVERRIDES = "overrides"
"""Name of the overrides in messages."""

_BATCH = 16
"""Number of images that `features` encodes at once."""


def train(
    recipe: str | os.PathLike | Mapping[str, Any] | Recipe | None = None,
    overrides: Overrides = (),
    *,
    out: str | os.PathLike | None = None,
    plugins: Sequence[str | os.PathLike] = (),
    resume: str | os.PathLike | None = None,
    quiet: bool = False,
) -> Run:
    """Train a backbone with the priors of a recipe, as `prior3d-train` does.

    Args:
        recipe: a YAML file, the name of a shipped recipe, its content as a mapping, or a `Recipe`.
        overrides: values that replace those of the recipe.
        out: folder in which the run folder is created; `runs` by default.
        plugins: additional plugin files.
        resume: the folder of a run to continue, instead of `recipe`. `overrides` may then change only keys that do not
            affect the steps: `{"trainer.max_steps": 300}` extends a finished run.
        quiet: print nothing.

    Returns:
        The run: `folder`, `backbone`, `report`, `metrics`, and `stopped_by` if a signal stopped it.

    Raises:
        UserError: something in the recipe, a plugin or the data is wrong; the error gives key, file and line.

    >>> run = train("joint", {"trainer.max_steps": 5}, out="runs")  # doctest: +SKIP
    >>> run.folder, run.metrics["depth"]["after"]  # doctest: +SKIP
    """
    from prior3d import pretraining

    texts = override_texts(overrides)
    if resume is not None:
        if recipe is not None:
            raise ArgumentError(f"a resumed run keeps its own recipe: leave out {recipe}", "resume")
        return resume_run(resume, texts, out=out, plugins=plugins, quiet=quiet)
    if recipe is None:
        raise UserError("which recipe? Give a YAML file, the name of a shipped recipe, or a mapping")
    made = make_recipe(recipe, texts, plugins)
    with made.source.locating():
        return pretraining.train(made, Registry(made.plugins), None if out is None else Path(out), None, quiet)


def resume_run(
    folder: str | os.PathLike,
    overrides: Sequence[str],
    *,
    out: str | os.PathLike | None = None,
    plugins: Sequence[str | os.PathLike] = (),
    quiet: bool = False,
    overrides_name: str = _OVERRIDES,
) -> Run:
    """Continue a run, as `train` does with `resume`.

    Args:
        folder: the run folder.
        overrides: `key=value` texts.
        out: refused: a resumed run stays in its folder.
        plugins: additional plugin files.
        quiet: print nothing.
        overrides_name: name of the overrides in messages.

    Raises:
        UserError: as `train`.
    """
    from prior3d import pretraining

    if out is not None:
        raise ArgumentError(f"a resumed run stays in its folder: leave out {out}", "out")
    begun = pretraining.find_begun(Path(folder), overrides, plugins, overrides_name)
    with begun.recipe.source.locating():
        return pretraining.train(begun.recipe, Registry(begun.recipe.plugins), None, begun, quiet)


def prepare(
    recipe: str | os.PathLike | Mapping[str, Any] | Recipe,
    overrides: Overrides = (),
    *,
    plugins: Sequence[str | os.PathLike] = (),
) -> None:
    """Compute in advance what training with a recipe computes once before it starts, as `prior3d-prepare` does.

    Args:
        recipe: as in `train`.
        overrides: values that replace those of the recipe.
        plugins: additional plugin files.

    Raises:
        UserError: something in the recipe, a plugin or the data is wrong; the error gives key, file and line.

    >>> prepare("gaussian_distillation", ["data.cache=/big/disk"])  # doctest: +SKIP
    """
    from prior3d.pretraining import prepare_only

    made = make_recipe(recipe, override_texts(overrides), plugins)
    with made.source.locating():
        prepare_only(made, Registry(made.plugins))


def evaluate(
    model: Run | str | os.PathLike,
    *,
    against: Run | str | os.PathLike | None = None,
    control: Run | str | os.PathLike | None = None,
    probes: Sequence[str] = (),
    seeds: int | None = None,
    out: str | os.PathLike | None = None,
    overrides: Overrides = (),
    plugins: Sequence[str | os.PathLike] = (),
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> Report:
    """Measure the quality of frozen features with probes, as `prior3d-eval` does.

    Args:
        model: a run, a run folder, a weight file, or the name of a timm model.
        against: a second model to compare with; by default a run's own initial weights.
        control: a model of the same size that was trained independently; by default random weights.
        probes: the probes to measure with; by default those of the run's recipe.
        seeds: number of measurements, each with a different probe seed.
        out: folder for the report; by default `eval` in the run folder.
        overrides: values of the sections data, probes or backbone.
        plugins: additional plugin files.
        device: device to measure on; auto uses a GPU if there is one.

    Returns:
        The report: `metrics`, `text`, `figures`, `folder`.

    Raises:
        UserError: models, data or probes do not work; no partial report remains.

    >>> report = evaluate("runs/joint-20250101-120000", probes=["depth"])  # doctest: +SKIP
    >>> report.metrics["depth"]["after"]  # doctest: +SKIP
    """
    from prior3d.evaluation.run import Arguments, measure_and_report
    from prior3d.pretraining.progress import make_console

    names = [None if other is None else _name_of(other) for other in (model, against, control)]
    arguments = Arguments(
        model=names[0],
        against=names[1],
        control=names[2],
        probes=list(several(probes, "probes")),
        seeds=seeds,
        out=None if out is None else Path(out),
        overrides=override_texts(overrides),
        plugins=[str(file) for file in several(plugins, "plugins")],
        device=device,
        overrides_name=_OVERRIDES,
    )
    return measure_and_report(arguments, make_console(quiet=True))


def load(model: Run | str | os.PathLike, *, size: tuple[int, int] | None = None, overrides: Overrides = ()) -> Backbone:
    """Load a backbone: the trained one of a run, one from a weight file, or a timm model with timm's weights.

    Args:
        model: a run, a run folder, a weight file, or the name of a timm model.
        size: height and width of the images it is meant for, pixels; by default those of the run, or of the model's own
            training. The backbone can also encode other sizes.
        overrides: values of `backbone:`, such as `{"backbone.pretrained": False}` for random weights.

    Returns:
        The backbone in evaluation mode; `backbone(images, ["dense"]).dense` gives its dense features.

    Raises:
        UserError: the model does not exist, or its weights do not fit or cannot be fetched.

    >>> backbone = load("resnet18", overrides={"backbone.pretrained": False})
    >>> backbone.spec.dense_stride, backbone.spec.dense_channels
    (32, 512)
    """
    from prior3d.evaluation.models import find_subject, load_trained
    from prior3d.evaluation.pictures import own_size
    from prior3d.recipe.reading import read_section
    from prior3d.recipe.sections import BackboneSection

    subject = find_subject(_name_of(model), override_texts(overrides), _OVERRIDES)
    with subject.source.locating():
        section = read_section(BackboneSection, subject.content["backbone"], "backbone")
        trained_on = subject.content.get("data", {}).get("size")
        size = size or (tuple(trained_on) if trained_on else own_size(section.name))
        return load_trained(subject, section, tuple(size), subject.content.get("seed", 0)).backbone.eval()


@torch.no_grad()
def features(
    model: Run | Backbone | str | os.PathLike,
    images: Tensor | np.ndarray | Picture | Sequence[Picture],
    *,
    size: tuple[int, int] | None = None,
    device: str | torch.device | None = None,
) -> Tensor:
    """Return dense features of images.

    Args:
        model: a backbone, a run, a run folder, a weight file, or the name of a timm model.
        images: [N, 3, H, W] float 0..1, [N, H, W, 3] uint8, or one image or several: each [3, H, W] float 0..1,
            [H, W, 3] uint8, a Pillow image or a file.
        size: height and width to which images are resized; by default they keep their size.
        device: device to compute on; by default that of the model.

    Returns:
        [N, C, ceil(H / stride), ceil(W / stride)] float32 on the CPU: the decoder's map if the model has a decoder,
        else the encoder's last map. Cell i is centered on pixel stride * (i + 0.5).

    Raises:
        UserError: the model or a file does not exist, or images have different sizes and `size` is not given.
        ValueError: an array has an unsupported shape or type.

    >>> features(load("test_resnet", overrides={"backbone.pretrained": False}), torch.rand(2, 3, 70, 96)).shape
    torch.Size([2, 96, 3, 3])
    """
    batch = as_batch(images, size)
    backbone = model.backbone if isinstance(model, Run) else model if isinstance(model, Backbone) else load(model)
    before = next(backbone.parameters()).device
    modes = [(module, module.training) for module in backbone.modules()]
    backbone.eval().to(device or before)
    try:
        found = [_encode(backbone, part.to(device or before)).float().cpu() for part in batch.split(_BATCH)]
    finally:
        backbone.to(before)
        for module, training in modes:
            module.training = training
    return torch.cat(found)


def export(
    model: Run | Backbone | str | os.PathLike,
    target: str,
    path: str | os.PathLike,
    *,
    options: Mapping[str, object] | None = None,
    plugins: Sequence[str | os.PathLike] = (),
) -> Path:
    """Write a trained encoder in another library's format, and check it by reading it back.

    Args:
        model: a run, a run folder, a weight file, the name of a timm model, or a backbone.
        target: name of an exporter, such as `timm`.
        path: file or folder to write.
        options: options of the exporter.
        plugins: additional plugin files.

    Returns:
        The path that was written.

    Raises:
        UserError: the exporter does not exist, the library cannot represent the model, the path cannot be written, or
            the exporter does not return the path of what it wrote.

    >>> backbone = load("test_resnet", overrides={"backbone.pretrained": False})
    >>> export(backbone, "timm", "encoder.safetensors").name
    'encoder.safetensors'
    """
    registry = Registry(plugins)
    cls = registry.get("exporters", target)
    exporter = construct(cls, key="exporter", options=dict(options or {}), registry=registry)
    backbone = model.backbone if isinstance(model, Run) else model if isinstance(model, Backbone) else load(model)
    encoder = deepcopy(backbone.encoder.model).eval().cpu()
    written = exporter.export(encoder, describe(backbone), Path(path))
    if not (isinstance(written, Path) and written.exists()):
        found = f"{written}, which is not there" if isinstance(written, Path) else type(written).__name__
        plugin = registry.find("exporters", target)
        raise UserError(f"{plugin}: export returned {found}; it must return the path of what it wrote")
    return written


def make_recipe(
    recipe: str | os.PathLike | Mapping[str, Any] | Recipe,
    overrides: Sequence[str],
    plugins: Sequence[str | os.PathLike],
) -> Recipe:
    """Return the recipe that a name, a file, a mapping or a `Recipe` stands for.

    Args:
        recipe: a file, the name of a shipped recipe, the content of a recipe, or a `Recipe`.
        overrides: `key=value` texts.
        plugins: additional plugin files.

    Raises:
        UserError: something is wrong; the error gives file, line and key.
    """
    if isinstance(recipe, str | os.PathLike):
        return load_recipe(recipe if isinstance(recipe, str) else Path(recipe), overrides, plugins, _OVERRIDES)
    if isinstance(recipe, Recipe):
        if not (overrides or plugins):
            return recipe
        name, content = recipe.source.name, recipe.to_dict()
    else:
        name, content = "recipe", plain(recipe)
    source = override(content, overrides, name, _OVERRIDES)
    with source.locating():
        return build_recipe(content, source, plugins)


def override_texts(overrides: Overrides) -> list[str]:
    """Return overrides as `key=value` texts.

    >>> override_texts({"trainer.max_steps": 50, "backbone.weights": None})
    ['trainer.max_steps=50', 'backbone.weights=null']
    """
    if isinstance(overrides, Mapping):
        return [f"{key}={json.dumps(plain(value))}" for key, value in overrides.items()]
    return [str(text) for text in several(overrides, "overrides")]


def _name_of(model: Run | str | os.PathLike) -> str:
    if isinstance(model, Backbone | nn.Module):
        raise UserError("give a run, the folder of one, a weight file or the name of a timm model")
    return str(model.folder if isinstance(model, Run) else model)


def _encode(backbone: Backbone, images: Tensor) -> Tensor:
    """Return the dense map [N, C, ceil(H / stride), ceil(W / stride)] of images of any size."""
    height, width = images.shape[-2:]
    stride = backbone.spec.dense_stride
    if backbone.encoder.isotropic:  # a ViT accepts whole patches only
        images = F.pad(images, (0, -width % stride, 0, -height % stride), mode="replicate")
    try:
        maps = backbone(images, ("dense",)).dense
    except (AssertionError, RuntimeError, ValueError) as error:
        at = backbone.size
        raise UserError(
            f"{backbone.spec.name} cannot take images of {height} x {width} pixels ({error}); it was made for"
            f" {at[0]} x {at[1]}: give size={tuple(at)}"
        ) from error
    return maps[..., : -(-height // stride), : -(-width // stride)]
