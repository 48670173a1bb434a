"""Placement of an image in the output: one affine map, scale and translation, that moves all fields of a view.

`Placement.move` moves a field according to its entry in the table of fields.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from prior3d.contracts.fields import Field

_LEAST_BOX = 1e-3
"""Pixels; a thinner clipped box has no area except rounding."""


@dataclass(frozen=True)
class Placement:
    """The part of an image that fills the output: the one affine map of a view.

    Attributes:
        box: Left, top, right, bottom in pixels of the image (pixel centers at +0.5).
        image_size: Height and width of the image, pixels.
        size: Height and width of the output, pixels.
        mirrored: Whether left and right are swapped in the output.
    """

    box: tuple[float, float, float, float]
    image_size: tuple[int, int]
    size: tuple[int, int]
    mirrored: bool = False

    @property
    def output_from_image(self) -> np.ndarray:
        """Homography [3, 3]: pixels of the image to pixels of the output, centers at +0.5."""
        left, top, right, bottom = self.box
        (height, width), direction = self.size, -1 if self.mirrored else 1
        scale_x, scale_y = direction * width / (right - left), height / (bottom - top)
        start = right if self.mirrored else left
        return np.array([[scale_x, 0, -scale_x * start], [0, scale_y, -scale_y * top], [0, 0, 1.0]])

    def move(self, field: Field, value: np.ndarray) -> np.ndarray:
        """Return the value that a stacked field has in the output.

        Args:
            field: Field; its entry in the table sets how it moves. Boxes move by `boxes`.
            value: Value of the field in a view.
        """
        if field.moves == "resample":
            return self.resample(value)
        if field.moves == "nearest":
            return self.nearest(value)
        if field.moves == "vectors":
            return self.nearest_vectors(value)
        return self.output_from_image @ value if field.moves == "intrinsics" else value

    def boxes(self, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return boxes [m, 4] clipped to the output, and which rows [m] int64 of the given boxes they are.

        Boxes without any area left are dropped.

        Args:
            boxes: Boxes [n, 4] left, top, right, bottom, pixels of the image.
        """
        corners = np.asarray(boxes, np.float64).reshape(-1, 2, 2)
        affine = self.output_from_image
        moved = corners * affine.diagonal()[:2] + affine[:2, 2]
        height, width = self.size
        low, high = (side(axis=1).clip(0, (width, height)) for side in (moved.min, moved.max))
        kept = np.flatnonzero((high - low > _LEAST_BOX).all(1))
        return np.concatenate([low, high], axis=1)[kept], kept

    def resample(self, values: np.ndarray) -> np.ndarray:
        """Return [H, W] or [H, W, C]: values of pixels, resized with antialiasing.

        Args:
            values: Values [h', w'] or [h', w', C], uint8 or float32, over the image's field of view at any resolution.
        """
        if values.shape[:2] != self.image_size:
            ratios = np.divide(values.shape[:2], self.image_size)[::-1]
            box = tuple(float(side) for side in np.array(self.box) * np.tile(ratios, 2))
            return Placement(box, values.shape[:2], self.size, self.mirrored).resample(values)
        values = values if values.dtype == np.uint8 else values.astype(np.float32)
        if values.ndim == 2 or (values.dtype == np.uint8 and values.shape[2] == 3):
            return self.image(values)
        return np.stack([self.image(channel) for channel in np.moveaxis(values, -1, 0)], axis=-1)

    def image(self, image: np.ndarray) -> np.ndarray:
        """Return [H, W, 3] uint8: the box of an image [h, w, 3] uint8, resized with antialiasing; same for [h, w]."""
        height, width = self.size
        whole = self.box == (0, 0, width, height) and self.image_size == self.size
        if not whole:
            # reducing_gap: shrinking more than fourfold first averages whole pixels, which is faster and as smooth
            resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR, self.box, 2.0)
            image = np.asarray(resized)
        return image[:, ::-1] if self.mirrored else image

    def nearest(self, values: np.ndarray) -> np.ndarray:
        """Return [H, W] or [H, W, C]: the values nearest to the output's pixel centers, not mixed across edges.

        Args:
            values: Values [h', w'] or [h', w', C] over the image's field of view at any resolution.
        """
        rows = self._indices(values.shape[0], axis=0)
        columns = self._indices(values.shape[1], axis=1)
        return values[rows[:, None], columns[None, :]]

    def nearest_vectors(self, vectors: np.ndarray) -> np.ndarray:
        """Return [H, W, C] as `nearest` does, for vectors; in a mirrored output their first component changes sign."""
        placed = self.nearest(vectors)
        if not self.mirrored:
            return placed
        return placed * np.array([-1, *[1] * (placed.shape[-1] - 1)], placed.dtype)

    def _indices(self, cells: int, axis: int) -> np.ndarray:
        start, stop = self.box[1 - axis], self.box[3 - axis]
        centers = start + (np.arange(self.size[axis]) + 0.5) * ((stop - start) / self.size[axis])
        indices = (centers * (cells / self.image_size[axis])).astype(np.int64).clip(0, cells - 1)
        return indices[::-1] if axis == 1 and self.mirrored else indices


def centered(image_size: tuple[int, int], size: tuple[int, int]) -> Placement:
    """Return the largest centered crop of the output's aspect: the placement without augmentation."""
    return crop(image_size, size, 1.0, 0.5, 0.5, mirrored=False)


def crop(
    image_size: tuple[int, int], size: tuple[int, int], share: float, across: float, down: float, *, mirrored: bool
) -> Placement:
    """Place a crop of the output's aspect whose sides are `share` of the largest such crop's.

    Args:
        image_size: Height and width of the image, pixels.
        size: Height and width of the output, pixels.
        share: Side of the crop over that of the largest crop.
        across: Horizontal position: 0 = at the left edge, 1 = at the right edge.
        down: Vertical position: 0 = at the top edge, 1 = at the bottom edge.
        mirrored: Whether left and right are swapped.
    """
    (height, width), (out_height, out_width) = image_size, size
    pixels_per_output = share * min(height / out_height, width / out_width)
    crop_height = min(out_height * pixels_per_output, height)  # min: PIL refuses a box that rounding pushes outside
    crop_width = min(out_width * pixels_per_output, width)
    left, top = across * (width - crop_width), down * (height - crop_height)
    box = (left, top, min(left + crop_width, width), min(top + crop_height, height))
    return Placement(box, image_size, size, mirrored)
