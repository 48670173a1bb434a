"""Priors in your own training loop: one pass of any backbone, one loss."""

from collections.abc import Mapping, Sequence
from copy import deepcopy

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from prior3d.backbone import Backbone
from prior3d.backbone.weights import find_mismatches, summarize
from prior3d.contracts.prior import Batch, Prior
from prior3d.errors import UserError, section, several
from prior3d.pretraining.building import build_prior
from prior3d.pretraining.objective import JointObjective, Term, encode
from prior3d.pretraining.task import update_average
from prior3d.randomness import reseed
from prior3d.recipe.reading import read_priors
from prior3d.registry import Registry


class Joint(nn.Module):
    """Priors on one backbone pass, for your own training loop.

    Construct a prior with an offline stage yourself, attach its prepared data (`Prior.attach`), and pass the object;
    all other priors can be given by name. The parameters are those of the backbone and of the priors' heads; some get
    no gradient if no prior reads their output. `state_dict` also holds the number of calls and the weights of the
    teachers, so a loop that loads it goes on as if it had not stopped.

    Args:
        backbone: a `Backbone`, the name of a timm model (timm's weights are not fetched: use `prior3d.load`), or a timm
            model, which is trained in place.
        priors: names of priors, or label to a prior's section of a recipe (`{"weight": 0.2, "points": 64}`) or to a
            `Prior`.
        size: height and width of the images, pixels; by default that of a `Backbone`.
        decoder_stride: image pixels per cell of the decoder that is added to a timm model; None for no decoder.
        channels: channels of that decoder.
        ema: decay per step of the moving average of the backbone that some priors read; call `update_average` after
            each step.
        seed: seed of the priors' initial heads and, together with the step and a prior's label, of its random draws,
            which then equal those of a run. With None, draws use the global generators.
        plugins: additional plugin files.

    Raises:
        UserError: a prior or one of its options does not exist, or does not fit the backbone.

    >>> joint = Joint("test_resnet", ["depth_regression"], size=(64, 64), decoder_stride=4)
    >>> camera = torch.tensor([[60.0, 0, 32], [0, 60, 32], [0, 0, 1]]).repeat(2, 1, 1, 1)
    >>> batch = {"image": torch.rand(2, 1, 3, 64, 64), "depth": 1 + torch.rand(2, 1, 64, 64), "intrinsics": camera}
    >>> optimizer = torch.optim.AdamW(joint.parameters(), lr=1e-3)
    >>> loss, scalars = joint(batch)
    >>> loss.backward()
    >>> optimizer.step()
    >>> sorted(scalars)[-1]
    'loss/depth_regression'
    """

    def __init__(
        self,
        backbone: Backbone | str | nn.Module,
        priors: Sequence[str] | Mapping[str, "Prior | Mapping[str, object] | None"],
        *,
        size: tuple[int, int] | None = None,
        decoder_stride: int | None = None,
        channels: int = 64,
        ema: float | None = None,
        seed: int | None = 0,
        plugins: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.backbone = _as_backbone(backbone, size, decoder_stride, channels, seed or 0)
        self.seed = seed
        given = dict(priors) if isinstance(priors, Mapping) else dict.fromkeys(several(priors, "priors"))
        self.objective = _make_objective(given, self.backbone, seed or 0, Registry(plugins))
        self.decay = ema
        reads = self.objective.reads
        if "ema" in reads and ema is None:
            raise UserError("a prior reads the moving average of the backbone: set this, for example to 0.99", "ema")
        # In tuples, so they are not submodules: they are neither trained nor saved.
        self._reference = (_freeze(self.backbone),) if "reference" in reads else ()
        self._average = (_freeze(self.backbone),) if ema is not None else ()
        self.steps = 0

    def forward(self, batch: Batch, step: int | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the joint loss of a batch, and scalars to log.

        Args:
            batch: fields on the backbone's device: `image` [B, V, 3, H, W] float 0..1, and the fields that the priors
                need.
            step: step of the loop, for warm-ups and draws; by default the number of previous calls in training mode.

        Returns:
            The weighted sum of the losses, and the scalars: `loss/<label>`, each prior's own loss, and
            `<label>/<name>`, its logged values.

        Raises:
            ValueError: the batch lacks a field.
        """
        step = self.steps if step is None else step
        if self.training:
            self.steps = step + 1
        batch = self.objective.prepare_batch(dict(batch), lambda use: self._seed(step, use))
        self._check(batch)
        self._seed(step, "backbone")
        reference, average = (held[0] if held else None for held in (self._reference, self._average))
        for model in (reference, average):
            if model is not None:
                model.to(next(self.backbone.parameters()).device)
        teachers = self.objective.teachers(reference=reference, ema=average)
        result = encode(self.backbone, batch, self.objective.encodes, self.objective.reads, teachers)
        losses = self.objective(batch, result.features, step, lambda use: self._seed(step, use))
        own = {f"loss/{label}": loss.detach() for label, loss in losses.by_label.items()}
        return losses.total, own | losses.scalars

    def update_average(self) -> None:
        """Move the average toward the backbone; call it after each optimizer step."""
        if self._average:
            average = self._average[0].to(next(self.backbone.parameters()).device)
            update_average(average, self.backbone, self.decay)

    def get_extra_state(self) -> dict[str, object]:
        """Return the step and the weights of the teachers, which `state_dict` includes."""
        teachers = {"average": self._average, "reference": self._reference}
        held = {name: models[0].state_dict() for name, models in teachers.items() if models}
        return {"steps": self.steps, **held}

    def set_extra_state(self, state: Mapping[str, object]) -> None:
        """Restore what `get_extra_state` returned; see `torch.nn.Module.set_extra_state`.

        Raises:
            ValueError: the state has other teachers.
        """
        teachers = {"average": self._average, "reference": self._reference}
        expected, found = {name for name, models in teachers.items() if models}, set(state) - {"steps"}
        if expected != found:
            raise ValueError(f"expected a state with the teachers {sorted(expected)}, got {sorted(found)}")
        self.steps = state["steps"]
        for name in expected:
            teachers[name][0].load_state_dict(state[name])

    def _seed(self, step: int, use: str) -> None:
        if self.seed is not None:
            reseed("step", self.seed, step, 0, 0, use)

    def _check(self, batch: Batch) -> None:
        for label, prior in self.objective.priors.items():
            for need in (*prior.encodes, *prior.needs):
                if not any(name in batch for name in need.split("|")):
                    raise ValueError(f"{label} needs the field {need}, and the batch has {sorted(batch)}")
        for field in self.objective.encodes:
            if batch[field].ndim != 5:
                raise ValueError(f"expected {field} as [B, V, 3, H, W], got {list(batch[field].shape)}")


def _freeze(backbone: Backbone) -> Backbone:
    return deepcopy(backbone).requires_grad_(False).eval()


def _make_objective(
    given: Mapping[str, "Prior | Mapping[str, object] | None"], backbone: Backbone, seed: int, registry: Registry
) -> JointObjective:
    objects = {label: prior for label, prior in given.items() if isinstance(prior, Prior)}
    named = {label: prior for label, prior in given.items() if label not in objects}
    sections = read_priors(named, registry) if named or not objects else {}
    made, terms = {}, {}
    for label in given:
        if label in objects:
            made[label], terms[label] = objects[label], Term(1.0)
            continue
        made[label] = build_prior(label, sections[label], registry, backbone.spec, seed)
        terms[label] = Term(sections[label].weight, sections[label].warmup)
        if made[label].prepares:
            with section(f"priors.{label}"):
                raise UserError(
                    "prepares whole scenes before training: train it with a recipe, or make it, attach what it has"
                    " prepared, and hand it over as an object"
                )
    return JointObjective(made, terms)


def _as_backbone(
    model: Backbone | str | nn.Module,
    size: tuple[int, int] | None,
    decoder_stride: int | None,
    channels: int,
    seed: int,
) -> Backbone:
    if isinstance(model, Backbone):
        return model
    if size is None:
        raise UserError("give size=(height, width) of the images: only a Backbone knows it by itself")
    name = model if isinstance(model, str) else _name_of(model)
    reseed("backbone", seed)
    backbone = Backbone(name, tuple(size), decoder_stride=decoder_stride, channels=channels)
    if not isinstance(model, str):
        _adopt(backbone, model)
    return backbone


def _name_of(model: nn.Module) -> str:
    name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    if name is None:
        raise UserError(f"expected a Backbone or a model of timm, got {type(model).__name__}")
    return name


def _adopt(backbone: Backbone, model: nn.Module) -> None:
    """Replace the encoder's timm model, which was built with the same architecture, by the given one."""
    made, theirs = backbone.encoder.model.state_dict(), model.state_dict()
    mismatches = find_mismatches(made, {name: value for name, value in theirs.items() if name in made})
    if mismatches:
        raise UserError(f"this model differs from timm's {backbone.spec.name}: {summarize(mismatches)}")
    backbone.encoder.model = model
    own = resolve_model_data_config(model)
    device = next(model.parameters()).device
    for name in ("mean", "std"):
        getattr(backbone.encoder, name).copy_(torch.tensor(own[name])[:, None, None])
    backbone.to(device)
