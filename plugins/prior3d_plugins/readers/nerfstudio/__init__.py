"""The reader of nerfstudio's `transforms.json`, also as instant-ngp and the Blender scenes of NeRF write it."""

from prior3d_plugins.readers.nerfstudio.reader import Nerfstudio

__all__ = ["Nerfstudio"]
