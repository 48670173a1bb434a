"""`prior3d-eval --pictures`: features of one or two models on the user's own images; no probe, training or label."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import numpy as np
import timm
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from prior3d.contracts.probe import FeatureKind
from prior3d.contracts.runner import Progress, silent
from prior3d.data.decoding import image_size, read_color
from prior3d.data.images.listing import list_files
from prior3d.errors import ArgumentError, DamagedFile, UserError
from prior3d.evaluation.models import (
    Model,
    Subject,
    find_other,
    find_subject,
    load_initial,
    load_other,
    load_trained,
    two_names,
)
from prior3d.evaluation.run import Arguments, check_folder, default_folder, device_of
from prior3d.files import write_atomically
from prior3d.pretraining.machine import sharing_cores
from prior3d.pretraining.progress import Bars, make_console
from prior3d.probes import FrozenModel, evenly_spaced
from prior3d.probes.pictures import (
    check_sizes,
    cluster_figure,
    fit_matched_clusters,
    fit_shared_axes,
    pca_figure,
    read_maps,
    read_places,
    sample_places,
)
from prior3d.recipe.reading import TopLevel, own_options, read_section
from prior3d.recipe.sections import BackboneSection

_LONG_SIDE = 448
_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff")
_PAGE = 6
"""Number of images per page."""

_MOST = 60
"""Largest number of images to plot; of more, this many are chosen evenly."""

_FITTED = 48
"""Number of images that axes and clusters are fitted to, evenly chosen; all pages use the same axes and clusters."""


def plot(arguments: Arguments, images: Sequence[str]) -> None:
    """Plot features of the models on images, side by side.

    Args:
        arguments: Models, output folder and device.
        images: Files and folders.

    Raises:
        UserError: Models or images do not work; no files remain.
    """
    for flag, given in {
        "--probes": bool(arguments.probes),
        "--seeds": arguments.seeds is not None,
        "--control": arguments.control is not None,
        "--plugin": bool(arguments.plugins),  # a dataset or probe: models are timm's
    }.items():
        if given:
            raise ArgumentError(f"--pictures measures nothing: leave out {flag}", "pictures")
    subject = find_subject(arguments.model, arguments.overrides, arguments.overrides_name)
    with subject.source.locating(), sharing_cores(arguments.device):
        _refuse_unread(subject)
        device = device_of(arguments)
        against = find_other(arguments.against, "against") if arguments.against else None
        models = _models(subject, against)
        out = arguments.out or default_folder(subject, against, "pictures")
        check_folder(out)
        console = make_console()
        frozen = {name: _freeze(model, device) for name, model in models.items()}
        paths = [Path(image) for image in images]
        files = write_pictures(frozen, paths, out, _LONG_SIDE, progress=Bars(console), say=console.print)
        for file in files:
            console.print(f"{file}")


def _refuse_unread(subject: Subject) -> None:
    """Refuse values of the command line that do not affect the figures."""
    # The seed determines random weights, which only a model made by timm can have.
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
        other = load_other(against, size, seed, "against")
        return dict(zip(two_names(against, subject), (other, model), strict=True))
    if subject.run is not None:
        return {"before": load_initial(subject, section, size, seed), "after": model}
    return {subject.short_name: model}


def own_size(name: str) -> tuple[int, int]:
    """Return the size a model was made for; images are resized to a fitting size near their own."""
    known = timm.get_pretrained_cfg(name) if timm.is_model(name.split(".")[0]) else None
    return (224, 224) if known is None else (known.input_size[1], known.input_size[2])


def _freeze(model: Model, device: str) -> FrozenModel:
    # Keep the model's statistics: a few images are not enough to estimate others.
    return FrozenModel([deepcopy(model.backbone).eval().requires_grad_(False).to(device)], device)


@torch.no_grad()
def write_pictures(
    models: Mapping[str, FrozenModel],
    paths: Sequence[Path],
    out: Path,
    size: int = 448,
    *,
    kind: FeatureKind = "dense",
    k: int = 6,
    seed: int = 0,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Write figures of the features of models on images: `pca.png` and `clusters.png`, numbered if there are many.

    Axes and clusters are fitted once, so colors mean the same on all pages. Memory does not grow with the number of
    images.

    Args:
        models: Dict from title to model.
        paths: Image files, and folders to search for images.
        out: Folder to write to; created if it is missing.
        size: Long side of the images as models see them, pixels, for images of any size; each model's short and long
            side are then rounded to whole cells of its coarsest map.
        kind: Type of features: dense or encoder.
        k: Number of clusters per model.
        seed: Seed of k-means.
        progress: Shows progress.
        say: Takes a line if not all images are plotted.

    Returns:
        The files written.

    Raises:
        UserError: There are no images, or an image cannot be read or does not suit a model.
    """
    files = find_images(paths)
    if len(files) > _MOST:
        say(f"{len(files)} images are too many: {_MOST} of them, evenly chosen, are plotted; name fewer to choose")
        files = [files[index] for index in evenly_spaced(len(files), _MOST).tolist()]
    with _readable():
        check_sizes(models, {working_size(image_size(path), size) for path in files})
    out = Path(out).expanduser()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {out}: {error.strerror}") from error
    samples = _sample(models, files, size, kind, progress)
    axes, clusters = fit_shared_axes(samples), fit_matched_clusters(samples, k, seed)
    pages = [files[start : start + _PAGE] for start in range(0, len(files), _PAGE)]
    written = []
    for number, page in enumerate(progress(pages, "plotting", len(pages)), 1):
        images = [read_image(path, size) for path in page]
        maps = read_maps(models, images, kind)
        names = [path.name for path in page]
        ending = f"-{number:0{len(str(len(pages)))}d}.png" if len(pages) > 1 else ".png"
        written.append(_save(pca_figure(images, maps, axes, names), out / f"pca{ending}"))
        written.append(_save(cluster_figure(images, maps, clusters, names), out / f"clusters{ending}"))
    return written


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Return image files, and those below folders, in the given order and then by name.

    Raises:
        UserError: A path is missing or is not an image, or no image is found.
    """
    files = []
    for path in (Path(path).expanduser() for path in paths):
        if path.is_dir():
            found = [path / name for name in list_files(path, _ENDINGS)]
            if not found:
                raise UserError(f"no images ({' '.join(_ENDINGS)}) in {path}")
            files += found
        else:
            files.append(path)
    if not files:
        raise UserError("no images are given: name files or folders")
    with _readable():
        for path in files:
            image_size(path)  # reads only the header: a wrong name is found before any model runs
    return files


def read_image(path: Path, size: int) -> Tensor:
    """Return an image as [3, H, W] in 0..1, its long side `size` pixels.

    Raises:
        UserError: The image cannot be decoded.
    """
    with _readable():
        picture = Image.fromarray(read_color(path))
    height, width = working_size((picture.height, picture.width), size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def working_size(own: tuple[int, int], size: int) -> tuple[int, int]:
    """Return the height and width, in pixels, of an image whose long side is resized to `size`."""
    return tuple(max(round(side * size / max(own)), 1) for side in own)


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except DamagedFile as error:
        raise UserError(f"cannot read the image {error}") from error


def _sample(
    models: Mapping[str, FrozenModel], files: Sequence[Path], size: int, kind: FeatureKind, progress: Progress
) -> dict[str, Tensor]:
    """Return, by model, the features [R, C] at the same places of some of the images, one image in memory at a time."""
    chosen = evenly_spaced(len(files), _FITTED).tolist()
    places = sample_places(len(chosen))
    rows: dict[str, list[Tensor]] = {name: [] for name in models}
    for index, here in zip(progress(chosen, "encoding", len(chosen)), places, strict=True):
        maps = read_maps(models, [read_image(files[index], size)], kind)
        for name, (features,) in maps.items():
            rows[name].append(read_places(features, here))
    return {name: torch.cat(parts) for name, parts in rows.items()}


def _save(figure: Figure, path: Path) -> Path:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    write_atomically(path, content.getvalue())
    return path
