"""Procedural furnished rooms: layout, appearance and rendering; no files, no training."""

from prior3d_plugins.datasets.synthetic_rooms.dataset import SyntheticRooms

__all__ = ["SyntheticRooms"]
