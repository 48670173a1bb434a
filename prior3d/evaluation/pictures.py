"""`prior3d-eval --pictures`: features of one or two models on the user's own images; no probe, no training."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path

import timm

from prior3d.errors import UserError
from prior3d.evaluation.arguments import Arguments, check_folder, choose_device, default_folder, other_subject
from prior3d.evaluation.models import Model, load_initial, load_other, load_trained
from prior3d.evaluation.subjects import Subject, find_subject
from prior3d.pretraining.machine import share_cores
from prior3d.pretraining.progress import Bars, make_console
from prior3d.probes.models import FrozenModel
from prior3d.probes.pictures import write_pictures
from prior3d.recipe.reading import TopLevel, own_options, read_section
from prior3d.recipe.sections import BackboneSection

_LONG_SIDE = 448


def draw(arguments: Arguments, images: Sequence[str]) -> int:
    """Draw features of the models on images, side by side.

    Args:
        arguments: which models, where to, on which device.
        images: files and folders.

    Returns:
        The exit status 0.

    Raises:
        UserError: models or images do not work; nothing is left behind.
    """
    for flag, given in {
        "--probes": bool(arguments.probes),
        "--seeds": arguments.seeds is not None,
        "--control": arguments.control is not None,
        "--plugin": bool(arguments.plugins),  # a dataset or probe: models are timm's
    }.items():
        if given:
            raise UserError(f"--pictures measures nothing: leave out {flag}", "--pictures")
    subject = find_subject(arguments.model, arguments.overrides)
    try:
        _refuse_unread(subject)
        device = choose_device(arguments.device)
        share_cores("cpu" if device == "cpu" else "gpu")
        against = other_subject(arguments.against, "--against") if arguments.against else None
        models = _models(subject, against)
        out = arguments.out or default_folder(subject, against, "pictures")
        check_folder(out)
        console = make_console()
        frozen = {name: _freeze(model, device) for name, model in models.items()}
        files = write_pictures(frozen, [Path(image) for image in images], out, _LONG_SIDE, progress=Bars(console))
        for file in files:
            console.print(f"{file}")
    except UserError as error:
        raise subject.source.locate(error) from error
    return 0


def _refuse_unread(subject: Subject) -> None:
    """Refuse values of the command line that no picture depends on."""
    # the seed decides what random weights are, which only a model that timm makes can have
    read = ("backbone",) if subject.run or subject.file else ("backbone", "seed")
    for key in sorted(subject.source.overridden):
        if key.partition(".")[0] not in read:
            raise UserError("--pictures reads no data and measures nothing: leave this out", key)


def _models(subject: Subject, against: Subject | None) -> Mapping[str, Model]:
    section = read_section(BackboneSection, subject.content["backbone"], "backbone")
    size = own_size(section.name)
    seed = own_options(TopLevel).validate({"seed": subject.content.get("seed", 0)}, "")["seed"]
    model = load_trained(subject, section, size, seed)
    if against is not None:
        other = load_other(against, size, seed, "--against")
        return dict(zip(_two_names(against, subject), (other, model), strict=True))
    if subject.run is not None:
        return {"before": load_initial(subject, section, size, seed), "after": model}
    return {subject.short_name: model}


def _two_names(first: Subject, second: Subject) -> tuple[str, str]:
    """Return names to tell two models apart by: short ones, or as they were given, or by number."""
    if first.short_name != second.short_name:
        return first.short_name, second.short_name
    if first.name != second.name:
        return first.name, second.name
    return f"{first.name}, 1", f"{second.name}, 2"


def own_size(name: str) -> tuple[int, int]:
    """Return the size a model was made for; pictures are resized to whatever fits it near their own."""
    known = timm.get_pretrained_cfg(name) if timm.is_model(name.split(".")[0]) else None
    return (224, 224) if known is None else (known.input_size[1], known.input_size[2])


def _freeze(model: Model, device: str) -> FrozenModel:
    # with the statistics the model has: a few pictures are not enough to estimate others
    return FrozenModel([deepcopy(model.backbone).eval().requires_grad_(False).to(device)], device)
