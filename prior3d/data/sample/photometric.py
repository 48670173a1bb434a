"""Color changes of one image: they do not affect geometry, and each image gets its own."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in the brightness of a pixel (ITU-R BT.601, as in JPEG)."""

_YIQ = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_GRAY = np.ones((3, 1)) * LUMA

NEEDS_DRAWS = 8
"""Number of uniform numbers per image, for all options: no option shifts the draws of another."""


@dataclass(frozen=True)
class ColorChange:
    """Changes of one image: a linear map of its colors, contrast about its own mean, and a blur.

    Attributes:
        matrix: Matrix [3, 3] from old to new RGB, applied before contrast.
        contrast: Factor about the mean brightness.
        sigma: Standard deviation of the Gaussian blur, pixels; 0 = none.
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
        draws: Uniform numbers in [0, 1).
        jitter: Strengths of brightness, contrast, saturation (factors 1 - s to 1 + s) and hue (share of the circle).
        probabilities: Probabilities of color jitter, of conversion to gray, and of blur.
        sigma: Smallest and largest standard deviation of the blur, pixels.
    """
    u = [next(draws) for _ in range(NEEDS_DRAWS)]
    strengths = jitter if u[0] < probabilities[0] else (0.0, 0.0, 0.0, 0.0)
    signed = [strength * (2 * number - 1) for strength, number in zip(strengths, u[1:5], strict=True)]
    brightness, contrast, saturation = (max(0.0, 1 + change) for change in signed[:3])
    if u[5] < probabilities[1]:
        saturation = 0.0
    matrix = brightness * (saturation * np.eye(3) + (1 - saturation) * _GRAY) @ _hue_rotation(signed[3])
    blur = sigma[0] + (sigma[1] - sigma[0]) * u[7] if u[6] < probabilities[2] else 0.0
    return ColorChange(matrix, contrast, blur)


def apply_change(image: np.ndarray, change: ColorChange) -> np.ndarray:
    """Return the changed image, [h, w, 3] uint8.

    Brightness, saturation, hue and contrast are one affine map of RGB, clipped once, which is much faster than four
    maps in turn. The result differs only where intermediate values leave 0..255. Hue turns about the gray axis (in YIQ)
    rather than in HSV, so brightness is kept. Pillow does the arithmetic: a matrix product of NumPy would start BLAS
    threads in every worker, which took a hundred times as long on busy cores.

    Args:
        image: Image [h, w, 3] uint8.
        change: Changes to apply.
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
    """Return the [3, 3] matrix that turns colors about the gray axis by `share` of the full circle."""
    cos, sin = math.cos(2 * math.pi * share), math.sin(2 * math.pi * share)
    return np.linalg.inv(_YIQ) @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ _YIQ
