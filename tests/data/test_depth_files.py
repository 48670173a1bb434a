"""Depth files: each format gives the values that its own tools wrote, and damage is named."""

import io
import struct
import sys
import zlib

import Imath
import numpy as np
import OpenEXR
import pytest
from PIL import Image

from prior3d.data.depth_files import read_depth_header, read_depth_values
from prior3d.errors import DamagedFile, UserError

CODES = np.random.default_rng(0).integers(0, 65536, (5, 7)).astype(np.uint16)
METERS = np.random.default_rng(1).uniform(0.1, 20, (5, 7)).astype(np.float32)


def png16(path, values):
    """A 16-bit gray PNG, written by hand: big endian, no filters."""

    def part(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")
    )


def pgm(path, values, header=b"P5\n# made by a sensor\n7 5\n65535\n"):
    path.write_bytes(header + values.astype(">u2").tobytes())


def pfm(path, values, order="<"):
    path.write_bytes(
        b"Pf\n7 5\n%s\n" % (b"-1.0" if order == "<" else b"1") + values[::-1].astype(f"{order}f4").tobytes()
    )


def exr(path, **channels):
    OpenEXR.File({"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}, channels).write(str(path))


def tiff(path, values, **options):
    Image.fromarray(values).save(path, format="TIFF", **options)


WRITERS = {
    "png": (png16, CODES, 16),
    "pgm": (pgm, CODES, 16),
    "small.pgm": (lambda path, values: pgm(path, values, b"P5 7 5 4000\n"), CODES // 17, 16),
    "tiff": (tiff, CODES, 16),
    "deflated.tiff": (lambda path, values: tiff(path, values, compression="tiff_adobe_deflate"), CODES, 16),
    "float.tiff": (tiff, METERS, 32),
    "lzw.tiff": (lambda path, values: tiff(path, values, compression="tiff_lzw"), METERS, 32),
    "pfm": (pfm, METERS, 32),
    "big.pfm": (lambda path, values: pfm(path, values, ">"), METERS, 32),
    "npy": (np.save, METERS, 32),
    "double.npy": (lambda path, values: np.save(path, values.astype(np.float64)), METERS, 64),
    "codes.npy": (lambda path, values: np.save(path, values.astype(">u2")), CODES, 16),
    "channel.npy": (lambda path, values: np.save(path, values[..., None]), METERS, 32),
    "npz": (lambda path, values: np.savez(path, values), METERS, 32),
    "two.npz": (lambda path, values: np.savez_compressed(path, depth=values, mask=values > 1), METERS, 32),
    "z.exr": (lambda path, values: exr(path, Z=values, R=0 * values), METERS, 32),
    "y.exr": (lambda path, values: exr(path, Y=values), METERS, 32),
    "r.exr": (lambda path, values: exr(path, RGB=np.repeat(values[..., None], 3, -1)), METERS, 32),
    "half.exr": (lambda path, values: exr(path, V=values), METERS.astype(np.float16), 32),
}


@pytest.mark.parametrize("name", WRITERS)
def test_values_are_those_that_were_written(tmp_path, name):
    write, values, bits = WRITERS[name]
    path = tmp_path / f"depth.{name}"
    write(path, values)
    read = read_depth_values(path)
    assert np.array_equal(read, values) and read.dtype == (np.uint16 if values.dtype == np.uint16 else np.float32)
    assert read.dtype.isnative
    assert read_depth_header(path) == ((5, 7), bits)


def test_bytes_are_read_as_bytes(tmp_path):
    values = CODES.astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    (tmp_path / "a.pgm").write_bytes(b"P5 7 5 255 " + values.tobytes())
    for name in ("a.png", "a.pgm"):
        assert np.array_equal(read_depth_values(tmp_path / name), values)
        assert read_depth_header(tmp_path / name) == ((5, 7), 8)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.6, 0.95])
def test_truncated_files_are_damaged(tmp_path, name, kept):
    write, values, _ = WRITERS[name]
    path = tmp_path / f"depth.{name}"
    write(path, values)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(DamagedFile) as caught:
        read_depth_values(path)
    assert caught.value.path == path and caught.value.why and "\n" not in str(caught.value)
    if not kept:
        with pytest.raises(DamagedFile, match="no image: the file is empty"):
            read_depth_header(path)


def test_what_is_wrong_is_said(tmp_path):
    def check(words, content):
        path = tmp_path / "depth"
        if callable(content):
            content(path)
        else:
            path.write_bytes(content)
        for read in (read_depth_header, read_depth_values):
            with pytest.raises(DamagedFile, match=words):
                read(path)

    def turned(path):
        exif = Image.Exif()
        exif[274] = 3
        Image.fromarray(METERS).save(path, format="TIFF", exif=exif)

    def saved(save, *arrays, **named):
        buffer = io.BytesIO()
        save(buffer, *arrays, **named)
        return buffer.getvalue()

    def cropped(path):
        header = OpenEXR.Header(7, 5)
        header["displayWindow"] = Imath.Box2i(Imath.V2i(0, 0), Imath.V2i(9, 9))
        header["channels"] = {"Z": Imath.Channel(Imath.PixelType(Imath.PixelType.FLOAT))}
        out = OpenEXR.OutputFile(str(path), header)
        out.writePixels({"Z": METERS.tobytes()})
        out.close()

    check("no image, .*expected a depth map as PNG, TIFF, PGM, PFM, EXR, npy or npz", b"\xff\xd8\xff\xe0")
    check("expected a 16-bit gray image, got mode RGB", lambda path: Image.new("RGB", (3, 2)).save(path, "PNG"))
    check("its TIFF orientation turns it", turned)
    check("header is damaged", b"P5 what 5")
    check(r"expected one array of numbers with two axes, got float64 \[2, 3, 4\]", saved(np.save, np.zeros((2, 3, 4))))
    check("expected one array, or one named depth, got a, b", saved(np.savez, a=METERS, b=METERS))
    check("expected a channel Z, Y or R, or only one, got A, B", lambda path: exr(path, A=METERS, B=METERS))
    check("its pixels cover another window", cropped)
    with pytest.raises(DamagedFile, match="missing"):
        read_depth_values(tmp_path / "gone")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(DamagedFile, match="directory"):
        read_depth_values(tmp_path / "folder.png")


def test_without_openexr_the_message_names_the_extra(tmp_path, monkeypatch):
    exr(tmp_path / "a.exr", Z=METERS)
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    with pytest.raises(UserError, match=r"^root: reading EXR files needs the module OpenEXR.*'prior3d\[formats\]'"):
        read_depth_header(tmp_path / "a.exr")
