"""Construction of dataset, backbone and priors from a recipe; all checks happen here, before data are read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from prior3d.backbone import Backbone, Encoder, create_model, refuse_single_values, set_trainable
from prior3d.backbone.batch_norm import refuse_folded
from prior3d.backbone.weights import load_decoder_of_run, load_encoder, read_weights
from prior3d.contracts.dataset import Dataset, DataSpec, Split, table_of
from prior3d.contracts.fields import is_known, missing_fields, provides_field
from prior3d.contracts.prior import FEATURE_KINDS, READABLE, BackboneSpec, Prior
from prior3d.data.posed.controls import with_control
from prior3d.data.posed.dataset import PosedDataset
from prior3d.data.sample.augmentation import refuse_mirrors
from prior3d.data.sample.loading import DrawnSamples
from prior3d.errors import UserError, section
from prior3d.pretraining.folder import RunFolder
from prior3d.pretraining.objective import JointObjective, Term
from prior3d.probes.classifier import checkpoint_classifier
from prior3d.probes.tasks import ProbeTask, build_fitting_tasks
from prior3d.randomness import reseed
from prior3d.recipe.sections import BackboneSection, DataSection, PriorSection
from prior3d.registry.schema import construct

if TYPE_CHECKING:
    from prior3d.recipe import Recipe
    from prior3d.registry import Registry


@dataclass
class Parts:
    """The objects that a recipe names, constructed and checked to fit together.

    Attributes:
        dataset: the training dataset.
        backbone: the backbone with its initial weights.
        objective: the priors.
        probes: the probes that fit their data.
        left_out: label to reason for each of the other probes, which were not requested on the command line.
    """

    dataset: Dataset
    backbone: Backbone
    objective: JointObjective
    probes: list[ProbeTask]
    left_out: dict[str, str] = field(default_factory=dict)


def build(recipe: "Recipe", registry: "Registry", folder: RunFolder | None = None) -> Parts:
    """Construct everything that a recipe names; no data are read and no files are written.

    Args:
        recipe: recipe of a run.
        registry: where to find the plugins.
        folder: folder of a run that continues: the initial weights are then loaded from it, not created or fetched
            again.

    Raises:
        UserError: parts do not exist or do not fit together; the error has the key.
    """
    data, model = recipe.data, recipe.backbone
    dataset = build_dataset(data, registry, "train", recipe.seed)
    if folder is None:
        backbone = make_backbone(model, data.size, recipe.seed)
    else:
        backbone = make_backbone(without_weights(model), data.size, recipe.seed)
        folder.load_initial(backbone)
    objective = _build_objective(recipe.priors, registry, backbone.spec, recipe.seed)
    for label, prior in objective.priors.items():
        with section(f"priors.{label}"):
            _check_fields(prior)
            _check_needs(recipe.priors[label].prior, prior, dataset, data.name, data.views)
            _check_teachers(prior, has_average=model.ema is not None)
    with section("data"):
        refuse_mirrors(data.augment, fields_to_decode(objective, dataset), table_of(dataset))
    reads = objective.reads & FEATURE_KINDS
    with section("backbone"):
        backbone.notes.append(set_trainable(backbone, model.train, model.last_n, reads))
    _check_trainable(backbone, objective)
    if data.batch_size * data.views == 1 and objective.encodes == ["image"]:
        with section("data"):
            refuse_single_values(backbone, reads)
    _check_statistics(backbone, model)
    overridden = recipe.source.overridden
    wanted = {key.split(".")[1] for key in overridden if key.startswith("probes.")}
    wanted |= set(recipe.probes) if "probes" in overridden else set()
    probes, left_out = build_fitting_tasks(recipe.probes, data, registry, recipe.seed, dataset, wanted)
    return Parts(dataset, backbone, objective, probes, left_out)


def build_dataset(data: DataSection, registry: "Registry", split: Split, seed: int) -> Dataset:
    """Construct the dataset that `data:` names, for one split."""
    with section("data"):
        cls = registry.get("datasets", data.name, "name")
    spec = DataSpec(size=data.size, views=data.views, split=split, cache=Path(data.cache), seed=seed)
    dataset = construct(cls, spec, key="data", options=data.options, registry=registry)
    with section("data"):
        table_of(dataset)  # rejects a clash of names before anything else
        return with_control(dataset, data.control)


def without_weights(options: BackboneSection) -> BackboneSection:
    """Return the section for the same model with random weights."""
    return replace(options, pretrained=False, weights=None)


def make_backbone(options: BackboneSection, size: tuple[int, int], seed: int) -> Backbone:
    """Construct a backbone with the weights that its section names.

    Args:
        options: the section `backbone:`.
        size: height and width of the images, pixels.
        seed: seed of random weights.
    """
    reseed("backbone", seed)
    with section("backbone"):
        encoder = Encoder(
            options.name,
            pretrained=options.pretrained,
            timm_options=options.timm_options,
            mean=options.mean,
            std=options.std,
        )
    with section("data"):
        encoder.fit(size)
    with section("backbone"):
        backbone = Backbone(encoder, size, decoder_stride=options.decoder_stride, channels=options.channels)
        if options.weights is not None:
            _load_weights(backbone, options.weights)
    return backbone


def _load_weights(backbone: Backbone, path: Path) -> None:
    note = load_encoder(backbone.encoder.model, read_weights(path), str(path))
    backbone.notes += [note] if note else []
    if path.expanduser().is_dir() and backbone.decoder is not None:
        backbone.notes.append(load_decoder_of_run(backbone.decoder, path))


def checkpoint_of(options: BackboneSection) -> dict[str, Tensor] | None:
    """Return the initial weights of a backbone, with the classifier that came with them; None for random weights."""
    with section("backbone"):
        if options.weights is not None:
            return read_weights(options.weights)
        if options.pretrained:
            return create_model(
                options.name, pretrained=True, options=options.timm_options, classifier=True
            ).state_dict()
    return None


def weights_with_classifier(
    tasks: Sequence[ProbeTask], backbone: Backbone, options: BackboneSection, lacking: str
) -> dict[str, Tensor] | None:
    """Return the initial weights of a backbone with their classifier; None if no probe needs it.

    Args:
        tasks: the probes.
        backbone: the backbone, made with `options`.
        options: its section.
        lacking: message if there is no classifier.

    Raises:
        UserError: there is none; the key is that of the first probe that needs it.
    """
    asking = [task.label for task in tasks if task.probe.needs_classifier]
    if not asking:
        return None
    weights = checkpoint_of(options)
    if weights is None or checkpoint_classifier(backbone, weights) is None:
        raise UserError(lacking, f"probes.{asking[0]}")
    return weights


def fields_to_decode(objective: JointObjective, dataset: Dataset) -> frozenset[str]:
    """Resolve the needs of priors to the fields to decode; of alternatives, take the first that the dataset has.

    A prior itself makes fields `<plugin>/<field>` that no dataset provides, in `prepare_batch`.
    """
    chosen, table = {first_available(need, dataset) for need in objective.fields}, table_of(dataset)
    return frozenset(name for name in chosen if "/" not in name or provides_field(name, dataset.provides, table))


def training_samples(parts: Parts, data: DataSection, seed: int) -> DrawnSamples:
    """Return the training samples with the fields that the priors need."""
    fields = fields_to_decode(parts.objective, parts.dataset)
    return DrawnSamples(parts.dataset, fields, data.augment, seed, skip_damaged=data.on_damage == "skip")


def build_prior(label: str, options: PriorSection, registry: "Registry", spec: BackboneSpec, seed: int) -> Prior:
    """Construct one prior; its initial weights depend only on the seed and its label, not on other priors."""
    key = f"priors.{label}"
    cls = registry.get("priors", options.prior, key)
    reseed("prior", seed, label)
    made = construct(cls, spec, key=key, options=options.options, registry=registry)
    if getattr(made, "backbone", None) is None:
        raise UserError("its constructor does not call super().__init__(backbone)", key)
    return made


def _build_objective(
    priors: Mapping[str, PriorSection], registry: "Registry", spec: BackboneSpec, seed: int
) -> JointObjective:
    made = {label: build_prior(label, options, registry, spec, seed) for label, options in priors.items()}
    return JointObjective(made, {label: Term(options.weight, options.warmup) for label, options in priors.items()})


def _check_trainable(backbone: Backbone, objective: JointObjective) -> None:
    if not any(parameter.requires_grad for module in (backbone, objective) for parameter in module.parameters()):
        with section("backbone"):
            raise UserError(
                "nothing is left to train: the encoder is frozen, there is no decoder and no prior has parameters of"
                " its own; set this to full or last_n, or give a decoder_stride",
                "train",
            )


def _check_statistics(backbone: Backbone, options: BackboneSection) -> None:
    if options.weights is not None or options.pretrained:  # random weights have no folded statistics
        key = "backbone.pretrained" if options.pretrained else "backbone.weights"
        refuse_folded(backbone.encoder.model, options.name, key)


def _check_fields(prior: Prior) -> None:
    unknown = set(prior.reads) - READABLE
    if unknown:
        raise UserError(f"reads {sorted(unknown)}, which are unknown; there are {sorted(READABLE)}")
    for name in (*prior.needs, *prior.encodes):
        if not all(is_known(part) for part in name.split("|")):
            raise UserError(f"needs the field {name!r}, which no batch has")


def _check_needs(name: str, prior: Prior, dataset: Dataset, data_name: str, views: int) -> None:
    table = table_of(dataset)
    reads = (*prior.needs, *prior.prepares, *(field for field in prior.encodes if "/" not in field))
    named = {part for need in (*reads, *prior.encodes) for part in need.split("|")}
    if for_probes := sorted(table.probes_only & named):
        raise UserError(f"needs {', '.join(for_probes)} labels, which are for probes only")
    missing = dict.fromkeys(missing_fields(reads, dataset.provides, table))
    if missing:
        raise UserError(f"{name} needs {', '.join(missing)}, which {data_name} does not provide")
    if prior.views > views:
        raise UserError(f"{name} needs {prior.views} views of a scene, but data.views is {views}")
    if prior.prepares and not isinstance(dataset, PosedDataset):
        raise UserError(f"prepares whole scenes, and {data_name} is not a dataset of posed scenes")


def _check_teachers(prior: Prior, has_average: bool) -> None:
    if has_average:
        return
    if "ema" in prior.reads:
        raise UserError("reads the moving average of the backbone; set backbone.ema, for example to 0.99")
    if prior.refresh_steps:
        raise UserError("its teacher is the moving average of the backbone; set backbone.ema, for example to 0.99")


def first_available(need: str, dataset: Dataset) -> str:
    """Return the first of the alternatives `a|b` that a dataset has."""
    table = table_of(dataset)
    return next((name for name in need.split("|") if provides_field(name, dataset.provides, table)), need)
