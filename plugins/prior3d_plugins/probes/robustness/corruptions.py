"""Image corruptions of four types and five levels: noise, blur, loss of contrast, JPEG artifacts."""

import io
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from prior3d.randomness import generator

Corruption = Literal["noise", "blur", "contrast", "jpeg"]

CORRUPTIONS: tuple[Corruption, ...] = get_args(Corruption)
LEVELS = (1, 2, 3, 4, 5)

SEVERITIES: dict[Corruption, tuple[float, ...]] = {
    "noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    "blur": (1, 2, 3, 4, 6),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    "jpeg": (25, 18, 15, 10, 7),
}
"""noise: standard deviation, for values in 0..1; blur: standard deviation in pixels, for an image whose shorter side
is 224; contrast: factor on the distance from the image's mean; jpeg: quality on Pillow's scale."""

_REFERENCE_SIDE = 224


def corrupt(images: Tensor, corruption: Corruption, level: int, names: Sequence[str]) -> Tensor:
    """Corrupt images; an image is corrupted the same way for every model and in every batch.

    The noise of an image has the same pattern at all levels. Blur grows with the size of the images, so they lose the
    same detail at any size.

    Args:
        images: Images [N, 3, H, W] in 0..1.
        corruption: Type of corruption.
        level: Severity, 1 (slight) to 5.
        names: Names of the N images; they determine the noise.

    Returns:
        [N, 3, H, W] in 0..1, rounded to the 256 values of image files.

    Raises:
        ValueError: The corruption or level is unknown, or the number of names differs from the number of images.

    Reference:
        Hendrycks and Dietterich, 2019, arXiv 1903.12261: severities of Gaussian noise, Gaussian blur, contrast and JPEG
        compression in ImageNet-C. There, images are 224 x 224 pixels and are saved as JPEG files afterward.
    """
    if corruption not in CORRUPTIONS or level not in LEVELS:
        raise ValueError(f"expected one of {', '.join(CORRUPTIONS)} at a level of 1 to 5, got {corruption}, {level}")
    if len(names) != len(images):
        raise ValueError(f"expected a name for each of {len(images)} images, got {len(names)}")
    severity = SEVERITIES[corruption][level - 1]
    if corruption == "noise":
        corrupted = images + severity * _noise(images, names)
    elif corruption == "blur":
        corrupted = _blur(images, severity * min(images.shape[-2:]) / _REFERENCE_SIDE)
    elif corruption == "contrast":
        mean = images.mean((2, 3), keepdim=True)
        corrupted = mean + severity * (images - mean)
    else:
        return torch.stack([_jpeg(image, int(severity)) for image in images])
    return (corrupted.clamp(0, 1) * 255).round() / 255


def _noise(images: Tensor, names: Sequence[str]) -> Tensor:
    drawn = [torch.randn(images.shape[1:], generator=generator("corruption", name)) for name in names]
    return torch.stack(drawn).to(images)


def _blur(images: Tensor, sigma: float) -> Tensor:
    """Blur with a Gaussian that is cut off at four standard deviations; image edges are repeated."""
    radius = max(1, round(4 * sigma))
    places = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-0.5 * (places / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, -1)
    padded = F.pad(images, (radius,) * 4, mode="replicate")
    across = F.conv2d(padded, kernel[..., None, :], groups=images.shape[1])
    return F.conv2d(across, kernel[..., None], groups=images.shape[1])


def _jpeg(image: Tensor, quality: int) -> Tensor:
    pixels = (image * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    with Image.open(file) as decoded:
        return torch.from_numpy(np.array(decoded)).permute(2, 0, 1).to(image) / 255
