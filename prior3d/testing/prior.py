"""The contract of a prior in one function: `check_prior`."""

import inspect
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from prior3d.contracts.fields import FIELDS, is_known
from prior3d.contracts.prior import READABLE, Batch, Features, Prior, Scene
from prior3d.randomness import reseed
from prior3d.registry.schema import validate_options
from prior3d.testing.examples import (
    example_backbone,
    example_batch,
    example_features,
    example_scenes,
    example_teacher,
)
from prior3d.testing.members import check_members


def check_prior(cls: type[Prior], options: Mapping[str, object] | None = None) -> Prior:
    """Assert that a prior keeps its contract, on a small batch of two overlapping views of a room's corner.

    It checks that the constructor is a schema; the declared fields exist; the loss is a finite scalar whose gradient
    reaches the features and every trainable parameter; logged scalars are scalars; the same random state gives the same
    loss; a batch with nothing known gives a finite loss, still connected to the graph, and finite gradients; bf16
    autocast works; the batch is not changed in place; pictures are matplotlib figures; another prior with its state
    gives the same loss. A prior with an offline stage gives exactly 0, connected, before that stage. It prepares two
    scenes of the same corner from the fields of `prepares` alone, with the same bytes each time. All other checks then
    run with these scenes attached.

    Args:
        cls: class of the prior.
        options: its options, as in a recipe.

    Returns:
        The prior, for further tests.

    Raises:
        AssertionError: names the rule that is broken.
    """
    assert issubclass(cls, Prior), f"{cls.__name__} is not a subclass of prior3d.Prior"
    check_members(cls)
    assert inspect.getdoc(cls), f"{cls.__name__} has no docstring: users read it in the recipe's schema"
    keywords = validate_options(cls, dict(options or {}), cls.__name__)
    spec = example_backbone()
    reseed("check", cls.__name__)
    prior = cls(spec, **keywords)
    assert hasattr(prior, "backbone"), f"the constructor of {cls.__name__} does not call super().__init__(backbone)"
    _check_declarations(prior)
    folders = _check_offline_stage(prior) if prior.prepares else None
    _check_gradients(prior)
    _check_repeatable(prior)
    _check_nothing_known(prior)
    _check_autocast(prior)
    _check_pictures(prior)
    _check_state(prior, cls(spec, **keywords), folders)
    return prior


def evaluate(prior: Prior, batch: Batch, features: Mapping[str, Features]) -> tuple[Tensor, dict[str, Tensor]]:
    """Evaluate a prior from a fixed random state, as a training step does."""
    reseed("evaluate")
    returned = prior(batch, features)
    assert isinstance(returned, tuple | list) and len(returned) == 2, (
        f"forward returns {type(returned).__name__}, should be a tuple of the loss and a dict of scalars to log"
    )
    return returned


def _check_declarations(prior: Prior) -> None:
    assert prior.contract == Prior.contract, f"written for contract {prior.contract}, this is {Prior.contract}"
    assert set(prior.reads) <= READABLE, f"reads {set(prior.reads) - READABLE}, there are {sorted(READABLE)}"
    for need in (*prior.needs, *prior.encodes, *prior.prepares):
        for name in need.split("|"):
            assert is_known(name), f"names the field {name!r}, known are {sorted(FIELDS)} and <plugin>/<field>"
            assert name not in FIELDS.probes_only, f"{name} labels are for probes only"
    assert prior.views >= 1, "views must be at least 1"


def _prepared(prior: Prior, known: bool = True) -> tuple[Batch, dict[str, Features]]:
    reseed("prepare")
    batch = prior.prepare_batch(example_batch(known))
    return batch, example_features(batch, prior.encodes)


def _leaves(prior: Prior, features: Mapping[str, Features]) -> list[Tensor]:
    read = []
    for feature in features.values():
        read += list(feature.encoder.values()) if "encoder" in prior.reads else []
        read += [feature.dense] if "dense" in prior.reads else []
        read += [feature.pooled] if "pooled" in prior.reads else []
    return read


def _check_offline_stage(prior: Prior) -> list[Path]:
    """Check the offline stage; return the folders of the prepared scenes, which are attached."""
    batch, features = _prepared(prior)
    loss, _ = evaluate(prior, batch, features)
    assert loss.item() == 0, f"the loss is {loss.item()} before anything is prepared, should be exactly 0"
    inputs = [*_leaves(prior, features), *(value for value in prior.parameters() if value.requires_grad)]
    unconnected = [gradient is None for gradient in torch.autograd.grad(loss, inputs, allow_unused=True)]
    assert not any(unconnected), "the zero loss before anything is prepared is unconnected (hangs DDP): use `zero`"
    assert isinstance(prior.plot(batch, features), dict), "plot fails before anything is prepared"
    kept = tempfile.TemporaryDirectory()
    weakref.finalize(prior, kept.cleanup)  # scenes may be read on demand
    scenes = example_scenes(prior.prepares)
    first, second = (_prepare(prior, scenes, Path(kept.name) / name) for name in ("first", "second"))
    assert _contents(first[0]), "prepares nothing"
    assert list(map(_contents, first)) == list(map(_contents, second)), "prepares other bytes the second time"
    prior.attach(first)
    return first


def _prepare(prior: Prior, scenes: Sequence[Scene], into: Path) -> list[Path]:
    folders = [into / str(scene.index) for scene in scenes]
    for scene, folder in zip(scenes, folders, strict=True):
        folder.mkdir(parents=True)
        reseed("prepare", scene.name)
        prior.prepare(scene, example_teacher, folder)
    return folders


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _check_gradients(prior: Prior) -> None:
    batch, features = _prepared(prior)
    before = {name: value.clone() for name, value in batch.items()}
    loss, scalars = evaluate(prior, batch, features)
    assert loss.ndim == 0, f"the loss has shape {list(loss.shape)}, should be a scalar"
    assert torch.isfinite(loss), f"the loss is {loss.item()}"
    assert loss.requires_grad, "the loss is not connected to the features: it trains nothing"
    for name, value in scalars.items():
        assert isinstance(value, Tensor) and value.numel() == 1, f"the logged {name!r} is not a scalar tensor"
    for name, value in before.items():
        assert torch.equal(value, batch[name]), f"changes batch[{name!r}] in place"
    leaves = _leaves(prior, features)
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True, retain_graph=True)
    reached = [gradient for gradient in gradients if gradient is not None and gradient.abs().sum() > 0]
    assert reached, "no gradient reaches the features it reads"
    assert all(torch.isfinite(gradient).all() for gradient in reached), "a gradient is not finite"
    trainable = {name: value for name, value in prior.named_parameters() if value.requires_grad}
    gradients = torch.autograd.grad(loss, list(trainable.values()), allow_unused=True) if trainable else ()
    unused = [name for name, gradient in zip(trainable, gradients, strict=True) if gradient is None]
    assert not unused, f"trainable parameters without gradient (breaks DistributedDataParallel): {unused}"


def _check_repeatable(prior: Prior) -> None:
    batch, features = _prepared(prior)
    prior.eval()
    first, second = (evaluate(prior, batch, features)[0] for _ in range(2))
    prior.train()
    assert torch.equal(first, second), "two evaluations from one random state differ: is there a generator of its own?"


def _check_nothing_known(prior: Prior) -> None:
    batch, features = _prepared(prior, known=False)
    loss, _ = evaluate(prior, batch, features)
    assert torch.isfinite(loss), f"the loss is {loss.item()} when nothing is known"
    assert loss.requires_grad, "the loss is detached when nothing is known (hangs DistributedDataParallel)"
    inputs = [*_leaves(prior, features), *(value for value in prior.parameters() if value.requires_grad)]
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
    parameters = gradients[len(_leaves(prior, features)) :]
    assert all(gradient is not None for gradient in parameters), "a parameter is unconnected when nothing is known"
    assert all(g is None or torch.isfinite(g).all() for g in gradients), (
        "a gradient is not finite when nothing is known"
    )


def _check_autocast(prior: Prior) -> None:
    batch, features = _prepared(prior)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = evaluate(prior, batch, features)
    assert torch.isfinite(loss), f"the loss is {loss.item()} inside bf16 autocast"


def _check_state(prior: Prior, again: Prior, folders: Sequence[Path] | None) -> None:
    again.load_state_dict(prior.state_dict())
    if folders is not None:
        again.attach(folders)
    batch, features = _prepared(prior)
    first, second = (evaluate(one.eval(), batch, features)[0].item() for one in (prior, again))
    prior.train()
    assert first == second, (
        f"another prior with this state gives the loss {second} instead of {first}: its state_dict lacks something"
    )


def _check_pictures(prior: Prior) -> None:
    batch, features = _prepared(prior)
    with torch.no_grad():
        pictures = prior.plot(batch, features)
    assert all(isinstance(figure, Figure) for figure in pictures.values()), "plot returns something else than figures"
