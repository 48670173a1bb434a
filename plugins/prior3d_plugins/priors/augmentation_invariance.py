"""Augmentation invariance, the 2D-only baseline: the same pixel in two augmented crops gets the same feature."""

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from matplotlib.figure import Figure
from torch import Tensor

from prior3d import BackboneSpec, Batch, Features, Prior
from prior3d.figures import plot_matches
from prior3d.geometry import full_precision, pixel_centers, warp_pixels
from prior3d.losses import CellMatches, compact, gather_pairs, kept_fraction, masked_point_info_nce, sample_cell_matches


class AugmentationInvariance(Prior):
    """PointInfoNCE between two augmented crops of one image: the baseline without any 3D.

    The loss, the sampling and the number of encoded images per sample are those of `view_invariance`. Only the source
    of the matches differs.

    Args:
        backbone: specification of the features.
        temperature: softmax temperature; cosine similarities are divided by it.
        points: maximum number of matches sampled per image, at most one per feature cell.
        negatives: source of the negatives: the same two crops (`pair`), or every image of the batch (`batch`).

    Reference:
        Dense contrastive learning as in Pinheiro et al., VADeR, NeurIPS 2020, arXiv 2011.05499, without its memory
        bank and momentum encoder. It stays as close as possible to `view_invariance` because the two are compared.
    """

    encodes = ("image_crops",)
    needs = ("image_crops", "crop_from_image")
    reads = frozenset({"dense"})
    capturable = True

    def __init__(
        self,
        backbone: BackboneSpec,
        *,
        temperature: Annotated[float, Gt(0)] = 0.1,
        points: Annotated[int, Ge(2), Le(10**6)] = 384,
        negatives: Literal["pair", "batch"] = "pair",
    ) -> None:
        super().__init__(backbone)
        self.temperature = temperature
        self.points = points
        self.negatives = negatives

    def forward(self, batch: Batch, features: Mapping[str, Features]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and the share of filled match slots."""
        dense = features["image_crops"].dense
        match = self._sample(batch)
        queries, keys = gather_pairs(dense, match.cells_a, match.cells_b)
        loss = masked_point_info_nce(queries, keys, match.valid, self.temperature, negatives=self.negatives)
        return loss, {"matches": kept_fraction(match.valid)}

    def plot(self, batch: Batch, features: Mapping[str, Features]) -> dict[str, Figure]:
        """Plot the matches between the two crops of the first image."""
        match = self._sample(batch)
        crops, valid = batch["image_crops"][0], match.valid[0]
        pixels = (compact(pixels[0], valid) for pixels in (match.pixels_a, match.pixels_b))
        return {"matches": plot_matches(crops[0], crops[1], *pixels)}

    def _sample(self, batch: Batch) -> CellMatches:
        height, width = self.backbone.size
        crop_from_image = batch["crop_from_image"].float()
        pixels_a = pixel_centers(height, width, crop_from_image.device).reshape(1, -1, 2)
        pixels_a = pixels_a.expand(len(crop_from_image), -1, -1)
        with full_precision(crop_from_image.device):
            b_from_a = crop_from_image[:, 1] @ _inverse(crop_from_image[:, 0])
        pixels_b = warp_pixels(b_from_a, pixels_a)
        inside = (pixels_b >= 0).all(-1) & (pixels_b[..., 0] < width) & (pixels_b[..., 1] < height)
        return sample_cell_matches(
            pixels_a, pixels_b, inside, self.backbone.dense_size, self.backbone.dense_stride, self.points
        )


def _inverse(matrices: Tensor) -> Tensor:
    """Invert matrices [B, 3, 3]; on a GPU by cross products, since torch's inverse waits for the device."""
    if not matrices.is_cuda:
        return torch.linalg.inv(matrices)
    first, second, third = matrices.unbind(1)
    columns = [torch.linalg.cross(*pair) for pair in ((second, third), (third, first), (first, second))]
    determinant = (first * columns[0]).sum(-1)
    return torch.stack(columns, dim=-1) / determinant[:, None, None]
