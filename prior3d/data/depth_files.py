"""Depth maps in the file formats that people have: their values as stored, and their size from the header alone.

A file's first bytes say its format. What the values mean is declared by the reader, with `DepthCodes` of
`prior3d.data.posed`.
"""

import math
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from prior3d.data.decoding import GRAY_16_BIT, as_uint16, damage, intact
from prior3d.data.libraries import library

_EXR_CHANNELS = ("Z", "Y", "R")
_NETPBM = re.compile(rb"(P5|Pf)\s+(?:#[^\n]*\s+)*(\d+)\s+(?:#[^\n]*\s+)*(\d+)\s+(?:#[^\n]*\s+)*([-+.\deE]+)\s")
_TIFF_ORIENTATION = 274
_NO_IMAGE = "no image, or without its beginning: expected a depth map as PNG, TIFF, PGM, PFM, EXR, npy or npz"


class DepthHeader(NamedTuple):
    """Contents of a depth file's header: height and width, and the number of bits of a value."""

    size: tuple[int, int]
    bits: int


class _Format(NamedTuple):
    """How to read one format: the first bytes of its files, their header, their values."""

    starts: tuple[bytes, ...]
    header: Callable[[Path], DepthHeader]
    values: Callable[[Path], np.ndarray]


def read_depth_header(path: Path) -> DepthHeader:
    """Return size and bits of a depth map, without decoding it.

    Raises:
        DamagedFile: The file is no depth map of a known format, or its header is damaged.
        UserError: It is an EXR file, and OpenEXR is not installed.
    """
    with damage(path):
        return _format_of(path).header(path)


def read_depth_values(path: Path) -> np.ndarray:
    """Return the values of a depth map as they are stored: [h, w] whole numbers, or float32.

    It reads gray PNG and TIFF of 8 or 16 bits, TIFF of floating-point numbers, PGM, PFM, npy, npz (its only array, or
    `depth`) and EXR (channel Z, else Y, else R, else its only channel).

    Raises:
        DamagedFile: The file is no depth map of a known format, or is damaged.
        UserError: It is an EXR file, and OpenEXR is not installed.
    """
    with damage(path):
        return _format_of(path).values(path)


def _format_of(path: Path) -> _Format:
    with path.open("rb") as file:
        start = file.read(8)
    for one in _FORMATS:
        if start.startswith(one.starts):
            return one
    raise ValueError(_NO_IMAGE if start else "no image: the file is empty")


def _picture_problem(picture: Image.Image) -> str | None:
    if picture.mode not in ("L", "F", *GRAY_16_BIT):
        return f"expected a 16-bit gray image, got mode {picture.mode}"
    if picture.format == "TIFF" and picture.tag_v2.get(_TIFF_ORIENTATION, 1) != 1:
        return "its TIFF orientation turns it: remove the orientation, or turn the pixels"
    return None


def _picture_header(path: Path) -> DepthHeader:
    with Image.open(path) as picture:
        if problem := _picture_problem(picture):
            raise ValueError(problem)
        return DepthHeader((picture.height, picture.width), {"L": 8, "F": 32}.get(picture.mode, 16))


def _picture_values(path: Path) -> np.ndarray:
    with Image.open(intact(path)) as picture:
        if problem := _picture_problem(picture):
            raise ValueError(problem)
        return np.array(picture) if picture.mode in ("L", "F") else as_uint16(picture)


def _netpbm(file: BinaryIO) -> tuple[DepthHeader, np.dtype]:
    """Return the header of a PGM or PFM file and the type of its values; the file is then at the first of them."""
    start = file.read(1024)
    match = _NETPBM.match(start)
    if match is None:
        raise ValueError("its PGM or PFM header is damaged")
    file.seek(match.end())
    size, last = (int(match[3]), int(match[2])), float(match[4])
    # The sign of a PFM's scale is the order of bytes; its magnitude means nothing.
    name = ("<f4" if last < 0 else ">f4") if match[1] == b"Pf" else (">u2" if last > 255 else "u1")
    kind = np.dtype(name)
    return DepthHeader(size, 8 * kind.itemsize), kind


def _netpbm_header(path: Path) -> DepthHeader:
    with path.open("rb") as file:
        return _netpbm(file)[0]


def _netpbm_values(path: Path) -> np.ndarray:
    # Pillow stretches a PGM's values to 16 bits where its header names a smaller maximum.
    with path.open("rb") as file:
        (size, _), kind = _netpbm(file)
        values = np.frombuffer(file.read(), kind)
    if len(values) < math.prod(size):
        raise ValueError("truncated")
    values = values[: math.prod(size)].reshape(size)
    return values[::-1].astype(np.float32) if kind.kind == "f" else values.astype(kind.newbyteorder("="))


def _array_header(file: BinaryIO) -> DepthHeader:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = read(file)
    _check_array(shape, kind)
    height, width = _flat(shape)
    return DepthHeader((height, width), 8 * kind.itemsize)


def _flat(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without an axis of length 1 in front or at the end: [h, w, 1] and [1, h, w] are maps."""
    if len(shape) == 3 and 1 in (shape[0], shape[2]):
        return shape[1:] if shape[0] == 1 else shape[:2]
    return shape


def _check_array(shape: tuple[int, ...], kind: np.dtype) -> None:
    if len(_flat(shape)) != 2 or kind.kind not in "fiu":
        raise ValueError(f"expected one array of numbers with two axes, got {kind} {list(shape)}")


def _checked_array(values: Any) -> np.ndarray:
    if not isinstance(values, np.ndarray):
        raise ValueError("expected an array of numbers")
    _check_array(values.shape, values.dtype)
    values = values.reshape(_flat(values.shape))
    with np.errstate(over="ignore"):  # numbers that float32 cannot hold become infinite: unknown
        return values.astype(np.float32 if values.dtype.kind == "f" else values.dtype.newbyteorder("="))


def _npy_header(path: Path) -> DepthHeader:
    with path.open("rb") as file:
        return _array_header(file)


def _npy_values(path: Path) -> np.ndarray:
    return _checked_array(np.load(path, allow_pickle=False))


def _npz_name(names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    if "depth" in names:
        return "depth"
    raise ValueError(f"expected one array, or one named depth, got {', '.join(names) or 'none'}")


def _npz_header(path: Path) -> DepthHeader:
    with zipfile.ZipFile(path) as archive:
        name = _npz_name([member[:-4] for member in archive.namelist() if member.endswith(".npy")])
        with archive.open(f"{name}.npy") as file:
            return _array_header(file)


def _npz_values(path: Path) -> np.ndarray:
    with np.load(path, allow_pickle=False) as arrays:
        return _checked_array(arrays[_npz_name(list(arrays))])


def _exr(path: Path) -> tuple[Any, str, DepthHeader]:
    """Return an opened EXR file, the channel that holds depth, and the header."""
    exr = library("OpenEXR", "reading EXR files").InputFile(str(path))
    header = exr.header()
    names, (data, display) = list(header["channels"]), (header["dataWindow"], header["displayWindow"])
    chosen = next((name for name in _EXR_CHANNELS if name in names), names[0] if len(names) == 1 else None)
    if chosen is None:
        raise ValueError(f"expected a channel Z, Y or R, or only one, got {', '.join(names)}")
    corners = [(corner.x, corner.y) for window in (data, display) for corner in (window.min, window.max)]
    if corners[:2] != corners[2:]:
        raise ValueError("its pixels cover another window than the image: write the whole image")
    (left, top), (right, bottom) = corners[:2]
    return exr, chosen, DepthHeader((bottom - top + 1, right - left + 1), 32)


def _exr_header(path: Path) -> DepthHeader:
    return _exr(path)[2]


def _exr_values(path: Path) -> np.ndarray:
    exr, channel, header = _exr(path)
    kinds = library("Imath", "reading EXR files").PixelType
    return np.frombuffer(exr.channel(channel, kinds(kinds.FLOAT)), np.float32).reshape(header.size)


_FORMATS = (
    _Format((b"\x89PNG", b"II*\0", b"MM\0*"), _picture_header, _picture_values),
    _Format((b"P5", b"Pf"), _netpbm_header, _netpbm_values),
    _Format((b"\x93NUMPY",), _npy_header, _npy_values),
    _Format((b"PK\3\4",), _npz_header, _npz_values),
    _Format((b"\x76\x2f\x31\x01",), _exr_header, _exr_values),
)
