"""Random crops and flips of batches on the device, the same for images and labels."""

import torch
from torch import Tensor
from torch.nn import functional as F


def random_crops(count: int, min_crop: float, flip: bool, draws: torch.Generator) -> Tensor:
    """Draw crops of an image, stretched by at most 4:3.

    Args:
        count: crops, N.
        min_crop: least area, as a share of the image's; 1 for the whole image.
        flip: mirror half of them left to right.
        draws: the only source of randomness.

    Returns:
        [N, 2, 3] affine maps from crop to image, the sides of both being -1 and 1; on the CPU.
    """
    area = min_crop + (1 - min_crop) * torch.rand(count, generator=draws)
    stretch = (4 / 3) ** (torch.rand(count, generator=draws) - 0.5)  # of each side by its half
    width = (area.sqrt() * stretch).clamp(area, torch.ones(()))
    height = area / width
    x, y = (2 * torch.rand(2, count, generator=draws) - 1) * torch.stack([1 - width, 1 - height])
    mirrored = torch.rand(count, generator=draws) < 0.5
    width = torch.where(mirrored, -width, width) if flip else width
    zero = torch.zeros(count)
    return torch.stack([torch.stack([width, zero, x], 1), torch.stack([zero, height, y], 1)], 1)


def cut(images: Tensor, semantic: Tensor, crops: Tensor) -> tuple[Tensor, Tensor]:
    """Cut crops out of images and labels and resize them to the image's size.

    Args:
        images: [N, 3, H, W] uint8.
        semantic: [N, H, W] uint8.
        crops: [N, 2, 3], see `random_crops`.

    Returns:
        images float in 0..1, bilinear, and labels int64, nearest, of the same sizes.
    """
    grid = F.affine_grid(crops, [len(images), 1, *images.shape[-2:]], align_corners=False)
    options = {"padding_mode": "border", "align_corners": False}
    image = F.grid_sample(images.float() / 255, grid, mode="bilinear", **options)
    truth = F.grid_sample(semantic[:, None].float(), grid, mode="nearest", **options)
    return image, truth[:, 0].long()
