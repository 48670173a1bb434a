"""Figures: input, rendered color and depth, and a small orbit around the volume."""

import torch
from matplotlib.figure import Figure
from torch import Tensor

from prior3d.figures import panels, plot_depth_map, to_picture
from prior3d.volume import small_orbit
from prior3d_plugins.priors.triplane.decoders import DenseDecoder, VolumeDecoder

_LONGEST_SIDE = 64
"""Pixels of the longer side of a rendered picture: for a look, not an evaluation; a demo renders it on the CPU."""

_ORBIT_VIEWS, _ORBIT_DEGREES = 4, 10.0


@torch.no_grad()
def plot_reconstruction(
    decoder: VolumeDecoder | DenseDecoder, tokens: Tensor, images: Tensor, given: Tensor | None, disparity: list[bool]
) -> dict[str, Figure]:
    """Plot a decoder's output for each image, a row per image; for a volume, also its look from other cameras.

    Args:
        decoder: either decoder.
        tokens: [N, C, h, w] encoder map.
        images: [N, 3, H, W] in 0..1, as the encoder saw them.
        given: [N, H, W] depth or disparity to learn from, if any; 0 = unknown.
        disparity: for each image, whether `given` is disparity; rendered depth is then plotted inverted.
    """
    rgb, depth = decoder.picture(tokens, _small(images.shape[-2:]))
    shown = {"image": images, "rendered": rgb, "rendered depth": depth}
    if given is not None:
        shown["given depth"] = given
        shown["rendered depth"] = torch.stack([1 / d if inv else d for d, inv in zip(depth, disparity, strict=True)])
    figures = {"reconstruction": _grid(shown)}
    if isinstance(decoder, VolumeDecoder):
        poses = small_orbit(_ORBIT_VIEWS, _ORBIT_DEGREES, depth.median().item())
        views = decoder.orbit(tokens, _small(images.shape[-2:]), poses)
        directions = ("from the right", "from above", "from the left", "from below")
        figures["orbit"] = _grid(dict(zip(directions, views, strict=True)))
    return figures


def _small(size: tuple[int, int]) -> tuple[int, int]:
    scale = min(1.0, _LONGEST_SIDE / max(size))
    return tuple(max(1, round(side * scale)) for side in size)


def _grid(columns: dict[str, Tensor]) -> Figure:
    """Plot a row per image and a column per title: color [N, 3, H, W], or depth [N, H, W] in its own range."""
    figure, axes = panels(len(next(iter(columns.values()))), len(columns))
    for column, (title, pictures) in enumerate(columns.items()):
        axes[0][column].set_title(title, fontsize=8)
        for row, picture in enumerate(pictures):
            if picture.ndim == 3:
                axes[row][column].imshow(to_picture(picture))
            else:
                plot_depth_map(axes[row][column], picture.float().cpu().numpy())
    return figure
