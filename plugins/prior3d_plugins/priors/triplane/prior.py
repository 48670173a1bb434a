"""Tri-plane: from the features of ONE image a small decoder shall build a volume that renders to it, depth included."""

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
"""Error from which smooth L1 is linear: colours lie in 0..1, where the usual 1 would leave half a squared error."""


class Triplane(Prior):
    """Render each image and its depth from three feature planes decoded from its own tokens.

    One image at a time, one fixed camera, no poses: (pseudo-)depth of unknown scale and shift is all the 3D there is.
    The encoder sees the augmented image, the target are its pixels without photometric changes. The features may not
    drift from those of the initial encoder, where that had weights worth keeping: set `distill_weight: 0` when training
    from random weights.

    Args:
        backbone: what the features look like.
        decoder: `triplane`, or `dpt` for the ablation: convolutions from the same tokens to colour and depth, with the
            same losses but for opacity, so that a user can see what the volume adds.
        stride: of the encoder map that is decoded, pixels per cell; null for the coarsest of stride 16 or less. With
            coarser maps each token stands for too much of the image, and colours stay blurred.
        space: where the volume lies: in the camera's `frustum`, even in inverse depth (needs no field of view), or in a
            `cube` before a long lens of 18 degrees.
        images: images per step and device that are reconstructed, drawn from the batch.
        rays: pixels drawn of each of them.
        samples: samples along each ray.
        width: channels within the decoder.
        blocks: transformer blocks of the token decoder; of `triplane` only.
        plane_size: cells along each side of a plane; of `triplane` only.
        plane_channels: channels of a plane; of `triplane` only.
        rgb_weight: of the smooth L1 loss between rendered and true colour.
        depth_weight: of the scale-and-shift-invariant loss on pseudo-depth (depth or disparity as its file says), or
            on metric depth where the dataset has no other. 0 needs no depth at all.
        opacity_weight: of the mean share of a ray that nothing stops: keeps the volume from staying a haze.
        distill_weight: of the distance of that map and of the pooled features from the initial encoder's. 0 spares its
            pass.
        distill_distance: cosine, l2 or the sum of both.

    Reference:
        In the spirit of Aygün et al., Enhancing 2D Representation Learning with a 3D Prior, 2024, arXiv 2406.02535: a
        tri-plane decoder on a pre-trained encoder, volume rendering of the same single view's colour and pseudo-depth,
        distillation of the initial features. There is no public code, and no number was known to us: sizes, spaces,
        samples, losses, their weights, the opacity term and the `dpt` ablation are our choices.
    """

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
            raise UserError("rgb_weight and depth_weight are both 0: nothing is left to reconstruct")
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
        """Return the loss, its terms, and how well colour and depth are met."""
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
        """Draw the first view of two samples, rendered; of a volume also a small orbit."""
        tokens = features["image"].encoder[self.stride][:2, 0]
        given, disparity = None, [False] * len(tokens)
        if self.weights["depth_loss"]:
            maps, kind = _depth_and_kind(batch)
            given, disparity = maps[:2, 0], (kind[:2, 0] == 1).tolist()
        return plot_reconstruction(self.decoder, tokens, batch["image"][:2, 0], given, disparity)

    def _choose(self, total: int, device: torch.device) -> Tensor:
        """Draw which of the batch's images are reconstructed, [N] int64, without waiting for the device."""
        return torch.rand(total, device=device).topk(min(self.images, total)).indices

    def _compare_depth(self, batch: Batch, seen: Seen, chosen: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        maps, kind = (values.flatten(0, 1).index_select(0, chosen) for values in _depth_and_kind(batch))
        target = read_pixels(maps.float(), indices)
        known = known_depth(target)
        prediction = in_file_space(seen.depth, seen.inverse_depth, kind)
        loss = scale_and_shift_invariant_loss(prediction, target, known)
        return loss, depth_correlation(prediction, target, known)

    def _distill(self, feature: Features) -> dict[str, Tensor]:
        """Compare ALL images of the batch with the reference, not only those that are rendered: it costs nothing."""
        reference, distance = feature.reference, self.distill_distance
        maps = feature.encoder[self.stride], reference.encoder[self.stride]
        return {
            "distill_map": distillation(*maps, distance),
            "distill_pooled": distillation(feature.pooled, reference.pooled, distance),
        }

    def _connection(self, feature: Features) -> Tensor:
        """Connect the map that is decoded, and coarser ones, with a zero: who reads the encoder trains all of it.

        On several ranks a parameter without a gradient stops the run.
        """
        return sum(map_.flatten()[:0].sum() for stride, map_ in feature.encoder.items() if stride >= self.stride)


def _stride(backbone: BackboneSpec, asked: int | None) -> int:
    strides = sorted(backbone.encoder_channels)
    if asked is not None and asked not in strides:
        raise UserError(f"stride {asked}: the maps of {backbone.name} have stride {', '.join(map(str, strides))}")
    return asked or max((stride for stride in strides if stride <= 16), default=strides[0])


def _depth_and_kind(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return what depth there is [B, V, H, W] and its kind [B, V]: 0 depth, 1 disparity; metric depth is depth."""
    if "pseudo_depth" not in batch:
        return batch["depth"], torch.zeros_like(batch["depth"][:, :, 0, 0], dtype=torch.int64)
    pseudo = batch["pseudo_depth"]
    return pseudo, batch["pseudo_kind"][:, None].expand(pseudo.shape[:2])
