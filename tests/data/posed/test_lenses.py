"""Undistortion: the same pixels as OpenCV's projection says, depth values kept, senseless lenses refused."""

import re
import sys
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest

from prior3d.contracts.fields import FIELDS
from prior3d.contracts.reader import Camera
from prior3d.data.posed import lenses
from prior3d.data.posed.cameras import pinhole, scaled
from prior3d.data.posed.lenses import Lens, lens_problem, pinhole_of, undistorted, undistorted_camera
from prior3d.errors import UserError

SIZE = (480, 640)
LENSES = {
    "barrel": ("opencv", (-0.28, 0.07, 0.0005, -0.0008)),
    "pincushion": ("opencv", (0.12, 0.05, -0.001, 0.0004, 0.01)),
    "rational": ("opencv", (0.5, -2.6, 0.0006, -0.0003, 1.5, 0.4, -2.4, 1.4)),  # an Azure Kinect's, scaled to 640 x 480
    "fisheye": ("fisheye", (0.03, -0.01, 0.004, -0.001)),
    "plain fisheye": ("fisheye", (0.0, 0.0, 0.0, 0.0)),
}


def camera_of(name, size=SIZE, depth_size=None):
    model, distortion = LENSES[name]
    focal = 280.0 if model == "fisheye" else 500.0
    matrix = scaled(pinhole(focal, 1.01 * focal, 331.0, 236.0), SIZE, size)
    return Camera(model, matrix, size, distortion, depth_size)


def projected(camera, x, y, size=None):
    """Pixels, centers at +0.5, at which OpenCV sees the rays x, y, 1 in a map of the given size."""
    matrix = scaled(camera.intrinsics, camera.size, size or camera.size)
    matrix[:2, 2] -= 0.5
    points = np.stack([x, y, np.ones_like(x)], -1).reshape(-1, 1, 3).astype(np.float64)
    project = cv2.fisheye.projectPoints if camera.model == "fisheye" else cv2.projectPoints
    pixels, _ = project(points, np.zeros(3), np.zeros(3), matrix, np.array(camera.distortion))
    return pixels.reshape(*np.shape(x), 2) + 0.5


def rays(camera, size=None):
    """Rays x, y through the pixel centers of a map of a pinhole camera."""
    size = size or camera.size
    matrix = scaled(camera.intrinsics, camera.size, size)
    column, row = np.meshgrid(np.arange(size[1]) + 0.5, np.arange(size[0]) + 0.5)
    return (column - matrix[0, 2]) / matrix[0, 0], (row - matrix[1, 2]) / matrix[1, 1]


@pytest.mark.parametrize("name", LENSES)
def test_every_pixel_shows_what_opencv_projects_there(name):
    camera = camera_of(name)
    assert lens_problem(camera) is None
    shown = undistorted_camera(camera)
    column, row = np.meshgrid(np.arange(SIZE[1]) + 0.5, np.arange(SIZE[0]) + 0.5)
    where = np.stack([column, row, row], -1).astype(np.float32)
    seen = undistorted(where, FIELDS["image"], camera)[..., :2]
    assert seen.shape[:2] == shown.size and shown.model == "pinhole" and shown.distortion == ()
    expected = projected(camera, *rays(shown))
    inner = (expected > 0.5).all(-1) & (expected < np.array(SIZE[::-1]) - 0.5).all(-1)
    assert np.abs(seen - expected)[inner].max() < 0.05  # pixels, corners of the image included
    assert inner.mean() > 0.98 and np.abs(seen - expected).max() < 0.55  # at the border half a pixel is repeated


@pytest.mark.parametrize("name", LENSES)
def test_the_rectangle_lies_in_the_image_and_no_side_can_move_out(name):
    camera = camera_of(name)
    shown = undistorted_camera(camera)
    (height, width), matrix = shown.size, shown.intrinsics

    def outline(left, top, right, bottom):
        x, y = np.linspace(left, right, 200), np.linspace(top, bottom, 200)
        column = np.concatenate([x, x, np.full(200, left), np.full(200, right)])
        row = np.concatenate([np.full(200, top), np.full(200, bottom), y, y])
        pixels = projected(camera, (column - matrix[0, 2]) / matrix[0, 0], (row - matrix[1, 2]) / matrix[1, 1])
        return max(-pixels.min(), (pixels - np.array(SIZE[::-1])).max())  # pixels outside

    assert outline(0, 0, width, height) < 0.1
    for moved in ((-4, 0, width, height), (0, -4, width, height), (0, 0, width + 4, height)):
        assert outline(*moved) > 0.1
    assert height * width <= SIZE[0] * SIZE[1]
    factor = matrix[0, 0] / camera.intrinsics[0, 0]
    assert factor <= 1 and matrix[1, 1] / camera.intrinsics[1, 1] == pytest.approx(factor)
    if name == "pincushion":
        assert factor == 1


@pytest.mark.parametrize("name", ["barrel", "rational", "fisheye"])
def test_a_texture_looks_as_a_pinhole_sees_it(name):
    def texture(x, y):
        return np.stack([127 + 60 * np.sin(18 * x + 3 * c) + 60 * np.cos(15 * y - x) for c in range(3)], -1)

    camera = camera_of(name)
    column, row = np.meshgrid(np.arange(SIZE[1]), np.arange(SIZE[0]))
    matrix = camera.intrinsics.copy()
    matrix[:2, 2] -= 0.5
    pixels = np.stack([column, row], -1).reshape(-1, 1, 2).astype(np.float64)
    many = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 200, 1e-10)
    module = cv2.fisheye if camera.model == "fisheye" else cv2
    seen = module.undistortPoints(pixels, matrix, np.array(camera.distortion), criteria=many)
    seen = seen.reshape(*SIZE, 2)
    image = np.rint(texture(seen[..., 0], seen[..., 1])).clip(0, 255).astype(np.uint8)
    difference = undistorted(image, FIELDS["image"], camera) - texture(*rays(undistorted_camera(camera)))
    assert np.abs(difference).mean() < 0.5 and np.abs(difference)[2:-2, 2:-2].max() < 3


@pytest.mark.parametrize("name", ["barrel", "fisheye"])
@pytest.mark.parametrize("depth_size", [(480, 640), (240, 320), (96, 128)])
def test_depth_keeps_its_values_at_its_own_resolution(name, depth_size):
    camera = camera_of(name, depth_size=depth_size)
    shown = undistorted_camera(camera)
    depth = np.random.default_rng(0).uniform(0.5, 9, depth_size).astype(np.float32)
    depth[::7] = 0
    moved = undistorted(depth, FIELDS["depth"], camera)
    assert moved.shape == shown.depth_size and moved.dtype == np.float32
    assert np.isin(moved, depth).all()
    ratio = np.divide(shown.depth_size, shown.size) / np.divide(depth_size, SIZE)
    assert np.abs(ratio - 1).max() < 0.02
    source = projected(camera, *rays(shown, shown.depth_size), depth_size)
    clear = np.abs(source - np.floor(source) - 0.5).max(-1) < 0.48  # not on the border of two pixels
    row, column = (np.floor(source[..., axis]).astype(int).clip(0, depth_size[1 - axis] - 1) for axis in (1, 0))
    assert np.array_equal(moved[clear], depth[row, column][clear])
    ids = np.arange(depth_size[0] * depth_size[1], dtype=np.int32).reshape(depth_size)
    assert np.array_equal(undistorted(ids, FIELDS["instances"], camera)[clear], ids[row, column][clear])
    normals = np.random.default_rng(0).standard_normal((*depth_size, 3)).astype(np.float32)
    assert np.array_equal(undistorted(normals, FIELDS["normals"], camera)[clear], normals[row, column][clear])


def test_a_lens_without_distortion_is_a_pinhole():
    matrix = pinhole(500, 500, 320, 240)
    image = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)
    for distortion in ((), (0.0,) * 4, (0.0,) * 8, (0.0,) * 12):
        camera = Camera("opencv", matrix, SIZE, distortion)
        assert lens_problem(camera) is None and undistorted_camera(camera) is camera
        assert undistorted(image, FIELDS["image"], camera) is image
    assert lens_problem(Camera("pinhole", matrix, SIZE, (0.1, 0, 0, 0))).startswith("a pinhole has no distortion")
    slight = Camera("opencv", matrix, SIZE, (1e-9, 0, 0, 0))
    assert undistorted_camera(slight).size == SIZE and np.array_equal(undistorted_camera(slight).intrinsics, matrix)
    assert np.array_equal(undistorted(image, FIELDS["image"], slight), image)


def test_a_depth_camera_of_its_own_stays_as_it_is():
    camera = replace(camera_of("barrel"), depth_size=(24, 32), depth_intrinsics=pinhole(25, 25, 16, 12))
    shown = undistorted_camera(camera)
    assert shown.depth_size == (24, 32) and shown.depth_intrinsics is camera.depth_intrinsics


@pytest.mark.parametrize(
    ("model", "distortion", "words"),
    [
        ("opencv", (-2.0, 0.0, 0.0, 0.0), r"\[-2.0, 0.0, 0.0, 0.0\] of its lens \(opencv\) fold the image onto itself"),
        ("opencv", (0.0, 0.0, 1.5, 0.0), "fold the image"),
        ("fisheye", (-0.9, 0.0, 0.0, 0.0), "fold the image"),
        ("opencv", (0.0, 0.0, 0.0, 0.0, 0.0, -900.0, 0.0, 0.0), "leave .* of the width"),
        ("opencv", (900.0, 0.0, 0.0, 0.0), "leave .* of the width"),
        ("opencv", (0.1, 0.2, 0.3), "expected 4 or 5 or 8 finite coefficients of the lens opencv"),
        ("opencv", (np.nan, 0.0, 0.0, 0.0), "expected 4 or 5 or 8 finite"),
        ("fisheye", (0.1,) * 8, "expected 4 finite coefficients of the lens fisheye"),
        ("fisheye", (), "expected 4 finite coefficients of the lens fisheye"),
        ("omni", (0.1,) * 4, "no lens model omni, only pinhole, opencv, fisheye"),
    ],
)
def test_senseless_lenses_are_named(model, distortion, words):
    problem = lens_problem(Camera(model, pinhole(500, 500, 320, 240), SIZE, distortion))
    assert problem is not None and "\n" not in problem
    assert re.search(words, problem)


def test_skew_and_boxes_cannot_be_undistorted():
    camera = camera_of("barrel")
    skewed = replace(camera, intrinsics=camera.intrinsics + np.array([[0, 1.0, 0], [0, 0, 0], [0, 0, 0]]))
    assert "skew" in lens_problem(skewed)
    with pytest.raises(UserError, match="boxes of images with a distorted lens"):
        undistorted(np.zeros((1, 4)), FIELDS["boxes"], camera)


def test_without_opencv_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match=r"^root: undistorting images .*opencv-python-headless.*'prior3d\[formats\]'"):
        lens_problem(camera_of("barrel"))


def test_hundreds_of_cameras_are_checked_quickly():
    cameras = [replace(camera_of("barrel"), distortion=(-0.2 - 1e-4 * n, 0.0, 0.0, 0.0)) for n in range(300)]
    start = time.process_time()
    assert not any(map(lens_problem, cameras))
    checked = time.process_time() - start
    for camera in cameras[:50]:
        pinhole_of(Lens.of(camera))
    assert checked < 0.5 and time.process_time() - start - checked < 1.0


def test_only_the_maps_of_a_few_lenses_are_kept():
    image, depth = np.zeros((24, 32, 3), np.uint8), np.ones((24, 32), np.float32)
    for number in range(20):
        camera = replace(camera_of("barrel", (24, 32)), distortion=(-0.1 - 0.01 * number, 0.0, 0.0, 0.0))
        undistorted(image, FIELDS["image"], camera)
        undistorted(depth, FIELDS["depth"], camera)
    for kept in (lenses._smooth_maps, lenses._nearest_pixels):
        assert kept.cache_info().currsize == lenses._MAPS_KEPT
    before = lenses._smooth_maps.cache_info().misses
    undistorted(image, FIELDS["image"], replace(camera))  # another object of the same numbers
    assert lenses._smooth_maps.cache_info().misses == before
