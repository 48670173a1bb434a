"""The contract of a probe in one function: `check_probe`."""

import hashlib
import inspect
import math
import pickle
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from prior3d.backbone import Maps
from prior3d.contracts.dataset import DataSpec, Split, View
from prior3d.contracts.fields import IGNORE_CLASS, is_known
from prior3d.contracts.probe import Probe, Scores, bounds_of, measured
from prior3d.data.posed.dataset import PosedDataset
from prior3d.errors import UserError, refusal_of
from prior3d.probes import FrozenModel, ProbeData
from prior3d.randomness import generator
from prior3d.registry.schema import options_of, validate_options
from prior3d.testing.members import check_members

_SIZE = (48, 64)
_STRIDE = 4
_CLASSES = ("left", "middle", "right")
_FRAMES = 4
_BOUND = 1e-6
"""Tolerance for rounding at the bounds of a metric."""


def check_probe(
    cls: type[Probe],
    options: Mapping[str, object] | None = None,
    *,
    informed: Sequence[str] = (),
    model: FrozenModel | None = None,
) -> Probe:
    """Assert that a probe keeps its contract, on small scenes whose images hold all labels in their colors.

    It checks that the constructor is a schema and the declared fields exist; a measurement changes neither the model
    nor the data; equal seeds give equal scores, regardless of earlier measurements and their order, and without
    `seeded` any seed does; scores are finite and per group, and metrics depend on their sums: counting every group
    twice changes none; every metric has a meaning, is finite and lies within its bounds; controls have the same groups
    and metrics; one group and an absent class are measured, or refused with a message; labels that are all unknown are
    refused with a key that the probe owns; several models can be measured side by side; pictures are matplotlib
    figures; the probe can be pickled.

    Args:
        cls: class of the probe.
        options: its options, as in a recipe.
        informed: metrics in which features that hold the labels must beat features that hold nothing.
        model: model to measure instead of the made-up features, for a probe that needs more of a model.

    Returns:
        The probe, for further tests.

    Raises:
        AssertionError: names the rule that is broken.
    """
    assert issubclass(cls, Probe), f"{cls.__name__} is not a subclass of prior3d.Probe"
    check_members(cls)
    assert inspect.getdoc(cls), f"{cls.__name__} has no docstring: it is the protocol that reports print"
    keywords = validate_options(cls, dict(options or {}), cls.__name__)

    def make() -> Probe:
        return cls(**keywords)

    probe = make()
    _check_declarations(probe)
    _check_pickle(probe)
    models = {"informed": FrozenModel([_Colors()]), "blind": FrozenModel([_Noise()])}
    models = models if model is None else {"informed": model, "blind": model}
    with _opened(probe) as data:
        scores = _check_measurements(make, models, data)
        _check_metrics(probe, scores["informed"])
        _check_controls(probe, scores["informed"], data)
        _check_figures(make(), models, data)
        _check_informed(probe, scores, informed)
        if model is None and not probe.needs_classifier:
            both = FrozenModel.side_by_side(list(models.values()))
            _check_scores(measured(make().measure(both, data)).scores)
    for what in ("there is one group", "a class is absent"):
        _check_small(make(), models["informed"], what)
    _measured_or_refused(make(), models["informed"], "nothing is known")
    return probe


def _check_declarations(probe: Probe) -> None:
    assert probe.contract == Probe.contract, f"written for contract {probe.contract}, this is {Probe.contract}"
    for need in probe.needs:
        for name in need.split("|"):
            assert is_known(name), f"needs the field {name!r}, which no data has"
    assert probe.views >= 1, "views must be at least 1"


def _check_pickle(probe: Probe) -> None:
    try:
        pickle.loads(pickle.dumps(probe))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise AssertionError(f"the probe cannot be pickled: {error}") from error


def _check_measurements(
    make: Callable[[], Probe], models: Mapping[str, FrozenModel], data: ProbeData
) -> dict[str, Scores]:
    """Measure two models in both orders, with a new probe for each order."""
    weights = {name: _state(model) for name, model in models.items()}
    labels = _labels(data)
    first, second = make(), make()
    found = {name: measured(first.measure(models[name], data, 3)).scores for name in models}
    again = {name: measured(second.measure(models[name], data, 3)).scores for name in reversed(models)}
    for name in models:
        _check_scores(found[name])
        assert _equal(found[name], again[name]), (
            f"{name} features score otherwise after another model was measured: is something kept between measurements?"
        )
        assert _same(weights[name], _state(models[name])), "a measurement changes the model"
    assert _same(labels, _labels(data)), "a measurement changes the data"
    name = next(iter(models))
    assert _equal(found[name], measured(first.measure(models[name], data, 3)).scores), (
        "equal seeds give other scores: is there a generator of its own?"
    )
    if not make().seeded:
        other = measured(make().measure(models[name], data, 4)).scores
        assert _equal(found[name], other), "another seed gives other scores, and `seeded` is not declared"
    return found


def _check_scores(scores: object) -> None:
    assert isinstance(scores, Scores), f"measure returns {type(scores).__name__}, should be Scores or Measured"
    assert scores.groups and len(set(scores.groups)) == len(scores.groups), "groups are missing or named twice"
    for name, values in scores.statistics.items():
        assert torch.isfinite(values.double()).all(), f"the statistic {name!r} is not finite"


def _check_metrics(probe: Probe, scores: Scores) -> None:
    found = probe.summarize(scores.total())
    assert isinstance(found, Mapping), f"summarize returns {type(found).__name__}, should be a dict of metrics by name"
    assert found, "summarize returns no metric"
    for name, value in found.items():
        assert isinstance(value, float) and math.isfinite(value), f"the metric {name!r} is {value}, no finite float"
        assert any(name.startswith(begin) for begin in probe.meanings), f"nothing in `meanings` says what {name!r} is"
        low, high = bounds_of(probe, name)
        assert low - _BOUND <= value <= high + _BOUND, f"the metric {name!r} is {value}, beyond {low} to {high}"
    twice = probe.summarize(scores.total(torch.full((len(scores.groups),), 2.0)))
    for name, value in found.items():
        assert math.isclose(value, twice.get(name, math.nan), rel_tol=1e-6, abs_tol=1e-9), (
            f"the metric {name!r} is {value}, and {twice.get(name)} where every group counts twice: no rate of sums"
        )
    for index in range(len(scores.groups)):  # a draw of the bootstrap
        probe.summarize(scores.total(F.one_hot(torch.tensor(index), len(scores.groups)).float()))
    declared = set(probe.lower_is_better)
    unknown = {name for name in declared if not any(name.startswith(begin) for begin in probe.meanings)}
    assert not unknown, f"lower_is_better names {sorted(unknown)}, which `meanings` does not know"


def _check_controls(probe: Probe, scores: Scores, data: ProbeData) -> None:
    metrics = probe.summarize(scores.total())
    for name, control in probe.controls(data).items():
        _check_scores(control)
        assert control.groups == scores.groups, f"the control {name!r} is of other groups than the models"
        extra = set(probe.summarize(control.total())) - set(metrics)
        assert not extra, f"the control {name!r} has metrics that models have not: {sorted(extra)}"
        assert _equal(control, probe.controls(data)[name]), f"the control {name!r} differs the second time"


def _check_figures(probe: Probe, models: Mapping[str, FrozenModel], data: ProbeData) -> None:
    shown = {name: measured(probe.measure(model, data)).shown for name, model in models.items()}
    figures = probe.plot(models, data, shown)
    assert all(isinstance(figure, Figure) for figure in figures.values()), "plot returns something else than figures"


def _check_informed(probe: Probe, scores: Mapping[str, Scores], informed: Sequence[str]) -> None:
    known, blind = (probe.summarize(scores[name].total()) for name in ("informed", "blind"))
    for name in informed:
        better = known[name] < blind[name] if name in probe.lower_is_better else known[name] > blind[name]
        assert better, f"{name!r} of features that hold the labels is {known[name]}, of noise {blind[name]}"


def _check_small(probe: Probe, model: FrozenModel, what: str) -> None:
    scores = _measured_or_refused(probe, model, what)
    if scores is not None:
        metrics = probe.summarize(scores.total())
        assert any(math.isfinite(value) for value in metrics.values()), f"no metric is finite where {what}"


def _measured_or_refused(probe: Probe, model: FrozenModel, what: str) -> Scores | None:
    with _opened(probe, what) as data:
        found: list[Scores] = []
        refused = refusal_of(lambda: found.append(measured(probe.measure(model, data)).scores))
    if refused is not None:  # a refusal with a message is as good
        _check_key(probe, refused)
        return None
    _check_scores(found[0])
    return found[0]


def _check_key(probe: Probe, refused: UserError) -> None:
    option = (refused.key or "").partition(".")[0].partition("[")[0]
    known = {"", "data", "backbone", *options_of(type(probe)).types}
    assert option in known, f"an error has the key {refused.key!r}: expected an option of the probe, or data"


def _state(model: FrozenModel) -> dict[str, Tensor]:
    return {
        f"{index}.{name}": value.clone()
        for index, backbone in enumerate(model.backbones)
        for name, value in backbone.state_dict().items()
    }


def _labels(data: ProbeData) -> dict[str, Tensor]:
    return {
        f"{part} {name}": data.field(part, name).take(torch.arange(len(data.frames[part]))).clone()
        for part in data.parts
        for name in ("image", "depth", "semantic", "label")
    }


def _same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


def _equal(first: Scores, second: Scores) -> bool:
    return first.to_plain() == second.to_plain()


@contextmanager
def _opened(probe: Probe, what: str = "") -> Iterator[ProbeData]:
    with tempfile.TemporaryDirectory(prefix="prior3d-check-") as cache:
        parts = {
            part: _Walls(DataSpec(_SIZE, probe.views if split == "test" else 1, split, Path(cache)), what)
            for part, split in (("train", "train"), ("held_out", "test"))
        }
        data = ProbeData(parts)
        try:
            yield data
        finally:
            data.close()


class _Walls(PosedDataset):
    """Cameras that move along slanted walls; red is depth, green the position along the wall, blue the rest."""

    provides = frozenset(
        {"image", "depth", "intrinsics", "world_from_camera", "semantic", "normals", "label", "surface"}
    )
    splits: tuple[Split, ...] = ("train", "test")
    class_names = _CLASSES

    def __init__(self, spec: DataSpec, what: str = "") -> None:
        super().__init__(spec)
        alone = what == "there is one group" and spec.split == "test"
        self.scenes = ["wall"] if alone else ["wall-a", "wall-b", "wall-c"]
        self._frames = 1 if alone else _FRAMES
        self._nothing = what == "nothing is known"
        self._lost = 2 if what == "a class is absent" and spec.split == "test" else None

    def frame_count(self, scene: int) -> int:
        return self._frames

    def scene_fingerprint(self, scene: int) -> str:
        return f"{self.spec.split} {scene} {self._frames} {self._nothing} {self._lost}"

    def load(self, scene: int, frame: int, fields: frozenset[str]) -> View:
        height, width = _SIZE
        across = 0.25 * frame + (0.1 if self.spec.split == "test" else 0.0)
        row, column = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
        ray_x, ray_y = (column - width / 2) / 50, (row - height / 2) / 50
        slope = (-0.5, 0.1, 0.7)[scene]  # the wall: z = 2 + slope * x
        depth = (2 + slope * across) / (1 - slope * ray_x)
        x, y = across + ray_x * depth, ray_y * depth
        classes = np.digitize(x, (0.0, 0.6)).astype(np.uint8)
        label = (scene + frame) % len(_CLASSES)
        if self._lost is not None:
            classes[classes == self._lost], label = 0, label % 2
        pose, normal = np.eye(4), np.array([slope, 0, -1]) / math.hypot(slope, 1)
        pose[0, 3] = across
        blue = 0.15 * (y + 1) + 0.15 * label + 0.25 * (slope + 0.5)
        colors = np.stack([depth / 6, (x + 1.5) / 5, blue], -1)
        values = {
            "image": (255 * colors.clip(0, 1)).round().astype(np.uint8),
            "depth": depth.astype(np.float32),
            "intrinsics": np.array([[50.0, 0, width / 2], [0, 50.0, height / 2], [0, 0, 1]]),
            "world_from_camera": pose,
            "semantic": classes,
            "normals": np.broadcast_to(normal, (height, width, 3)).astype(np.float32).copy(),
            "label": label,
        }
        if self._nothing:
            values |= {"depth": 0 * values["depth"], "normals": 0 * values["normals"], "label": 0}
            values["semantic"] = np.full_like(classes, IGNORE_CLASS)
        return View({name: value for name, value in values.items() if name in fields}, scene, frame, _SIZE)


class _Colors(nn.Module):
    """A stand-in for a backbone: the colors of cells, and their products."""

    size = _SIZE

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor, reads: Sequence[str] = ()) -> Maps:
        cells = F.avg_pool2d(images, _STRIDE) * self.gain - 0.5
        cells = torch.cat([cells, cells.square(), torch.sin(12 * cells), torch.cos(12 * cells)], 1)
        return Maps({_STRIDE: cells}, cells, cells.mean((2, 3)) if "pooled" in reads else None)


class _Noise(_Colors):
    """A stand-in for a backbone that has learned nothing: noise that only distinguishes images."""

    def forward(self, images: Tensor, reads: Sequence[str] = ()) -> Maps:
        names = [hashlib.sha256(image.mul(255).round().byte().cpu().numpy().tobytes()).hexdigest() for image in images]
        shape = (12, _SIZE[0] // _STRIDE, _SIZE[1] // _STRIDE)
        cells = torch.stack([torch.randn(shape, generator=generator("check", name)) for name in names]) * self.gain
        return Maps({_STRIDE: cells}, cells, cells[:, :, 0, 0] if "pooled" in reads else None)
