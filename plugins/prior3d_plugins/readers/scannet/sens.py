"""The container `.sens` of ScanNet, version 4: one header, then each frame's pose, color and depth, compressed."""

import io
import os
import struct
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from prior3d import DamagedFile, UserError

VERSION = 4

_COLOR = {-1: "unknown", 0: "raw", 1: "png", 2: "jpeg"}
_DEPTH = {-1: "unknown", 0: "raw_ushort", 1: "zlib_ushort", 2: "occi_ushort"}
_READ_DEPTH = ("raw_ushort", "zlib_ushort")
_CALIBRATION = struct.Struct("<64f")  # color and depth: intrinsics and extrinsics, 4x4 each
_REST = struct.Struct("<ii4IfQ")  # codecs, width and height of color and of depth, depth shift, number of frames
_LONGEST_NAME = 4096
_LONGEST_SIDE = 1 << 14
_MICROSECONDS = 1e-6
_FRAME = np.dtype(
    [
        ("pose", "<f4", (4, 4)),
        ("color_time", "<u8"),
        ("depth_time", "<u8"),
        ("color_bytes", "<u8"),
        ("depth_bytes", "<u8"),
    ]
)
_SIZES = struct.Struct("<QQ")
_SIZES_AT = _FRAME.fields["color_bytes"][1]


@dataclass(frozen=True, eq=False)
class SensFile:
    """An opened `.sens` file: its header and where its frames are. Pixels are read frame by frame.

    Attributes:
        path: the file.
        color_intrinsics: [4, 4] float64, as stored.
        depth_intrinsics: [4, 4] float64, as stored.
        extrinsics: [2, 4, 4] float64 of color and depth, as stored; ScanNet's are the identity.
        color_codec: "jpeg", "png" or "raw".
        depth_codec: "zlib_ushort" or "raw_ushort".
        color_size: height and width, pixels.
        depth_size: height and width, pixels.
        depth_shift: units of depth per meter.
        promised: number of frames that the header announces.
        index: [F] records of the whole frames: pose, time stamps and sizes in bytes.
        offsets: [F] int64, where the color of each frame begins.
    """

    path: Path
    color_intrinsics: np.ndarray
    depth_intrinsics: np.ndarray
    extrinsics: np.ndarray
    color_codec: str
    depth_codec: str
    color_size: tuple[int, int]
    depth_size: tuple[int, int]
    depth_shift: float
    promised: int
    index: np.ndarray
    offsets: np.ndarray

    def poses(self) -> np.ndarray:
        """Return the poses [F, 4, 4] float64, camera to world, meters; -inf where tracking was lost."""
        return self.index["pose"].astype(np.float64)

    def times(self) -> np.ndarray | None:
        """Return the time stamps [F] of color, seconds; None if they do not increase: some recordings have none."""
        stamps = self.index["color_time"]
        return stamps * _MICROSECONDS if (stamps[1:] > stamps[:-1]).all() and stamps.any() else None

    def color(self, frame: int) -> np.ndarray:
        """Return the color image of a frame, [h, w, 3] uint8 RGB.

        Raises:
            DamagedFile: it cannot be decoded, or has another size than the header says.
        """
        content, (height, width) = self._content(frame, "color"), self.color_size
        try:
            if self.color_codec == "raw":
                return np.frombuffer(content, np.uint8).reshape(height, width, 3)
            with Image.open(io.BytesIO(content)) as picture:
                if picture.size != (width, height):
                    got = "x".join(map(str, picture.size))
                    raise ValueError(f"color of {got} pixels, where the header says {width}x{height}")
                return np.asarray(picture.convert("RGB"))
        except (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error) as error:
            why = str(error).split(" <_io", 1)[0]  # Pillow names the buffer
            raise self.damaged(frame, f"color: {why}") from error

    def depth(self, frame: int) -> np.ndarray:
        """Return the depth map of a frame in units of the file, [h, w] uint16; 0 = unknown.

        Raises:
            DamagedFile: it cannot be decompressed, or has another size than the header says.
        """
        content, (height, width) = self._content(frame, "depth"), self.depth_size
        wanted = 2 * height * width
        if self.depth_codec == "zlib_ushort":
            packed = zlib.decompressobj()
            try:
                content = packed.decompress(content, wanted + 1)  # no more, whatever the bytes say
            except zlib.error as error:
                raise self.damaged(frame, f"depth: {error}") from error
            if len(content) == wanted and not packed.eof:
                raise self.damaged(frame, "depth: its end is missing, and with it the checksum")
        if len(content) != wanted:
            got = "more" if len(content) > wanted else f"{len(content)}"
            raise self.damaged(frame, f"depth: expected {wanted} bytes for {width}x{height} pixels, got {got}")
        return np.frombuffer(content, "<u2").reshape(height, width)

    def damaged(self, frame: int, why: str) -> DamagedFile:
        """Return the error about one frame; its path names the frame, so that each damaged one is counted."""
        return DamagedFile(f"{self.path}, frame {frame}", why)

    def _content(self, frame: int, what: str) -> bytes:
        row = self.index[frame]
        start = int(self.offsets[frame]) + (int(row["color_bytes"]) if what == "depth" else 0)
        wanted = int(row[f"{what}_bytes"])
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                content = file.read(wanted)
        except FileNotFoundError as error:
            raise self.damaged(frame, "the file is missing") from error
        except OSError as error:
            raise self.damaged(frame, error.strerror or type(error).__name__) from error
        if len(content) < wanted:
            raise self.damaged(frame, "the file was cut off after it was opened")
        return content


def open_sens(path: Path) -> SensFile:
    """Read the header and the frames' own headers; a cut-off file has the whole frames before its end.

    Args:
        path: the file.

    Raises:
        UserError: it cannot be read, is no `.sens` file of version 4, is compressed in a way that is not read, or has
            no whole frame; the key is `root`.
    """
    refuse = partial(_refused, path)
    try:
        with path.open("rb", buffering=0) as file:
            length = os.fstat(file.fileno()).st_size
            (version,) = struct.unpack("<I", _exactly(file, 4))
            if version != VERSION:
                raise refuse(f"expected a .sens file of version {VERSION}, got version {version}")
            (name,) = struct.unpack("<Q", _exactly(file, 8))
            if name > _LONGEST_NAME:
                raise refuse(f"the sensor's name has {name} bytes: this is no .sens file")
            _exactly(file, name)
            matrices = np.array(_CALIBRATION.unpack(_exactly(file, _CALIBRATION.size))).reshape(4, 4, 4)
            color, depth, *sides, shift, promised = _REST.unpack(_exactly(file, _REST.size))
            if not (min(sides) > 0 and max(sides) <= _LONGEST_SIDE and 0 < shift < np.inf):
                raise refuse(f"expected sizes and a positive depth shift in the header, got {sides} and {shift}")
            heads, offsets = _index(file, length, promised)
    except EOFError as error:
        raise refuse("it ends within its header") from error
    except OSError as error:
        raise refuse(error.strerror or type(error).__name__) from error
    color_codec, depth_codec = _COLOR.get(color, str(color)), _DEPTH.get(depth, str(depth))
    if color_codec not in ("raw", "png", "jpeg"):
        raise refuse(f"color is compressed as {color_codec}; raw, png and jpeg are read")
    if depth_codec not in _READ_DEPTH:
        raise refuse(f"depth is compressed as {depth_codec}; {' and '.join(_READ_DEPTH)} are read: export it")
    if not len(offsets):
        raise refuse(f"it has no whole frame; its header promises {promised}")
    return SensFile(
        path,
        color_intrinsics=matrices[0],
        depth_intrinsics=matrices[2],
        extrinsics=matrices[[1, 3]],
        color_codec=color_codec,
        depth_codec=depth_codec,
        color_size=(sides[1], sides[0]),
        depth_size=(sides[3], sides[2]),
        depth_shift=shift,
        promised=promised,
        index=np.frombuffer(heads, _FRAME),
        offsets=np.array(offsets, np.int64),
    )


def _index(file: io.FileIO, length: int, promised: int) -> tuple[bytes, list[int]]:
    """Return the frames' headers, one after another, and where each frame's color begins."""
    heads, offsets, position = bytearray(), [], file.tell()
    for _ in range(min(promised, length // _FRAME.itemsize)):
        head = os.pread(file.fileno(), _FRAME.itemsize, position)
        if len(head) < _FRAME.itemsize:
            break
        start = position + _FRAME.itemsize
        position = start + sum(_SIZES.unpack_from(head, _SIZES_AT))
        if position > length:
            break
        heads += head
        offsets.append(start)
    return bytes(heads), offsets


def _exactly(file: io.FileIO, count: int) -> bytes:
    content = file.read(count)
    if len(content) < count:
        raise EOFError
    return content


def _refused(path: Path, why: str) -> UserError:
    return UserError(f"cannot read {path}: {why}", "root")
