"""From features at points to density and color, and rendering of rays and whole pictures of the planes."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prior3d.geometry import in_full_precision
from prior3d.volume.pixels import pixel_positions
from prior3d.volume.planes import sample_planes
from prior3d.volume.rays import RaySamples, Space
from prior3d.volume.rendering import Rendered, render_rays


def linear_tail_exp(x: Tensor, knee: float = 5.0) -> Tensor:
    """Exponential that continues as its tangent above `knee`: it never overflows, and its gradient never vanishes."""
    return torch.exp(x.clamp(max=knee)) * (1 + F.relu(x - knee))


class RadianceMLP(nn.Module):
    """Small network from plane features to density and color.

    Args:
        feature_channels: channels F of the features (three times the planes' for `concat`).
        hidden: channels of the hidden layers.
        layers: number of hidden layers.
        density: `softplus` or `exp` (continued linearly above its knee).
        density_bias: bias before that activation. At -1, softplus starts at a density of 0.31: a ray of length 2 keeps
            half its light, so every sample on it gets a gradient.

    Raises:
        ValueError: if `density` is unknown.

    Reference:
        Chan et al. 2022, arXiv 2112.07945: softplus layers, bias -1, sigmoid widened by 0.001 (Barron et al. 2021,
        arXiv 2103.13415) so pure black and white can be reached.

    >>> density, color = RadianceMLP(9, hidden=8)(torch.rand(2, 5, 9))
    >>> density.shape, color.shape
    (torch.Size([2, 5]), torch.Size([2, 5, 3]))
    """

    def __init__(
        self,
        feature_channels: int,
        hidden: int = 64,
        layers: int = 2,
        density: str = "softplus",
        density_bias: float = -1.0,
    ) -> None:
        super().__init__()
        if density not in ("softplus", "exp"):
            raise ValueError(f"expected density 'softplus' or 'exp', got {density!r}")
        self.density, self.density_bias = density, density_bias
        sizes = [feature_channels] + [hidden] * layers
        steps = [step for a, b in pairwise(sizes) for step in (nn.Linear(a, b), nn.Softplus())]
        self.network = nn.Sequential(*steps, nn.Linear(sizes[-1], 4))
        for step in self.network[:-1:2]:
            # torch's default weights shrink the differences between points to a third in each of these layers: colors
            # then stay gray for hundreds of steps
            nn.init.normal_(step.weight, std=math.sqrt(2 / step.in_features))
            nn.init.zeros_(step.bias)
        nn.init.zeros_(self.network[-1].bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate the field at points.

        Args:
            features: [..., F] features at the points.

        Returns:
            [...] non-negative density per unit of length, and [..., 3] RGB in 0..1 (up to 0.001 beyond).
        """
        out = self.network(features)
        raw_density = out[..., 0] + self.density_bias
        density = F.softplus(raw_density) if self.density == "softplus" else linear_tail_exp(raw_density)
        return density, torch.sigmoid(out[..., 1:]) * 1.002 - 0.001


@in_full_precision
def render_planes(planes: Tensor, field: RadianceMLP, samples: RaySamples, *, reduce: str = "concat") -> Rendered:
    """Render rays through planes, in float32 with autocast off.

    Light that no sample stops ends at the far plane, in the color of the ray's last sample.

    Args:
        planes: [N, 3, P, S, S] feature planes of any dtype.
        field: network from plane features to density and color.
        samples: samples along the rays, from `Space.samples`.
        reduce: how the planes' features are joined, see `sample_planes`.

    Returns:
        The rendered rays with RGB as values.

    >>> from prior3d.volume import FrustumSpace
    >>> samples = FrustumSpace().samples(torch.zeros(1, 2, 2), count=4)
    >>> render_planes(torch.rand(1, 3, 3, 4, 4), RadianceMLP(9, hidden=8), samples).values.shape
    torch.Size([1, 2, 3])
    """
    features = sample_planes(planes, samples.points.flatten(1, 2), reduce=reduce)
    density, rgb = field(features.unflatten(1, samples.points.shape[1:3]))
    return render_rays(
        density * samples.inside, rgb, samples.deltas, samples.depth, samples.far, background=rgb[:, :, -1]
    )


@torch.no_grad()
def render_view(
    planes: Tensor,
    field: RadianceMLP,
    space: Space,
    height: int,
    width: int,
    samples: int,
    *,
    canonical_from_camera: Tensor | None = None,
    reduce: str = "concat",
    chunk: int = 4096,
) -> tuple[Tensor, Tensor, Tensor]:
    """Render whole pictures without gradients.

    Args:
        planes: [N, 3, P, S, S] feature planes.
        field: network from plane features to density and color.
        space: camera and box.
        height: picture height H in pixels.
        width: picture width W in pixels.
        samples: samples per ray, at their bins' midpoints.
        canonical_from_camera: [4, 4] pose of another camera; the fixed camera if None.
        reduce: how the planes' features are joined, see `sample_planes`.
        chunk: number of rays of each image to render at once.

    Returns:
        [N, 3, H, W] RGB, [N, H, W] expected depth in the space's unit along the camera's axis, [N, H, W] opacity.

    >>> from prior3d.volume import FrustumSpace
    >>> planes, field = torch.rand(1, 3, 3, 4, 4), RadianceMLP(9, hidden=8)
    >>> rgb, depth, opacity = render_view(planes, field, FrustumSpace(), height=4, width=6, samples=4)
    >>> rgb.shape, depth.shape
    (torch.Size([1, 3, 4, 6]), torch.Size([1, 4, 6]))
    """
    indices = torch.arange(height * width, device=planes.device).expand(len(planes), -1)
    parts = []
    for part in pixel_positions(indices, height, width).split(chunk, dim=1):
        rays = space.samples(part, samples, aspect=width / height, canonical_from_camera=canonical_from_camera)
        rendered = render_planes(planes, field, rays, reduce=reduce)
        parts.append((rendered.values, rendered.depth.unsqueeze(-1), rendered.opacity.unsqueeze(-1)))
    rgb, depth, opacity = (
        torch.cat(maps, dim=1).transpose(1, 2).unflatten(2, (height, width)) for maps in zip(*parts, strict=True)
    )
    return rgb, depth.squeeze(1), opacity.squeeze(1)
