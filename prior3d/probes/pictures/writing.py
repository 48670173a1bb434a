"""Pictures of models on the user's own images, written to files: inference only, no labels."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from prior3d.contracts.runner import Progress, silent
from prior3d.data.decoding import image_size, read_color
from prior3d.data.images.listing import list_files
from prior3d.errors import DamagedFile, UserError
from prior3d.files import write_atomically
from prior3d.probes.models import FrozenModel, Kind
from prior3d.probes.pictures.drawing import cluster_figure, pca_figure, read_maps
from prior3d.probes.pictures.matched_clusters import fit_matched_clusters
from prior3d.probes.pictures.sampling import check_sizes, read_places, sample_places
from prior3d.probes.pictures.shared_axes import fit_shared_axes

_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff")
_PAGE = 6
"""Images on a page."""

_FITTED = 48
"""Images that axes and clusters are fitted to, evenly chosen; all pages are drawn with these."""


@torch.no_grad()
def write_pictures(
    models: Mapping[str, FrozenModel],
    paths: Sequence[Path],
    out: Path,
    size: int = 448,
    *,
    kind: Kind = "dense",
    k: int = 6,
    seed: int = 0,
    progress: Progress = silent,
) -> list[Path]:
    """Write pictures of the features of models on images: `pca.png` and `clusters.png`, numbered if there are many.

    Axes and clusters are fitted once, so that colours mean the same on all pages. Memory does not grow with the number
    of images.

    Args:
        models: title to model.
        paths: image files, and folders that are searched for some.
        out: folder to write to; made if it is missing.
        size: long side of the images as models see them, pixels, whatever their own size; each model's short and long
            side are then rounded to whole cells of its coarsest map.
        kind: which features: dense or encoder.
        k: clusters of each model.
        seed: of k-means.
        progress: shows how far it is.

    Returns:
        The files written.

    Raises:
        UserError: no images, one that cannot be read, or that a model cannot take.
    """
    files = find_images(paths)
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
    for number, page in enumerate(progress(pages, "drawing", len(pages)), 1):
        images = [read_image(path, size) for path in page]
        maps = read_maps(models, images, kind)
        names = [path.name if len(path.name) <= 28 else f"{path.name[:12]}...{path.name[-13:]}" for path in page]
        ending = f"-{number:0{len(str(len(pages)))}d}.png" if len(pages) > 1 else ".png"
        written.append(_save(pca_figure(images, maps, axes, names), out / f"pca{ending}"))
        written.append(_save(cluster_figure(images, maps, clusters, names), out / f"clusters{ending}"))
    return written


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Return image files, and those below folders, in the order given and then by name.

    Raises:
        UserError: a path is missing, is no image, or no image is found.
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
            image_size(path)  # the header alone: a wrong name is known before any model runs
    return files


def read_image(path: Path, size: int) -> Tensor:
    """Return an image as [3, H, W] in 0..1, its long side `size` pixels.

    Raises:
        UserError: it cannot be decoded.
    """
    with _readable():
        picture = Image.fromarray(read_color(path))
    height, width = working_size((picture.height, picture.width), size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def working_size(own: tuple[int, int], size: int) -> tuple[int, int]:
    """Return height and width, in pixels, of an image of its own height and width whose long side becomes `size`."""
    return tuple(max(round(side * size / max(own)), 1) for side in own)


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except DamagedFile as error:
        raise UserError(f"cannot read the image {error}") from error


def _sample(
    models: Mapping[str, FrozenModel], files: Sequence[Path], size: int, kind: Kind, progress: Progress
) -> dict[str, Tensor]:
    """Return by model the features [R, C] at the same places of some of the images, one image in memory at a time."""
    chosen = torch.linspace(0, len(files) - 1, min(_FITTED, len(files))).round().long().tolist()
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
