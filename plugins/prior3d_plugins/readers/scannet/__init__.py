"""ScanNet: `.sens` files, exported folders and `scannet_frames_25k`, with labels, meshes and axis alignment."""

from prior3d_plugins.readers.scannet.reader import ScanNet

__all__ = ["ScanNet"]
