"""Reading one image, depth map or array from a file; whatever cannot be decoded is a `DamagedFile`."""

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from prior3d.errors import DamagedFile

_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, zlib.error)
_GREY_16_BIT = ("I;16", "I;16B", "I")  # "I" is what Pillow before 11 calls a 16-bit PNG
_IDS = ("L", "P", "1")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@contextlib.contextmanager
def damage(path: Path) -> Iterator[None]:
    """Turn what decoders raise on broken bytes into a `DamagedFile` that names the file."""
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


def read_color(path: Path) -> np.ndarray:
    """Return the image as [h, w, 3] uint8 RGB, as stored (an EXIF orientation is not applied)."""
    with damage(path), Image.open(_intact(path)) as picture:
        return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))


def read_16bit(path: Path) -> np.ndarray:
    """Return a 16-bit grey image as [h, w] uint16."""
    with damage(path), Image.open(_intact(path)) as picture:
        if picture.mode not in _GREY_16_BIT:
            raise ValueError(f"expected a 16-bit grey image, got mode {picture.mode}")
        return np.asarray(picture).astype(np.uint16)


def read_ids(path: Path) -> np.ndarray:
    """Return an image of one id per pixel, grey or by palette, as [h, w] integers: a palette's colours are ignored."""
    with damage(path), Image.open(_intact(path)) as picture:
        if picture.mode not in (*_GREY_16_BIT, *_IDS):
            raise ValueError(f"expected one id per pixel (a grey image or one with a palette), got mode {picture.mode}")
        return np.asarray(picture).astype(np.int32)


def read_array(path: Path) -> np.ndarray:
    """Return the [h, w] float32 array of an `.npy` file; what is not finite becomes 0 (unknown)."""
    with damage(path):
        values = np.load(path, allow_pickle=False)
        if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "fiu":
            raise ValueError("expected one array of numbers with two axes")
        values = values.astype(np.float32)
        return np.where(np.isfinite(values), values, np.float32(0))


def image_size(path: Path) -> tuple[int, int]:
    """Return height and width from the file's header, in pixels, without decoding it."""
    with damage(path), Image.open(path) as picture:
        return picture.height, picture.width


def _reason(error: Exception) -> str:
    """Return in a few words why a file cannot be decoded; its name is said beside it."""
    if isinstance(error, UnidentifiedImageError):
        return "no image, or without its beginning"
    return str(error) or type(error).__name__


def _intact(path: Path) -> io.BytesIO:
    """Return the file's bytes; those of a PNG only if all its checksums are right.

    Pillow skips the checksums of pixel data: of 200 depth files with one bit turned it decoded 7 to other depths, and a
    file without its end to the last pixel. JPEG has no checksums; Pillow finds what is cut off.
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
