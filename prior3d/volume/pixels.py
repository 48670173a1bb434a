"""Pixels for rays: drawing them, their positions, and reading maps at them."""

import torch
from torch import Tensor


def random_pixels(
    images: int,
    rays: int,
    height: int,
    width: int,
    *,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw pixels for each image, uniformly and with replacement (fixed shape, no host synchronization).

    Args:
        images: number of images N.
        rays: rays per image R.
        height: image height in pixels.
        width: image width in pixels.
        device: device of the result.
        generator: random generator; the global one of the device if None.

    Returns:
        [N, R] int64 row-major pixel indices.

    >>> random_pixels(2, 5, 48, 64).shape
    torch.Size([2, 5])
    """
    return torch.randint(height * width, (images, rays), device=device, generator=generator)


def pixel_positions(indices: Tensor, height: int, width: int) -> Tensor:
    """Return the centers of pixels as (u, v) in [-1, 1] across the image, u to the right, v down.

    Args:
        indices: [N, R] int64 row-major pixel indices.
        height: image height in pixels.
        width: image width in pixels.

    Returns:
        [N, R, 2] float32 positions.

    >>> pixel_positions(torch.tensor([[0, 3]]), 2, 2).tolist()
    [[[-0.5, -0.5], [0.5, 0.5]]]
    """
    row, column = torch.div(indices, width, rounding_mode="floor"), indices % width
    return torch.stack([(2 * column + 1) / width - 1, (2 * row + 1) / height - 1], dim=-1)


def read_pixels(maps: Tensor, indices: Tensor) -> Tensor:
    """Read maps at pixels.

    Args:
        maps: [N, C, H, W], or [N, H, W] for one channel without its axis.
        indices: [N, R] int64 row-major pixel indices.

    Returns:
        [N, R, C], or [N, R].

    >>> read_pixels(torch.arange(4.0).view(1, 2, 2), torch.tensor([[3, 0]])).tolist()
    [[3.0, 0.0]]
    """
    if maps.ndim == 3:
        return maps.flatten(1).gather(1, indices)
    index = indices.unsqueeze(1).expand(-1, maps.shape[1], -1)
    return maps.flatten(2).gather(2, index).transpose(1, 2)
