"""Volume rendering from tri-planes: decoder, planes, rays, renderer; no losses, prior or data."""

from prior3d.volume.decoder import TriplaneDecoder
from prior3d.volume.dense_head import DenseHead
from prior3d.volume.field import RadianceMLP, render_planes, render_view
from prior3d.volume.orbit import orbit_pose, small_orbit
from prior3d.volume.pixels import pixel_positions, random_pixels, read_pixels
from prior3d.volume.planes import plane_energy, sample_planes
from prior3d.volume.rays import CubeSpace, FrustumSpace, RaySamples, Space
from prior3d.volume.rendering import Rendered, ray_weights, render_rays

__all__ = [
    "CubeSpace",
    "DenseHead",
    "FrustumSpace",
    "RadianceMLP",
    "RaySamples",
    "Rendered",
    "Space",
    "TriplaneDecoder",
    "orbit_pose",
    "pixel_positions",
    "plane_energy",
    "random_pixels",
    "ray_weights",
    "read_pixels",
    "render_planes",
    "render_rays",
    "render_view",
    "sample_planes",
    "small_orbit",
]
