"""Recordings of files: which pixels an image with an EXIF orientation has, and what the log says of it."""

import numpy as np
import pytest
from PIL import Image

from prior3d.contracts.reader import Camera, Frame
from prior3d.data.posed.cameras import pinhole
from prior3d.data.posed.files import FileRecording, color_size
from prior3d.errors import DamagedFile

PIXELS = np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)


@pytest.fixture
def turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif)
    return tmp_path / "a.png"


def recording(path, size, **options):
    camera = Camera("pinhole", pinhole(8, 8, size[1] / 2, size[0] / 2), size)
    return FileRecording([Frame("a", camera, np.eye(4))], [{"image": path}], {}, **options)


@pytest.mark.parametrize(
    ("size", "orientation", "pixels", "note"),
    [
        ((6, 8), "stored", PIXELS, "images are read as stored, and their EXIF orientation goes unused"),
        (
            (8, 6),
            "stored",
            np.rot90(PIXELS, -1),
            "images are turned by their EXIF orientation: intrinsics are of 6 x 8",
        ),
        ((8, 6), "upright", np.rot90(PIXELS, -1), "images are turned by their EXIF orientation"),
    ],
)
def test_a_reader_says_which_pixels_the_intrinsics_belong_to(turned, size, orientation, pixels, note):
    opened = recording(turned, size, orientation=orientation, notes=["other"])
    assert np.array_equal(opened.read(0, frozenset({"image"}))["image"], pixels)
    other, about = opened.notes
    assert other == "other" and about.startswith(note)
    assert color_size([turned], "stored") == (6, 8) and color_size([turned], "upright") == (8, 6)


def test_images_without_orientation_need_no_note_and_damage_is_found_on_reading(tmp_path, turned):
    Image.fromarray(PIXELS).save(tmp_path / "b.png")
    assert list(recording(tmp_path / "b.png", (6, 8)).notes) == []
    turned.write_bytes(turned.read_bytes()[:20])
    broken = recording(turned, (6, 8))
    assert list(broken.notes) == []
    with pytest.raises(DamagedFile):
        broken.read(0, frozenset({"image"}))
