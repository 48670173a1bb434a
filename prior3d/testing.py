"""What every prior must keep to, as one function for the tests of whoever writes one.

from prior3d.testing import check_prior

def test_my_prior():
    check_prior(MyPrior)
"""

import inspect
from collections.abc import Mapping

import torch
from matplotlib.figure import Figure
from torch import Tensor

from prior3d.fields import FIELDS, is_known
from prior3d.prior import READABLE, BackboneSpec, Batch, Features, Prior
from prior3d.randomness import reseed
from prior3d.schema import validate_options

SIZE = (48, 64)
"""Height and width of the images of `example_batch`, pixels."""


def check_prior(cls: type[Prior], options: Mapping[str, object] | None = None) -> Prior:
    """Assert that a prior keeps to the contract, on a small batch of two overlapping views of a room's corner.

    Checked: its constructor is a schema; what it declares exists; the loss is a finite scalar whose gradient reaches
    the features and every trainable parameter; scalars to log are scalars; the same random state gives the same loss;
    a batch with nothing known gives exactly 0, still connected, and finite gradients; bf16 autocast works; the batch
    is not changed in place; pictures are figures; its state survives a round trip.

    Args:
        cls: the prior's class.
        options: its options as a recipe gives them.

    Returns:
        The prior that was made, for further tests.

    Raises:
        AssertionError: says which point is not kept.
    """
    assert issubclass(cls, Prior), f"{cls.__name__} is no subclass of prior3d.Prior"
    assert inspect.getdoc(cls), f"{cls.__name__} has no docstring: users read it in the recipe's schema"
    keywords = validate_options(cls, dict(options or {}), cls.__name__)
    spec = example_backbone()
    reseed("check", cls.__name__)
    prior = cls(spec, **keywords)
    _check_declarations(prior)
    _check_gradients(prior)
    _check_repeatable(prior)
    _check_nothing_known(prior)
    _check_autocast(prior)
    _check_pictures(prior)
    again = cls(spec, **keywords)
    again.load_state_dict(prior.state_dict())
    return prior


def example_backbone() -> BackboneSpec:
    """Return the specification that goes with `example_features`."""
    return BackboneSpec(
        name="example",
        size=SIZE,
        dense_channels=16,
        dense_stride=4,
        encoder_channels={4: 8, 16: 24},
        pooled_channels=24,
        has_decoder=True,
    )


def example_batch(known: bool = True) -> Batch:
    """Return a batch of 2 samples x 2 views of a textured room's corner, with every field that can be made up.

    Args:
        known: False for a batch with nothing to learn from: no depth, no surface, crops that do not overlap.
    """
    stream = torch.Generator().manual_seed(0)
    height, width = SIZE
    samples, views = 2, 2
    intrinsics = torch.tensor([[50.0, 0, width / 2], [0, 50.0, height / 2], [0, 0, 1]]).expand(samples, views, 3, 3)
    poses = torch.eye(4).repeat(samples, views, 1, 1)
    poses[:, 1, 0, 3] = 0.2
    depth = torch.stack([_corner(poses[0, view], intrinsics[0, 0]) for view in range(views)]).expand(
        samples, -1, -1, -1
    )
    crops = torch.eye(3).repeat(samples, 2, 1, 1)
    crops[:, 1, 0, 2] = 5.0 if known else 10.0 * width
    image = torch.rand(samples, views, 3, height, width, generator=stream)
    batch = {
        "image": image,
        "image_clean": image.clone(),
        "image_crops": torch.rand(samples, 2, 3, height, width, generator=stream),
        "crop_from_image": crops,
        "depth": depth.clone() if known else torch.zeros_like(depth),
        "pseudo_depth": depth.clone() if known else torch.zeros_like(depth),
        "pseudo_kind": torch.tensor([0, 1]),
        "intrinsics": intrinsics.clone(),
        "world_from_camera": poses,
        "scene": torch.tensor([0, 1]),
        "frame": torch.tensor([[0, 1], [0, 1]]),
    }
    return {**batch, **_surface(batch, known)}


def example_features(batch: Batch, fields: tuple[str, ...], grad: bool = True) -> dict[str, Features]:
    """Return random features for the image fields of a batch, as leaves that collect gradients."""
    reseed("features")
    spec = example_backbone()

    def one(count: int, views: int, requires_grad: bool, teachers: dict[str, Features]) -> Features:
        def make(*shape: int) -> Tensor:
            return torch.randn(count, views, *shape).requires_grad_(requires_grad)

        encoder = {stride: make(c, *(side // stride for side in SIZE)) for stride, c in spec.encoder_channels.items()}
        dense = make(spec.dense_channels, *spec.dense_size)
        return Features(encoder, dense, make(spec.pooled_channels), **teachers)

    result = {}
    for field in fields:
        count, views = batch[field].shape[:2]
        teachers = {name: one(count, views, False, {}) for name in ("reference", "ema")}
        result[field] = one(count, views, grad, teachers)
    return result


def evaluate(prior: Prior, batch: Batch, features: Mapping[str, Features]) -> tuple[Tensor, dict[str, Tensor]]:
    """Evaluate a prior from a fixed random state, as a training step does."""
    reseed("evaluate")
    return prior(batch, features)


def _check_declarations(prior: Prior) -> None:
    assert prior.contract == Prior.contract, f"written for contract {prior.contract}, this is {Prior.contract}"
    assert set(prior.reads) <= READABLE, f"reads {set(prior.reads) - READABLE}, there are {sorted(READABLE)}"
    for need in (*prior.needs, *prior.encodes, *prior.prepares):
        for name in need.split("|"):
            assert is_known(name), f"names the field {name!r}, known are {sorted(FIELDS)} and <plugin>/<field>"
            assert name != "semantic", "semantic labels are for probes only"
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


def _check_gradients(prior: Prior) -> None:
    batch, features = _prepared(prior)
    before = {name: value.clone() for name, value in batch.items()}
    loss, scalars = evaluate(prior, batch, features)
    assert loss.ndim == 0, f"the loss has shape {list(loss.shape)}, should be a scalar"
    assert torch.isfinite(loss), f"the loss is {loss.item()}"
    for name, value in scalars.items():
        assert isinstance(value, Tensor) and value.numel() == 1, f"the logged {name!r} is no scalar tensor"
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


def _check_pictures(prior: Prior) -> None:
    batch, features = _prepared(prior)
    with torch.no_grad():
        pictures = prior.draw(batch, features)
    assert all(isinstance(figure, Figure) for figure in pictures.values()), "draw returns something else than figures"


def _corner(world_from_camera: Tensor, intrinsics: Tensor) -> Tensor:
    """Depth [H, W] of a corner: a wall at z = 2 m and one at x = 0.5 m, seen from a camera looking along z."""
    height, width = SIZE
    x = (torch.arange(width) + 0.5 - intrinsics[0, 2]) / intrinsics[0, 0]
    to_side = (0.5 - world_from_camera[0, 3]) / x.clamp_min(1e-6)
    return torch.minimum(to_side, torch.tensor(2.0)).expand(height, width).clone()


def _surface(batch: Batch, known: bool) -> Batch:
    """The surface seen by each view, packed."""
    if not known:
        return {"surface": torch.zeros(0, 3), "surface_view": torch.zeros(0, dtype=torch.int64)}
    from prior3d.geometry import unproject

    points = unproject(batch["depth"], batch["intrinsics"], batch["world_from_camera"])
    points = points.flatten(2, 3).flatten(0, 1)
    views = torch.arange(len(points)).repeat_interleave(points.shape[1])
    return {"surface": points.flatten(0, 1), "surface_view": views}
