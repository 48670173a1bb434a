"""The pixel-voxel prior: its voxel chunks, its matches, its pictures; sparse convolution itself is `prior3d.sparse`."""

from prior3d_plugins.priors.pixel_voxel.prior import PixelVoxel

__all__ = ["PixelVoxel"]
