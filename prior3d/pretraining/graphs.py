"""CUDA graphs of a training step: the backbone, its teachers and the priors of fixed shape are replayed.

A GPU finishes many kernels sooner than the host can launch them. What launches the same kernels at every step is
recorded after a few plain steps and then replayed, one launch per pass. The kernels are the same, so a run that is
resumed, whose first steps are plain again, computes what an uninterrupted run computes.
"""

import contextlib
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prior3d.backbone import Backbone, Maps
from prior3d.contracts.prior import Batch, Features, Prior
from prior3d.messages import first_line
from prior3d.pretraining.recording import Function, GraphPair, RecordingBroken

_log = logging.getLogger(__name__)

WARM_UP = 3
"""Plain calls with inputs of the same shapes before a function is recorded."""


class Graphs:
    """The recordings of one training.

    Args:
        owns_gradients: see `GraphPair`; needed where gradients of several batches are summed.
        record: what makes a recording.

    Attributes:
        heads: whether decoder and priors may be replayed. Not in a step that differentiates the priors' losses one by
            one: the backward pass of a recording runs once.
    """

    def __init__(self, owns_gradients: bool = False, record: Callable[..., GraphPair] = GraphPair) -> None:
        self.heads = True
        self._owns_gradients = owns_gradients
        self._record = record
        self._parts: dict[str, _Part] = {}
        self._failed = False

    def backbone(self, name: str, backbone: Backbone, trains: bool) -> Callable[[Tensor, Iterable[str]], Maps]:
        """Return a function that encodes images as a backbone does, by replays where possible.

        Args:
            name: for messages; each backbone has its own.
            backbone: the backbone.
            trains: whether it is the trained one, which is replayed with gradients, or a teacher.
        """

        def encode(images: Tensor, reads: Iterable[str]) -> Maps:
            # Pictures run the trained backbone in evaluation mode and without gradients.
            if self._failed or not (torch.is_grad_enabled() == backbone.training == trains):
                return backbone(images, reads)
            return self._encode(name, backbone, images, frozenset(reads))

        return encode

    def prior(
        self, label: str, prior: Prior, batch: Batch, features: Mapping[str, Features]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return loss and scalars of a prior, by a replay if it is capturable."""
        replays = self.heads and not self._failed
        if not (replays and prior.capturable and prior.training and torch.is_grad_enabled()):
            return prior(batch, features)
        part = self._part(f"priors.{label}", _PriorPart)
        if part.reads is None:
            watched = _Watched(batch)
            returned = prior(watched, features)
            part.reads = sorted(watched.read)
            return returned
        given = {name: batch[name] for name in part.reads if name in batch}
        theirs = {field: _readable(features[field], prior.reads) for field in prior.encodes}
        inputs = [*given.values(), *(tensor for feature in theirs.values() for tensor in _tensors(feature))]
        names: list[str] = []

        def run(tensors: Sequence[Tensor]) -> list[Tensor]:
            rest = iter(tensors)
            fields = {name: next(rest) for name in given}
            loss, scalars = prior(fields, {field: _with_tensors(theirs[field], rest) for field in theirs})
            names[:] = scalars
            values = [value.detach().float().reshape(()) for value in scalars.values()]
            return [loss, *([torch.stack(values)] if values else [])]

        outputs = self._call(part, run, inputs, [prior], {0}, (*given,))
        if outputs is None:
            return prior(batch, features)
        part.names = names or part.names
        # Copies: losses are kept for longer than a step.
        loss, *packed = (output.clone() for output in outputs)
        return loss, dict(zip(part.names, packed[0].unbind() if packed else (), strict=True))

    def _encode(self, name: str, backbone: Backbone, images: Tensor, reads: frozenset[str]) -> Maps:
        encoder, decoder = backbone.encoder, backbone.decoder
        strides, is_pooled = list(encoder.layout.index_of_stride), "pooled" in reads

        def run_encoder(tensors: Sequence[Tensor]) -> list[Tensor]:
            maps, pooled = encoder(tensors[0], pooled=is_pooled)
            return [*(maps[stride] for stride in strides), *([pooled] if is_pooled else [])]

        wanted = [number for number, stride in enumerate(strides) if _is_read(stride, backbone, reads)]
        wanted += [len(strides)] if is_pooled else []
        part = self._part(f"{name}, encoder")
        outputs = self._call(part, run_encoder, [images], [encoder], wanted, (reads,))
        if outputs is None:
            outputs = run_encoder([images])
        maps = dict(zip(strides, outputs, strict=False))
        dense = maps[max(maps)] if "dense" in reads else None
        if decoder is not None and dense is not None:
            size = tuple(images.shape[-2:])
            levels = [int(stride) for stride in decoder.laterals]

            def run_decoder(tensors: Sequence[Tensor]) -> list[Tensor]:
                return [decoder(dict(zip(levels, tensors, strict=True)), size)]

            inputs = [maps[level] for level in levels]
            part = self._part(f"{name}, decoder")
            decoded = self._call(part, run_decoder, inputs, [decoder], {0}) if self.heads else None
            dense = (decoded or run_decoder(inputs))[0]
        return Maps(maps, dense, outputs[-1] if is_pooled else None)

    def _part(self, name: str, kind: "type[_Part] | None" = None) -> "_Part":
        if name not in self._parts:
            self._parts[name] = (kind or _Part)(name)
        return self._parts[name]

    def _call(
        self,
        part: "_Part",
        function: Function,
        inputs: list[Tensor],
        modules: list[nn.Module],
        wanted: Collection[int],
        setting: tuple[object, ...] = (),
    ) -> list[Tensor] | None:
        """Return the outputs of a replay; None where the caller has to run plainly."""
        kind = inputs[0].device.type
        autocast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        shapes = tuple((tensor.shape, tensor.dtype, tensor.requires_grad) for tensor in inputs)
        signature = (*setting, *autocast, torch.is_grad_enabled(), shapes)
        if part.recorded is None:
            if self._failed or not part.is_due(signature):
                return None
            try:
                with _without_cast_cache():
                    part.recorded = self._record(function, inputs, modules, wanted, self._fixed(), self._owns_gradients)
            except RecordingBroken as error:
                self._give_up(part, error)
                return None
            except RuntimeError as error:  # torch's errors of CUDA and of memory are of this kind
                part.failed = True
                _log.warning("%s is not replayed as a CUDA graph, which costs time only: %s", part, first_line(error))
                return None
        return part.recorded(inputs) if signature == part.signature else None

    def _give_up(self, part: "_Part", error: RecordingBroken) -> None:
        """Run everything plainly from now on; what this step has replayed can still be differentiated."""
        self._failed = True
        for other in self._parts.values():
            other.recorded = None
        _log.warning(
            "no CUDA graph is replayed from now on, which costs time only: recording %s failed: %s",
            part,
            first_line(error),
        )

    def _fixed(self) -> set[int]:
        recorded = [part.recorded for part in self._parts.values() if part.recorded is not None]
        return {output.untyped_storage().data_ptr() for one in recorded for output in one.outputs}


class _Part:
    """State of a function that is recorded once: what it was last called with, and how often in a row."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.recorded: GraphPair | None = None
        self.failed = False
        self.signature: tuple[object, ...] = ()
        self._times = 0

    def __str__(self) -> str:
        return self.name

    def is_due(self, signature: tuple[object, ...]) -> bool:
        if self.failed:
            return False
        self._times = self._times + 1 if signature == self.signature else 1
        self.signature = signature
        return self._times > WARM_UP


class _PriorPart(_Part):
    """State of a prior, with the batch fields that it reads and the names of its scalars."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.reads: list[str] | None = None
        self.names: list[str] = []


class _Watched(dict):
    """A batch that notes which fields are read."""

    def __init__(self, batch: Batch) -> None:
        super().__init__(batch)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        self.read.add(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self.read.add(str(name))
        return super().__contains__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)

    def __iter__(self) -> Iterator[str]:
        self.read |= set(super().keys())
        return super().__iter__()

    def keys(self) -> Any:
        self.read |= set(super().keys())
        return super().keys()

    def values(self) -> Any:
        self.read |= set(super().keys())
        return super().values()

    def items(self) -> Any:
        self.read |= set(super().keys())
        return super().items()


def _is_read(stride: int, backbone: Backbone, reads: Collection[str]) -> bool:
    """Whether a gradient can reach the encoder's map of a stride."""
    if "encoder" in reads:
        return True
    if "dense" not in reads:
        return False
    if backbone.decoder is None:
        return stride == max(backbone.encoder.channels)
    return str(stride) in backbone.decoder.laterals


def _readable(features: Features, reads: Collection[str]) -> Features:
    """Return only the features that a prior reads."""

    def teacher(name: str) -> Features | None:
        theirs = getattr(features, name)
        return _readable(theirs, set(reads) - {"reference", "ema"}) if theirs is not None and name in reads else None

    return Features(
        encoder=features.encoder if "encoder" in reads else {},
        dense=features.dense if "dense" in reads else None,
        pooled=features.pooled if "pooled" in reads else None,
        reference=teacher("reference"),
        ema=teacher("ema"),
    )


def _tensors(features: Features | None) -> list[Tensor]:
    """Return the tensors of features, in the order in which `_with_tensors` takes them."""
    if features is None:
        return []
    own = [*features.encoder.values(), features.dense, features.pooled]
    return [one for one in own if one is not None] + _tensors(features.reference) + _tensors(features.ema)


def _with_tensors(features: Features | None, rest: Iterator[Tensor]) -> Features | None:
    """Return features of the same kinds with other tensors."""
    if features is None:
        return None
    return Features(
        encoder={stride: next(rest) for stride in features.encoder},
        dense=None if features.dense is None else next(rest),
        pooled=None if features.pooled is None else next(rest),
        reference=_with_tensors(features.reference, rest),
        ema=_with_tensors(features.ema, rest),
    )


@contextlib.contextmanager
def _without_cast_cache() -> Iterator[None]:
    """Make casts of weights part of a recording: cached ones would be of the weights at that time."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
