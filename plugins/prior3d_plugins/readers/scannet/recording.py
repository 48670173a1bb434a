"""A ScanNet scene of any layout with what comes next to its frames: alignment, mesh, labels."""

import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from prior3d import Cloud, Recording, View
from prior3d.data.posed import read_ply
from prior3d_plugins.readers.scannet.alignment import AlignedFrames, aligned_cloud
from prior3d_plugins.readers.scannet.labels import SceneLabels


class ScanNetRecording(Recording):
    """A recording with the scene's alignment, mesh and labels added.

    Args:
        pixels: recording of color, depth and poses.
        labels: label images of its frames.
        world_from_scan: axis alignment [4, 4]; None to keep the axes of the scan.
        mesh: the scene's mesh, in the axes of the scan; it need not exist.
    """

    def __init__(self, pixels: Recording, labels: SceneLabels, world_from_scan: np.ndarray | None, mesh: Path) -> None:
        self._pixels = pixels
        self._labels = labels
        self._world_from_scan = world_from_scan
        self._mesh = mesh
        self.frames = pixels.frames if world_from_scan is None else AlignedFrames(pixels.frames, world_from_scan)
        self.notes = [*pixels.notes, *labels.notes]

    def read(self, frame: int, fields: frozenset[str]) -> View:
        """Decode one frame and its labels; see `Recording.read`."""
        view = self._pixels.read(frame, fields)
        for name, values in self._labels.read(frame, fields).items():
            view[name] = values
        return view

    def fingerprint(self, frames: Sequence[int] | None = None) -> str:
        """Return a text that changes with the files of pixels, labels and mesh, and with the options."""
        aligned = None if self._world_from_scan is None else self._world_from_scan.tolist()
        found = hashlib.sha256(f"{self._pixels.fingerprint(frames)} {aligned} {self._labels.facts}".encode())
        chosen = range(len(self.frames)) if frames is None else frames
        for path in (self._mesh, *self._labels.files(chosen)):
            with contextlib.suppress(FileNotFoundError):  # decoding reports it
                status = path.stat()
                found.update(f"{path.parent.name}/{path.name} {status.st_size} {status.st_mtime_ns};".encode())
        return found.hexdigest()

    def surface(self) -> Cloud | None:
        """Return the vertices of the scene's cleaned mesh, `<scene>_vh_clean_2.ply`; None if it is not there."""
        if not self._mesh.exists():
            return None
        cloud = read_ply(self._mesh)
        return cloud if self._world_from_scan is None else aligned_cloud(cloud, self._world_from_scan)
