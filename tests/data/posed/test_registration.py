import numpy as np
import pytest
from PIL import Image

from prior3d.data.posed.registration import CameraPair


def intrinsics(focal=100.0, center=(50.0, 40.0)):
    return np.array([[focal, 0, center[0]], [0, focal, center[1]], [0, 0, 1.0]])


def moved(x=0.0, y=0.0, z=0.0, rotation=None):
    pose = np.eye(4)
    pose[:3, 3] = x, y, z
    if rotation is not None:
        pose[:3, :3] = rotation
    return pose


def rotation_about(axis, degrees):
    axis, angle = np.asarray(axis) / np.linalg.norm(axis), np.deg2rad(degrees)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def plane(normal, distance, camera, size):
    """Depth of the plane normal . X = distance, seen by a camera, [h, w] float32."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    rays = np.einsum("ij,jhw->ihw", np.linalg.inv(camera), np.stack([x, y, np.ones(size)]))
    return (distance / np.einsum("i,ihw->hw", np.asarray(normal), rays)).astype(np.float32)


def test_two_planes_hide_and_reveal_each_other_as_computed_by_hand():
    depth = np.full((80, 100), 5.0, dtype=np.float32)
    depth[30:50, 20:30] = 1.0
    # color camera 0.1 m to the right of the depth camera: things move left by 100 px * 0.1 m / depth
    seen = CameraPair(intrinsics(), intrinsics(), moved(x=-0.1)).register(depth)
    expected = np.full((80, 100), 5.0, dtype=np.float32)
    expected[:, 98:] = 0  # beyond the depth camera's view
    expected[30:50, 18:28] = 0  # behind the near plane, seen by the color camera only ...
    expected[30:50, 10:20] = 1.0  # ... part of which the near plane hides there too
    assert np.array_equal(seen, expected)


def test_depth_is_along_the_color_cameras_axis():
    depth = np.full((80, 100), 2.0, dtype=np.float32)
    seen = CameraPair(intrinsics(), intrinsics(), moved(z=0.5)).register(depth)
    assert set(np.unique(seen)) == {0.0, 2.5}


@pytest.mark.parametrize("zoom", [0.6, 0.9, 1.0, 1.4, 2.3])
def test_a_surface_in_front_lets_nothing_behind_it_through(zoom):
    depth = np.full((80, 100), 4.0, dtype=np.float32)
    depth[20:60, 30:70] = 1.0
    shift = 0.0173 / zoom
    seen = CameraPair(intrinsics(), intrinsics(100 * zoom), moved(x=shift, y=shift)).register(depth)
    # where the near square's outline lands: zoom * (u - c) + c + 100 * 0.0173
    left, right = (zoom * (u - 50) + 50 + 1.73 for u in (30, 70))
    top, bottom = (zoom * (v - 40) + 40 + 1.73 for v in (20, 60))
    inside = np.s_[max(0, int(np.ceil(top))) : int(bottom), max(0, int(np.ceil(left))) : int(right)]
    assert (seen[inside] == 1.0).all()
    near = (seen == 1.0).sum()
    area = (min(80, bottom) - max(0, top)) * (min(100, right) - max(0, left))
    assert near <= area + 2 * (40 + 40) * zoom * 0.7, "grown by more than the footprint's rounding"
    if 0.9 <= zoom <= 1.4:  # the far plane is still visible around it, without holes away from the square's shadow
        assert (seen[5:10, 15:85] == 4.0).all()


@pytest.mark.parametrize("tilt", [(0.0, 0.0), (0.5, 0.2), (0.85, 0.0), (-0.6, -0.6)])
@pytest.mark.parametrize("rotation", [None, rotation_about((0.3, 1.0, 0.2), 2.0)])
def test_tilted_planes_stay_closed_and_in_place(tilt, rotation):
    size, depth_camera, color_camera = (120, 160), intrinsics(146, (80.5, 60.2)), intrinsics(132, (79.0, 61.0))
    color_from_depth = moved(-0.025, 0.004, 0.01, rotation)
    normal = np.array([*tilt, np.sqrt(1 - tilt[0] ** 2 - tilt[1] ** 2)])
    seen = CameraPair(depth_camera, color_camera, color_from_depth).register(plane(normal, 1.5, depth_camera, size))
    in_color = color_from_depth[:3, :3] @ normal
    truth = plane(in_color, 1.5 + in_color @ color_from_depth[:3, 3], color_camera, size)
    middle = np.s_[20:-20, 20:-20]
    assert (seen[middle] > 0).all(), "holes"
    # a pixel may take the depth of a point seen by up to 0.6 color pixels away along x and y
    slope = 0.6 * sum(np.abs(np.gradient(truth, axis=axis)) for axis in (0, 1))
    assert (np.abs(seen - truth) <= 1.1 * slope + 1e-5)[middle].all()


def test_splatting_matches_a_loop_over_all_points():
    rng = np.random.default_rng(0)
    size = (24, 30)
    depth = rng.uniform(0.5, 3.0, size).astype(np.float32)
    depth[rng.random(size) < 0.3] = 0
    depth_camera, color_camera = intrinsics(30, (15.2, 11.8)), intrinsics(27, (14.6, 12.5))
    color_from_depth = moved(-0.05, 0.02, 0.03, rotation_about((1, 2, 3), 3))
    expected = np.full(size, np.inf)
    half = 27 / 30 / 2 + 0.1
    for row in range(size[0]):
        for column in range(size[1]):
            if depth[row, column] == 0:
                continue
            point = np.linalg.inv(depth_camera) @ [column + 0.5, row + 0.5, 1] * float(depth[row, column])
            point = color_from_depth[:3, :3] @ point + color_from_depth[:3, 3]
            x, y, _ = color_camera @ point / point[2]
            for r in range(size[0]):
                for c in range(size[1]):
                    if abs(c + 0.5 - x) <= half and abs(r + 0.5 - y) <= half:
                        expected[r, c] = min(expected[r, c], point[2])
    expected[np.isinf(expected)] = 0
    seen = CameraPair(depth_camera, color_camera, color_from_depth).register(depth)
    assert np.allclose(seen, expected, atol=1e-5)


def test_what_the_sensor_did_not_measure_stays_unknown():
    depth = np.full((80, 100), 2.0, dtype=np.float32)
    depth[40, :] = 0
    depth[:, 60] = 0
    seen = CameraPair(intrinsics(), intrinsics(), moved(x=-0.04)).register(depth)  # two pixels to the left
    assert (seen[40] == 0).all() and (seen[:, 58] == 0).all()
    assert (np.delete(np.delete(seen, 40, 0), 58, 1)[:, :97] == 2.0).all()


def test_cameras_of_one_center_need_a_look_up_only():
    depth = np.arange(1, 8001, dtype=np.float32).reshape(80, 100)
    pair = CameraPair(intrinsics(), intrinsics(50, (50, 40)), np.eye(4))  # the color camera sees twice as wide
    seen = pair.register(depth)
    assert (seen[:20] == 0).all() and (seen[60:] == 0).all() and (seen[:, :25] == 0).all() and (seen[:, 75:] == 0).all()
    rows, columns = np.mgrid[20:60, 25:75]
    sources = depth[2 * (rows - 20) + 1, 2 * (columns - 25) + 1]
    assert np.array_equal(seen[20:60, 25:75], sources)
    same = CameraPair(intrinsics(), intrinsics(100.2, (50.1, 40)), np.eye(4))
    assert same.register(depth) is depth


def edges(depth_m):
    """Pixels on the near side of a jump in depth of 10 %, [h, w] bool."""
    found = np.zeros(depth_m.shape, dtype=bool)
    for axis in (0, 1):
        for step in (1, -1):
            found |= (depth_m > 0) & (np.roll(depth_m, step, axis) > 1.1 * depth_m)
    found[[0, -1]] = found[:, [0, -1]] = False
    return found


def near_strong_edges(image, distance=1):
    """Pixels within `distance` of the strongest tenth of the image's gradients, [h, w] bool."""
    ndimage = pytest.importorskip("scipy.ndimage")
    strength = ndimage.gaussian_gradient_magnitude(image.astype(np.float32).mean(-1), 1.0)
    return ndimage.binary_dilation(strength > np.percentile(strength, 90), iterations=distance)


def test_registration_puts_depth_edges_on_color_edges_of_the_kitchen(shared_data):
    folder = shared_data / "rgbd" / "kitchen-a"
    cameras = CameraPair(intrinsics(585, (320.5, 240.5)), intrinsics(528, (321.5, 239.5)), moved(x=-0.025))
    above_chance = {"before": [], "after": []}
    for path in sorted(folder.glob("*.depth.png"))[::12]:
        codes = np.asarray(Image.open(path))
        depth = np.where(codes == 65535, 0, codes).astype(np.float32) / 1000
        near = near_strong_edges(np.asarray(Image.open(path.with_name(path.name.replace("depth.png", "color.jpg")))))
        for name, depth_m in (("before", depth), ("after", cameras.register(depth))):
            above_chance[name].append(near[edges(depth_m)].mean() - near[depth_m > 0].mean())
    before, after = (np.mean(above_chance[name]) for name in ("before", "after"))
    # measured: -0.01 before (no better than chance), 0.27 after
    assert after > 0.2 and after > 8 * abs(before), (before, after)
