import pickle
import time

import numpy as np
import pytest
import torch
from scipy import stats

from prior3d.contracts.dataset import DataSpec, View
from prior3d.errors import UserError
from prior3d.geometry import project, unproject
from prior3d_plugins.datasets.synthetic_rooms import SyntheticRooms, rendering
from prior3d_plugins.datasets.synthetic_rooms.catalog import CLASSES, VARIANTS
from prior3d_plugins.datasets.synthetic_rooms.design import Design
from prior3d_plugins.datasets.synthetic_rooms.patterns import FAMILIES
from prior3d_plugins.datasets.synthetic_rooms.primitives import Primitive, intersect, unit_normals
from prior3d_plugins.datasets.synthetic_rooms.rendering import render
from prior3d_plugins.datasets.synthetic_rooms.rooms import Piece, Room, draw_room
from prior3d_plugins.datasets.synthetic_rooms.sensor import Sensor
from prior3d_plugins.datasets.synthetic_rooms.textures import draw_texture
from prior3d_plugins.datasets.synthetic_rooms.trajectories import draw_trajectory, look_at, pinhole

SIZE = (48, 64)
FIELDS = frozenset({"image", "depth", "intrinsics", "world_from_camera", "semantic"})


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def dataset(cache, split="train", views=2, seed=0, size=SIZE, **options) -> SyntheticRooms:
    return SyntheticRooms(DataSpec(size, views, split, cache, seed), **options)


def hand_made(pieces: tuple[Piece, ...] = ()) -> Room:
    rng = np.random.default_rng(0)
    size = np.array([4.0, 5.0, 2.5])
    surfaces = tuple(draw_texture(rng) for _ in range(6))
    return Room(size, surfaces, pieces, size * 0.5, draw_trajectory(rng, size))


def furnished(kind: str, primitives: list[Primitive], pose: np.ndarray) -> Piece:
    design = Design(kind, tuple(primitives))
    return Piece(design, pose, tuple(draw_texture(np.random.default_rng(1)) for _ in range(design.materials)))


def camera_rays(pose: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Rays [H, W, 3] in world axes in float64, one meter long along the optical axis."""
    rows, columns = np.indices(SIZE) + 0.5
    pixels = np.stack([columns, rows, np.ones(SIZE)], axis=-1)
    return pixels @ np.linalg.inv(intrinsics).T @ pose[:3, :3].T


def points_of(view: View) -> torch.Tensor:
    return unproject(
        *(torch.from_numpy(array) for array in (view["depth"], view["intrinsics"], view["world_from_camera"]))
    )


def corners_of(piece: Piece) -> np.ndarray:
    corners = np.stack(np.meshgrid(*np.array(piece.design.bounds).T), axis=-1).reshape(8, 3)
    return corners @ piece.world_from_piece[:3, :3].T + piece.world_from_piece[:3, 3]


def inside(shape: str, points: np.ndarray, half: np.ndarray, slack: float) -> np.ndarray:
    x, y, z = np.moveaxis(np.abs(points) / half, -1, 0)
    if shape == "box":
        return np.maximum(np.maximum(x, y), z) < 1 - slack
    if shape == "sphere":
        return x**2 + y**2 + z**2 < 1 - slack
    return np.maximum(x**2 + y**2, z) < 1 - slack


# Depth, normals, classes


def test_an_empty_room_is_a_box_seen_from_inside():
    room, intrinsics = hand_made(), pinhole(SIZE, 80.0)
    center = np.array([[1.3, 2.1, 1.2]])
    poses = np.concatenate([look_at(center, center + d, np.array([0.2])) for d in ([[1, 2, 0.5]], [[-1, -0.7, -1]])])
    views = render(room, poses, intrinsics, SIZE, Sensor(np.ones((2, 3))))
    for index, pose in enumerate(poses):
        rays = camera_rays(pose, intrinsics)
        with np.errstate(divide="ignore"):
            walls = np.concatenate([(0 - center) / rays, (room.size - center) / rays], axis=-1)
        walls[walls <= 0] = np.inf
        face = walls.argmin(-1)
        np.testing.assert_allclose(views.depth[index], walls.min(-1), rtol=1e-5)
        np.testing.assert_array_equal(
            views.semantic[index],
            np.array([CLASSES.index(n) for n in ["wall", "wall", "floor", "wall", "wall", "ceiling"]])[face],
        )
        inward = np.concatenate([np.eye(3), -np.eye(3)])[face]
        np.testing.assert_array_equal(views.normals[index], inward * 127)
    assert len(np.unique(views.semantic)) == 3


def test_a_turned_box_a_ball_and_a_column_lie_where_they_were_put():
    turn = np.eye(4)
    turn[:2, :2] = [[0.6, -0.8], [0.8, 0.6]]
    turn[:3, 3] = 2.0, 3.5, 0.0
    primitives = [
        Primitive("box", (0.0, 0.0, 0.3), (0.5, 0.2, 0.3)),
        Primitive("sphere", (0.2, 0.0, 0.9), (0.3, 0.3, 0.3)),
        Primitive("cylinder", (-0.35, 0.0, 0.9), (0.1, 0.1, 0.3)),
    ]
    room, intrinsics = hand_made((furnished("clutter", primitives, turn),)), pinhole(SIZE, 40.0)
    poses = look_at(np.array([[1.6, 1.0, 1.4]]), np.array([[2.0, 3.5, 0.6]]), np.zeros(1))
    view = render(room, poses, intrinsics, SIZE, Sensor(np.ones((1, 3))))
    on_piece = view.semantic[0] == CLASSES.index("clutter")
    assert 500 < on_piece.sum() < 2500
    points = poses[0, :3, 3] + camera_rays(poses[0], intrinsics) * view.depth[0][..., None]
    local = (points - turn[:3, 3]) @ turn[:3, :3]
    solids = [(local - p.center, p.shape, np.array(p.half)) for p in primitives]
    deep = np.any([inside(shape, offset, half, 1e-4) for offset, shape, half in solids], axis=0)
    near = np.any([inside(shape, offset, half, -1e-4) for offset, shape, half in solids], axis=0)
    assert not deep.any()
    np.testing.assert_array_equal(near, on_piece)


@pytest.mark.parametrize("shape", ["box", "sphere", "cylinder"])
def test_rays_enter_a_solid_where_marching_along_them_does(shape):
    rng = np.random.default_rng(0)
    half = np.array([0.5, 0.3, 0.8])
    directions = rng.normal(size=(3, 400))
    origins = 3 * rng.normal(size=(3, 400)) / 2
    origins *= np.maximum(1, 1.5 / np.linalg.norm(origins, axis=0))
    origins[:, :200] = -1.5 * directions[:, :200] + rng.uniform(-0.5, 0.5, (3, 200))  # aimed
    outside = ~inside(shape, origins.T, half, -0.05)
    origins, directions = origins[:, outside], directions[:, outside]
    primitive = Primitive(shape, (0.0, 0.0, 0.0), tuple(half))
    rays = torch.from_numpy(origins).float(), torch.from_numpy(directions).float()
    distance, unit_origins, unit_directions = intersect(primitive, *rays)
    hit = torch.isfinite(distance).numpy()
    assert 50 < hit.sum() < len(hit) - 50

    along = np.linspace(0.05, 12, 6000)
    marched = inside(shape, (origins[None] + along[:, None, None] * directions[None]).transpose(0, 2, 1), half, 0.0)
    first = np.where(marched.any(0), along[marched.argmax(0)], np.inf)
    grazing = np.isinf(first) & hit  # steps between which a ray passed through an edge
    assert grazing.sum() < 0.02 * len(hit)
    np.testing.assert_array_equal(np.isfinite(first)[~grazing], hit[~grazing])
    both = np.isfinite(first) & hit
    assert (np.abs(first[both] - distance.numpy()[both]) < 0.0021).all()

    points = (unit_origins + unit_directions * distance)[:, hit]
    normals = unit_normals(primitive, points).numpy()
    np.testing.assert_allclose(np.linalg.norm(normals, axis=0), 1, atol=1e-5)
    surface = points.numpy() * half[:, None]
    for sign in (1, -1):  # a step outward leaves the solid, a step inward stays within
        stepped = inside(shape, (surface + sign * 1e-3 * normals).T, half, 0.0)
        assert (stepped == (sign < 0)).mean() > 0.98


def test_a_ball_has_the_depth_of_the_textbook():
    room_center, radius = np.array([2.0, 3.0, 1.2]), 0.5
    pose = np.eye(4)
    pose[:3, 3] = room_center
    piece = furnished("lamp", [Primitive("sphere", (0.0, 0.0, 0.0), (radius,) * 3)], pose)
    intrinsics = pinhole(SIZE, 60.0)
    poses = look_at(np.array([[2.0, 1.0, 1.2]]), room_center[None], np.zeros(1))
    view = render(hand_made((piece,)), poses, intrinsics, SIZE, Sensor(np.ones((1, 3))))
    rays = camera_rays(poses[0], intrinsics)
    # |t r - c|^2 = R^2 with c straight ahead at 2 m
    square = (rays**2).sum(-1)
    root = 4 - square * (4 - radius**2)
    expected = (2 - np.sqrt(np.maximum(root, 0))) / square
    hit = root > 1e-3
    assert hit.sum() > 300
    np.testing.assert_allclose(view.depth[0][hit], expected[hit], rtol=1e-5)
    assert (view.semantic[0][hit] == CLASSES.index("lamp")).all()
    outward = (rays * expected[..., None] - [0, 2, 0])[hit] / radius
    np.testing.assert_allclose(view.normals[0][hit] / 127, outward, atol=0.02)


def test_normals_are_the_slope_of_the_depth_in_camera_axes(cache):
    rooms = dataset(cache, size=(96, 128), rooms=1, frames=4)
    assert "normals" in rooms.provides
    for frame in range(4):
        view = rooms.load(0, frame, FIELDS | {"normals"})
        in_camera = (torch.from_numpy(array) for array in (view["depth"], view["intrinsics"]))
        points = unproject(*in_camera, torch.eye(4)).numpy()
        across, down = points[1:-1, 2:] - points[1:-1, :-2], points[2:, 1:-1] - points[:-2, 1:-1]
        slope = np.cross(down, across)
        slope /= np.linalg.norm(slope, axis=-1, keepdims=True)
        normals = view["normals"]
        assert (normals.shape, normals.dtype) == ((96, 128, 3), np.float32)
        np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1, atol=1e-5)
        assert ((normals * points).sum(-1) < 0).mean() > 0.999  # toward the camera, which is at 0
        middle = normals[1:-1, 1:-1]
        neighbors = normals[1:-1, 2:], normals[1:-1, :-2], normals[2:, 1:-1], normals[:-2, 1:-1]
        flat = np.all([(middle * other).sum(-1) > 0.9999 for other in neighbors], axis=0)
        angle = np.degrees(np.arccos(np.clip((slope * middle).sum(-1), -1, 1)))
        assert flat.mean() > 0.5
        assert (angle[flat] < 0.5).mean() > 0.8  # the rest steps from one face to a parallel one
        floor = view["semantic"] == CLASSES.index("floor")
        assert not floor.any() or (normals[floor][:, 1] < -0.5).all()  # up, and y points down
    assert "normals" not in rooms.load(0, 0, FIELDS)


def test_rays_that_are_left_out_could_not_have_met_anything(monkeypatch):
    room, intrinsics = draw_room(np.random.default_rng(4)), pinhole(SIZE, 100.0)
    poses = room.trajectory.poses(12)
    sensor = Sensor(np.linspace(0.8, 1.2, 36).reshape(12, 3), noise=0.1)
    some = render(room, poses, intrinsics, SIZE, sensor, highlights=0.5)
    monkeypatch.setattr(rendering, "_rays_near", lambda piece, rays: torch.arange(rays.origins.shape[1]))
    monkeypatch.setattr(rendering, "_RAYS_AT_ONCE", 5 * SIZE[0] * SIZE[1])  # nor do batches of views matter
    every = render(room, poses, intrinsics, SIZE, sensor, highlights=0.5)
    for name in ("depth", "semantic", "normals", "image"):
        np.testing.assert_array_equal(getattr(some, name), getattr(every, name))


# Views of one room


def test_views_agree_on_depth_class_and_color(cache):
    rooms = dataset(cache, size=(96, 128), rooms=2, frames=10, exposure=0.0)
    rooms.prepare()
    same_class, color_gap = [], []
    for scene in range(2):
        table = rooms.pairs(scene)
        for *pair, overlap in zip(table.first.tolist(), table.second.tolist(), table.overlap.tolist(), strict=True):
            views = [rooms.load(scene, frame, FIELDS) for frame in pair]
            shares = []
            for a, b in (views, views[::-1]):
                points = points_of(a)
                cameras = torch.from_numpy(b["intrinsics"]), torch.from_numpy(b["world_from_camera"])
                pixels, depth = (tensor.numpy() for tensor in project(points.reshape(-1, 3), *cameras))
                x, y = np.floor(pixels.T)
                seen = (depth > 0.1) & (x >= 0) & (x < 128) & (y >= 0) & (y < 96)
                x, y = x[seen].astype(int), y[seen].astype(int)
                same = np.abs(b["depth"][y, x] - depth[seen]) < 0.02 * depth[seen]
                shares.append(same.sum() / len(depth))
                same_class.append(a["semantic"].ravel()[seen][same] == b["semantic"][y, x][same])
                gap = a["image"].reshape(-1, 3)[seen][same].astype(float) - b["image"][y, x][same]
                color_gap.append(np.abs(gap).mean(-1))
            assert np.mean(shares) == pytest.approx(overlap, abs=0.15)
    assert len(same_class) >= 10
    assert np.concatenate(same_class).mean() > 0.96
    # Half a pixel off in a fine pattern is another color; but most points have one color for all views.
    assert np.median(np.concatenate(color_gap)) < 6
    assert np.median(np.abs(np.diff(a["image"].reshape(-1, 3)[::577].astype(float), axis=0)).mean(-1)) > 30


def test_exposure_changes_brightness_and_nothing_else(cache):
    plain, exposed = (dataset(cache, rooms=1, frames=6, exposure=e) for e in (0.0, 0.3))
    gains = []
    for frame in range(6):
        a, b = plain.load(0, frame, FIELDS), exposed.load(0, frame, FIELDS)
        np.testing.assert_array_equal(a["depth"], b["depth"])
        dark = (a["image"] > 40) & (a["image"] < 150)
        gain = b["image"][dark] / a["image"][dark].astype(float)
        gains.append(np.median(gain))
    assert np.ptp(gains) > 0.1
    assert all(np.exp(-0.3 * 1.25) < gain < np.exp(0.3 * 1.25) for gain in gains)


@pytest.mark.slow
def test_pairs_fill_all_angle_bins(cache):
    rooms = dataset(cache, size=(96, 128), rooms=6)
    rooms.prepare()
    (line,) = rooms.describe()[1:]
    angles = torch.cat([rooms.pairs(scene).angle_deg for scene in range(6)])
    assert 10 < angles.median() < 35
    counts = [((angles >= low) & (angles < high)).sum().item() for low, high in ((0, 15), (15, 30), (30, 180))]
    assert min(counts) > 0.15 * len(angles), line
    heights = np.concatenate([rooms._arrays(scene)["world_from_camera"][:, 2, 3] for scene in range(6)])
    assert np.ptp(heights) > 0.4


# Content


def content(rooms: SyntheticRooms) -> list[bytes]:
    views = [rooms.load(scene, frame, FIELDS) for scene in range(len(rooms.scenes)) for frame in range(2)]
    return [view["image"].tobytes() + view["depth"].tobytes() for view in views]


def test_content_is_the_same_again_whatever_the_runs_seed_or_threads(cache, tmp_path):
    options = {"rooms": 2, "frames": 2}
    first = content(dataset(cache, **options))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with torch.autocast("cpu", torch.bfloat16):
            assert content(dataset(tmp_path, seed=5, **options)) == first
    finally:
        torch.set_num_threads(threads)
    assert content(dataset(cache, content_seed=1, **options)) != first
    assert content(dataset(cache, rooms=3, frames=2))[:4] == first


def test_splits_and_content_seeds_share_no_room(cache):
    options = {"rooms": 3, "validation_rooms": 3, "test_rooms": 3, "frames": 2}
    sets = [
        dataset(cache, split, content_seed=s, **options) for s in (0, 1) for split in ("train", "validation", "test")
    ]
    walls = [rooms._arrays(scene)["depth"].max() for rooms in sets for scene in range(3)]
    assert len(set(walls)) == 18
    assert [rooms.scenes[1] for rooms in sets[:3]] == ["train-001", "validation-001", "test-001"]


def test_more_frames_are_of_the_same_room():
    rooms = [draw_room(np.random.default_rng(3)) for _ in range(2)]
    np.testing.assert_array_equal(rooms[0].trajectory.poses(12), rooms[1].trajectory.poses(24)[::2])


def test_furniture_stands_in_the_room_apart_and_out_of_the_cameras_way():
    for seed in range(10):
        room = draw_room(np.random.default_rng(seed))
        cameras = room.trajectory.poses(200)[:, :3, 3]
        boxes = []
        for piece in room.pieces:
            low, high = piece.design.bounds
            corners = corners_of(piece)
            assert (corners > -1e-3).all()
            assert (corners < room.size + 1e-3).all()
            local = (cameras - piece.world_from_piece[:3, 3]) @ piece.world_from_piece[:3, :3]
            distance = np.linalg.norm(np.maximum(np.maximum(low - local, local - high), 0), axis=1)
            assert distance.min() > 0.25
            boxes.append((corners.min(0), corners.max(0)))
        for number, (low, high) in enumerate(boxes):
            for other_low, other_high in boxes[:number]:
                assert (np.minimum(high, other_high) - np.maximum(low, other_low)).min() < 1e-3


@pytest.mark.slow
def test_every_class_is_seen_and_every_variant_is_sound(cache):
    rooms = dataset(cache, rooms=12, frames=8)
    share = np.bincount(
        np.concatenate([rooms._arrays(scene)["semantic"].ravel() for scene in range(12)]), minlength=len(CLASSES)
    )
    assert (share > 0).all(), dict(zip(CLASSES, share, strict=True))
    assert share[3:].sum() > 0.2 * share.sum()
    rng = np.random.default_rng(0)
    for kind, variants in VARIANTS.items():
        for variant, draw in variants.items():
            for _ in range(20):
                design = Design(kind, tuple(draw(rng)))
                low, high = design.bounds
                assert low[2] > (-0.35 if kind == "window" else -0.05), (kind, variant)  # curtains and sills hang
                assert (high - low < 2.3).all(), (kind, variant)
                assert {p.material for p in design.primitives} == set(range(design.materials)), (kind, variant)
                assert all(half > 0.005 for p in design.primitives for half in p.half), (kind, variant)


@pytest.mark.slow
def test_textures_say_nothing_about_what_they_cover():
    counts, colors = np.zeros((len(CLASSES), len(FAMILIES))), [[] for _ in CLASSES]
    for seed in range(80):
        room = draw_room(np.random.default_rng(seed))
        covered = list(zip([1, 1, 1, 1, 0, 2], room.surfaces, strict=True))
        covered += [(piece.class_id, texture) for piece in room.pieces for texture in piece.textures]
        for class_id, texture in covered:
            counts[class_id, list(FAMILIES).index(texture.family)] += 1
            colors[class_id].append(texture.colors.mean())
    assert counts.sum() > 2000
    assert stats.chi2_contingency(counts).pvalue > 1e-3
    assert stats.f_oneway(*colors).pvalue > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pattern_varies_within_its_two_colors_and_fades_with_distance(family):
    rng = np.random.default_rng(0)
    points = torch.from_numpy(rng.uniform(0, 3, (3, 4000))).float()
    near, far = [], []
    for _ in range(8):
        texture = draw_texture(rng, (family,))
        low, high = np.sort(texture.colors, axis=0)[:, :, None]
        for footprint, spreads in ((0.001, near), (3.0, far)):
            color = texture.color(points, torch.full((4000,), footprint)).numpy()
            assert (color > low - 1e-5).all()
            assert (color < high + 1e-5).all()
            spreads.append(((color - color.mean(1, keepdims=True)) / (high - low)).std())
    assert np.mean(near) > 0.1
    assert np.mean(far) < 0.5 * np.mean(near)


# The dataset


@pytest.mark.parametrize("views", [1, 2, 3])
def test_samples_have_as_many_views_of_one_room(cache, views):
    rooms = dataset(cache, views=views, rooms=2, frames=12)
    rooms.prepare()
    assert len(rooms) == 24
    sample = rooms.sample(3, FIELDS, torch.Generator().manual_seed(0))
    assert len(sample) == views
    assert len({view.scene for view in sample}) == 1
    assert len({view.frame for view in sample}) == views
    for view in sample:
        assert (view["image"].shape, view["image"].dtype) == ((*SIZE, 3), np.uint8)
        assert (view["depth"].shape, view["depth"].dtype) == (SIZE, np.float32)
        assert (view["semantic"].shape, view["semantic"].dtype) == (SIZE, np.uint8)
        assert (view["world_from_camera"].shape, view["world_from_camera"].dtype) == ((4, 4), np.float64)
        assert view["depth"].min() > 0.1
        assert view.size == SIZE
        view["image"][:] = 0  # views belong to the caller, not to the cache


def test_pixels_are_square_and_the_field_of_view_is_as_asked(cache):
    view = dataset(cache, rooms=1, frames=1, field_of_view=90.0).load(0, 0, FIELDS)
    np.testing.assert_allclose(view["intrinsics"], [[32, 0, 32], [0, 32, 24], [0, 0, 1]])
    assert view["intrinsics"].dtype == np.float64


def test_workers_get_no_copies_of_the_rooms(cache):
    rooms = dataset(cache, rooms=2, frames=12)
    rooms.prepare()
    assert len(pickle.dumps(rooms)) < 50_000
    copied = pickle.loads(pickle.dumps(rooms))
    np.testing.assert_array_equal(copied.load(1, 1, FIELDS)["image"], rooms.load(1, 1, FIELDS)["image"])


def test_reading_a_view_takes_well_under_a_millisecond(cache):
    rooms = dataset(cache, size=(96, 128), rooms=1, frames=4)
    rooms.load(0, 0, FIELDS)
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        rooms.load(0, 1, FIELDS)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1e-3


def test_preparing_shows_progress_and_needs_nothing_the_second_time(cache):
    shown = []

    def progress(items, description, total):
        shown.append((description, total))
        return items

    for _ in range(2):
        dataset(cache, "test", test_rooms=2, frames=12).prepare(progress)
    scenes = [shown for shown in shown if shown[0].startswith("test: ")]
    assert scenes == [("test: synthetic_rooms", 2), ("test: pairs", 2)]  # nothing is left the second time


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"rooms": 0}, "rooms"),
        ({"validation_rooms": 0}, "validation_rooms"),
        ({"test_rooms": -1}, "test_rooms"),
        ({"frames": 0}, "frames"),
        ({"field_of_view": 5.0}, "field_of_view"),
        ({"exposure": -0.1}, "exposure"),
        ({"content_seed": -1}, "content_seed"),
    ],
)
def test_options_out_of_range_are_the_users_error(cache, options, key):
    with pytest.raises(UserError, match="expected") as caught:
        dataset(cache, **options)
    assert caught.value.key == key


def test_one_view_a_room_has_no_pairs(cache):
    with pytest.raises(UserError, match="no two views"):
        dataset(cache, rooms=2, frames=1).prepare()
