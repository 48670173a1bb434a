"""The joint objective: every prior reads the same backbone pass, and training minimizes the weighted sum of losses."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prior3d.backbone import Backbone, Maps
from prior3d.contracts.prior import FEATURE_KINDS, Batch, Features, Prior
from prior3d.errors import UserError, section

Encode = Callable[[Tensor, Iterable[str]], Maps]
"""A backbone, or a function that encodes as it does."""

Evaluate = Callable[[str, Prior, Batch, Mapping[str, Features]], tuple[Tensor, Mapping[str, Tensor]]]
"""A function that returns what a prior's forward pass returns, given its label, the prior, the batch and features."""


def _evaluate(
    label: str, prior: Prior, batch: Batch, features: Mapping[str, Features]
) -> tuple[Tensor, Mapping[str, Tensor]]:
    return prior(batch, features)


@dataclass(frozen=True)
class Term:
    """A prior's term in the joint objective: its weight, which rises linearly over `warmup` steps."""

    weight: float
    warmup: int = 0

    def at(self, step: int) -> float:
        """Return the weight at an optimizer step, counted from 0."""
        return self.weight * min(1.0, (step + 1) / (self.warmup + 1))


@dataclass(frozen=True)
class Losses:
    """Result of one step: the weighted sum, each prior's own loss and scalars, and the shared flat maps."""

    total: Tensor
    by_label: dict[str, Tensor]
    weighted: dict[str, Tensor]
    scalars: dict[str, Tensor]


@dataclass(frozen=True)
class TeachingBackbone:
    """A frozen backbone and the features that priors read from it.

    Attributes:
        backbone: the initial backbone, or the moving average; or a function that encodes as it does.
        fields: image fields that it encodes.
        reads: kinds of features that it computes: any of encoder, dense, pooled.
    """

    backbone: Encode
    fields: frozenset[str]
    reads: frozenset[str]


class JointObjective(nn.Module):
    """Priors by label, with their terms and the union of the fields and features that they need.

    Args:
        priors: label to prior; the same kind of prior may occur twice under two labels.
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
        """Batch fields of all priors; alternatives (`a|b`) are not resolved."""
        needs = {need for prior in self.priors.values() for need in prior.needs}
        return frozenset(needs | set(self.encodes))

    def teachers(self, **backbones: Backbone | None) -> dict[str, TeachingBackbone]:
        """Return the teachers that some prior reads, with the fields and kinds of features that are read.

        Args:
            backbones: `reference` and `ema`, if they exist.
        """
        found = {}
        for name, backbone in backbones.items():
            readers = [prior for prior in self.priors.values() if name in prior.reads]
            if backbone is not None and readers:
                fields = frozenset(field for prior in readers for field in prior.encodes)
                kinds = frozenset().union(*(prior.reads for prior in readers)) & FEATURE_KINDS
                found[name] = TeachingBackbone(backbone, fields, kinds)
        return found

    def prepare_batch(self, batch: Batch, seed: Callable[[str], None]) -> Batch:
        """Let every prior add the fields that it makes itself, before the pass."""
        for label, prior in self.priors.items():
            seed(f"{label}/prepare")
            batch = prior.prepare_batch(batch)
        return batch

    def forward(
        self,
        batch: Batch,
        features: Mapping[str, Features],
        step: int,
        seed: Callable[[str], None],
        evaluate: Evaluate = _evaluate,
    ) -> Losses:
        """Evaluate every prior on the same features.

        Args:
            batch: batch fields on the device.
            features: features by image field.
            step: optimizer step, for the warm-ups.
            seed: function that reseeds the global generators for a label, so a prior's draws do not depend on other
                priors.
            evaluate: function that runs a prior.

        Raises:
            UserError: a prior returned no scalar loss that is connected to the features, or logs no scalars.
        """
        losses, weighted, scalars = {}, {}, {}
        for label, prior in self.priors.items():
            seed(label)
            with section(f"priors.{label}"):
                loss, values = _checked(evaluate(label, prior, batch, features), features)
            losses[label] = loss
            weighted[label] = loss * self.terms[label].at(step)
            scalars |= {f"{label}/{name}": value.detach() for name, value in values.items()}
        return Losses(sum(weighted.values()), losses, weighted, scalars)


def _checked(returned: object, features: Mapping[str, Features]) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Return the loss and the scalars that a prior returned.

    Raises:
        UserError: it returned something else, or a loss that trains nothing.
    """
    pair = isinstance(returned, tuple | list) and len(returned) == 2
    if not (pair and isinstance(returned[0], Tensor) and isinstance(returned[1], Mapping)):
        raise UserError(f"forward returned {_described(returned)}, expected a loss and a dict of scalars")
    loss, values = returned
    if loss.ndim:
        raise UserError(f"forward returned a loss of shape {list(loss.shape)}, expected a scalar")
    for name, value in values.items():
        if not (isinstance(value, Tensor) and value.numel() == 1):
            raise UserError(f"forward logs {name!r} as {_described(value)}, expected a scalar tensor")
    if torch.is_grad_enabled() and not loss.requires_grad and _train(features):
        raise UserError(
            "the loss is not connected to the features: it trains nothing; for a batch with nothing to learn from, "
            "return self.zero(features)"
        )
    return loss, values


def _described(value: object) -> str:
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _train(features: Mapping[str, Features]) -> bool:
    return any(tensor.requires_grad for feature in features.values() for tensor in feature.maps())


@dataclass(frozen=True)
class Pass:
    """Result of one backbone pass.

    Attributes:
        maps: flat maps of all images together, at which the gradients of single priors are compared.
        features: features by image field, with the axis of views restored.
    """

    maps: Maps
    features: dict[str, Features]


def encode(
    backbone: Encode,
    batch: Batch,
    fields: list[str],
    reads: frozenset[str],
    teachers: Mapping[str, TeachingBackbone] | None = None,
) -> Pass:
    """Run the backbone ONCE over all images of all `fields`, and its teachers at most once each, without gradients.

    Args:
        backbone: the trained backbone.
        batch: `fields` as [B, V, 3, H, W] float 0..1, V may differ between fields.
        fields: image fields to encode.
        reads: kinds of features to compute: any of encoder, dense, pooled.
        teachers: teachers by their name in `Features`, `reference` and `ema`; each computes only what is read from it.
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
