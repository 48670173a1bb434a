"""The pixel-voxel prior: voxel chunks, matches and figures; sparse convolution itself is `prior3d.sparse`."""

from prior3d_plugins.priors.pixel_voxel.prior import PixelVoxel

__all__ = ["PixelVoxel"]
