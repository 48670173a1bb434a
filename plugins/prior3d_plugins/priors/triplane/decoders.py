"""Decode encoder tokens to the color and depth of pixels: through a volume, or directly (the ablation)."""

from typing import NamedTuple

from torch import Tensor, nn

from prior3d.volume import (
    DenseHead,
    RadianceMLP,
    Space,
    TriplaneDecoder,
    pixel_positions,
    plane_energy,
    read_pixels,
    render_planes,
    render_view,
)


class Seen(NamedTuple):
    """Output of a decoder for R pixels of N images.

    Attributes:
        rgb: [N, R, 3].
        depth: [N, R] expected depth E[t], in the space's unit.
        inverse_depth: [N, R] expected inverse depth E[1/t].
        opacity: [N, R] share of each ray that ends before its far end; None without a volume.
        scalars: values to log.
    """

    rgb: Tensor
    depth: Tensor
    inverse_depth: Tensor
    opacity: Tensor | None
    scalars: dict[str, Tensor]


class VolumeDecoder(nn.Module):
    """Decode tokens to three planes and render them from the space's fixed camera.

    Args:
        planes_from_tokens: token decoder; the only part that runs under autocast.
        plane_channels: channels of each plane.
        space: camera and box.
        size: height and width of the images in pixels.
        samples: samples per ray, stratified in training mode, at their bins' midpoints otherwise.
    """

    def __init__(
        self,
        planes_from_tokens: TriplaneDecoder,
        plane_channels: int,
        space: Space,
        size: tuple[int, int],
        samples: int,
    ) -> None:
        super().__init__()
        self.planes_from_tokens = planes_from_tokens
        self.field = RadianceMLP(3 * plane_channels)
        self.space, self.size, self.samples = space, size, samples

    def forward(self, tokens: Tensor, indices: Tensor) -> Seen:
        """Render pixels `indices` [N, R] (row-major) of the images behind `tokens` [N, C, h, w]."""
        height, width = self.size
        planes = self.planes_from_tokens(tokens)
        rays = self.space.samples(
            pixel_positions(indices, height, width), self.samples, jitter=self.training, aspect=width / height
        )
        out = render_planes(planes, self.field, rays)
        # centered: the fixed camera constrains XZ and YZ only in how they vary
        energy = plane_energy(planes.detach(), centered=True)
        scalars = {f"energy_{name}": value for name, value in zip(("xy", "xz", "yz"), energy.unbind(), strict=True)}
        return Seen(out.values, out.depth, out.inverse_depth, out.opacity, scalars)

    def picture(self, tokens: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Render whole images of a given size in pixels: RGB [N, 3, H, W] and depth [N, H, W]."""
        return render_view(self.planes_from_tokens(tokens), self.field, self.space, *size, self.samples)[:2]

    def orbit(self, tokens: Tensor, size: tuple[int, int], poses: Tensor) -> list[Tensor]:
        """Render RGB [N, 3, H, W] from each of the cameras `poses` (canonical_from_camera, [K, 4, 4])."""
        planes = self.planes_from_tokens(tokens)
        return [
            render_view(planes, self.field, self.space, *size, self.samples, canonical_from_camera=pose)[0]
            for pose in poses
        ]


class DenseDecoder(nn.Module):
    """Decode tokens to dense maps by convolutions and read the same pixels: the ablation without a volume.

    Args:
        head: convolutions.
        size: height and width of the images in pixels.
    """

    def __init__(self, head: DenseHead, size: tuple[int, int]) -> None:
        super().__init__()
        self.head, self.size = head, size

    def forward(self, tokens: Tensor, indices: Tensor) -> Seen:
        """Read the maps of `tokens` [N, C, h, w] at pixels `indices` [N, R] (row-major)."""
        rgb, depth = self.head(tokens, *self.size)
        depth = read_pixels(depth, indices)
        return Seen(read_pixels(rgb, indices), depth, 1 / depth, None, {})

    def picture(self, tokens: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Decode whole images of a given size in pixels: RGB [N, 3, H, W] and depth [N, H, W]."""
        return self.head(tokens, *size)
