"""Procedural furnished rooms: what stands where, how it looks, how it is rendered; no files, no training."""

from prior3d_plugins.datasets.synthetic_rooms.dataset import SyntheticRooms

__all__ = ["SyntheticRooms"]
