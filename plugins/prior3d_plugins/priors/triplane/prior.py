"""Tri-plane: a small decoder builds, from the features of one image, a volume that renders to it and its depth."""

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le, MultipleOf
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from prior3d import BackboneSpec, Batch, Features, Prior, UserError
from prior3d.geometry import known_depth
from prior3d.losses import in_file_space, scale_and_shift_invariant_loss
from prior3d.volume import CubeSpace, DenseHead, FrustumSpace, TriplaneDecoder, random_pixels, read_pixels
from prior3d_plugins.priors.triplane.decoders import DenseDecoder, Seen, VolumeDecoder
from prior3d_plugins.priors.triplane.pictures import plot_reconstruction
from prior3d_plugins.priors.triplane.terms import Distance, depth_correlation, distillation, peak_signal_to_noise

Count = Annotated[int, Ge(1), Le(10**6)]
Weight = Annotated[float, Ge(0)]

_COLOR_KNEE = 0.1
"""Error from which smooth L1 is linear. Colors lie in 0..1, where the usual 1 would leave half a squared error."""


class Triplane(Prior):
    """Render each image and its depth from three feature planes, decoded from the image's own tokens.

    There is one image at a time, one fixed camera and no pose. The only 3D is (pseudo-)depth of unknown scale and
    shift. The encoder sees the augmented image; the target has no photometric augmentation. The distillation terms keep
    the features close to those of the initial encoder. With random weights there is nothing to keep: set
    `distill_weight: 0`.

    Args:
        backbone: specification of the features.
        decoder: `triplane`, or `dpt` for the ablation: convolutions from the same tokens to color and depth, with the
            same losses except opacity, which shows what the volume adds.
        stride: stride, in pixels per cell, of the encoder map to decode; null for the coarsest stride of at most 16. On
            coarser maps, each token covers too much of the image and colors stay blurred.
        space: position of the volume: in the camera's `frustum`, evenly spaced in inverse depth (needs no field of
            view), or in a `cube` in front of a long lens of 18 degrees.
        images: number of images to reconstruct per step and device, drawn from the batch.
        rays: number of pixels drawn per image.
        samples: number of samples along each ray.
        width: channels within the decoder.
        blocks: number of transformer blocks of the token decoder; only for `triplane`.
        plane_size: cells along each side of a plane; only for `triplane`.
        plane_channels: channels of a plane; only for `triplane`.
        rgb_weight: weight of the smooth L1 loss between rendered and true color.
        depth_weight: weight of the scale-and-shift-invariant loss on pseudo-depth (depth or disparity, as the file
            states), or on metric depth if the dataset has no pseudo-depth. 0 needs no depth at all.
        opacity_weight: weight of the mean share of a ray that passes through the volume; it keeps the volume from
            staying a haze.
        distill_weight: weight of the distance to the initial encoder, both for the decoded map and for the pooled
            features. 0 saves the forward pass of the initial encoder.
        distill_distance: distance for distillation: `cosine`, `l2` or `both` (their sum).

    Reference:
        In the spirit of Aygün et al., Enhancing 2D Representation Learning with a 3D Prior, 2024, arXiv 2406.02535: a
        tri-plane decoder on a pre-trained encoder, volume rendering of the same single view's color and pseudo-depth,
        distillation of the initial features. There is no public code and we knew none of the numbers: sizes, spaces,
        samples, losses, their weights, the opacity term and the `dpt` ablation are our choices.
    """

    capturable = True

    def __init__(
        self,
        backbone: BackboneSpec,
        *,
        decoder: Literal["triplane", "dpt"] = "triplane",
        stride: Count | None = None,
        space: Literal["frustum", "cube"] = "frustum",
        images: Count = 8,
        rays: Annotated[int, Ge(16), Le(10**6)] = 1024,
        samples: Annotated[int, Ge(2), Le(4096)] = 48,
        width: Annotated[int, Ge(8), Le(2048), MultipleOf(8)] = 256,
        blocks: Annotated[int, Ge(1), Le(64)] = 4,
        plane_size: Annotated[int, Ge(2), Le(1024), MultipleOf(2)] = 32,
        plane_channels: Annotated[int, Ge(1), Le(1024)] = 32,
        rgb_weight: Weight = 1.0,
        depth_weight: Weight = 0.5,
        opacity_weight: Weight = 0.1,
        distill_weight: Weight = 1.0,
        distill_distance: Distance = "both",
    ) -> None:
        super().__init__(backbone)
        if rgb_weight == depth_weight == 0:
            raise UserError("this and depth_weight are both 0: nothing is left to reconstruct", "rgb_weight")
        self.stride = _stride(backbone, stride)
        self.images, self.rays = images, rays
        self.weights = {
            "rgb_loss": rgb_weight,
            "depth_loss": depth_weight,
            "opacity_loss": opacity_weight,
            "distill_map": distill_weight,
            "distill_pooled": distill_weight,
        }
        self.distill_distance: Distance = distill_distance
        box = FrustumSpace() if space == "frustum" else CubeSpace()
        channels = backbone.encoder_channels[self.stride]
        if decoder == "dpt":
            self.decoder = DenseDecoder(DenseHead(channels, width, box.near, box.far), backbone.size)
        else:
            planes = TriplaneDecoder(channels, width, blocks, plane_size=plane_size, plane_channels=plane_channels)
            self.decoder = VolumeDecoder(planes, plane_channels, box, backbone.size, samples)
        self.needs = ("image", "image_clean", *(["pseudo_depth|depth"] if depth_weight else []))
        self.reads = frozenset({"encoder", *(["pooled", "reference"] if distill_weight else [])})

    def forward(self, batch: Batch, features: Mapping[str, Features]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, its terms, and measures of the rendered color and depth."""
        feature = features["image"]
        tokens = feature.encoder[self.stride].flatten(0, 1)
        chosen = self._choose(len(tokens), tokens.device)
        indices = random_pixels(len(chosen), self.rays, *self.backbone.size, device=tokens.device)
        seen = self.decoder(tokens.index_select(0, chosen), indices)
        rgb = read_pixels(batch["image_clean"].flatten(0, 1).index_select(0, chosen), indices)
        terms = {"rgb_loss": F.smooth_l1_loss(seen.rgb, rgb, beta=_COLOR_KNEE)}
        scalars = {"psnr": peak_signal_to_noise(seen.rgb, rgb), **seen.scalars}
        if self.weights["depth_loss"]:
            terms["depth_loss"], scalars["depth_correlation"] = self._compare_depth(batch, seen, chosen, indices)
        if seen.opacity is not None:
            scalars["opacity"] = seen.opacity.mean()
            terms["opacity_loss"] = 1 - scalars["opacity"]
        if self.weights["distill_map"]:
            terms |= self._distill(feature)
        total = sum(self.weights[name] * term for name, term in terms.items())
        return total + self._connection(feature), {**terms, **scalars}

    def plot(self, batch: Batch, features: Mapping[str, Features]) -> dict[str, Figure]:
        """Plot the rendering of the first view of two samples; for a volume, also a small orbit."""
        tokens = features["image"].encoder[self.stride][:2, 0]
        given, disparity = None, [False] * len(tokens)
        if self.weights["depth_loss"]:
            maps, kind = _depth_and_kind(batch)
            given, disparity = maps[:2, 0], (kind[:2, 0] == 1).tolist()
        return plot_reconstruction(self.decoder, tokens, batch["image"][:2, 0], given, disparity)

    def _choose(self, total: int, device: torch.device) -> Tensor:
        """Draw the batch's images to reconstruct, [N] int64, without waiting for the device."""
        return torch.rand(total, device=device).topk(min(self.images, total)).indices

    def _compare_depth(self, batch: Batch, seen: Seen, chosen: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        maps, kind = (values.flatten(0, 1).index_select(0, chosen) for values in _depth_and_kind(batch))
        target = read_pixels(maps.float(), indices)
        known = known_depth(target)
        prediction = in_file_space(seen.depth, seen.inverse_depth, kind)
        loss = scale_and_shift_invariant_loss(prediction, target, known)
        return loss, depth_correlation(prediction, target, known)

    def _distill(self, feature: Features) -> dict[str, Tensor]:
        """Compare all images of the batch with the reference, not only the rendered ones: it costs nothing."""
        reference, distance = feature.reference, self.distill_distance
        maps = feature.encoder[self.stride], reference.encoder[self.stride]
        return {
            "distill_map": distillation(*maps, distance),
            "distill_pooled": distillation(feature.pooled, reference.pooled, distance),
        }

    def _connection(self, feature: Features) -> Tensor:
        """Connect the decoded map and coarser maps to the loss with a zero: the whole encoder takes part in training.

        On several ranks a parameter without a gradient stops the run.
        """
        return sum(map_.flatten()[:0].sum() for stride, map_ in feature.encoder.items() if stride >= self.stride)


def _stride(backbone: BackboneSpec, asked: int | None) -> int:
    strides = sorted(backbone.encoder_channels)
    if asked is not None and asked not in strides:
        known = ", ".join(map(str, strides))
        raise UserError(f"{backbone.name} has no map of stride {asked}; its strides are {known}", "stride")
    return asked or max((stride for stride in strides if stride <= 16), default=strides[0])


def _depth_and_kind(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the depth maps [B, V, H, W] and their kind [B, V]: 0 depth, 1 disparity. Metric depth is of kind depth."""
    if "pseudo_depth" not in batch:
        return batch["depth"], torch.zeros_like(batch["depth"][:, :, 0, 0], dtype=torch.int64)
    pseudo = batch["pseudo_depth"]
    return pseudo, batch["pseudo_kind"][:, None].expand(pseudo.shape[:2])
