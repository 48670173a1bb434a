"""PLY files: written byte by byte as ScanNet's, in all encodings, whole and damaged."""

import struct

import numpy as np
import pytest

from prior3d.data.posed import read_ply
from prior3d.errors import DamagedFile

POINTS = np.array([[0.5, -1.25, 2], [3, 4, 5], [-6.5, 7, 8.75]])
COLORS = np.array([[255, 0, 7], [1, 2, 3], [9, 200, 30]], np.uint8)
PROPERTIES = (
    "property float x\nproperty float y\nproperty float z\n"
    "property uchar red\nproperty uchar green\nproperty uchar blue\nproperty uchar alpha\n"
)
FACES = "element face 1\nproperty list uchar int vertex_indices\n"


def header(encoding="binary_little_endian", count=3, properties=PROPERTIES, before="", after=FACES):
    start = f"ply\nformat {encoding} 1.0\ncomment MLIB generated\n"
    return f"{start}{before}element vertex {count}\n{properties}{after}end_header\n".encode()


def vertices(order="<"):
    rows = zip(POINTS.tolist(), COLORS.tolist(), strict=True)
    return b"".join(struct.pack(f"{order}3f4B", *point, *color, 255) for point, color in rows)


FACE = struct.pack("<B3i", 3, 0, 1, 2)
TEXT = b"".join(f"{x} {y} {z} {r} {g} {b} 255\n".encode() for (x, y, z), (r, g, b) in zip(POINTS, COLORS, strict=True))


@pytest.mark.parametrize(
    "content",
    [
        header() + vertices() + FACE,
        header("binary_big_endian") + vertices(">"),
        header("ascii") + TEXT + b"3 0 1 2\n",
        header(before="element camera 2\nproperty float fov\nproperty short id\n") + b"\x01" * 12 + vertices(),
        header("ascii", before="element camera 1\nproperty float fov\n") + b"70\n" + TEXT,
        header().replace(b"\n", b"\r\n") + vertices(),
    ],
)
def test_vertices_and_colors_are_read(tmp_path, content):
    path = tmp_path / "scene_vh_clean_2.ply"
    path.write_bytes(content)
    cloud = read_ply(path)
    assert cloud.points.dtype == np.float64 and cloud.colors.dtype == np.uint8
    np.testing.assert_array_equal(cloud.points, POINTS)
    np.testing.assert_array_equal(cloud.colors, COLORS)


def test_points_without_colors_and_of_doubles(tmp_path):
    path = tmp_path / "points.ply"
    properties = "".join(f"property double {axis}\n" for axis in "xyz")
    path.write_bytes(header(properties=properties, after="") + POINTS.astype("<f8").tobytes())
    cloud = read_ply(path)
    np.testing.assert_array_equal(cloud.points, POINTS)
    assert cloud.colors is None
    path.write_bytes(header(count=0, properties=properties))
    assert read_ply(path).points.shape == (0, 3)


NAN = struct.pack("<3f4B", float("nan"), 0, 0, 1, 2, 3, 4)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "no PLY file: it does not begin with ply"),
        (b"\xff\xd8\xff an image", "no PLY file"),
        (header()[:60], "its header has no end"),
        (header() + vertices()[:-1], "it ends after 2 of 3 vertices"),
        (header(count=10**9) + vertices(), "it ends after 3 of 1000000000 vertices"),
        (header(count=10**30) + vertices(), "a line of its header makes no sense: 'element vertex 1"),
        (header("ascii") + TEXT[:-30], "it ends after 2 of 3 vertices|rows of 7 numbers"),
        (header("ascii") + TEXT.replace(b"4.0", b"four"), "its vertices are not rows of 7 numbers"),
        (header("ascii") + TEXT.replace(b"200", b"300"), "green of a vertex does not fit uint8"),
        (header("binary"), "makes no sense: 'format binary 1.0'"),
        (header(properties="property float x\n"), "no vertices with x, y and z"),
        (header(properties=PROPERTIES + "property list uchar int more\n"), "its vertices have lists"),
        (header(count=1) + NAN, "a position is not finite"),
    ],
)
def test_damage_is_one_line(tmp_path, content, why):
    path = tmp_path / "points.ply"
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match=rf"points\.ply: .*({why})"):
        read_ply(path)


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(DamagedFile, match=r"none\.ply: missing"):
        read_ply(tmp_path / "none.ply")
    with pytest.raises(DamagedFile, match="Is a directory"):
        read_ply(tmp_path)
