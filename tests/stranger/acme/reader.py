"""Trips: a file format of posed recordings that nobody else has."""

import json

import numpy as np

from prior3d import Camera, DamagedFile, Field, Frame, Reader, Recording, UserError, View
from prior3d.contracts.reader import BY_MARKER
from prior3d.files import fingerprint

KINDS = {"image": ("rgb", np.uint8, 3), "depth": ("range", np.float32, 1), "acme/flow": ("flow", np.float32, 2)}


class Trip(Reader):
    """Trips: `trip.json` (size, focal length, poses), and raw `.rgb`, `.range` and `.flow` for each stop."""

    provides = frozenset(KINDS)
    fields = (Field("acme/flow", "[B, V, 2, H, W]", "float32", "to the next stop, shares of the image", "vectors"),)

    @classmethod
    def recognizes(cls, folder):
        return BY_MARKER if next(folder.glob("**/trip.json"), None) else 0

    def scenes(self):
        if found := sorted(path.parent.relative_to(self.root).as_posix() for path in self.root.glob("**/trip.json")):
            return found
        raise UserError(f"no trip.json in {self.root}", "root")

    def open(self, scene):
        return Stops(self.root / scene)


class Stops(Recording):
    """The stops of one trip."""

    def __init__(self, folder):
        self.folder = folder
        try:
            about = json.loads((folder / "trip.json").read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{folder / 'trip.json'} is damaged", "root") from error
        (height, width), focal = about["size"], about["focal"]
        intrinsics = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
        camera = Camera("pinhole", intrinsics, (height, width), depth_size=(height, width))
        self.frames = [Frame(stop["name"], camera, np.array(stop["pose"])) for stop in about["stops"]]

    def read(self, frame, fields):
        one, values = self.frames[frame], {}
        for field, (ending, dtype, channels) in ((name, KINDS[name]) for name in fields):
            file = self.folder / f"{one.name}.{ending}"
            try:
                values[field] = np.fromfile(file, dtype).reshape(*one.camera.size, channels).squeeze()
            except (OSError, ValueError) as error:
                raise DamagedFile(file, "not the bytes of an image of this size") from error
        return View(values, 0, frame, one.camera.size)

    def fingerprint(self, frames=None):
        names = [one.name for one in (self.frames if frames is None else [self.frames[index] for index in frames])]
        return fingerprint([self.folder / "trip.json", *(path for n in names for path in self.folder.glob(f"{n}.*"))])
