"""Reading one image, depth map or array from a file; a file that cannot be decoded raises `DamagedFile`."""

import contextlib
import io
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from prior3d.errors import DamagedFile

_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, zlib.error, zipfile.BadZipFile)
GRAY_16_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")  # "I" is the mode of a 16-bit PNG in Pillow before 11
_TOP_16_BIT = 65535
_IDS = ("L", "P", "1")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

Orientation = Literal["stored", "upright"]
"""Which pixels a calibration describes: those of the file, or those that its EXIF orientation turns upright."""

_TIFF_ORIENTATION = 274
_TURNED_TIFF = "its TIFF orientation turns it, and the calibration is of the pixels as stored: remove the orientation"


@contextlib.contextmanager
def damage(path: Path) -> Iterator[None]:
    """Turn the errors that decoders raise on broken bytes into a `DamagedFile` that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise DamagedFile(path, "missing") from error
    except Image.DecompressionBombError as error:
        raise DamagedFile(path, "implausibly large") from error
    except struct.error as error:
        raise DamagedFile(path, "truncated") from error
    except _DECODING_ERRORS as error:
        raise DamagedFile(path, _reason(error)) from error


@dataclass(frozen=True)
class ImageHeader:
    """Contents of an image file's header.

    Attributes:
        size: Height and width of the stored pixels.
        turned: Whether its EXIF orientation rotates or mirrors the stored pixels.
        upright_size: Height and width after that.
        mode: Pillow's name for the type of pixels.
        turned_by_decoder: Whether it is a TIFF file that is rotated or mirrored while it is decoded.
    """

    size: tuple[int, int]
    turned: bool
    upright_size: tuple[int, int]
    mode: str
    turned_by_decoder: bool = False

    @property
    def problem_as_depth(self) -> str | None:
        """Why this is not a 16-bit depth map, None if it is one."""
        return None if self.mode in GRAY_16_BIT else f"expected a 16-bit gray image, got mode {self.mode}"

    @property
    def problem_as_calibrated(self) -> str | None:
        """Why the pixels as stored, which a camera's calibration describes, cannot be read; None if they can."""
        return _TURNED_TIFF if self.turned_by_decoder else None


def read_header(path: Path) -> ImageHeader:
    """Return the contents of an image file's header, without decoding the pixels."""
    with damage(path), Image.open(path) as picture:
        return _header(picture)


def image_size(path: Path) -> tuple[int, int]:
    """Return height and width of the image that `read_color` returns, in pixels, without decoding it."""
    return read_header(path).upright_size


def read_color(path: Path) -> np.ndarray:
    """Return a photograph as [h, w, 3] uint8 RGB, rotated upright by its EXIF orientation.

    Gray images get three equal channels, and 16 bits of gray are scaled to 8; of 16-bit colors, the upper 8 bits are
    read. Palette colors are looked up, CMYK is converted, and opacity is dropped: pixels keep the colors of the file.

    Args:
        path: Image file; posed images have `read_calibrated_color`.

    Raises:
        DamagedFile: The file cannot be decoded, or its numbers are not colors (floating-point images).
    """
    with damage(path), Image.open(intact(path)) as picture:
        upright = ImageOps.exif_transpose(picture) if _header(picture).turned else picture
        return _rgb(upright)


def read_calibrated_color(path: Path, size: tuple[int, int], orientation: Orientation = "stored") -> np.ndarray:
    """Return an image as [h, w, 3] uint8 RGB, in the pixels that a camera's calibration describes.

    These are the pixels as stored, whatever EXIF says, unless the format declares otherwise. An orientation is also
    applied where the size shows that the calibration is of the rotated image alone.

    Args:
        path: Image file.
        size: Height and width of the calibration, pixels.
        orientation: Which pixels the calibration describes.

    Raises:
        DamagedFile: The file cannot be decoded, or has another size.
    """
    with damage(path), Image.open(intact(path)) as picture:
        header = _header(picture)
        if header.turned_by_decoder and orientation == "stored":
            raise ValueError(_TURNED_TIFF)
        upright = orientation == "upright" or (header.turned and header.size != size == header.upright_size)
        shape = header.upright_size if upright else header.size
        if shape != size:
            got, expected = ("x".join(map(str, reversed(one))) for one in (shape, size))
            raise ValueError(f"{got} pixels, where the scene's images have {expected}")
        return _rgb(ImageOps.exif_transpose(picture) if upright and header.turned else picture)


def read_16bit(path: Path) -> np.ndarray:
    """Return a 16-bit gray image as [h, w] uint16."""
    with damage(path), Image.open(intact(path)) as picture:
        if problem := _header(picture).problem_as_depth:
            raise ValueError(problem)
        return as_uint16(picture)


def read_ids(path: Path) -> np.ndarray:
    """Return an image with one id per pixel (gray value or palette index) as [h, w] integers; ignore palette colors."""
    with damage(path), Image.open(intact(path)) as picture:
        if picture.mode not in (*GRAY_16_BIT, *_IDS):
            raise ValueError(f"expected one id per pixel (a gray image or one with a palette), got mode {picture.mode}")
        return np.asarray(picture).astype(np.int32)


def read_array(path: Path) -> np.ndarray:
    """Return the [h, w] float32 array of an `.npy` file; values that are not finite become 0 (unknown)."""
    with damage(path):
        values = np.load(path, allow_pickle=False)
        if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "fiu":
            raise ValueError("expected one array of numbers with two axes")
        values = values.astype(np.float32)
        return np.where(np.isfinite(values), values, np.float32(0))


def same_field_of_view(size: tuple[int, int], other: tuple[int, int], share: float = 0.01) -> bool:
    """Return whether images of two sizes (height, width) can show the same field of view: their aspects nearly agree.

    Args:
        size: Height and width, pixels.
        other: Height and width of the other image, pixels.
        share: Allowed difference of the aspects, in addition to what rounding to whole pixels causes.

    >>> same_field_of_view((968, 1296), (480, 640))  # color and depth of ScanNet: 0.4 % apart
    True
    >>> same_field_of_view((96, 128), (128, 96))
    False
    """
    rounding = max(0.5 / height + 0.5 / width for height, width in (size, other))
    ratio = (size[1] * other[0]) / (size[0] * other[1])
    return abs(math.log(ratio)) <= share + rounding


def _header(picture: Image.Image) -> ImageHeader:
    size = picture.height, picture.width
    orientation = _orientation(picture)
    upright = size[::-1] if orientation in (5, 6, 7, 8) else size
    by_decoder = picture.format == "TIFF" and picture.tag_v2.get(_TIFF_ORIENTATION, 1) in range(2, 9)
    return ImageHeader(size, orientation != 1, upright, picture.mode, by_decoder)


def _orientation(picture: Image.Image) -> int:
    """Return the EXIF orientation; 1 (upright) if there is none or it is undefined."""
    if picture.format == "TIFF" or (picture.format == "PNG" and "exif" not in picture.info):
        return 1  # Pillow rotates a TIFF itself; to find the EXIF data behind a PNG's pixels, it would decode them
    orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    return orientation if orientation in range(2, 9) else 1


def _rgb(picture: Image.Image) -> np.ndarray:
    """Return the pixels of an opened image as [h, w, 3] uint8."""
    if picture.mode == "F":
        raise ValueError("expected an image of 8 or 16 bits, got floating-point numbers (mode F)")
    if picture.mode in GRAY_16_BIT:  # Pillow clips these at 255 instead of scaling
        gray = np.rint(as_uint16(picture) / (_TOP_16_BIT / 255)).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=-1)
    if picture.mode == "P" and "transparency" in picture.info:  # Pillow warns of converting these to RGB at once
        picture = picture.convert("RGBA")
    return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))


def as_uint16(picture: Image.Image) -> np.ndarray:
    """Return the values of an opened image of `GRAY_16_BIT` as [h, w] uint16."""
    values = np.asarray(picture)
    if values.dtype != np.uint16 and values.size and not (values.min() >= 0 and values.max() <= _TOP_16_BIT):
        raise ValueError(f"expected 16 bits, got values from {values.min()} to {values.max()}")
    return values.astype(np.uint16)


def _reason(error: Exception) -> str:
    """Return, in a few words, why a file cannot be decoded; the message names the file."""
    if isinstance(error, UnidentifiedImageError):
        return "no image, or without its beginning"
    return str(error) or type(error).__name__


def intact(path: Path) -> io.BytesIO:
    """Return the file's bytes; those of a PNG only if all its checksums are right.

    Pillow skips the checksums of pixel data. Of 200 depth files with one flipped bit, it decoded 7 to wrong depths, and
    it decoded a truncated file to the last pixel. JPEG has no checksums; Pillow detects truncated files.
    """
    content = path.read_bytes()
    if content.startswith(_PNG_SIGNATURE):
        _check_png(memoryview(content))
    return io.BytesIO(content)


def _check_png(content: memoryview) -> None:
    position, kind = len(_PNG_SIGNATURE), b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", content, position)
        end = position + 8 + length
        (checksum,) = struct.unpack_from(">I", content, end)
        if zlib.crc32(content[position + 4 : end]) != checksum:
            raise ValueError(f"wrong checksum in its part {kind.decode('ascii', 'replace')}")
        position = end + 4
