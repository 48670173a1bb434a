"""Points of a PLY file: the positions and colors of its vertices, in text or binary; faces are not read."""

import itertools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from prior3d.contracts.reader import Cloud
from prior3d.errors import DamagedFile

_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1",
    "short": "i2", "int16": "i2", "ushort": "u2", "uint16": "u2",
    "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4",
    "float": "f4", "float32": "f4", "double": "f8", "float64": "f8",
}  # fmt: skip
_ORDERS = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}
_POSITION = ("x", "y", "z")
_COLOR = ("red", "green", "blue")
_LONGEST_HEADER = 1 << 16
_MOST_VERTICES = 1 << 40


@dataclass(frozen=True)
class _Header:
    order: str  # key of _ORDERS
    count: int
    vertex: np.dtype
    skipped_rows: int  # rows of elements before the vertices
    skipped_bytes: int


def read_ply(path: Path) -> Cloud:
    """Return the vertices of a PLY file; colors are read if they are bytes.

    Args:
        path: File in one of the three encodings of the format: text, or binary with the first or last byte first.

    Raises:
        DamagedFile: It is no PLY file, has no x, y and z, ends too early, or a position is not finite.
    """
    try:
        with path.open("rb") as file:
            header = _read_header(file)
            rows = _text_rows(file, header) if header.order == "ascii" else _binary_rows(file, header)
    except FileNotFoundError as error:
        raise DamagedFile(path, "missing") from error
    except OSError as error:
        raise DamagedFile(path, error.strerror or type(error).__name__) from error
    except ValueError as error:
        raise DamagedFile(path, str(error)) from error
    points = np.stack([rows[name].astype(np.float64) for name in _POSITION], axis=1)
    if not np.isfinite(points).all():
        raise DamagedFile(path, "a position is not finite")
    colored = all(name in header.vertex.names and header.vertex[name] == np.uint8 for name in _COLOR)
    return Cloud(points, np.stack([rows[name] for name in _COLOR], axis=1) if colored else None)


def _read_header(file: BinaryIO) -> _Header:
    if file.readline(8).strip() != b"ply":
        raise ValueError("no PLY file: it does not begin with ply")
    order, count, properties = "", None, []
    rows = size = 0
    element, before = "", True
    for line in _header_lines(file):
        match line.split():
            case ["format", name, _] if name in _ORDERS:
                order = name
            case ["element", element, number] if number.isdigit() and int(number) < _MOST_VERTICES:
                before = before and element != "vertex" and count is None
                if element == "vertex":
                    count = int(number)
                elif before:
                    rows += int(number)
                    of_row = int(number)
            case ["property", "list", *_] if before or element == "vertex":
                raise ValueError("its vertices have lists, or follow an element with lists: this is not read")
            case ["property", kind, name] if kind in _TYPES and element == "vertex":
                properties.append((name, _TYPES[kind]))
            case ["property", kind, _] if kind in _TYPES and before and element:
                size += of_row * np.dtype(_TYPES[kind]).itemsize
            case ["property", *_] if element and element != "vertex" and not before:
                pass
            case ["comment" | "obj_info", *_] | []:
                pass
            case _:
                raise ValueError(f"a line of its header makes no sense: {line[:60]!r}")
    names = [name for name, _ in properties]
    if not order or count is None or not set(_POSITION) <= set(names) or len(set(names)) < len(names):
        raise ValueError("its header declares no format, or no vertices with x, y and z")
    return _Header(order, count, np.dtype([(n, _ORDERS[order] + kind) for n, kind in properties]), rows, size)


def _header_lines(file: BinaryIO) -> list[str]:
    lines: list[str] = []
    while file.tell() < _LONGEST_HEADER:
        line = file.readline(_LONGEST_HEADER)
        if not line:
            break
        text = line.decode("ascii", "replace").strip()
        if text == "end_header":
            return lines
        lines.append(text)
    raise ValueError("its header has no end")


def _binary_rows(file: BinaryIO, header: _Header) -> np.ndarray:
    start, wanted = file.tell() + header.skipped_bytes, header.count * header.vertex.itemsize
    there = max(os.fstat(file.fileno()).st_size - start, 0)
    if there < wanted:  # before a wrong count in the header makes NumPy ask for all memory
        raise ValueError(f"it ends after {there // header.vertex.itemsize} of {header.count} vertices")
    file.seek(start)
    return np.frombuffer(file.read(wanted), header.vertex)


def _text_rows(file: BinaryIO, header: _Header) -> np.ndarray:
    lines = list(itertools.islice(file, header.skipped_rows, header.skipped_rows + header.count))
    if len(lines) < header.count:
        raise ValueError(f"it ends after {len(lines)} of {header.count} vertices")
    width = len(header.vertex.names)
    try:
        numbers = np.array(b" ".join(lines).split(), np.float64).reshape(header.count, width)
    except ValueError as error:
        raise ValueError(f"its vertices are not rows of {width} numbers") from error
    rows = np.empty(header.count, header.vertex)
    for column, name in enumerate(header.vertex.names):
        kind = header.vertex[name]
        if kind.kind in "iu" and not _fits(numbers[:, column], np.iinfo(kind)):
            raise ValueError(f"{name} of a vertex does not fit {kind.name}")
        rows[name] = numbers[:, column]
    return rows


def _fits(numbers: np.ndarray, limits: np.iinfo) -> bool:
    return bool(np.isfinite(numbers).all() and ((numbers >= limits.min) & (numbers <= limits.max)).all())
