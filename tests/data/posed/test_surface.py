import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from plain_fusion import plain_order, plain_rows

from prior3d.contracts.dataset import DataSpec, View
from prior3d.data.posed.dataset import PosedDataset
from prior3d.data.posed.fusion import Cloud, PosedFrame, away_from_edges, fuse
from prior3d.data.posed.surface import Surface, SurfaceOptions, add_surface, crop_to_frustum, even_subset, frustum_box
from prior3d.data.sample.augmentation import AugmentOptions, assemble
from prior3d.data.sample.loading import DrawnSamples, collate
from prior3d_plugins.datasets.posed import PosedRGBD
from prior3d_plugins.datasets.synthetic_rooms import SyntheticRooms

GEOMETRY = frozenset({"depth", "intrinsics", "world_from_camera"})
CAMERA = np.array([[50.0, 0, 32], [0, 40.0, 24], [0, 0, 1]])
SURFACE = frozenset({"surface"})
EXACT = SurfaceOptions(voxel_size=0.05, min_frames=1)


def saved(points, folder, colors=None):
    folder.mkdir(exist_ok=True)
    Surface.save(points, folder, colors)
    return Surface(folder)


def turned(degrees, center):
    angle, pose = np.radians(degrees), np.eye(4)
    pose[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    pose[:3, 3] = center
    return pose


def wall_depth(pose, wall_z, size=(48, 64)):
    """Depth of the plane z = wall_z, seen from a pose."""
    rows, columns = np.indices(size) + 0.5
    rays = np.stack([columns, rows, np.ones(size)], -1) @ np.linalg.inv(CAMERA).T
    return ((wall_z - pose[2, 3]) / (rays @ pose[2, :3])).astype(np.float32)


def painted(size, color):
    return np.broadcast_to(np.array(color, np.uint8), (*size, 3))


def frame_of(depth, pose, color=(0, 0, 0)):
    return PosedFrame(depth, CAMERA, pose, painted(depth.shape, color))


class Walls(PosedDataset):
    """Two scenes of four views of a wall each, painted by the frame; counts what is decoded."""

    def __init__(self, spec, surface=EXACT):
        super().__init__(spec, surface=surface)
        self.scenes, self.loads = ["near", "far"], 0

    def frame_count(self, scene):
        return 4

    def load(self, scene, frame, fields):
        self.loads += 1
        pose = turned(10 * frame, (0.1 * frame, 0, 0))
        depth = wall_depth(pose, 2.0 + scene)
        values = {"depth": depth, "intrinsics": CAMERA, "world_from_camera": pose}
        if "image" in fields:
            values["image"] = painted((48, 64), (60 * frame, 100 + scene, 7))
        return View(values, scene, frame, (48, 64))

    def scene_fingerprint(self, scene):
        return self.scenes[scene]


def walls(cache, views=2, **options):
    return Walls(DataSpec(size=(48, 64), views=views, split="train", cache=cache), SurfaceOptions(**options))


def test_the_box_of_a_straight_and_of_a_turned_frustum():
    depth = np.full((48, 64), 2.0, np.float32)
    depth[0] = 0
    low, high = frustum_box(depth, CAMERA, np.eye(4))
    assert np.allclose(low, [-32 / 50 * 2, -24 / 40 * 2, 0]) and np.allclose(high, [32 / 50 * 2, 24 / 40 * 2, 2])
    low, high = frustum_box(depth, CAMERA, turned(90, (1, 2, 3)), near=0.5, far=1.0)  # looks along +x
    assert np.allclose(low, [1.5, 2 - 24 / 40, 3 - 32 / 50]) and np.allclose(high, [2, 2 + 24 / 40, 3 + 32 / 50])


def test_a_few_wrong_depths_do_not_stretch_the_box_and_none_at_all_has_no_box():
    depth = np.full((48, 64), 2.0, np.float32)
    depth.flat[::200] = 9.0
    depth[40, 40] = np.nan
    assert frustum_box(depth, CAMERA, np.eye(4))[1][2] == 2
    depth[:, :32] = 0
    assert frustum_box(depth, CAMERA, np.eye(4))[1][2] == 2
    assert frustum_box(np.zeros((48, 64), np.float32), CAMERA, np.eye(4)) is None


@pytest.mark.parametrize("count", [0, 1, 40_000])
def test_a_crop_is_what_a_test_of_every_point_finds(tmp_path, count):
    rng = np.random.default_rng(0)
    points = (rng.uniform(-3, 3, (count, 3)) * [1, 0.3, 2]).astype(np.float32)
    surface = saved(points, tmp_path)
    assert len(surface) == count
    for _ in range(20):
        low, high = np.sort(rng.uniform(-4, 4, (2, 3)).astype(np.float32), axis=0)
        expected = points[((points >= low) & (points <= high)).all(1)]
        found = surface.points[surface.within(low, high)]
        assert found.dtype == np.float32
        assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, expected.tolist()))
    assert len(surface.within([-9] * 3, [9] * 3)) == count and len(surface.within([5] * 3, [6] * 3)) == 0


def test_rows_of_a_crop_come_in_the_order_on_which_draws_depend(tmp_path):
    rng = np.random.default_rng(1)
    surface = saved(rng.uniform(-2, 2, (30_000, 3)), tmp_path)
    boxes = [np.sort(rng.uniform(-2.5, 2.5, (2, 3)), axis=0) for _ in range(20)]
    boxes += [(surface.points[7], surface.points[7]), ([-0.5, -1, -2], [0.5, 1, 2])]
    expected = [plain_rows(surface, *box) for box in boxes]
    for box, rows in zip(boxes, expected, strict=True):
        found = surface.within(*box)
        assert found.dtype == np.int64 and np.array_equal(found, rows)
    (tmp_path / "bounds.npy").unlink()  # surfaces written before there was this file
    again = Surface(tmp_path)
    assert all(np.array_equal(again.within(*box), rows) for box, rows in zip(boxes, expected, strict=True))
    rows = expected[-1]
    ends = torch.arange(301) * len(rows) // 300
    places = torch.rand(300, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * ends.diff()
    drawn = even_subset(rows, 300, torch.Generator().manual_seed(5))
    assert np.array_equal(drawn, rows[(ends[:-1] + places.long()).numpy()])


@pytest.mark.parametrize("kind", ["anywhere", "on a grid", "walls", "copies", "far"])
def test_points_are_saved_by_block_then_z_y_x(tmp_path, kind):
    points = np.random.default_rng(2).uniform(-3, 3, (4000, 3)).astype(np.float32)
    if kind == "on a grid":
        points = np.round(points * 4) / np.float32(-4)  # with zeros of both signs
    elif kind == "walls":
        points[:, 2] = np.where(points[:, 2] > 0, np.float32(0), np.float32(-0.0))
    elif kind == "copies":
        points[:1000] = points[2000:3000]
    elif kind == "far":
        points *= 1e5
    colors = np.random.default_rng(3).integers(0, 256, points.shape, dtype=np.uint8)
    surface, order = saved(points, tmp_path, colors), plain_order(points, 0.5)
    assert np.array_equal(surface.points, points[order]) and np.array_equal(surface.colors, colors[order])


def test_the_crop_of_a_real_view_holds_what_the_view_sees(shared_data, tmp_path):
    spec = DataSpec(size=(96, 128), views=1, split="train", cache=tmp_path)
    dataset = PosedRGBD(spec, root=shared_data / "rgbd" / "office", frame_step=6, surface=SurfaceOptions(0.02))
    surface = dataset.surface(0)
    for frame in (0, 4, 8):
        sample = assemble([dataset.load(0, frame, GEOMETRY)], (96, 128), None, GEOMETRY, torch.Generator())
        depth, intrinsics, pose = (sample[name][0].numpy() for name in ("depth", "intrinsics", "world_from_camera"))
        found = surface.points[crop_to_frustum(surface, depth, intrinsics, pose)]
        low, high = (corner.astype(np.float32) for corner in frustum_box(depth, intrinsics, pose))
        assert len(found) == ((surface.points >= low) & (surface.points <= high)).all(1).sum() > 5000
        rows, columns = np.nonzero(depth[::7, ::7])
        z = depth[::7, ::7][rows, columns]
        rays = np.linalg.inv(intrinsics) @ np.stack([columns * 7 + 0.5, rows * 7 + 0.5, np.ones(len(z))])
        seen = (pose[:3, :3] @ (rays * z)).T + pose[:3, 3]
        nearest = np.array([np.linalg.norm(found - point, axis=1).min() for point in seen])
        assert np.mean(nearest < 0.05) > 0.9


def test_a_subset_is_even_and_drawn_from_the_generator():
    points = np.arange(3000, dtype=np.float32).reshape(1000, 3)
    assert even_subset(points, 1000, None) is points
    first, again, other = (even_subset(points, 300, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    rows = first[:, 0] / 3
    assert len(np.unique(rows)) == 300 and np.all(np.abs(rows - np.arange(300) * 1000 / 300) < 1000 / 300 + 1)


def test_edges_are_steps_and_the_borders_of_what_is_known():
    depth = np.full((6, 8), 2.0, np.float32)
    depth[:, 5:] = 2.2
    depth[0, 0] = 0
    expected = np.ones((6, 8), bool)
    expected[:, 4:6] = False
    expected[[0, 0, 1], [0, 1, 0]] = False
    assert np.array_equal(away_from_edges(depth, 570.0, 0.02), expected)
    # at 75 degrees to the line of sight neighboring pixels are that far apart, and on one surface all the same
    slope = 2 * (1 + np.tan(np.radians(75)) / 50) ** np.arange(8, dtype=np.float32)
    assert away_from_edges(np.tile(slope, (6, 1)), 50.0, 0.02).all()
    assert not away_from_edges(np.tile(slope, (6, 1)), 570.0, 0.02).any()


def test_fusing_keeps_the_mean_of_each_voxel():
    frames = [frame_of(wall_depth(pose, 2.03), pose) for pose in (turned(0, (0, 0, 0)), turned(20, (0.3, 0.1, 0)))]
    points = fuse(iter(frames), EXACT).points
    assert np.allclose(points[:, 2], 2.03, atol=1e-6)
    everything = []
    for depth, _, pose, _ in frames:
        rows, columns = np.indices(depth.shape) + 0.5
        rays = np.stack([columns, rows, np.ones_like(rows)], -1) @ np.linalg.inv(CAMERA).T
        everything.append(((rays * depth[..., None]) @ pose[:3, :3].T + pose[:3, 3]).reshape(-1, 3))
    everything = np.concatenate(everything)
    cells = np.floor(everything / 0.05).astype(int)
    means = [everything[(cells == cell).all(1)].mean(0) for cell in np.unique(cells, axis=0)]
    order = [np.lexsort(np.floor(np.array(cloud) / 0.05).T) for cloud in (points, means)]
    assert np.allclose(points[order[0]], np.array(means)[order[1]])


def test_what_one_frame_alone_saw_is_dropped_unless_there_is_but_one():
    pose = np.eye(4)
    wall, ghost = wall_depth(pose, 2.0), wall_depth(pose, 2.0)
    ghost[10:20, 10:20] = 1.0  # its inside is no edge
    frames = [frame_of(wall, pose, (200, 0, 0)), frame_of(ghost, pose, (0, 0, 90))]
    cloud = fuse(frames, SurfaceOptions(0.05))
    assert (cloud.points[:, 2] > 1.9).all() and len(cloud.colors) == len(cloud.points)
    cloud = fuse(frames, EXACT)
    is_ghost = cloud.points[:, 2] < 1.1
    assert is_ghost.any() and (cloud.colors[is_ghost] == (0, 0, 90)).all() and (cloud.colors[~is_ghost, 0] > 0).all()
    assert (fuse(frames[1:], SurfaceOptions(0.05)).points[:, 2] < 1.1).any()
    for nothing in ([], [frame_of(wall * 0, pose)]):
        points, colors = fuse(nothing, EXACT)
        assert points.shape == colors.shape == (0, 3) and colors.dtype == np.uint8


def test_fused_colors_are_the_mean_over_pixels_not_over_frames():
    """Where two frames see a wall alike, half of each; where only one does, its own."""
    pose, depth = np.eye(4), wall_depth(np.eye(4), 2.0)
    half = depth.copy()
    half[:, 32:] = 0
    points, colors = fuse([frame_of(depth, pose, (0, 100, 7)), frame_of(half, pose, (100, 200, 7))], EXACT)
    assert colors.dtype == np.uint8 and len(colors) == len(points) and (colors[:, 2] == 7).all()
    left = points[:, 0] < -0.1
    assert (colors[left] == (50, 150, 7)).all() and (colors[points[:, 0] > 0.1] == (0, 100, 7)).all()
    away, near = np.eye(4), depth / 4
    away[2, 3] = 1.5  # sees the middle of the wall with 16 times the pixels
    points, colors = fuse([frame_of(depth, pose, (0, 0, 0)), frame_of(near, away, (200, 200, 200))], EXACT)
    middle = (np.abs(points[:, :2]) < 0.2).all(1)
    assert np.median(colors[middle]) > 180


@pytest.mark.parametrize("factor", [1, 2, 3, 0.5])
def test_a_point_has_the_color_of_the_image_pixel_on_its_ray_at_any_resolution(factor):
    size, pose = (int(48 * factor), int(64 * factor)), np.eye(4)
    rows, columns = np.indices(size)
    image = np.stack([columns, rows, 0 * rows], -1).astype(np.uint8)
    points, colors = fuse([PosedFrame(wall_depth(pose, 2.0), CAMERA, pose, image)], SurfaceOptions(0.001, min_frames=1))
    seen = (points @ CAMERA.T)[:, :2] / points[:, 2:] * factor
    assert len(points) == 48 * 64 and np.abs(colors[:, :2] - np.floor(seen + 1e-9)).max() == 0


def test_colors_follow_their_points_through_sorting_and_boxes(tmp_path):
    rng = np.random.default_rng(0)
    points = rng.uniform(-3, 3, (20_000, 3)).astype(np.float32)
    colors = colored_by_place(points)
    surface = saved(points, tmp_path, colors)
    assert surface.colors.dtype == np.uint8 and not np.array_equal(surface.points, points)
    assert np.array_equal(surface.colors, colored_by_place(surface.points))
    rows = surface.within([-1, -2, 0], [1.3, 2, 2.2])
    assert len(rows) > 500 and np.array_equal(surface.colors[rows], colored_by_place(surface.points[rows]))
    again = pickle.loads(pickle.dumps(surface))
    assert np.array_equal(again.colors, surface.colors)
    assert saved(points, tmp_path / "plain").colors is None
    assert saved(points[:9], tmp_path).colors is None, "colors of other points, saved here before, are gone"
    for wrong in (colors[1:], colors.astype(np.float32)):
        with pytest.raises(ValueError, match="expected colors uint8"):
            Surface.save(points, tmp_path, wrong)


def test_colors_that_nobody_asks_for_are_not_opened(tmp_path, monkeypatch):
    """A map keeps its file open: with one more for every scene, runs of many scenes would have too many open."""
    dataset = walls(tmp_path, voxel_size=0.05, min_frames=1)
    dataset.prepare(fields=SURFACE)
    opened, load = [], np.load
    monkeypatch.setattr(np, "load", lambda file, **options: opened.append(file.name) or load(file, **options))
    dataset._surfaces.clear()
    for fields, expected in ({"image", "surface"}, False), ({"image", "surface_color"}, True):
        assert len(DrawnSamples(dataset, frozenset(fields), None, 0, False)[0]["surface"]) > 100
        assert "points.npy" in opened and ("colors.npy" in opened) == expected


def colored_by_place(points):
    return np.floor((np.asarray(points) + 4) * 30).astype(np.uint8)


def test_a_scene_far_from_the_origin_keeps_its_shape():
    far = turned(0, (5e5, -4e6, 100.0))
    depth = wall_depth(np.eye(4), 2.03)
    near, moved = (fuse([frame_of(depth, pose)], EXACT).points for pose in (np.eye(4), far))
    assert np.allclose(near, moved - far[:3, 3], atol=1e-6)


def test_a_surface_is_fused_once_and_the_same_again(tmp_path):
    first = walls(tmp_path / "a", voxel_size=0.05)
    first.prepare(fields=SURFACE)
    assert first.loads == 16 and first.surface(0) is first.surface(0)
    second = walls(tmp_path / "a", voxel_size=0.05, max_points=10)
    second.prepare(fields=SURFACE)
    assert second.loads == 0, "how many points a view gets changes nothing about the surface"
    other = walls(tmp_path / "b", voxel_size=0.05)
    other.prepare(fields=SURFACE)
    for name in ("points.npy", "colors.npy", "starts.npy"):
        contents = [(dataset.surface(1).folder / name).read_bytes() for dataset in (first, other)]
        assert contents[0] == contents[1]
    assert walls(tmp_path / "a", voxel_size=0.06).surface(0).folder != first.surface(0).folder
    assert np.abs(first.surface(1).points[:, 2] - 3).max() < 1e-5


@pytest.mark.parametrize("version", [1, 2])
def test_a_cache_of_before_there_were_colors_or_of_sums_in_another_order_is_not_read(tmp_path, monkeypatch, version):
    dataset = walls(tmp_path, voxel_size=0.05)
    with monkeypatch.context() as old:
        old.setattr("prior3d.data.posed.dataset.SURFACE_VERSION", version)
        old.setattr(
            "prior3d.data.posed.dataset.fuse",
            lambda frames, options: Cloud(np.array([[0, 0, 5] for _ in frames]), None),
        )
        before = walls(tmp_path, voxel_size=0.05).surface(0)
    assert len(before) == 4 and before.colors is None
    surface = dataset.surface(0)
    assert surface.folder != before.folder and len(surface) == len(surface.colors) > 100


def test_rooms_are_fused_anew_where_their_images_differ(tmp_path):
    spec = DataSpec((24, 32), 1, "train", tmp_path)
    plain, noisy = (SyntheticRooms(spec, rooms=1, frames=4, noise=noise, surface=EXACT).surface(0) for noise in (0, 1))
    assert plain.folder != noisy.folder and np.array_equal(plain.points, noisy.points)
    assert not np.array_equal(plain.colors, noisy.colors)


def test_long_scenes_are_thinned(tmp_path):
    dataset = walls(tmp_path, max_frames=2, min_frames=1)
    dataset.surface(0)
    assert dataset.loads == 2


@pytest.mark.parametrize("damaged", ["frame-000001.depth.png", "frame-000001.color.png"])
def test_a_damaged_frame_is_left_out_and_counted_once(tmp_path, damaged):
    root = tmp_path / "scene"
    root.mkdir()
    (root / "camera-intrinsics.txt").write_text("50 0 32\n0 40 24\n0 0 1\n")
    for number in range(3):
        Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(root / f"frame-{number:06d}.color.png")
        Image.fromarray(np.full((48, 64), 2000, np.uint16)).save(root / f"frame-{number:06d}.depth.png")
        np.savetxt(root / f"frame-{number:06d}.pose.txt", turned(0, (0.2 * number, 0, 0)))
    (root / damaged).write_bytes(b"no image")
    dataset = PosedRGBD(DataSpec((48, 64), 2, "train", tmp_path / "cache"), root=root, surface=EXACT)
    dataset.prepare(fields=SURFACE)
    assert [damage.path.name for damage in dataset.damaged] == [damaged]
    assert len(dataset.surface(0)) == len(dataset.surface(0).colors) > 100


def test_samples_carry_the_surface_of_their_augmented_views(tmp_path):
    dataset = walls(tmp_path, voxel_size=0.05, min_frames=1)
    dataset.prepare()
    crops = AugmentOptions(crop=(0.3, 0.6))
    samples = DrawnSamples(dataset, frozenset({"image", "surface"}), crops, seed=0, skip_damaged=False)
    batch = collate([samples[draw] for draw in range(3)])
    points, views = batch["surface"], batch["surface_view"]
    assert points.dtype == torch.float32 and views.dtype == torch.int64 and points.shape == (len(views), 3)
    assert views.unique().tolist() == list(range(6)) and (views.diff() >= 0).all()
    for sample in range(3):
        for view in range(2):
            own = points[views == sample * 2 + view].numpy()
            camera = (batch[name][sample, view].numpy() for name in ("depth", "intrinsics", "world_from_camera"))
            low, high = frustum_box(*camera)
            cloud = dataset.surface(int(batch["scene"][sample])).points
            assert len(own) == ((cloud >= low.astype(np.float32)) & (cloud <= high.astype(np.float32))).all(1).sum()


@pytest.mark.parametrize("fields", [{"surface_color"}, {"surface", "surface_color", "image"}])
def test_samples_carry_the_color_of_each_point_only_if_asked_and_whatever_augmentation_does(tmp_path, fields):
    dataset = walls(tmp_path, voxel_size=0.05, min_frames=1, max_points=150)
    dataset.prepare()
    options = AugmentOptions(crop=(0.3, 0.6), jitter=1.0)
    plain, colored = (
        DrawnSamples(dataset, frozenset(chosen), options, 0, False)[2] for chosen in ({"surface", "image"}, fields)
    )
    assert "surface_color" not in plain
    assert torch.equal(plain["surface"], colored["surface"]), "colors change nothing that is drawn"
    colors, surface = colored["surface_color"], dataset.surface(int(colored["scene"]))
    assert colors.dtype == torch.float32 and colors.shape == colored["surface"].shape
    color_at = {tuple(point): color for point, color in zip(surface.points.tolist(), surface.colors, strict=True)}
    expected = np.array([color_at[tuple(point)] for point in colored["surface"].tolist()], np.float32) / 255
    assert np.array_equal(colors.numpy(), expected) and len(np.unique(expected[:, 0])) > 5
    batch = collate([DrawnSamples(dataset, frozenset(fields), options, 0, False)[draw] for draw in (2, 3)])
    assert torch.equal(batch["surface_color"][: len(colors)], colors)
    assert len(batch["surface_color"]) == len(batch["surface"]) == len(batch["surface_view"])


def test_colors_of_a_surface_without_any_are_refused(tmp_path):
    dataset = walls(tmp_path / "cache", voxel_size=0.05)
    dataset.prepare()
    dataset._surfaces = {scene: saved(np.zeros((5, 3)), tmp_path / "plain") for scene in range(2)}
    samples = DrawnSamples(dataset, frozenset({"surface_color"}), None, 0, False)
    with pytest.raises(ValueError, match="with colors, as Walls provides surface_color, got one without for scene"):
        samples[0]


def test_at_most_so_many_points_a_view_drawn_anew_for_every_draw(tmp_path):
    dataset = walls(tmp_path, voxel_size=0.05, min_frames=1, max_points=100)
    dataset.prepare()
    samples = DrawnSamples(dataset, frozenset({"image", "surface"}), None, seed=0, skip_damaged=False)
    first, again = samples[0], samples[0]
    assert first["surface_view"].bincount().tolist() == [100, 100]
    assert torch.equal(first["surface"], again["surface"])
    dataset.spec = None  # not looked at again
    other = {**first}
    add_surface(other, dataset, torch.Generator().manual_seed(9))
    assert not torch.equal(first["surface"], other["surface"])


def test_asking_for_the_surface_changes_no_other_field(tmp_path):
    dataset = walls(tmp_path, voxel_size=0.05)
    dataset.prepare()
    plain, with_surface = (
        DrawnSamples(dataset, GEOMETRY | extra, AugmentOptions(), 0, False)[5] for extra in (set(), {"surface"})
    )
    assert set(with_surface) - set(plain) == {"surface", "surface_view"}
    assert all(torch.equal(plain[name], with_surface[name]) for name in GEOMETRY)


def test_surfaces_travel_to_workers_by_folder(tmp_path):
    surface = saved(np.random.default_rng(0).random((100_000, 3)), tmp_path)
    assert len(pickle.dumps(surface)) < 1000
    assert np.array_equal(pickle.loads(pickle.dumps(surface)).points, surface.points)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"voxel_size": 0.0}, "expected voxel_size and edge above 0, got 0.0 and 0.02"),
        ({"edge": -1.0}, "expected voxel_size and edge above 0, got 0.01 and -1.0"),
        ({"max_points": 0}, "expected max_points of at least 1, got 0"),
        ({"min_frames": 0}, "expected min_frames of at least 1, got 0"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        SurfaceOptions(**options)
