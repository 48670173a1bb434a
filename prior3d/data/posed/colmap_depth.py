"""Depth maps of COLMAP's multi-view stereo: `width&height&1&`, then float32, row by row."""

from pathlib import Path

import numpy as np

from prior3d.contracts.fields import UNKNOWN_DEPTH
from prior3d.errors import DamagedFile

_HEADER = 64  # bytes: more than the sizes take


def colmap_depth_size(path: Path) -> tuple[int, int]:
    """Return height and width of a depth map.

    Raises:
        DamagedFile: It cannot be read, or is no such map.
    """
    return _header(path, _content(path, _HEADER))[0]


def read_colmap_depth(path: Path) -> np.ndarray:
    """Return a depth map [h, w] float32 in units of the model; what is not a positive number is 0 = unknown.

    Raises:
        DamagedFile: It cannot be read, or is no such map.
    """
    content = _content(path)
    (height, width), start = _header(path, content)
    if len(content) - start != 4 * height * width:
        raise DamagedFile(path, f"{width}x{height} depths take {4 * height * width} bytes, got {len(content) - start}")
    depth = np.frombuffer(content, "<f4", offset=start).reshape(height, width)
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(UNKNOWN_DEPTH))


def _content(path: Path, most: int = -1) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(most)
    except OSError as error:
        raise DamagedFile(path, error.strerror or "cannot be read") from error


def _header(path: Path, content: bytes) -> tuple[tuple[int, int], int]:
    """Return height and width, and the place of the first number."""
    parts = content[:_HEADER].split(b"&", 3)
    if len(parts) < 4 or not all(part.isdigit() and int(part) for part in parts[:3]) or int(parts[2]) != 1:
        raise DamagedFile(path, "no depth map of COLMAP: it does not begin with width&height&1&")
    return (int(parts[1]), int(parts[0])), sum(map(len, parts[:3])) + 3
