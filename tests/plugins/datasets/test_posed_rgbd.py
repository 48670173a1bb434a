import json
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from prior3d.contracts.dataset import DataSpec
from prior3d.data.posed.cameras import Calibration, read_pinhole
from prior3d.data.posed.selection import names_scene
from prior3d.errors import DamagedFile, UserError
from prior3d_plugins.datasets.posed import Posed, PosedRGBD

ALL = frozenset({"image", "depth", "intrinsics", "world_from_camera"})
KITCHEN = Calibration(fx=528, fy=528, cx=321, cy=239, translation=(-0.025, 0.0, 0.0))
FOCAL = "8 0 4\n0 9 3\n0 0 1\n"


def spec(split="train", views=1, cache=None):
    return DataSpec(size=(6, 8), views=views, split=split, cache=cache, seed=0)


def pose(number):
    """A pose that tells the number of its frame: turned about the vertical and moved along x."""
    angle, matrix = 0.1 * number, np.eye(4)
    matrix[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    matrix[:3, 3] = number, 0.5, -1.0
    return matrix


def codes(number, size=(6, 8)):
    values = np.full(size, 1000 + number, dtype=np.uint16)
    values[0, :4] = 0, 65535, 200, 9000
    return values


def color(number, size=(6, 8)):
    return np.full((*size, 3), 10 * number % 256, dtype=np.uint8)


def write_frames(folder, numbers=(0, 1, 2), suffix="png", intrinsics=FOCAL, size=(6, 8)):
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        Image.fromarray(color(number, size)).save(folder / f"frame-{number:06d}.color.{suffix}")
        Image.fromarray(codes(number, size)).save(folder / f"frame-{number:06d}.depth.png")
        np.savetxt(folder / f"frame-{number:06d}.pose.txt", pose(number))
    if intrinsics:
        (folder / "camera-intrinsics.txt").write_text(intrinsics)
    return folder


def write_scannet(folder, numbers=(0, 2, 10)):
    for name in ("color", "depth", "pose", "intrinsic"):
        (folder / name).mkdir(parents=True)
    for number in numbers:
        Image.fromarray(color(number, (12, 20))).save(folder / "color" / f"{number}.jpg")
        Image.fromarray(np.arange(1, 49, dtype=np.uint16).reshape(6, 8)).save(folder / "depth" / f"{number}.png")
        np.savetxt(folder / "pose" / f"{number}.txt", pose(number))
    depth, color_camera = np.eye(4), np.eye(4)
    depth[[0, 1, 0, 1], [0, 1, 2, 2]] = 8, 8, 3.5, 2.5
    color_camera[[0, 1, 0, 1], [0, 1, 2, 2]] = 40, 32, 9.5, 5.5  # sees half as wide and high as the depth camera
    np.savetxt(folder / "intrinsic" / "intrinsic_depth.txt", depth)
    np.savetxt(folder / "intrinsic" / "intrinsic_color.txt", color_camera)
    return folder


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_one_scene_of_frames(tmp_path, suffix):
    dataset = PosedRGBD(spec(), root=write_frames(tmp_path / "office", (3, 7, 20), suffix))
    dataset.verify()
    assert dataset.scenes == ["office"] and dataset.frame_count(0) == 3 and len(dataset) == 3
    for frame, number in enumerate((3, 7, 20)):
        view = dataset.load(0, frame, ALL)
        assert np.abs(view["image"].astype(int) - color(number)).max() <= 2
        expected = np.full((6, 8), 1 + number / 1000, dtype=np.float32)
        expected[0, :4] = 0, 0, 0.2, 9.0
        assert view["depth"].dtype == np.float32 and np.array_equal(view["depth"], expected)
        assert np.allclose(view["world_from_camera"], pose(number))
        assert view["intrinsics"].tolist() == [[8, 0, 4.5], [0, 9, 3.5], [0, 0, 1]]
        assert (view.size, view.scene, view.frame) == ((6, 8), 0, frame)


def test_only_what_is_asked_for_is_decoded(tmp_path):
    dataset = PosedRGBD(spec(), root=write_frames(tmp_path))
    assert "image" not in dataset.load(0, 0, frozenset())
    mined = dataset.load(0, 0, frozenset({"depth", "intrinsics"}))
    assert "image" not in mined and "world_from_camera" not in mined and "depth" in mined
    assert mined.size == (6, 8), "intrinsics mean nothing without the size of the image"
    crops = dataset.load(0, 0, frozenset({"image_crops", "crop_from_image"}))
    assert "image" in crops and "depth" not in crops


def test_sequences_share_the_intrinsics_of_a_folder_above(tmp_path):
    for name in ("chess/seq-01", "chess/seq-02", "fire/seq-01"):
        write_frames(tmp_path / name, intrinsics=None)
    (tmp_path / "chess" / "camera-intrinsics.txt").write_text(FOCAL)
    (tmp_path / "camera-intrinsics.txt").write_text("16 18 4 3")
    dataset = PosedRGBD(spec(), root=tmp_path)
    assert dataset.scenes == ["chess/seq-01", "chess/seq-02", "fire/seq-01"]
    focal = [dataset.load(scene, 0, ALL)["intrinsics"][0, 0] for scene in range(3)]
    assert focal == [8, 8, 16]


def test_exported_scannet(tmp_path):
    dataset = PosedRGBD(spec(), root=write_scannet(tmp_path / "scene0000_00").parent)
    dataset.verify()
    assert dataset.scenes == ["scene0000_00"]
    view = dataset.load(0, 2, ALL)
    assert view["image"].shape == (12, 20, 3) and view.size == (12, 20)
    assert np.abs(view["image"].astype(int) - 100).max() <= 2, "frames are ordered by number, not by name"
    assert np.allclose(view["world_from_camera"], pose(10))
    assert np.allclose(view["intrinsics"], [[40, 0, 10], [0, 32, 6], [0, 0, 1]])
    # at the depth maps' size the color camera has fx = 16, fy = 16, c = (4, 3): twice the focal length of the other
    source = np.arange(1, 49).reshape(6, 8) / 1000
    rows, columns = (np.floor((np.arange(n) + 0.5 - n / 2) / 2 + n / 2).astype(int) for n in (6, 8))
    assert np.allclose(view["depth"], source[rows[:, None], columns])


def test_conventions_of_pixel_centers(tmp_path):
    write_frames(tmp_path)
    for convention, center in (("integer", [4.5, 3.5]), ("half", [4, 3])):
        dataset = PosedRGBD(spec(), root=tmp_path, pixel_centers=convention)
        assert dataset.load(0, 0, ALL)["intrinsics"][:2, 2].tolist() == center


def test_intrinsics_from_the_recipe_are_for_scenes_without_a_file(tmp_path):
    write_frames(tmp_path / "a", intrinsics=None)
    write_frames(tmp_path / "b")
    (tmp_path / "camera.txt").write_text("5, 6, 4, 3")
    for given in ((5.0, 6.0, 4.0, 3.0), tmp_path / "camera.txt"):
        dataset = PosedRGBD(spec(), root=tmp_path, intrinsics=given)
        assert [dataset.load(scene, 0, ALL)["intrinsics"][1, 1] for scene in (0, 1)] == [6, 9]
        assert dataset.describe()[-1] == "b: intrinsics goes unused: it has a file of its own"
    only_b = PosedRGBD(spec(), root=tmp_path, scenes=("b",), intrinsics=(5.0, 6.0, 4.0, 3.0))
    assert only_b.describe()[-1] == "b: intrinsics goes unused: it has a file of its own"


def test_intrinsics_scale_to_images_larger_than_depth(tmp_path):
    write_frames(tmp_path, size=(6, 8))
    for path in tmp_path.glob("*.color.png"):
        Image.fromarray(np.zeros((12, 16, 3), np.uint8)).save(path)
    view = PosedRGBD(spec(), root=tmp_path).load(0, 0, ALL)
    assert view.size == (12, 16) and view["depth"].shape == (6, 8)
    assert view["intrinsics"].tolist() == [[16, 0, 9], [0, 18, 7], [0, 0, 1]]


def test_depth_codes(tmp_path):
    write_frames(tmp_path)
    dataset = PosedRGBD(spec(), root=tmp_path, depth_scale=500, invalid_depth=(9000,), min_depth=0.5, max_depth=100.0)
    depth = dataset.load(0, 1, ALL)["depth"]
    # 0 and 200 are nearer than 0.5 m, 65535 is beyond 100 m, 9000 is said to be invalid
    assert depth[0, :4].tolist() == [0, 0, 0, 0] and (depth[1:] == np.float32(1001 / 500)).all()
    assert PosedRGBD(spec(), root=tmp_path, invalid_depth=()).load(0, 1, ALL)["depth"][0, 1] == np.float32(65.535)


def test_frames_are_thinned(tmp_path):
    write_frames(tmp_path, range(10))
    dataset = PosedRGBD(spec(), root=tmp_path, frame_step=3, max_frames=3)
    assert [dataset.load(0, frame, ALL)["world_from_camera"][0, 3] for frame in range(dataset.frame_count(0))] == [
        0,
        3,
        6,
    ]


def test_unusable_poses_are_left_out_and_counted(tmp_path):
    write_frames(tmp_path / "scene", range(8))
    folder, nan, mirrored, scaled = tmp_path / "scene", pose(1), pose(2), pose(3)
    nan[0, 3] = np.nan
    mirrored[:3, 0] *= -1
    scaled[:3, :3] *= 1.1
    for number, matrix in ((1, nan), (2, mirrored), (3, scaled), (4, np.full((4, 4), -np.inf))):
        np.savetxt(folder / f"frame-{number:06d}.pose.txt", matrix)
    (folder / "frame-000005.pose.txt").write_text("1 0 0 0\n0 1 0 0\n")
    (folder / "frame-000006.pose.txt").write_text("lost\n")
    dataset = PosedRGBD(spec(), root=tmp_path)
    dataset.verify()
    assert [dataset.load(0, frame, ALL)["world_from_camera"][0, 3] for frame in range(dataset.frame_count(0))] == [0, 7]
    assert dataset.describe()[-1] == (
        "scene: 6 frames left out (pose no 4x4 matrix: 2, frames 5, 6, pose not finite: 2, frames 1, 4,"
        " pose not rigid: 2, frames 2, 3)"
    )
    for number in (0, 7):
        np.savetxt(folder / f"frame-{number:06d}.pose.txt", nan)
    with pytest.raises(UserError, match=r"^root: no frame can be used \(pose no 4x4 matrix: 2, pose not finite: 4"):
        PosedRGBD(spec(), root=tmp_path).verify()


def test_splits_are_made_of_scenes(tmp_path):
    for name in ("a/1", "a/2", "b", "c", "d"):
        write_frames(tmp_path / name)

    def scenes(split, **options):
        return PosedRGBD(spec(split), root=tmp_path, **options).scenes

    kept = {"validation_scenes": ("b",), "test_scenes": ("a", "c*")}
    assert scenes("train") == ["a/1", "a/2", "b", "c", "d"]
    assert scenes("train", **kept) == ["d"]
    assert scenes("validation", **kept) == ["b"]
    assert scenes("test", **kept) == ["a/1", "a/2", "c"]
    assert scenes("train", scenes=("a/1", "c", "d"), test_scenes=("c",)) == ["a/1", "d"]
    assert PosedRGBD(spec(), root=tmp_path, **kept).splits == ("train", "validation", "test")
    assert PosedRGBD(spec(), root=tmp_path).splits == ("train",)


def test_patterns_of_scenes():
    assert names_scene("kitchen-*", "kitchen-a") and not names_scene("kitchen-*", "office")
    assert names_scene("chess", "chess/seq-01") and names_scene("chess/", "chess/seq-01")
    assert not names_scene("chess", "chessboard")
    assert names_scene("*", "any/thing")


def test_calibration_is_for_the_scenes_it_names(tmp_path):
    for name in ("kitchen-a", "kitchen-b", "office"):
        write_frames(tmp_path / name)
    left = Calibration(fx=8, fy=9, cx=4, cy=3, translation=(-1.01 / 8, 0.0, 0.0))
    other = Calibration(fx=16, fy=18, cx=4, cy=3, translation=(0.0, 0.0, 0.0))
    dataset = PosedRGBD(spec(), root=tmp_path, depth_to_color={"kitchen-a": left, "*kitchen*": other})
    raw = PosedRGBD(spec(), root=tmp_path)
    assert dataset.load(1, 0, ALL)["intrinsics"][0, 0] == 16
    assert np.array_equal(dataset.load(2, 0, ALL)["depth"], raw.load(2, 0, ALL)["depth"])
    seen, before = dataset.load(0, 1, ALL), raw.load(0, 1, ALL)
    # 1.001 m away things move by about one pixel to the left; the pose is that of the color camera
    assert np.array_equal(seen["depth"][1:, :-1], before["depth"][1:, 1:]) and (seen["depth"][1:, -1] == 0).all()
    depth_camera_in_world = before["world_from_camera"] @ [0, 0, 0, 1]
    color_camera_in_world = before["world_from_camera"] @ [1.01 / 8, 0, 0, 1]
    assert np.allclose(seen["world_from_camera"] @ [0, 0, 0, 1], color_camera_in_world)
    assert not np.allclose(color_camera_in_world, depth_camera_in_world)


def test_keys_of_the_cache_follow_the_content(tmp_path):
    write_frames(tmp_path)

    def key(**options):
        return PosedRGBD(spec(), root=tmp_path, **options).scene_fingerprint(0)

    first = key()
    assert key() == first
    camera = Calibration(fx=8, fy=9, cx=4, cy=3, translation=(0.1, 0.0, 0.0))
    changed = [key(depth_scale=500), key(max_depth=3.0), key(frame_step=2), key(pixel_centers="half")]
    changed += [key(depth_to_color={"*": camera}), key(invalid_depth=(0,))]
    Image.fromarray(codes(1) + 7).save(tmp_path / "frame-000001.depth.png")
    os.utime(tmp_path / "frame-000001.depth.png", ns=(1, 1))
    changed.append(key())
    os.utime(tmp_path / "frame-000000.color.png", ns=(1, 1))
    changed.append(key())
    np.savetxt(tmp_path / "frame-000002.pose.txt", pose(9))
    changed.append(key())
    assert len({first, *changed}) == len(changed) + 1


def test_a_dataset_can_be_sent_to_a_worker(tmp_path):
    dataset = PosedRGBD(spec(), root=write_frames(tmp_path))
    expected = dataset.load(0, 1, ALL)
    received = pickle.loads(pickle.dumps(dataset)).load(0, 1, ALL)
    assert np.array_equal(received["depth"], expected["depth"])


def remove(name):
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            remove("frame-000001.depth.png"),
            r"^root: scene s has 3 color, 2 depth, 3 pose files; the first unmatched frame is 1: it has no depth"
            r" \(depth is read from \.png; no file has another extension\)",
        ),
        (remove("frame-000002.color.png"), "has 2 color, 3 depth, 3 pose files; .* frame is 2: it has no color"),
        (
            lambda folder: (folder / "frame-000009.color.png").touch(),
            "has 4 color, .* frame is 9: it has no depth",
        ),
        (
            remove("camera-intrinsics.txt"),
            r"^intrinsics: no intrinsics for scene s: set fx, fy, cx, cy or add camera-intrinsics\.txt",
        ),
        (
            lambda folder: (folder / "camera-intrinsics.txt").write_text("585 0 320"),
            r"^root: expected intrinsics .* in .*camera-intrinsics\.txt",
        ),
        (lambda folder: (folder / "camera-intrinsics.txt").write_text("5 -5 3 2"), "positive focal lengths"),
        (
            lambda folder: [path.write_bytes(b"") for path in folder.glob("*.depth.png")],
            r"^root: none of 3 files can be used, the first: .*frame-000000\.depth\.png",
        ),
    ],
)
def test_scenes_that_do_not_fit_together_are_refused_before_anything_is_decoded(tmp_path, change, message):
    change(write_frames(tmp_path / "s"))
    with pytest.raises(UserError, match=message):
        PosedRGBD(spec(), root=tmp_path).verify()


def test_what_a_user_can_get_wrong_is_said(tmp_path):
    root = write_frames(tmp_path / "data" / "s").parent
    (tmp_path / "empty").mkdir()
    cases = [
        ({"root": tmp_path / "nowhere"}, r"^root: no folder .*nowhere"),
        ({"root": tmp_path / "empty"}, r"^root: no format \(.+\) recognizes .*empty: it is empty"),
        ({"layout": "scannet"}, r"^root: no scene in .*: expected a \.sens file, .* and pose; there is s/$"),
        ({"scenes": ("kitchen",)}, r"^scenes: no scene kitchen; there are s"),
        ({"test_scenes": ("t",)}, r"^test_scenes: no scene t"),
        ({"test_scenes": ("s",)}, r"^scenes: every scene is kept for validation or test"),
        ({"test_scenes": ("s",), "validation_scenes": ("s",)}, r"^test_scenes: scene s is both"),
        ({"depth_to_color": {"kitchen-*": KITCHEN}}, r"^depth_to_color: no scene kitchen-\*; there are s"),
        ({"depth_scale": 0.0}, r"^depth_scale: expected units per meter above 0, got 0\.0"),
        ({"min_depth": 3.0, "max_depth": 2.0}, r"^min_depth: expected 0 <= min_depth < max_depth, got 3\.0 and"),
        ({"invalid_depth": (70000,)}, r"^invalid_depth: expected values of 16 bits"),
        ({"frame_step": 0}, r"^frame_step: expected at least 1, got 0"),
        ({"max_frames": 0}, r"^max_frames: expected at least 1, got 0"),
    ]
    for options, message in cases:
        with pytest.raises(UserError, match=message):
            PosedRGBD(spec(), **{"root": root, **options})
    with pytest.raises(UserError, match=r"^test_scenes: this data has no split test"):
        PosedRGBD(spec("test"), root=root)
    (root / "s" / "camera-intrinsics.txt").unlink()
    for intrinsics, message in (
        (tmp_path / "no.txt", r"^intrinsics: no file .*no\.txt"),
        (root / "s" / "frame-000000.color.png", r"^intrinsics: expected intrinsics"),
        ((0.0, 1.0, 2.0, 3.0), r"^intrinsics: expected positive focal lengths"),
    ):
        with pytest.raises(UserError, match=message):
            PosedRGBD(spec(), root=root, intrinsics=intrinsics).verify()


def test_impossible_calibrations_are_refused():
    with pytest.raises(ValueError, match=r"expected positive focal lengths, got -528 and 528"):
        Calibration(fx=-528, fy=528, cx=321, cy=239, translation=(0.0, 0.0, 0.0))
    with pytest.raises(ValueError, match="expected the rows of a rotation matrix"):
        Calibration(528, 528, 321, 239, (0.0, 0.0, 0.0), rotation=((1.0, 0, 0), (0, 1.0, 0), (0, 0, -1.0)))


def test_matrices_of_several_forms_are_intrinsics(tmp_path):
    path = tmp_path / "k.txt"
    for text in ("5 6 3 2", "5 0 3 0 6 2 0 0 1", "5 0 3 0\n0 6 2 0\n0 0 1 0\n0 0 0 1", "5,6,3,2"):
        path.write_text(text)
        assert read_pinhole(path, "half", "root").tolist() == [[5, 0, 3], [0, 6, 2], [0, 0, 1]]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-20])


def resize(path):
    Image.open(path).resize((4, 3)).save(path)


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("frame-000001.depth.png", truncate, "truncated"),
        ("frame-000001.color.png", truncate, "truncated"),
        ("frame-000001.depth.png", lambda path: path.unlink(), "missing"),
        ("frame-000001.color.png", resize, "4x3 pixels, where the scene's images have 8x6"),
        ("frame-000001.depth.png", lambda path: Image.fromarray(color(1)).save(path), "expected a 16-bit gray image"),
    ],
)
def test_damaged_files_are_named_when_decoded(tmp_path, name, change, why):
    dataset = PosedRGBD(spec(), root=write_frames(tmp_path))
    dataset.verify()
    change(tmp_path / name)
    dataset.load(0, 0, ALL)
    with pytest.raises(DamagedFile, match=why) as caught:
        dataset.load(0, 1, ALL)
    assert caught.value.path == tmp_path / name


def test_a_truncated_first_image_is_not_taken_for_the_scenes_size(tmp_path):
    write_frames(tmp_path)
    (tmp_path / "frame-000000.color.png").write_bytes(b"")
    dataset = PosedRGBD(spec(), root=tmp_path)
    dataset.verify()
    assert dataset.load(0, 1, ALL).size == (6, 8)
    with pytest.raises(DamagedFile):
        dataset.load(0, 0, ALL)


def kitchen_and_office(shared_data, cache, **options):
    root = shared_data / "rgbd"
    return PosedRGBD(
        spec(views=2, cache=cache),
        root=root,
        test_scenes=("kitchen-b",),
        depth_to_color={"kitchen-*": KITCHEN},
        **options,
    )


def test_one_section_names_a_registered_and_an_unregistered_scene(shared_data, tmp_path):
    dataset = kitchen_and_office(shared_data, tmp_path)
    dataset.verify()
    assert dataset.scenes == ["kitchen-a", "office"]
    assert [dataset.frame_count(scene) for scene in (0, 1)] == [100, 50]
    kitchen, office = (dataset.load(scene, 3, ALL) for scene in (0, 1))
    assert kitchen["intrinsics"].tolist() == [[528, 0, 321.5], [0, 528, 239.5], [0, 0, 1]]
    assert office["intrinsics"][0].tolist() == pytest.approx([570.342205, 0, 320.5])
    for view in (kitchen, office):
        assert view["image"].shape == (480, 640, 3) and view["depth"].shape == (480, 640)
        assert 0.5 < np.median(view["depth"][view["depth"] > 0]) < 5
    raw = PosedRGBD(spec(), root=shared_data / "rgbd" / "kitchen-a").load(0, 3, ALL)
    assert (raw["depth"] > 0).mean() - 0.2 < (kitchen["depth"] > 0).mean() < (raw["depth"] > 0).mean()


def world_points(view, step):
    y, x = np.mgrid[: view["depth"].shape[0], : view["depth"].shape[1]]
    pixels = np.stack([x + 0.5, y + 0.5, np.ones(view["depth"].shape)])[:, ::step, ::step].reshape(3, -1)
    depth = view["depth"][::step, ::step].ravel()
    points = np.linalg.inv(view["intrinsics"]) @ (pixels * depth)
    return (view["world_from_camera"][:3, :3] @ points + view["world_from_camera"][:3, 3:]).T[depth > 0]


def test_registration_moves_the_camera_and_not_the_world(shared_data, tmp_path):
    spatial = pytest.importorskip("scipy.spatial")
    folder = shared_data / "rgbd" / "kitchen-a"
    raw = PosedRGBD(spec(), root=folder)
    before = spatial.cKDTree(world_points(raw.load(0, 20, ALL), 1))
    registered = PosedRGBD(spec(), root=folder, depth_to_color={"*": KITCHEN}).load(0, 20, ALL)
    distance, _ = before.query(world_points(registered, 5))
    assert np.quantile(distance, 0.99) < 0.01
    registered["world_from_camera"] = raw.load(0, 20, ALL)["world_from_camera"]  # the depth camera's: 25 mm off
    wrong, _ = before.query(world_points(registered, 5))
    assert np.median(wrong) > 2 * np.median(distance)


def test_damaged_depth_is_left_out_of_the_pairs_and_reported(shared_data, tmp_path):
    source, folder = shared_data / "rgbd" / "office", tmp_path / "office"
    folder.mkdir()
    for path in sorted(source.iterdir())[: 3 * 12 + 1]:  # the intrinsics and 12 frames
        (folder / path.name).write_bytes(path.read_bytes())
    damaged = sorted(folder.glob("*.depth.png"))[4]
    truncate(damaged)
    dataset = PosedRGBD(spec(views=2, cache=tmp_path / "cache"), root=folder, frame_step=4)
    dataset.prepare()
    assert [damage.path for damage in dataset.damaged] == [damaged]
    pairs = dataset.pairs(0)
    assert {*pairs.first.tolist(), *pairs.second.tolist()} == {0, 2}
    assert json.loads(dataset.scene_fingerprint(0))[0] == "posed"


# What cannot be one field of view, or is read as something it is not


def resave(folder, change, pattern="*.color.png"):
    for path in folder.glob(pattern):
        change(Image.open(path)).save(path)


@pytest.mark.parametrize(
    ("change", "size"),
    [
        (lambda image: image.crop((0, 0, 96, 96)), "96 x 96"),
        (lambda image: image.transpose(Image.Transpose.ROTATE_90), "96 x 128"),
    ],
)
def test_color_of_another_aspect_than_depth_is_refused(tmp_path, change, size):
    write_frames(tmp_path, size=(96, 128))
    resave(tmp_path, change)
    with pytest.raises(UserError, match=rf"^root: .* color of {size} pixels and depth of 128 x 96 cannot be one field"):
        PosedRGBD(spec(), root=tmp_path).verify()
    calibrated = PosedRGBD(spec(), root=tmp_path, depth_to_color={"*": replace(KITCHEN, cx=64, cy=48)})
    calibrated.verify()  # a second camera may well have another aspect
    assert calibrated.load(0, 0, ALL)["depth"].shape == (96, 128)


@pytest.mark.parametrize("orientation", [3, 6])
def test_color_is_read_as_stored_whatever_its_exif_orientation_says_and_the_log_says_so(tmp_path, orientation):
    write_frames(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = orientation
    ramp = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    for path in tmp_path.glob("*.color.png"):
        Image.fromarray(ramp).save(path, exif=exif)
    dataset = PosedRGBD(spec(), root=tmp_path)
    dataset.verify()
    assert np.array_equal(dataset.load(0, 0, ALL)["image"], ramp)
    (note,) = [line for line in dataset.describe() if "EXIF" in line]
    assert note.endswith(
        "images are read as stored, and their EXIF orientation goes unused: intrinsics belong to stored pixels"
    )


def test_a_scene_of_8_bit_depth_is_refused_and_a_single_map_is_damage(tmp_path):
    write_frames(tmp_path)
    eight = tmp_path / "frame-000000.depth.png"
    Image.new("L", (8, 6), 9).save(eight)
    dataset = PosedRGBD(spec(), root=tmp_path)
    dataset.verify()
    with pytest.raises(DamagedFile, match="expected a 16-bit gray image, got mode L"):
        dataset.load(0, 0, ALL)
    resave(tmp_path, lambda image: Image.new("L", image.size, 9), "*.depth.png")
    message = (
        r"^root: none of 3 files can be used, the first: .*000000\.depth\.png: expected a 16-bit gray image, got mode L"
    )
    with pytest.raises(UserError, match=message):
        PosedRGBD(spec(), root=tmp_path).verify()


def test_damage_is_named_where_it_leaves_no_pairs(tmp_path):
    write_frames(tmp_path / "s")
    for path in (tmp_path / "s").glob("*.depth.png"):
        truncate(path)
    with pytest.raises(UserError, match=r"no two views .* overlap: 3 files are damaged, the first: .*truncated"):
        PosedRGBD(spec(views=2, cache=tmp_path / "cache"), root=tmp_path / "s").prepare()


def test_16_bit_gray_color_is_scaled(tmp_path):
    write_frames(tmp_path)
    resave(tmp_path, lambda image: Image.fromarray(np.full((6, 8), 32896, np.uint16)))
    assert (PosedRGBD(spec(), root=tmp_path).load(0, 0, ALL)["image"] == 128).all()


@pytest.mark.parametrize("write", [write_frames, write_scannet])
def test_two_files_of_one_frame_are_refused(tmp_path, write):
    folder = write(tmp_path / "s")
    first = next(folder.rglob("frame-000002.color.png"), None) or folder / "color" / "2.jpg"
    for other in (first.with_suffix(".jpeg"), first.with_name(first.name.replace("2", "02", 1))):
        other.write_bytes(first.read_bytes())
        names = sorted((first.name, other.name))
        with pytest.raises(
            UserError, match=rf"^root: two color files of frame 2 in .*: {names[0]} and {names[1]}; keep"
        ):
            PosedRGBD(spec(), root=tmp_path).verify()
        other.unlink()


def test_messages_name_the_extensions_read_and_the_files_seen(tmp_path):
    write_frames(tmp_path / "a", range(5))
    for path in (tmp_path / "a").glob("*.depth.png"):
        path.rename(path.with_suffix(".tiff"))
    with pytest.raises(UserError) as caught:
        PosedRGBD(spec(), root=tmp_path).verify()
    assert caught.value.message == (
        "scene a has 5 color, 0 depth, 5 pose files; the first unmatched frame is 0: it has no depth (depth is read"
        " from .png; seen: frame-000000.depth.tiff, frame-000001.depth.tiff, frame-000002.depth.tiff and 2 more)"
    )
    folder = write_scannet(tmp_path / "b" / "s")
    for path in (folder / "color").iterdir():
        path.rename(path.with_suffix(".webp"))
    with pytest.raises(
        UserError, match=r"color is read from \.png \.jpg \.jpeg; seen in color: 0\.webp, 10\.webp, 2\.webp"
    ):
        PosedRGBD(spec(), root=tmp_path / "b").verify()


@pytest.mark.parametrize("write", [write_frames, write_scannet])
def test_frames_without_a_pose_are_left_out_counted_and_named(tmp_path, write):
    numbers = (0, 2, 10)
    folder = write(tmp_path / "s", numbers)
    lost = folder / "frame-000002.pose.txt" if write is write_frames else folder / "pose" / "2.txt"
    lost.unlink()
    dataset = PosedRGBD(spec(), root=tmp_path)
    dataset.verify()
    assert [dataset.load(0, frame, ALL)["world_from_camera"][0, 3] for frame in (0, 1)] == [0, 10]
    assert dataset.frame_count(0) == 2
    assert dataset.describe()[-1] == "s: 1 frames left out (no pose: 1, frame 2)"


# The dataset `posed`


def test_posed_reads_both_formats_and_takes_their_options_in_a_section_of_their_own(tmp_path):
    write_frames(tmp_path / "frames" / "a")
    write_scannet(tmp_path / "scannet" / "b")
    by_itself = Posed(spec(), root=tmp_path / "frames")
    former = PosedRGBD(spec(), root=tmp_path / "frames", depth_scale=500)
    assert by_itself.scenes == ["a"] and Posed(spec(), root=tmp_path / "scannet").scenes == ["b"]
    named = Posed(spec(), root=tmp_path / "frames", format="sevenscenes", reader={"depth_scale": 500})
    for view in (named.load(0, 1, ALL), former.load(0, 1, ALL)):
        assert (view["depth"][1:] == np.float32(1001 / 500)).all()
    assert former.describe()[0] == (
        "posed_rgbd is called posed now: name: posed, format: sevenscenes, its options under reader"
    )
    given = Posed(spec(), root=tmp_path / "frames", reader={"intrinsics": [5, 6, 4, 3]})
    assert given.describe()[-1] == "a: intrinsics goes unused: it has a file of its own"


def test_what_is_wrong_with_formats_and_their_options_is_located(tmp_path):
    write_frames(tmp_path / "data" / "a")
    write_scannet(tmp_path / "mixed" / "b")
    write_frames(tmp_path / "mixed" / "a")
    (tmp_path / "data" / "a" / "camera-intrinsics.txt").unlink()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    cases = [
        ({"root": tmp_path / "mixed"}, "format: scannet and sevenscenes both recognize .*mixed: set the right one"),
        (
            {"root": tmp_path / "other"},
            r"root: no format \(.+\) recognizes .*other: there is notes\.txt",
        ),
        ({"format": "scanet"}, "format: unknown reader 'scanet', did you mean 'scannet'"),
        ({"format": "scannet"}, "root: no scene in .*data: expected a .sens file, .* and pose; there is a/"),
        ({"reader": {"depth_scal": 3}}, r"reader\.depth_scal: unknown key, did you mean 'depth_scale'"),
        ({"reader": {"depth_scale": "big"}}, r"reader\.depth_scale: expected a number"),
        ({"reader": {"depth_scale": 0}}, r"reader\.depth_scale: expected units per meter above 0"),
        ({"reader": {"root": "x"}}, r"reader\.root: unknown key"),
        ({}, r"reader\.intrinsics: no intrinsics for scene a"),
        ({"root": tmp_path / "none"}, "root: no folder"),
    ]
    for options, message in cases:
        with pytest.raises(UserError, match=f"^{message}"):
            Posed(spec(), **{"root": tmp_path / "data", **options}).verify()
    both = PosedRGBD(spec(), root=tmp_path / "mixed")
    both.verify()
    assert both.scenes == ["a", "b"]
    assert both.load(1, 0, ALL)["image"].shape == (12, 20, 3) and both.load(0, 0, ALL)["image"].shape == (6, 8, 3)
