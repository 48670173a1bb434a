"""Colour changes of one image: they touch no geometry, and each image gets its own."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in the brightness of a pixel (ITU-R BT.601, as in JPEG)."""

_YIQ = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_GREY = np.ones((3, 1)) * LUMA

NEEDS_DRAWS = 8
"""How many uniform numbers one image's changes are made of, whatever the options: no option shifts another's draws."""


@dataclass(frozen=True)
class ColorChange:
    """What is done to one image: a linear map of its colours, contrast about its own mean, and a blur.

    Attributes:
        matrix: [3, 3], new RGB from RGB, before contrast.
        contrast: factor about the mean brightness.
        sigma: standard deviation of the Gaussian blur in pixels; 0 = none.
    """

    matrix: np.ndarray
    contrast: float = 1.0
    sigma: float = 0.0


def draw_change(
    draws: Iterator[float],
    jitter: tuple[float, float, float, float],
    probabilities: tuple[float, float, float],
    sigma: tuple[float, float],
) -> ColorChange:
    """Choose the changes of one image from `NEEDS_DRAWS` uniform numbers.

    Args:
        draws: uniform numbers in [0, 1).
        jitter: strengths of brightness, contrast, saturation (factors 1 - s to 1 + s) and hue (share of the circle).
        probabilities: of colour jitter, of turning grey, of blurring.
        sigma: least and greatest standard deviation of the blur, in pixels.
    """
    u = [next(draws) for _ in range(NEEDS_DRAWS)]
    strengths = jitter if u[0] < probabilities[0] else (0.0, 0.0, 0.0, 0.0)
    signed = [strength * (2 * number - 1) for strength, number in zip(strengths, u[1:5], strict=True)]
    brightness, contrast, saturation = (max(0.0, 1 + change) for change in signed[:3])
    if u[5] < probabilities[1]:
        saturation = 0.0
    matrix = brightness * (saturation * np.eye(3) + (1 - saturation) * _GREY) @ _hue_rotation(signed[3])
    blur = sigma[0] + (sigma[1] - sigma[0]) * u[7] if u[6] < probabilities[2] else 0.0
    return ColorChange(matrix, contrast, blur)


def apply_change(image: np.ndarray, change: ColorChange) -> np.ndarray:
    """Return the changed image, [h, w, 3] uint8.

    Brightness, saturation, hue and contrast are one affine map of RGB, clipped once, which is much quicker than one
    after the other; it differs from that only where values leave 0..255 on the way. Hue turns about the grey axis (in
    YIQ) rather than in HSV, so brightness is kept. Pillow does the arithmetic: a matrix product of NumPy would start
    BLAS threads in every worker, tried at a hundred times the time on busy cores.

    Args:
        image: [h, w, 3] uint8.
        change: what to do.
    """
    picture = Image.fromarray(image)
    counts = np.array(picture.histogram(), dtype=np.float64).reshape(3, 256)
    mean = LUMA @ change.matrix @ (counts * np.arange(256)).sum(axis=1) / counts[0].sum()
    if change.sigma > 0:
        picture = picture.filter(ImageFilter.GaussianBlur(change.sigma))
    affine = np.empty((3, 4))
    affine[:, :3] = change.contrast * change.matrix
    affine[:, 3] = (1 - change.contrast) * mean
    return np.asarray(picture.convert("RGB", tuple(affine.ravel())))


def _hue_rotation(share: float) -> np.ndarray:
    """Return the [3, 3] matrix that turns colours about the grey axis by `share` of the full circle."""
    cos, sin = math.cos(2 * math.pi * share), math.sin(2 * math.pi * share)
    return np.linalg.inv(_YIQ) @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ _YIQ
