"""Shape or texture: which of two conflicting cues a model classifies an image by."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn
from torch.nn import functional as F

from prior3d import Dataset, DoesNotFit, Metrics, Part, Probe, Scores, Totals, UserError
from prior3d.backbone import Backbone, has_statistics
from prior3d.data.images import IMAGE_ENDINGS, SingleImages, list_files
from prior3d.errors import section
from prior3d.probes import FrozenModel, ProbeData, labels_of
from prior3d_plugins.probes.shape_bias.imagenet_classes import SIXTEEN_CLASSES, sixteen_from_imagenet
from prior3d_plugins.probes.shape_bias.photographs import Classify, Photographs

CLASSES = tuple(SIXTEEN_CLASSES)

_BATCH = 32


class ShapeBias(Probe):
    """The cue-conflict test: images with the shape of one class and the texture of another.

    The model assigns each image to one of 16 classes, which counts as a decision for its shape, its texture, or
    neither. Images whose two cues agree are left out. The shape bias is the share of shape among the decisions for
    shape or texture. Alone it means little: weak models have a higher one. Judge a model by how often it names the
    shape, together with its accuracy on clean photographs.

    The data is a `classification_folder`. Its folders are the classes of the shapes, and its file names end with the
    class of the texture, `cat7-elephant1.jpg`. Clean photographs are of the 1000 classes of ImageNet, in folders named
    by their WordNet ids or in files whose names begin with these ids. A hash of the names splits them in halves. The
    first half provides the statistics of BatchNorm layers; accuracy is measured on the second. Models without BatchNorm
    layers need no photographs. With statistics of the cue-conflict images themselves, it would be a different model:
    MobileNetV2 then names 22 % of the shapes instead of 11 %, and 48 % of clean photographs instead of 80 %.

    Args:
        head: Classifier to use. `checkpoint`: the frozen 1000-way classifier of the pretrained weights; its
            probabilities are averaged over the ImageNet classes of each of the 16 classes. `linear`: a classifier of
            the 16 classes, fitted to the first half of the clean photographs.
        clean: Folder of clean photographs, for example ImageNet's validation set; null for none, which needs a model
            without BatchNorm.
        clean_images: Largest number of clean photographs to read from each half, evenly spaced.

    Reference:
        Geirhos et al., 2019, arXiv 1811.12231. There, networks keep the statistics of their training.
    """

    needs = ("image", "label")
    needs_classifier = True
    bounds = MappingProxyType(dict.fromkeys(("shape-correct", "texture-correct", "shape bias", "clean top-1"), (0, 1)))
    meanings = MappingProxyType(
        {
            "shape-correct": "share of cue-conflict images whose shape is named, of 16 classes: what counts",
            "texture-correct": "share of them whose texture is named",
            "shape bias": "shape-correct over shape-correct and texture-correct; high for weak models, too",
            "clean top-1": "accuracy on held-out clean photographs, of 1000 or of the 16 classes",
        }
    )

    def __init__(
        self,
        *,
        head: Literal["checkpoint", "linear"] = "checkpoint",
        clean: Path | None = None,
        clean_images: Annotated[int, Ge(16), Le(10**8)] = 1000,
    ) -> None:
        if head == "linear" and clean is None:
            raise ValueError("head: linear is fitted to clean photographs: name their folder with clean")
        self.head = head
        self.needs_classifier = head == "checkpoint"
        self.clean = clean.expanduser() if clean else None
        self.clean_images = clean_images

    def measure(self, model: FrozenModel, data: ProbeData, seed: int = 0) -> Scores:
        """Return counts of images named by shape and by texture, by shape class, [G, 16], and hits on clean images."""
        conflicts = _Conflicts(data)
        photographs = self._open_photographs(data)
        sixteen, thousand = self._classifiers(model, photographs)
        decided = _decide(sixteen, data, conflicts.rows, model.device)
        shape = F.one_hot(conflicts.shape, len(CLASSES)).double()
        statistics = {
            "conflicts": shape,
            "shape": shape * (decided == conflicts.shape)[:, None],
            "texture": shape * (decided == conflicts.texture)[:, None],
        }
        if photographs is None:
            return Scores(tuple(conflicts.names), statistics)
        clean = photographs.hits(sixteen, thousand, model.device)
        return Scores((*conflicts.names, *photographs.names), _beside(statistics, clean))

    def check(self, backbone: Backbone, trains: bool = False) -> None:
        """Refuse BatchNorm layers if there are no photographs to estimate their statistics on; see `Probe.check`."""
        self._refuse_statistics(backbone.encoder, folded=trains)

    def check_data(self, parts: Mapping[Part, Dataset]) -> None:
        """Refuse data whose folder and file names are not those of cue conflicts; see `Probe.check_data`."""
        if self.clean is not None and not self.clean.is_dir():
            raise UserError(f"no folder {self.clean} of clean photographs", "clean")
        held_out = parts["held_out"]
        with section("data"):
            _check_conflicts(held_out)
            for scene in range(len(held_out.scenes)):
                for frame in range(held_out.frame_count(scene)):
                    _texture(held_out.path(scene, frame))

    def files(self) -> Sequence[Path]:
        """Return the clean photographs."""
        return [] if self.clean is None else [self.clean / name for name in list_files(self.clean, IMAGE_ENDINGS)]

    def summarize(self, total: Totals) -> Metrics:
        """Return rates (0..1) over all conflicts, accuracy on clean photographs, and the rates by class."""
        shape, texture, conflicts = total["shape"], total["texture"], total["conflicts"]
        found = {
            "shape-correct": float(shape.sum() / conflicts.sum()),
            "texture-correct": float(texture.sum() / conflicts.sum()),
            **_bias("", shape.sum(), texture.sum()),
        }
        for name in ("1000", "16"):
            if float(total.get(f"clean {name}", 0)) > 0:
                found[f"clean top-1 of {name}"] = float(total[f"clean {name} hits"] / total[f"clean {name}"])
        for index, name in enumerate(CLASSES):
            if conflicts[index] > 0:
                found[f"shape-correct, {name}"] = float(shape[index] / conflicts[index])
                found |= _bias(f", {name}", shape[index], texture[index])
        return found

    def _classifiers(self, model: FrozenModel, photographs: Photographs | None) -> tuple[Classify, Classify | None]:
        """Return the classifier of the 16 classes, and that of the 1000 classes if there is one."""
        if self.head == "linear":
            return photographs.fit_head(model), None
        logits = model.classify
        if logits is None:
            raise UserError(
                "needs a classifier that comes with the weights, but this model has none: start from weights that hold"
                " one, or set head: linear"
            )
        if photographs is not None and isinstance(logits, nn.Module):
            logits = photographs.adapt(logits, lambda network, images: network(images), model.device)
        elif isinstance(logits, nn.Module):
            self._refuse_statistics(logits)
        return lambda images: sixteen_from_imagenet(logits(images)), logits

    def _refuse_statistics(self, network: nn.Module, folded: bool = False) -> None:
        if self.clean is None and has_statistics(network, folded):
            raise UserError(
                "a model with BatchNorm layers needs clean photographs, name their folder: with the statistics of"
                " cue conflicts, the same weights recognize twice as many shapes and half as many photographs",
                "clean",
            )

    def _open_photographs(self, data: ProbeData) -> Photographs | None:
        if self.clean is None:
            return None
        name = f"photographs {self.clean} {self.clean_images}"
        return data.once(name, lambda: Photographs(self.clean, data, self.clean_images))


class _Conflicts:
    """The images whose shape and texture belong to different classes."""

    def __init__(self, data: ProbeData) -> None:
        dataset = data.parts["held_out"]
        with section("data"):
            _check_conflicts(dataset)
            paths = [dataset.path(scene, frame) for scene, frame in data.frames["held_out"]]
            textures = [_texture(path) for path in paths]
        shape, texture = labels_of(data, "held_out"), torch.tensor(textures)
        self.rows = (shape != texture).nonzero()[:, 0]
        self.shape, self.texture = shape[self.rows], texture[self.rows]
        self.names = [paths[row].stem for row in self.rows.tolist()]


def _check_conflicts(dataset: Dataset) -> None:
    if not isinstance(dataset, SingleImages):
        raise DoesNotFit("the class of the texture is read from file names: use a classification_folder", "name")
    if dataset.class_names != CLASSES:
        differing = sorted(set(dataset.class_names) ^ set(CLASSES))
        raise DoesNotFit(
            f"expected folders of the 16 classes {', '.join(CLASSES)}; {differing[0]} is in only one of the two", "root"
        )


def _texture(path: Path) -> int:
    name = path.stem.rpartition("-")[2].rstrip("0123456789")
    if name not in SIXTEEN_CLASSES or "-" not in path.stem:
        raise DoesNotFit(
            f"expected the class of the texture at the end of a name, as in cat7-elephant1.jpg, got {path}", "root"
        )
    return CLASSES.index(name)


def _bias(of: str, shape: Tensor, texture: Tensor) -> dict[str, float]:
    """Return the shape bias, or nothing if no decision was for either cue."""
    return {f"shape bias{of}": float(shape / (shape + texture))} if shape + texture > 0 else {}


@torch.no_grad()
def _decide(classify: Classify, data: ProbeData, rows: Tensor, device: torch.device) -> Tensor:
    images = data.field("held_out", "image")
    return torch.cat([classify(images.take(some, device).float() / 255).argmax(1).cpu() for some in rows.split(_BATCH)])


def _beside(conflicts: dict[str, Tensor], clean: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return statistics over the images of both sets; a statistic is 0 for the set that it is not measured on."""
    first, second = len(next(iter(conflicts.values()))), len(next(iter(clean.values())))
    before = {name: torch.cat([v, v.new_zeros(second, *v.shape[1:])]) for name, v in conflicts.items()}
    return before | {name: torch.cat([v.new_zeros(first, *v.shape[1:]), v]) for name, v in clean.items()}
