"""Pictures: input, rendered colour and depth, and a small orbit around the volume."""

import torch
from matplotlib.figure import Figure
from torch import Tensor

from prior3d.figures import panels, plot_depth_map, to_picture
from prior3d.volume import small_orbit
from prior3d_plugins.priors.triplane.decoders import DenseDecoder, VolumeDecoder

_LONGEST_SIDE = 64
"""Pixels of the longer side of a rendered picture: a look, not an evaluation, and rendered on the CPU in a demo."""

_ORBIT_VIEWS, _ORBIT_DEGREES = 4, 10.0


@torch.no_grad()
def plot_reconstruction(
    decoder: VolumeDecoder | DenseDecoder, tokens: Tensor, images: Tensor, given: Tensor | None, disparity: list[bool]
) -> dict[str, Figure]:
    """Draw what a decoder makes of images, row by row, and, of a volume, what it looks like from beside the camera.

    Args:
        decoder: either one.
        tokens: encoder map, [N, C, h, w].
        images: what the encoder saw, [N, 3, H, W] in 0..1.
        given: the depth or disparity that is learnt from, [N, H, W], if any; 0 = unknown.
        disparity: for each image, whether that is disparity; rendered depth is then drawn inverted.
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
    """Draw a row per image and a column per title, colour [N, 3, H, W] or depth [N, H, W] in a range of its own."""
    figure, axes = panels(len(next(iter(columns.values()))), len(columns))
    for column, (title, pictures) in enumerate(columns.items()):
        axes[0][column].set_title(title, fontsize=8)
        for row, picture in enumerate(pictures):
            if picture.ndim == 3:
                axes[row][column].imshow(to_picture(picture))
            else:
                plot_depth_map(axes[row][column], picture.float().cpu().numpy())
    return figure
