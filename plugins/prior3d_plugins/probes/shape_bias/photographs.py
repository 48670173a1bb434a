"""Clean ImageNet photographs in two halves: one for statistics and heads, one to measure accuracy on."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from prior3d import DataSpec, Part, UserError, View
from prior3d.backbone import reestimate_batch_norm
from prior3d.data import image_size, read_color
from prior3d.data.images import IMAGE_ENDINGS, SingleImages, list_files, split_of
from prior3d.probes import FrozenModel, ProbeData, choose_penalty, concatenate, fit_logistic, labels_of, mixed_batches
from prior3d_plugins.probes.shape_bias.imagenet_classes import IMAGENET_CLASSES, sixteen_of_imagenet

Classify = Callable[[Tensor], Tensor]
"""Function from images [N, 3, H, W] in 0..1, on the model's device, to logits or probabilities [N, K]."""

Network = TypeVar("Network", bound=nn.Module)

_BATCH = 32


class Photographs:
    """Photographs of the 1000 classes, in folders named by WordNet ids or in files whose names begin with these ids.

    A hash of its name puts each photograph in one of two halves, independently of the other photographs.

    Args:
        folder: Folder of the photographs.
        data: Sets the size and the decoding of the photographs.
        most: Largest number of photographs to read from each half, evenly spaced.

    Raises:
        UserError: The photographs are not of the 1000 classes.
    """

    def __init__(self, folder: Path, data: ProbeData, most: int) -> None:
        has_folders = any(entry.is_dir() and not entry.name.startswith(".") for entry in folder.iterdir())
        shared = {"views": 1, "size": data.size, "cache": data.parts["held_out"].spec.cache}
        first, second = (_Half(DataSpec(split=split, **shared), folder, has_folders) for split in ("train", "test"))
        if len(first.class_names) != IMAGENET_CLASSES:
            raise UserError(
                f"expected photographs of the {IMAGENET_CLASSES} classes of ImageNet in {folder}, got"
                f" {len(first.class_names)} classes"
            )
        self._halves = ProbeData({"train": first, "held_out": second}, most=most, workers=data.workers)

    def close(self) -> None:
        """Remove the decoded photographs."""
        self._halves.close()

    @property
    def names(self) -> list[str]:
        """Names of the photographs of the second half."""
        dataset = self._halves.parts["held_out"]
        return [dataset.path(scene, frame).stem for scene, frame in self._halves.frames["held_out"]]

    def adapt(self, network: Network, forward: Callable[[Network, Tensor], object], device: torch.device) -> Network:
        """Return a copy of a network with BatchNorm statistics from the first half."""
        copy = deepcopy(network)
        batches = mixed_batches(self._halves.field("train", "image"), device, stream="photographs")
        reestimate_batch_norm(copy, partial(forward, copy), batches)
        return copy

    def fit_head(self, model: FrozenModel) -> Classify:
        """Fit a classifier of the 16 classes to the first half, with equal prior probabilities of the classes."""
        backbones = [
            self.adapt(backbone, lambda network, images: network(images, ("pooled",)), model.device)
            for backbone in model.backbones
        ]
        adapted = FrozenModel(backbones, model.device)

        def pooled(images: Tensor) -> Tensor:
            return concatenate(adapted.read(images, "pooled")).float()

        entry = sixteen_of_imagenet()[labels_of(self._halves, "train")]
        rows = (entry >= 0).nonzero()[:, 0]
        vectors, labels = self._outputs(pooled, "train", model.device)[rows].to(model.device), entry[rows]

        def take(chosen: Tensor) -> Tensor:
            return vectors[chosen.to(vectors.device)]

        head = fit_logistic(take, labels, 16, choose_penalty(take, labels, 16))
        frequency = labels.bincount(minlength=16).clamp_min(1).to(model.device) / len(labels)
        return lambda images: head.logits(pooled(images)) - frequency.log()

    def hits(self, sixteen: Classify, thousand: Classify | None, device: torch.device) -> dict[str, Tensor]:
        """Return which photographs of the second half are of the 1000 and 16 classes, and which are classified right.

        Args:
            sixteen: Classifier of the 16 classes.
            thousand: Classifier of the 1000 classes, if there is one.
            device: Device of both.

        Returns:
            `clean 16`, `clean 16 hits`, and `clean 1000`, `clean 1000 hits`: [M] each, 0 or 1.
        """
        label = labels_of(self._halves, "held_out")
        entry = sixteen_of_imagenet()[label]
        known = (entry >= 0).double()
        right = self._outputs(sixteen, "held_out", device).argmax(1) == entry
        found = {"clean 16": known, "clean 16 hits": known * right}
        if thousand is not None:
            hits = (self._outputs(thousand, "held_out", device).argmax(1) == label).double()
            found |= {"clean 1000": torch.ones_like(hits), "clean 1000 hits": hits}
        return found

    def _outputs(self, classify: Classify, part: Part, device: torch.device) -> Tensor:
        with torch.no_grad():
            return torch.cat([classify(images).cpu() for images in self._batches(part, device, _BATCH)])

    def _batches(self, part: Part, device: torch.device, size: int) -> Iterator[Tensor]:
        images = self._halves.field(part, "image")
        for rows in torch.arange(len(images)).split(size):
            yield images.take(rows, device).float() / 255


class _Half(SingleImages):
    """One half of the photographs, with the class id as `label`."""

    provides = frozenset({"image", "label"})

    def __init__(self, spec: DataSpec, folder: Path, in_folders: bool) -> None:
        super().__init__(spec)
        names = [name for name in list_files(folder, IMAGE_ENDINGS) if name.count("/") == int(in_folders)]
        classes = [name.partition("/")[0] if in_folders else Path(name).stem.partition("_")[0] for name in names]
        self.class_names = tuple(sorted(set(classes)))
        self.offer(("train", "test"))
        self.scenes = [folder.resolve().name]
        number = {name: index for index, name in enumerate(self.class_names)}
        mine = [index for index, name in enumerate(names) if split_of(name, 0.5, 0.0) == spec.split]
        self.hold([folder], [[names[index] for index in mine]])
        self._labels = [number[classes[index]] for index in mine]

    def load(self, scene: int, frame: int, fields: frozenset[str]) -> View:
        path = self.path(scene, frame)
        view = View(scene=scene, frame=frame, size=image_size(path))
        if "label" in fields:
            view["label"] = self._labels[frame]
        if "image" in fields:
            view["image"] = read_color(path)
        return view
