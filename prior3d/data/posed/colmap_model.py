"""COLMAP's sparse models, binary and text: cameras, images with poses, and points with their tracks.

pycolmap reads them, too. These functions open a model faster, since they skip what a list of frames does not need, and
they need no library.
"""

import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from prior3d.contracts.reader import Camera
from prior3d.data.decoding import damage
from prior3d.data.posed.cameras import pinhole
from prior3d.errors import DamagedFile, UserError

_PARAMETERS = {
    "SIMPLE_PINHOLE": 3,
    "PINHOLE": 4,
    "SIMPLE_RADIAL": 4,
    "RADIAL": 5,
    "OPENCV": 8,
    "OPENCV_FISHEYE": 8,
    "FULL_OPENCV": 12,
    "FOV": 5,
    "SIMPLE_RADIAL_FISHEYE": 4,
    "RADIAL_FISHEYE": 5,
    "THIN_PRISM_FISHEYE": 12,
    "RAD_TAN_THIN_PRISM_FISHEYE": 16,
    "SIMPLE_DIVISION": 4,
    "DIVISION": 5,
    "SIMPLE_FISHEYE": 3,
    "FISHEYE": 4,
    "EUCM": 6,
    "EQUIRECTANGULAR": 2,
}
"""Number of parameters of each camera model, in the order of COLMAP's ids."""

_ONE_FOCAL = ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE", "SIMPLE_FISHEYE")
_FISHEYE = ("SIMPLE_FISHEYE", "FISHEYE", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE", "OPENCV_FISHEYE")
_PERSPECTIVE = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV")

_POINT = np.dtype([("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("length", "<u8")])
_LENGTH_AT = _POINT.itemsize - 8
_NEWER = "is it of a newer COLMAP? export it as text or binary with an older one"


class ColmapCamera(NamedTuple):
    """A camera of a model: COLMAP's name of its lens model, width and height in pixels, and its parameters."""

    model: str
    width: int
    height: int
    parameters: tuple[float, ...]

    def described(self, size: tuple[int, int] | None = None, depth_size: tuple[int, int] | None = None) -> Camera:
        """Return the camera in OpenCV's terms; lenses without distortion are pinholes.

        >>> ColmapCamera("SIMPLE_RADIAL", 640, 480, (500, 320, 240, 0.1)).described().distortion
        (0.1, 0.0, 0.0, 0.0)

        Args:
            size: Height and width of the images; by default those of the camera.
            depth_size: Height and width of the depth maps.

        Raises:
            UserError: OpenCV has no such lens model; the key is `root`.
        """
        if self.model not in (*_PERSPECTIVE, *_FISHEYE):
            advice = "run `colmap image_undistorter` and read its output"
            raise UserError(f"the camera model {self.model} cannot be read: {advice}", "root")
        focal = 1 if self.model in _ONE_FOCAL else 2
        fx, fy, (cx, cy) = self.parameters[0], self.parameters[focal - 1], self.parameters[focal : focal + 2]
        distortion = self.parameters[focal + 2 :]
        distortion = (*distortion, *(0.0,) * (4 - len(distortion)))
        kind = "fisheye" if self.model in _FISHEYE else "opencv" if any(distortion) else "pinhole"
        return Camera(
            kind,
            pinhole(fx, fy, cx, cy),
            (self.height, self.width) if size is None else size,
            () if kind == "pinhole" else distortion,
            depth_size,
        )


class ColmapImage(NamedTuple):
    """An image of a model: its number, its name, the number of its camera and its pose.

    The pose is the rotation as a quaternion w, x, y, z and the translation, camera from world, OpenCV axes.
    """

    number: int
    name: str
    camera: int
    quaternion: tuple[float, ...]
    translation: tuple[float, ...]

    @property
    def world_from_camera(self) -> np.ndarray | None:
        """Pose [4, 4] of the camera in units of the model; None if its numbers make no pose."""
        w, x, y, z = numbers = np.array(self.quaternion)
        length = np.linalg.norm(numbers)
        if not (np.isfinite(length) and length > 0 and np.isfinite(self.translation).all()):
            return None
        w, x, y, z = numbers / length
        world_from_camera = np.eye(4)
        world_from_camera[:3, :3] = [
            [1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)],
            [2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)],
            [2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)],
        ]
        world_from_camera[:3, 3] = -world_from_camera[:3, :3] @ self.translation
        return world_from_camera


class ColmapPoints(NamedTuple):
    """The points of a model, and which images see them.

    Attributes:
        points: [N, 3] float64, world axes, units of the model.
        colors: [N, 3] uint8 RGB.
        rows: [T] int64, a row of `points` for each observation, ascending.
        images: [T] int64, the number of the image that made it.
    """

    points: np.ndarray
    colors: np.ndarray
    rows: np.ndarray
    images: np.ndarray


def colmap_file(folder: Path, name: str) -> Path | None:
    """Return the file `cameras`, `images` or `points3D` of a model, binary before text; None if there is none."""
    return next((path for end in ("bin", "txt") if (path := folder / f"{name}.{end}").exists()), None)


def read_colmap_cameras(path: Path) -> dict[int, ColmapCamera]:
    """Return {number: camera} of a file `cameras.bin` or `cameras.txt`.

    Raises:
        UserError: The file cannot be read; the key is `root`.
    """
    with _refused(path):
        found = list(_binary_cameras(_mapped(path)) if path.suffix == ".bin" else _text_cameras(path))
    return dict(found)


def read_colmap_images(path: Path) -> list[ColmapImage]:
    """Return the images of a file `images.bin` or `images.txt`, sorted by name; their 2D points are skipped.

    Raises:
        UserError: The file cannot be read; the key is `root`.
    """
    with _refused(path):
        found = list(_binary_images(_mapped(path)) if path.suffix == ".bin" else _text_images(path))
    return sorted(found, key=lambda image: image.name)


def read_colmap_points(path: Path) -> ColmapPoints:
    """Return the points of a file `points3D.bin` or `points3D.txt`.

    Raises:
        DamagedFile: The file cannot be read.
    """
    with damage(path):
        found = _binary_points(_mapped(path)) if path.suffix == ".bin" else _text_points(path)
        if not np.isfinite(found.points).all():
            raise ValueError("a point is not finite")
    return found


@contextmanager
def _refused(path: Path) -> Iterator[None]:
    """Turn the errors of broken bytes into a `UserError`: without cameras and poses there is nothing to read."""
    try:
        with damage(path):
            yield
    except DamagedFile as error:
        raise UserError(f"{error.path}: {error.why}", "root") from error


def _mapped(path: Path) -> mmap.mmap:
    """Return the bytes of a file; only the parts that are looked at are read."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _binary_cameras(content: mmap.mmap) -> Iterator[tuple[int, ColmapCamera]]:
    (count,) = struct.unpack_from("<Q", content)
    names, place = list(_PARAMETERS), 8
    for _ in range(count):
        number, model, width, height = struct.unpack_from("<IiQQ", content, place)
        if not 0 <= model < len(names):
            raise ValueError(f"unknown camera model {model}: {_NEWER}")
        parameters = struct.unpack_from(f"<{_PARAMETERS[names[model]]}d", content, place + 24)
        place += 24 + 8 * len(parameters)
        yield number, _checked(ColmapCamera(names[model], width, height, parameters))


def _text_cameras(path: Path) -> Iterator[tuple[int, ColmapCamera]]:
    for line in _lines(path, "cameras"):
        number, model, width, height, *parameters = line.split()
        if model not in _PARAMETERS:
            raise ValueError(f"unknown camera model {model}: {_NEWER}")
        if len(parameters) != _PARAMETERS[model]:
            raise ValueError(f"expected {_PARAMETERS[model]} parameters of a camera {model}, got {len(parameters)}")
        numbers = tuple(float(parameter) for parameter in parameters)
        yield int(number), _checked(ColmapCamera(model, int(width), int(height), numbers))


def _checked(camera: ColmapCamera) -> ColmapCamera:
    if not (np.isfinite(camera.parameters).all() and 0 < camera.width < 2**31 and 0 < camera.height < 2**31):
        raise ValueError(f"a camera of {camera.width} x {camera.height} pixels with {list(camera.parameters)}")
    return camera


def _binary_images(content: mmap.mmap) -> Iterator[ColmapImage]:
    (count,) = struct.unpack_from("<Q", content)
    place = 8
    for _ in range(count):
        number, *pose, camera = struct.unpack_from("<I7dI", content, place)
        end = content.find(b"\0", place + 64)
        name = content[place + 64 : end].decode()
        (points,) = struct.unpack_from("<Q", content, end + 1)
        place = end + 9 + 24 * points
        if end < 0 or place > len(content):
            raise ValueError("truncated")
        yield ColmapImage(number, name, camera, tuple(pose[:4]), tuple(pose[4:]))


def _text_images(path: Path) -> Iterator[ColmapImage]:
    for line in _lines(path, "images", skipped=1):
        number, *pose, camera, name = line.split(maxsplit=9)
        if len(pose) != 7:
            raise ValueError(f"expected a number, a pose, a camera and a name, got {line[:80]!r}")
        numbers = tuple(map(float, pose))
        yield ColmapImage(int(number), name, int(camera), numbers[:4], numbers[4:])


def _binary_points(content: mmap.mmap) -> ColmapPoints:
    (count,) = struct.unpack_from("<Q", content)
    if 8 + count * _POINT.itemsize > len(content):
        raise ValueError("truncated")
    length_at = struct.Struct("<Q").unpack_from
    starts, place = [], 8
    for _ in range(count):
        starts.append(place)
        place += _POINT.itemsize + 8 * length_at(content, place + _LENGTH_AT)[0]
    if place > len(content):
        raise ValueError("truncated")
    content = np.frombuffer(content, np.uint8, place)
    places = np.array(starts, np.int64)[:, None] + np.arange(_POINT.itemsize)
    of_points = content[places].view(_POINT)[:, 0]
    in_tracks = np.ones(place, bool)
    in_tracks[:8], in_tracks[places] = False, False
    images = content[in_tracks].view("<u4")[::2].astype(np.int64)
    rows = np.repeat(np.arange(count), of_points["length"].astype(np.int64))
    return ColmapPoints(of_points["xyz"].copy(), of_points["rgb"].copy(), rows, images)


def _text_points(path: Path) -> ColmapPoints:
    points, colors, lengths, images = [], [], [], []
    for line in _lines(path, "points"):
        _, x, y, z, red, green, blue, _, *track = line.split()
        if len(track) % 2:
            raise ValueError(f"expected pairs of an image and a 2D point in the track of {line[:80]!r}")
        points.append((float(x), float(y), float(z)))
        colors.append((int(red), int(green), int(blue)))
        lengths.append(len(track) // 2)
        images += track[::2]
    rows = np.repeat(np.arange(len(points)), np.array(lengths, np.int64))
    colors = np.array(colors, np.int64).reshape(-1, 3).clip(0, 255).astype(np.uint8)
    return ColmapPoints(np.array(points, np.float64).reshape(-1, 3), colors, rows, np.array(images, np.int64))


def _lines(path: Path, what: str, skipped: int = 0) -> Iterator[str]:
    """Yield the lines of a text file without comments.

    Args:
        path: The file.
        what: What it counts in its comments.
        skipped: How many lines to skip after each that is yielded.

    Raises:
        ValueError: Its comments say another number than there is: it is truncated.
    """
    expected, count = None, 0
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.startswith("#"):
                _, _, rest = line.partition(f"Number of {what}:")
                expected = int(rest.split(",")[0]) if rest else expected
                continue
            if not line.strip():
                continue
            yield line.strip()
            count += 1
            for _ in range(skipped):
                next(file, "")
    if expected is not None and count != expected:
        raise ValueError(f"it holds {count} {what} and says {expected}: truncated?")
