"""What depth files mean: units, unknown values, distances along rays; through whole recordings."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from prior3d.contracts.reader import Camera, Frame
from prior3d.data.posed.cameras import pinhole
from prior3d.data.posed.depth_codes import DepthCodes
from prior3d.data.posed.files import FileRecording, depth_size
from prior3d.data.posed.rays import along_axis
from prior3d.errors import DamagedFile, UserError

SIZE = (48, 64)


def test_codes_are_units_and_floats_are_meters(tmp_path):
    codes = np.array([[0, 1, 5000, 65535]], np.uint16)
    Image.fromarray(codes).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", np.array([[-1, 1, 70000, 65535]], np.int32))
    Image.fromarray(np.array([[-1.0, np.nan, np.inf, 2.5]], np.float32)).save(tmp_path / "a.tiff")
    np.save(tmp_path / "b.npy", np.array([[-np.inf, 0.0, 1e300, 2.5]]))
    depth = DepthCodes(5000, (0, 65535))
    assert depth.read(tmp_path / "a.png").tolist() == [[0, np.float32(1 / 5000), 1, 0]]
    assert depth.read(tmp_path / "a.npy").tolist() == [[0, np.float32(1 / 5000), 14, 0]]
    assert depth.read(tmp_path / "a.tiff").tolist() == depth.read(tmp_path / "b.npy").tolist() == [[0, 0, 0, 2.5]]
    assert DepthCodes(5000, (), float_scale=100).read(tmp_path / "a.tiff")[0, 3] == np.float32(0.025)
    assert {depth.read(tmp_path / name).dtype for name in ("a.png", "a.npy", "a.tiff")} == {np.dtype(np.float32)}


def test_bytes_are_depth_only_where_declared(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[0, 51, 255]], np.uint8)).save(path)
    assert DepthCodes(25.5, (0,), bits=8).read(path).tolist() == [[0, 2, 10]]
    assert depth_size([path], bits=8) == (1, 3)
    with pytest.raises(DamagedFile, match="expected a 16-bit gray image, got mode L"):
        DepthCodes(25.5, (0,)).read(path)
    with pytest.raises(UserError, match="expected a 16-bit gray image, got mode L"):
        depth_size([path])


def test_options_are_checked_and_change_the_facts():
    for scale, key in ((0, "depth_scale"), (np.inf, "depth_scale"), (np.nan, "depth_scale")):
        with pytest.raises(UserError, match=rf"^{key}: expected units per meter above 0"):
            DepthCodes(scale, ())
    with pytest.raises(UserError, match=r"^invalid_depth"):
        DepthCodes(1000, (-1,))
    with pytest.raises(UserError, match=r"^depth_along: expected axis or ray, got z"):
        DepthCodes(1000, (), along="z")
    assert DepthCodes(1000.0, (0,)).facts == "depth 1000.0 (0,)"
    assert len({DepthCodes(1000.0, (0,), along=along).facts for along in ("axis", "ray")}) == 2


@pytest.mark.parametrize("model", ["pinhole", "opencv", "fisheye", "apart"])
def test_a_wall_at_two_meters_is_found_from_distances_along_rays(model):
    matrix = pinhole(40, 42, 30, 25)
    distortion = {"opencv": (-0.2, 0.03, 0.001, 0.002), "fisheye": (0.03, -0.01, 0.004, -0.001)}.get(model, ())
    if model == "apart":  # a depth camera of its own is a pinhole
        camera = Camera("opencv", pinhole(90, 90, 64, 48), (96, 128), (0.1,) * 4, SIZE, matrix)
    else:
        camera = Camera(model, matrix, SIZE, distortion, SIZE)
    x, y = np.meshgrid(np.linspace(-0.6, 0.6, 30), np.linspace(-0.5, 0.5, 30))
    rays = np.stack([x, y, np.ones_like(x)], -1).reshape(-1, 1, 3)
    integer = matrix - np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
    project = cv2.fisheye.projectPoints if model == "fisheye" else cv2.projectPoints
    pixels = project(rays, np.zeros(3), np.zeros(3), integer, np.array(distortion or (0.0,) * 4))[0].reshape(-1, 2)
    axis = along_axis(np.full(SIZE, 3.0, np.float32), camera)
    column, row = np.rint(pixels).astype(int).T
    inside = (column >= 0) & (column < SIZE[1]) & (row >= 0) & (row < SIZE[0])
    expected = 3 / np.linalg.norm(rays.reshape(-1, 3), axis=1)
    near = np.abs(axis[row[inside], column[inside]] - expected[inside])
    assert inside.sum() > 300 and near.max() < 0.03 and near.mean() < 0.01  # up to half a pixel away
    assert axis.dtype == np.float32 and axis[25, 30] == pytest.approx(3, abs=1e-3)


def test_recordings_convert_distances(tmp_path):
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", np.full(SIZE, 2.0, np.float32))
    camera = Camera("pinhole", pinhole(40, 40, 32, 24), SIZE, depth_size=SIZE)
    codes = DepthCodes(1000, (0,), along="ray")
    files = [{"image": tmp_path / "a.png", "depth": tmp_path / "a.npy"}]
    frames = [Frame("a", camera, np.eye(4))]
    recording = FileRecording(frames, files, {"depth": codes.read}, facts=codes.facts, along=codes.along)
    depth = recording.read(0, frozenset({"depth"}))["depth"]
    x, y = (np.arange(64) - 31.5) / 40, (np.arange(48) - 23.5) / 40
    assert np.allclose(depth, 2 / np.sqrt(1 + x[None] ** 2 + y[:, None] ** 2), atol=1e-6)


def test_real_pgm_depth_has_its_millimeters(shared_data):
    path = min(Path(shared_data / "formats" / "pgm-depth").rglob("*.pgm"))
    depth = DepthCodes(1000, (0,)).read(path)
    assert depth.shape == depth_size([path]) == (480, 640)
    known = depth[depth > 0]
    assert 0.3 < np.median(known) < 10 and len(known) > 0.5 * depth.size
