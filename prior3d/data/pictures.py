"""Images as one has them in Python, to one batch: tensors, arrays, Pillow images and files."""

import os
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from prior3d.errors import UserError

Picture = Tensor | np.ndarray | Image.Image | str | os.PathLike
"""An image: [3, H, W] float 0..1, [H, W, 3] uint8, a Pillow image or a file."""


def as_batch(images: object, size: tuple[int, int] | None) -> Tensor:
    """Return images as one batch.

    Args:
        images: [N, 3, H, W] float 0..1, [N, H, W, 3] uint8, or one `Picture` or several.
        size: height and width to which images are resized, pixels; None to keep their size.

    Returns:
        [N, 3, H, W] float32 0..1.

    Raises:
        UserError: a file cannot be read, or images have different sizes and `size` is not given.
        ValueError: there is no image, or one has an unsupported shape or type.

    >>> as_batch([np.zeros((4, 6, 3), np.uint8), torch.rand(3, 8, 8)], (2, 3)).shape
    torch.Size([2, 3, 2, 3])
    """
    if isinstance(images, Tensor | np.ndarray) and images.ndim == 4:
        batch = _as_float(images, batch=True)
        return batch if size is None else _resize(batch, size)
    given = images if isinstance(images, Sequence) and not isinstance(images, str) else [images]
    if not given:
        raise ValueError("expected at least one image, got none")
    single = [_as_tensor(image) for image in given]
    if size is not None:
        single = [_resize(image[None], size)[0] for image in single]
    shapes = {tuple(image.shape[-2:]) for image in single}
    if len(shapes) > 1:
        found = ", ".join(f"{height} x {width}" for height, width in sorted(shapes)[:3])
        raise UserError(f"these images have several sizes ({found}): give size=(height, width), or encode them apart")
    return torch.stack(single)


def _as_tensor(image: object) -> Tensor:
    """Return one image as [3, H, W] float 0..1."""
    if isinstance(image, str | os.PathLike):
        try:
            with Image.open(image) as opened:
                image = ImageOps.exif_transpose(opened).convert("RGB")
        except FileNotFoundError as error:
            raise UserError(f"no such image: {image}") from error
        except (OSError, UnidentifiedImageError) as error:
            raise UserError(f"{image} is not an image that can be read") from error
    if isinstance(image, Image.Image):
        image = np.array(image.convert("RGB"))  # a copy: an array of Pillow is read-only, which torch warns of
    if not isinstance(image, Tensor | np.ndarray):
        raise ValueError(f"expected a tensor, an array, a Pillow image or a file, got {type(image).__name__}")
    return _as_float(image, batch=False)


def _as_float(image: Tensor | np.ndarray, batch: bool) -> Tensor:
    """Return an image or a batch as [..., 3, H, W] float 0..1, from that form or from [..., H, W, 3] uint8."""
    tensor = torch.as_tensor(image)
    first = "N, " if batch else ""
    if tensor.ndim != 3 + batch:
        raise ValueError(f"expected [{first}3, H, W] or [{first}H, W, 3], got {list(tensor.shape)}")
    if tensor.dtype == torch.uint8:
        if tensor.shape[-1] == 3:
            tensor = tensor.movedim(-1, -3)
        tensor = tensor.float() / 255
    if tensor.shape[-3] != 3 or not tensor.is_floating_point():
        given = f"{list(tensor.shape)} {tensor.dtype}"
        raise ValueError(f"expected [{first}3, H, W] float of 0..1 or [{first}H, W, 3] uint8, got {given}")
    low, high = tensor.amin().item(), tensor.amax().item()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"expected values of 0..1, got {low:.3g}..{high:.3g}; images of 0..255 must be uint8")
    return tensor.float().contiguous()  # equal bits for every memory layout of the input


def _resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(images, tuple(size), mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)
