import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from prior3d.data.decoding import (
    image_size,
    read_16bit,
    read_array,
    read_calibrated_color,
    read_color,
    same_field_of_view,
)
from prior3d.errors import DamagedFile


def noise(height=40, width=30, top=256, dtype=np.uint8, channels=3):
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(0).integers(0, top, shape).astype(dtype)


def test_color_is_rgb_bytes_whatever_the_file_holds(tmp_path):
    pixels = noise()
    Image.fromarray(pixels).save(tmp_path / "rgb.png")
    Image.fromarray(pixels[..., 0]).save(tmp_path / "gray.png")
    Image.fromarray(np.concatenate([pixels, pixels[..., :1]], -1)).save(tmp_path / "rgba.png")
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", quality=95)
    assert np.array_equal(read_color(tmp_path / "rgb.png"), pixels)
    assert np.array_equal(read_color(tmp_path / "rgba.png"), pixels)
    assert np.array_equal(read_color(tmp_path / "gray.png"), np.repeat(pixels[..., :1], 3, -1))
    photo = read_color(tmp_path / "photo.jpg")
    assert photo.shape == pixels.shape and photo.dtype == np.uint8
    assert image_size(tmp_path / "photo.jpg") == (40, 30)


def test_16_bits_of_gray_are_scaled_to_8(tmp_path):
    ramp = np.tile(np.linspace(0, 65535, 256).round().astype(np.uint16), (4, 1))
    for name in ("gray.png", "gray.tiff"):
        Image.fromarray(ramp).save(tmp_path / name)
        assert np.array_equal(read_color(tmp_path / name)[0, :, 1], np.arange(256)), name


def test_colors_of_palettes_and_opacity(tmp_path):
    pixels = noise()
    palette = Image.fromarray(pixels).convert("P", palette=Image.Palette.ADAPTIVE)
    palette.save(tmp_path / "palette.png")
    gray_alpha = Image.merge("LA", [Image.fromarray(pixels[..., 0]), Image.fromarray(pixels[..., 1])])
    gray_alpha.save(tmp_path / "gray_alpha.png")
    Image.fromarray(pixels[..., 0] > 127).save(tmp_path / "bits.png")
    assert np.array_equal(read_color(tmp_path / "palette.png"), np.asarray(palette.convert("RGB")))
    assert np.array_equal(read_color(tmp_path / "gray_alpha.png"), np.repeat(pixels[..., :1], 3, -1))
    assert np.array_equal(read_color(tmp_path / "bits.png")[..., 2], (pixels[..., 0] > 127) * 255)


def with_orientation(path, pixels, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)


UPRIGHT = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud}
UPRIGHT |= {5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1), 8: np.rot90}
UPRIGHT |= {7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 9: lambda a: a}


@pytest.mark.parametrize("orientation", sorted(UPRIGHT))
def test_photographs_are_turned_as_their_exif_orientation_says(tmp_path, orientation):
    pixels, path = noise(), tmp_path / "a.png"
    with_orientation(path, pixels, orientation)
    expected = UPRIGHT[orientation](pixels)
    assert np.array_equal(read_color(path), expected)
    assert image_size(path) == expected.shape[:2]


@pytest.mark.parametrize("orientation", sorted(UPRIGHT))
def test_calibrated_images_are_as_stored_unless_the_calibration_is_of_upright_ones(tmp_path, orientation):
    pixels, path = noise(40, 30), tmp_path / "a.png"
    with_orientation(path, pixels, orientation)
    upright = UPRIGHT[orientation](pixels)
    assert np.array_equal(read_calibrated_color(path, (40, 30)), pixels)
    assert np.array_equal(read_calibrated_color(path, upright.shape[:2], "upright"), upright)
    if upright.shape != pixels.shape:  # only the turned image can be that of such a calibration
        assert np.array_equal(read_calibrated_color(path, (30, 40)), upright)
        with pytest.raises(DamagedFile, match="40x30 pixels, where the scene's images have 30x40"):
            read_calibrated_color(path, (40, 30), "upright")
    with pytest.raises(DamagedFile, match="30x40 pixels, where the scene's images have 31x40"):
        read_calibrated_color(path, (40, 31))


def test_tiff_files_that_are_turned_while_decoded_are_no_stored_pixels(tmp_path):
    pixels, path = noise(40, 30), tmp_path / "a.tif"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(path, exif=exif)
    assert np.array_equal(read_color(path), np.rot90(pixels, -1))
    with pytest.raises(DamagedFile, match="its TIFF orientation turns it"):
        read_calibrated_color(path, (40, 30))
    assert np.array_equal(read_calibrated_color(path, (30, 40), "upright"), np.rot90(pixels, -1))


def png_of_16_bits(path, values, kind):
    """A PNG of 16 bits a channel, which Pillow does not write; its kind is 2 for RGB, 4 gray and alpha, 6 RGBA."""

    def part(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    content = part(b"IHDR", header) + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_of_16_bit_colors_the_upper_8_bits_are_read(tmp_path, kind, channels):
    values = noise(top=65536, dtype=np.uint16, channels=channels)
    png_of_16_bits(tmp_path / "a.png", values, kind)
    expected = np.repeat(values[..., :1], 3, -1) if channels == 2 else values[..., :3]
    assert np.array_equal(read_color(tmp_path / "a.png"), expected >> 8)


@pytest.mark.filterwarnings("error")
def test_transparency_of_palettes_and_gray_is_dropped(tmp_path):
    palette = Image.fromarray(noise()).quantize(16)
    for name, transparency in (("one.png", 3), ("many.png", bytes(range(0, 160, 10)))):
        palette.save(tmp_path / name, transparency=transparency)
        assert np.array_equal(read_color(tmp_path / name), np.asarray(palette.convert("RGB"))), name
    gray = noise(channels=0)
    Image.fromarray(gray).save(tmp_path / "gray.png", transparency=5)
    assert np.array_equal(read_color(tmp_path / "gray.png"), np.repeat(gray[..., None], 3, -1))


@pytest.mark.parametrize("name", ["a.tif", "a.jpg"])
def test_cmyk_becomes_rgb(tmp_path, name):
    inks = {"red": (0, 255, 255, 0), "blue": (255, 255, 0, 0), "dark": (0, 0, 0, 200), "white": (0, 0, 0, 0)}
    colors = {"red": (255, 0, 0), "blue": (0, 0, 255), "dark": (55, 55, 55), "white": (255, 255, 255)}
    for ink, values in inks.items():
        Image.new("CMYK", (16, 16), values).save(tmp_path / name, **({"quality": 100} if "jpg" in name else {}))
        assert np.abs(read_color(tmp_path / name).astype(int) - colors[ink]).max() <= 3


@pytest.mark.parametrize(
    ("size", "other", "same"),
    [
        ((968, 1296), (480, 640), True),  # ScanNet: 0.4 % apart
        ((96, 96), (96, 128), False),
        ((128, 96), (96, 128), False),
        ((1080, 1920), (576, 640), False),
        ((33, 44), (480, 640), True),
        ((424, 512), (1080, 1920), False),
    ],
)
def test_sizes_of_one_field_of_view(size, other, same):
    assert same_field_of_view(size, other) == same_field_of_view(other, size) == same


def test_all_16_bits_survive(tmp_path):
    codes = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(codes).save(tmp_path / "depth.png")
    read = read_16bit(tmp_path / "depth.png")
    assert read.dtype == np.uint16 and np.array_equal(read, codes)


def test_arrays_are_float32_with_unknown_as_zero(tmp_path):
    np.save(tmp_path / "map.npy", np.array([[1.5, np.nan], [np.inf, 2.0]]))
    read = read_array(tmp_path / "map.npy")
    assert read.dtype == np.float32 and read.tolist() == [[1.5, 0.0], [0.0, 2.0]]


@pytest.mark.parametrize("name", ["color.png", "color.jpg", "depth.png", "map.npy"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.3, 0.9])
def test_truncated_files_are_damaged(tmp_path, name, kept):
    path = tmp_path / name
    reader = {"color": read_color, "depth": read_16bit, "map": read_array}[path.stem]
    if path.suffix == ".npy":
        np.save(path, noise(channels=0, dtype=np.float32))
    else:
        pixels = noise(channels=0, top=65536, dtype=np.uint16) if path.stem == "depth" else noise()
        Image.fromarray(pixels).save(path)
    whole = path.read_bytes()
    reader(path)
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(DamagedFile) as caught:
        reader(path)
    assert caught.value.path == path and caught.value.why
    assert "\n" not in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.path, again.why) == (path, caught.value.why)


def test_any_turned_bit_and_any_missing_byte_of_a_png_is_damage(tmp_path):
    path = tmp_path / "depth.png"
    Image.fromarray(noise(30, 30, 65536, np.uint16, channels=0)).save(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(whole), 200).tolist():
        content = bytearray(whole)
        content[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
        with pytest.raises(DamagedFile):
            read_16bit(path)
    for missing in (1, 12, 16, 20, 100):
        path.write_bytes(whole[:-missing])
        with pytest.raises(DamagedFile, match="truncated"):
            read_16bit(path)


@pytest.mark.parametrize(
    ("reader", "name", "why"),
    [
        (read_color, "gone.png", "missing"),
        (read_16bit, "eight.png", "expected a 16-bit gray image, got mode L"),
        (read_16bit, "rgb.png", "expected a 16-bit gray image, got mode RGB"),
        (read_array, "cube.npy", "expected one array of numbers with two axes"),
        (read_array, "objects.npy", "pickle"),
        (read_color, "float.tiff", "expected an image of 8 or 16 bits, got floating-point numbers"),
        (read_16bit, "float.tiff", "expected a 16-bit gray image, got mode F"),
        (read_color, "text.png", "no image, or without its beginning"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, reader, name, why):
    Image.fromarray(noise(channels=0)).save(tmp_path / "eight.png")
    Image.fromarray(noise()).save(tmp_path / "rgb.png")
    np.save(tmp_path / "cube.npy", np.zeros((2, 2, 2)))
    np.save(tmp_path / "objects.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tiff")
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(DamagedFile, match=why) as caught:
        reader(tmp_path / name)
    assert str(caught.value).count(name) == 1
