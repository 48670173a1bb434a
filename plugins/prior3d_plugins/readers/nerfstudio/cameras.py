"""The cameras of `transforms.json`: keys of a frame, or else of the file."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from prior3d import Camera, DamagedFile, UserError
from prior3d.data import read_depth_header, read_header
from prior3d.data.posed import pinhole

_LEAST_BITS = 16  # of a depth file
_WITH_OPACITY = ("RGBA", "LA", "PA")

_PERSPECTIVE = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV")
_FISHEYE = "OPENCV_FISHEYE"
_NO_LENS = {"EQUIRECTANGULAR": ("is_equirectangular", "equirectangular", "latlong"), "FTHETA": ("ftheta_p0",)}
"""Models that instant-ngp selects by a key of their own."""

_NUMBERS = (
    *("w", "h", "fl_x", "fl_y", "cx", "cy", "camera_angle_x", "camera_angle_y", "x_fov", "y_fov"),
    *("k1", "k2", "k3", "k4", "p1", "p2"),
)
_DEGREES = math.pi / 180


class DeclaredLens(NamedTuple):
    """What `transforms.json` says of a camera; frames with equal numbers have the same one.

    Attributes:
        model: "opencv" or "fisheye".
        numbers: values of the keys that are given, pixels and radians.
        distortion: coefficients in OpenCV's order.
    """

    model: str
    numbers: tuple[tuple[str, float], ...]
    distortion: tuple[float, ...]

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width, pixels; None if the file does not say."""
        given = dict(self.numbers)
        return (int(given["h"]), int(given["w"])) if "w" in given and "h" in given else None

    def camera(self, size: tuple[int, int], depth_size: tuple[int, int] | None) -> Camera:
        """Return the camera.

        Args:
            size: height and width of the images, pixels.
            depth_size: height and width of the depth maps, pixels.

        Raises:
            UserError: the focal length is unknown or not positive.
        """
        given, (height, width) = dict(self.numbers), self.size or size
        fx, fy = (_focal(given, axis, pixels) for axis, pixels in (("x", width), ("y", height)))
        fx, fy = fy if fx is None else fx, fx if fy is None else fy
        if fx is None or not min(fx, fy) > 0:
            wrong = "no focal length: expected fl_x or camera_angle_x" if fx is None else f"focal lengths {fx}, {fy}"
            raise UserError(wrong, "root")
        matrix = pinhole(fx, fy, given.get("cx", width / 2), given.get("cy", height / 2))
        is_pinhole = self.model == "opencv" and not any(self.distortion)
        return Camera(
            "pinhole" if is_pinhole else self.model, matrix, size, () if is_pinhole else self.distortion, depth_size
        )


def lens_of(meta: Mapping[str, object], frame: Mapping[str, object]) -> DeclaredLens:
    """Return the lens of a frame.

    Args:
        meta: contents of the file.
        frame: entry of the frame; its keys count before those of the file.

    Raises:
        UserError: a value is no finite number, or the lens model is not supported.
    """
    given: dict[str, float] = {}
    for name in _NUMBERS:
        value = frame.get(name, meta.get(name))
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"expected a number for {name}, got {str(value)[:40]!r}", "root")
        given[name] = float(value)
    if min(given.get("w", 1), given.get("h", 1)) < 1:
        raise UserError(f"expected w and h of at least 1 pixel, got {given.get('w')} and {given.get('h')}", "root")
    model = _model(meta, frame)
    k1, k2, k3, k4, p1, p2 = (given.pop(name, 0.0) for name in ("k1", "k2", "k3", "k4", "p1", "p2"))
    if model == "fisheye":
        if p1 or p2:
            raise UserError(f"p1 and p2 of {_FISHEYE} cannot be read: OpenCV's fisheye has no tangential part", "root")
        return DeclaredLens(model, tuple(given.items()), (k1, k2, k3, k4))
    if k4:
        raise UserError("k4 of OPENCV cannot be read: OpenCV has no such term; undistort the images first", "root")
    return DeclaredLens(model, tuple(given.items()), (k1, k2, p1, p2, *((k3,) if k3 else ())))


def _model(meta: Mapping[str, object], frame: Mapping[str, object]) -> str:
    name = frame.get("camera_model", meta.get("camera_model"))
    if name is None:
        by_key = [model for model, keys in _NO_LENS.items() if any(frame.get(key, meta.get(key)) for key in keys)]
        name = by_key[0] if by_key else _FISHEYE if frame.get("is_fisheye", meta.get("is_fisheye")) else "OPENCV"
    if name == _FISHEYE:
        return "fisheye"
    if name in _PERSPECTIVE:
        return "opencv"
    supported = ", ".join((*_PERSPECTIVE, _FISHEYE))
    advice = f"make perspective images of it first; these can be: {supported}"
    raise UserError(f"the camera model {str(name)[:40]} cannot be read: {advice}", "root")


def _focal(given: Mapping[str, float], axis: str, pixels: int) -> float | None:
    """Return the focal length along an axis, pixels; None if the file does not say."""
    if f"fl_{axis}" in given:
        return given[f"fl_{axis}"]
    angle = given.get(f"camera_angle_{axis}")
    if angle is None and f"{axis}_fov" in given:
        angle = given[f"{axis}_fov"] * _DEGREES
    if angle is None:
        return None
    if not 0 < angle < math.pi:
        raise UserError(f"expected a field of view between 0 and 180 degrees, got {angle / _DEGREES:.1f}", "root")
    return pixels / 2 / math.tan(angle / 2)


def cameras_of(
    lenses: Sequence[DeclaredLens], files: Sequence[Mapping[str, Path]], has_depth: bool
) -> tuple[dict[DeclaredLens, tuple[Camera, str | None]], list[str]]:
    """Return the camera of each lens with the reason why its frames cannot be used, and notes on the images.

    Args:
        lenses: one for each frame.
        files: files of each frame by field; those that are missing are left out.
        has_depth: whether depth files are read.

    Raises:
        UserError: no image can be read, or one has another size than its camera.
    """
    files_of: dict[DeclaredLens, list[Mapping[str, Path]]] = {}
    for lens, own in zip(lenses, files, strict=True):
        files_of.setdefault(lens, []).append(own)
    modes: set[str] = set()
    found: dict[DeclaredLens, tuple[tuple[int, int] | None, tuple[int, int] | None, str | None]] = {}
    off = []
    for lens, group in files_of.items():
        size, problem = _first([own["image"] for own in group if "image" in own], lambda path: _size(path, modes))
        of_depth = None
        if has_depth:
            of_depth, why = _first([own["depth"] for own in group if "depth" in own], _depth_size)
            problem = problem or why
        if size is not None and lens.size not in (None, size):
            off.append(f"{_by(size)} pixels, where the camera has {_by(lens.size)}")
            if max(abs(got - want) for got, want in zip(size, lens.size, strict=True)) > 1:
                raise UserError(f"an image has {off[-1]}: give w, h and intrinsics of the images", "root")
        found[lens] = (size or lens.size, of_depth, problem)
    sizes = [size for size, *_ in found.values() if size is not None]
    if not sizes:
        raise UserError(f"no image can be read: {next(iter(found.values()))[2]}", "root")
    notes = [f"images are a pixel off: they have {off[0]}; the intrinsics are used as they are"] if off else []
    if modes & set(_WITH_OPACITY):
        notes.append("its images have an opacity, which is ignored")
    cameras = {}
    for lens, (size, of_depth, problem) in found.items():
        size = size or sizes[0]
        cameras[lens] = lens.camera(size, (of_depth or size) if has_depth else None), problem
    return cameras, notes


def _first(
    files: Sequence[Path], size_of: Callable[[Path], tuple[int, int]]
) -> tuple[tuple[int, int] | None, str | None]:
    """Return height and width of the first file that can be used, or None and why the last one cannot."""
    problem = None
    for path in files:
        try:
            return size_of(path), None
        except DamagedFile as damaged:
            problem = damaged.why
    return None, problem


def _size(path: Path, modes: set[str]) -> tuple[int, int]:
    header = read_header(path)
    if header.problem_as_calibrated:
        raise DamagedFile(path, header.problem_as_calibrated)
    modes.add(header.mode)
    return header.size


def _depth_size(path: Path) -> tuple[int, int]:
    header = read_depth_header(path)
    if header.bits < _LEAST_BITS:
        raise DamagedFile(path, f"depth of {header.bits} bits, where at least {_LEAST_BITS} are expected")
    return header.size


def _by(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"
