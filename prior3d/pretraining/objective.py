"""The joint objective: every prior reads one backbone pass; the weighted sum of their losses is what trains."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prior3d.backbone import Backbone, Maps
from prior3d.contracts.prior import FEATURE_KINDS, Batch, Features, Prior


@dataclass(frozen=True)
class Term:
    """A prior's place in the joint objective: its weight, reached linearly over `warmup` steps."""

    weight: float
    warmup: int = 0

    def at(self, step: int) -> float:
        """Return the weight at an optimizer step, counted from 0."""
        return self.weight * min(1.0, (step + 1) / (self.warmup + 1))


@dataclass(frozen=True)
class Losses:
    """One step's outcome: the weighted sum, each prior's own loss and scalars, and the flat maps they share."""

    total: Tensor
    by_label: dict[str, Tensor]
    weighted: dict[str, Tensor]
    scalars: dict[str, Tensor]


@dataclass(frozen=True)
class Teacher:
    """A frozen backbone and what priors read of it.

    Attributes:
        backbone: the initial one, or the moving average.
        fields: image fields that it encodes.
        reads: kinds of features that it computes: any of encoder, dense, pooled.
    """

    backbone: Backbone
    fields: frozenset[str]
    reads: frozenset[str]


class JointObjective(nn.Module):
    """Priors by label, with their terms; knows what has to be encoded and read for all of them together.

    Args:
        priors: label to prior; the same prior may stand here twice under two labels.
        terms: label to weight and warm-up.
    """

    def __init__(self, priors: Mapping[str, Prior], terms: Mapping[str, Term]) -> None:
        super().__init__()
        self.priors = nn.ModuleDict(priors)
        self.terms = dict(terms)

    @property
    def encodes(self) -> list[str]:
        """Image fields that are encoded: the union over priors, in a stable order."""
        return sorted({field for prior in self.priors.values() for field in prior.encodes})

    @property
    def reads(self) -> frozenset[str]:
        """Kinds of features that are computed: the union over priors."""
        return frozenset().union(*(prior.reads for prior in self.priors.values()))

    @property
    def fields(self) -> frozenset[str]:
        """Batch fields of all priors, alternatives (`a|b`) kept as they are."""
        needs = {need for prior in self.priors.values() for need in prior.needs}
        return frozenset(needs | set(self.encodes))

    def teachers(self, **backbones: Backbone | None) -> dict[str, Teacher]:
        """Return the teachers that some prior reads, with the fields and kinds of features that these priors read.

        Args:
            backbones: `reference` and `ema`, where they exist.
        """
        found = {}
        for name, backbone in backbones.items():
            readers = [prior for prior in self.priors.values() if name in prior.reads]
            if backbone is not None and readers:
                fields = frozenset(field for prior in readers for field in prior.encodes)
                kinds = frozenset().union(*(prior.reads for prior in readers)) & FEATURE_KINDS
                found[name] = Teacher(backbone, fields, kinds)
        return found

    def prepare_batch(self, batch: Batch, seed: Callable[[str], None]) -> Batch:
        """Let every prior add the fields it makes itself, before the pass."""
        for label, prior in self.priors.items():
            seed(f"{label}/prepare")
            batch = prior.prepare_batch(batch)
        return batch

    def forward(self, batch: Batch, features: Mapping[str, Features], step: int, seed: Callable[[str], None]) -> Losses:
        """Evaluate every prior on the same features.

        Args:
            batch: fields on the device.
            features: by image field.
            step: optimizer step, for the warm-ups.
            seed: reseeds the global generators for a label, so that a prior's draws do not depend on its neighbors.
        """
        losses, weighted, scalars = {}, {}, {}
        for label, prior in self.priors.items():
            seed(label)
            loss, values = prior(batch, features)
            losses[label] = loss
            weighted[label] = loss * self.terms[label].at(step)
            scalars |= {f"{label}/{name}": value.detach() for name, value in values.items()}
        return Losses(sum(weighted.values()), losses, weighted, scalars)


@dataclass(frozen=True)
class Pass:
    """Results of one backbone pass.

    Attributes:
        maps: flat maps of all images together: what gradients of single priors are compared at.
        features: by image field, with the views axis back in place.
    """

    maps: Maps
    features: dict[str, Features]


def encode(
    backbone: Backbone,
    batch: Batch,
    fields: list[str],
    reads: frozenset[str],
    teachers: Mapping[str, Teacher] | None = None,
) -> Pass:
    """Run the backbone ONCE over all images of all `fields`, and its teachers at most once each, without gradients.

    Args:
        backbone: the one that trains.
        batch: `fields` as [B, V, 3, H, W] float 0..1, V may differ between fields.
        fields: image fields to encode.
        reads: what is computed: any of encoder, dense, pooled.
        teachers: by the name that features give them, `reference` and `ema`; each computes what is read of it.
    """
    maps = backbone(_join(batch, fields), reads)
    taught: dict[str, dict[str, Features]] = {field: {} for field in fields}
    for name, teacher in (teachers or {}).items():
        theirs = [field for field in fields if field in teacher.fields]
        with torch.no_grad():
            their_maps = teacher.backbone(_join(batch, theirs), teacher.reads)
        for field, (rows, views) in _places(batch, theirs).items():
            taught[field][name] = _select(their_maps, rows, views, teacher.reads)
    places = _places(batch, fields).items()
    return Pass(maps, {field: _select(maps, rows, views, reads, **taught[field]) for field, (rows, views) in places})


def _join(batch: Batch, fields: list[str]) -> Tensor:
    return torch.cat([batch[field].flatten(0, 1) for field in fields])


def _places(batch: Batch, fields: list[str]) -> dict[str, tuple[slice, int]]:
    """Return the rows of each field among the joined images, and its number of views."""
    places, start = {}, 0
    for field in fields:
        count, views = batch[field].shape[:2]
        places[field] = slice(start, start + count * views), views
        start += count * views
    return places


def _select(maps: Maps, rows: slice, views: int, reads: frozenset[str], **teachers: Features) -> Features:
    def unflatten(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[rows].unflatten(0, (-1, views))

    return Features(
        encoder={stride: unflatten(tensor) for stride, tensor in maps.encoder.items()} if "encoder" in reads else {},
        dense=unflatten(maps.dense),
        pooled=unflatten(maps.pooled),
        **teachers,
    )
