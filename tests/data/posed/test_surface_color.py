"""Colors of fused surfaces: the right pixel where two cameras took color and depth, and on real frames."""

import numpy as np
import pytest
from PIL import Image

from prior3d.contracts.dataset import DataSpec
from prior3d.data.posed.cameras import Calibration
from prior3d.data.posed.surface import SurfaceOptions
from prior3d_plugins.datasets.posed import PosedRGBD

FIELDS = frozenset({"image", "depth", "intrinsics", "world_from_camera"})
SIZE = (48, 64)


def write_wall(folder, color_size):
    """Two frames of a box at 1 m before a wall at 2 m; a pixel of the color image says where it is, blue is the box.

    The depth camera sees the box from column 20 to 40; the color camera, 8 cm to the right, from 16 to 36.
    """
    folder.mkdir()
    (folder / "camera-intrinsics.txt").write_text("50 0 31.5\n0 50 23.5\n0 0 1\n")
    rows, columns = np.indices(color_size)
    across = (columns + 0.5) * 64 / color_size[1]
    image = np.stack([columns, rows, 255 * ((across > 16) & (across < 36))], -1).astype(np.uint8)
    depth = np.full(SIZE, 2000, np.uint16)
    depth[:, 20:40] = 1000
    for number in range(2):
        Image.fromarray(image).save(folder / f"frame-{number:06d}.color.png")
        Image.fromarray(depth).save(folder / f"frame-{number:06d}.depth.png")
        np.savetxt(folder / f"frame-{number:06d}.pose.txt", np.eye(4))
    return folder


@pytest.mark.parametrize("zoom", [1, 2])
def test_points_have_the_color_that_the_color_camera_beside_the_depth_camera_saw(tmp_path, zoom):
    root = write_wall(tmp_path / "wall", (48 * zoom, 64 * zoom))
    center = {"cx": 31.5 * zoom + (zoom - 1) / 2, "cy": 23.5 * zoom + (zoom - 1) / 2}
    beside = Calibration(fx=50 * zoom, fy=50 * zoom, **center, translation=(-0.08, 0.0, 0.0))
    spec = DataSpec(SIZE, 1, "train", tmp_path / "cache")
    for options, shift in (({"depth_to_color": {"*": beside}}, 0.08), ({}, 0.0)):
        surface = PosedRGBD(spec, root=root, surface=SurfaceOptions(0.005), **options).surface(0)
        pixels = 50 * zoom * (surface.points[:, :2] - [shift, 0]) / surface.points[:, 2:] + [32 * zoom, 24 * zoom]
        assert len(surface) > 0.7 * 48 * 64
        # of the color pixels on a depth pixel any will do
        assert np.abs(surface.colors[:, :2] + 0.5 - pixels).max() <= zoom / 2 + 0.01
        is_box, blue = surface.points[:, 2] < 1.5, surface.colors[:, 2] == 255
        assert is_box.sum() > 500 and np.array_equal(is_box, blue) == bool(options)


def test_fused_colors_are_those_of_the_images_they_project_to(shared_data, tmp_path):
    spec = DataSpec((120, 160), 1, "train", tmp_path)
    surface = SurfaceOptions(voxel_size=0.01)
    dataset = PosedRGBD(spec, root=shared_data / "rgbd" / "office", frame_step=5, surface=surface)
    fused = dataset.surface(0)
    points, colors = np.asarray(fused.points, np.float64), fused.colors.astype(float)
    shuffled = np.random.default_rng(0).permutation(colors)
    right, wrong = [], []
    for frame in range(0, dataset.frame_count(0), 3):
        seen, pixels = visible(points, dataset.load(0, frame, FIELDS))
        image = dataset.load(0, frame, FIELDS)["image"][pixels[:, 1], pixels[:, 0]]
        assert len(image) > 10_000
        right.append(np.abs(colors[seen] - image).mean())
        wrong.append(np.abs(shuffled[seen] - image).mean())
    assert max(right) < 12 and min(wrong) > 4 * max(right)


def visible(points, view):
    """Which points a view sees, and the pixels [M, 2] it sees them at: those within 1 cm of what it measured."""
    camera_from_world = np.linalg.inv(view["world_from_camera"])
    local = points @ camera_from_world[:3, :3].T + camera_from_world[:3, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        x, y = (local @ view["intrinsics"].T)[:, :2].T / local[:, 2]
    height, width = view["depth"].shape
    inside = np.flatnonzero((local[:, 2] > 0.1) & (x >= 0) & (x < width) & (y >= 0) & (y < height))
    pixels = np.stack([x, y], -1)[inside].astype(int)
    seen = np.abs(view["depth"][pixels[:, 1], pixels[:, 0]] - local[inside, 2]) < 0.01
    return inside[seen], pixels[seen]
