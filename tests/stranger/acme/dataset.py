"""Walks: posed data with a field of its own."""

from dataclasses import replace
from pathlib import Path

from prior3d import Field, PosedDataset
from prior3d.data.posed.formats import make_reader


class Walk(PosedDataset):
    """Trips with the flow from each stop to the next.

    Args:
        spec: what every dataset is given.
        root: folder of trips; those whose names begin with `test` are kept for testing.
    """

    provides = PosedDataset.provides | {"acme/flow"}
    fields = (Field("acme/flow", "[B, V, 2, H, W]", "float32", "to the next stop, shares of the image", "vectors"),)
    splits = ("train", "test")

    def __init__(self, spec, *, root: Path):
        super().__init__(spec)
        reader = make_reader(root, "trip", {})
        self.scenes = [name for name in reader.scenes() if name.startswith("test") == (spec.split == "test")]
        self.decoded = reader.provides
        self.trips = [reader.open(name) for name in self.scenes]

    def frame_count(self, scene):
        return len(self.trips[scene].frames)

    def load(self, scene, frame, fields):
        stop = self.trips[scene].frames[frame]
        view = replace(self.trips[scene].read(frame, fields & self.decoded), scene=scene)
        camera = {"intrinsics": stop.camera.intrinsics, "world_from_camera": stop.world_from_camera}
        view.values |= {name: value.copy() for name, value in camera.items() if name in fields}
        return view

    def scene_fingerprint(self, scene):
        return self.trips[scene].fingerprint()
