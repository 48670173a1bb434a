"""The check of recordings in a run: refused, warned of or left alone, with figures, a range of depth and a picture."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from prior3d.contracts.dataset import DataSpec
from prior3d.data.posed.plausibility import PosedDepth, at_resolution, choose_pairs, judge
from prior3d.errors import UserError
from prior3d_plugins.datasets.posed import Posed, PosedRGBD

HEIGHT, WIDTH, FOCAL = 96, 128, 115.0
CAMERA = np.array([[FOCAL, 0, WIDTH / 2 - 0.5], [0, FOCAL, HEIGHT / 2 - 0.5], [0, 0, 1]])


def record(folder, written=lambda pose: pose, unit=1000, camera=CAMERA):
    """A walk through a textured box of 5 x 2.5 x 4 m, as 7-Scenes files."""
    folder.mkdir(parents=True)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    rays = np.stack([(x - CAMERA[0, 2]) / FOCAL, (y - CAMERA[1, 2]) / FOCAL, np.ones((HEIGHT, WIDTH))], -1)
    for step in range(12):
        angle, pose = np.radians(1.5 * step - 12), np.eye(4)
        pose[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
        pose[:3, 3] = [0.02 * step - 0.6, 0, 0.01 * step - 1]
        ray, center = rays @ pose[:3, :3].T, pose[:3, 3]
        z = np.maximum((np.array([-2.5, -1.2, -2]) - center) / ray, (np.array([2.5, 1.3, 2]) - center) / ray).min(-1)
        point = center + ray * z[..., None]
        image = 120 + 110 * np.sin(point * [7, 9, 8] + point[..., ::-1] * 3)
        name = str(folder / f"frame-{step:06d}")
        PIL.Image.fromarray(image.astype(np.uint8)).save(name + ".color.png")
        PIL.Image.fromarray((z * unit).clip(0, 65535).astype(np.uint16)).save(name + ".depth.png")
        np.savetxt(name + ".pose.txt", written(pose))
    np.savetxt(folder / "camera-intrinsics.txt", camera)


def posed(tmp_path, cls=Posed, views=1, **options):
    spec = DataSpec(size=(48, 64), views=views, split="train", cache=tmp_path / "cache")
    return cls(spec, root=tmp_path / "scans", **options)


def test_a_good_scene_trains_and_says_what_it_is_like(tmp_path):
    record(tmp_path / "scans" / "a")
    data = posed(tmp_path, views=2)
    data.prepare()
    lines = data.describe()
    assert any(line.startswith("depth from 2.") and "m (5-95 %" in line for line in lines)
    shown = next(line for line in lines if "neighboring frames warped into each other: " in line)
    assert "as given: gray correlation 1.00" in shown
    assert Path(shown.rpartition(": ")[2]).is_file()
    assert not any(line.startswith("warning") for line in lines)


@pytest.mark.parametrize("cls", [Posed, PosedRGBD])
@pytest.mark.parametrize("views", [1, 2])
def test_inverted_poses_end_the_run(tmp_path, cls, views):
    record(tmp_path / "scans" / "a", np.linalg.inv)
    with pytest.raises(
        UserError, match="scene a contradicts itself: the poses seem to be camera_from_world"
    ) as refused:
        posed(tmp_path, cls, views).prepare()
    assert "inverted poses: gray correlation 1.00" in refused.value.message
    assert "check_poses: warn" in refused.value.message


def test_mirrored_images_are_warned_of(tmp_path):
    record(tmp_path / "scans" / "a")
    for file in (tmp_path / "scans" / "a").glob("*.color.png"):
        PIL.Image.open(file).transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT).save(file)
    data = posed(tmp_path)
    data.prepare()
    assert any(line.startswith("warning: scene a: the images seem mirrored") for line in data.describe())


def test_whoever_knows_better_is_only_warned(tmp_path):
    record(tmp_path / "scans" / "a", np.linalg.inv)
    data = posed(tmp_path, check_poses="warn")
    data.prepare()
    assert any(line.startswith("warning: scene a: the poses seem to be camera_from_world") for line in data.describe())


def test_nothing_is_checked_when_it_is_off(tmp_path):
    record(tmp_path / "scans" / "a", np.linalg.inv)
    data = posed(tmp_path, check_poses="off")
    data.prepare()
    assert not (tmp_path / "cache" / "checks").exists()
    assert data.describe() == ["1 scenes, 12 frames"]


def test_one_wrong_scene_among_good_ones_is_named(tmp_path):
    record(tmp_path / "scans" / "a")
    record(tmp_path / "scans" / "b")
    record(tmp_path / "scans" / "c", np.linalg.inv)
    data = posed(tmp_path)
    data.prepare()
    warnings = [line for line in data.describe() if line.startswith("warning")]
    assert len(warnings) == 1
    assert "scene c: the poses seem to be camera_from_world" in warnings[0]


def test_a_scene_without_pairs_is_named(tmp_path):
    record(tmp_path / "scans" / "a")

    def in_millimeters(pose):
        scaled = pose.copy()
        scaled[:3, 3] *= 1000
        return scaled

    record(tmp_path / "scans" / "b", in_millimeters)
    record(tmp_path / "scans" / "c")
    data = posed(tmp_path, views=2)
    data.prepare()
    lines = data.describe()
    assert "warning: scene b: no two of its views overlap, so it is never drawn in pairs" in lines
    assert any(line.startswith("warning: scene b: depth seems 1000 times too small") for line in lines)


def test_the_check_is_done_once(tmp_path):
    record(tmp_path / "scans" / "a")
    posed(tmp_path).prepare()
    (entry,) = (path for path in (tmp_path / "cache" / "checks").iterdir() if path.is_dir())
    before = (entry / "verdict.json").stat().st_mtime_ns
    posed(tmp_path).prepare()
    assert (entry / "verdict.json").stat().st_mtime_ns == before


def test_georeferenced_poses_are_moved_to_the_scene(tmp_path):
    shift = np.zeros((4, 4))
    shift[:3, 3] = [5e5, 120.0, 4649776.0]
    record(tmp_path / "scans" / "near")
    record(tmp_path / "scans" / "utm", lambda pose: pose + shift)
    data = posed(tmp_path)
    near, far = (
        np.stack([data.load(scene, frame, frozenset({"world_from_camera"}))["world_from_camera"] for frame in (0, 11)])
        for scene in (0, 1)
    )
    assert np.abs(far[:, :3, 3]).max() < 5
    moved = [poses[1, :3, 3] - poses[0, :3, 3] for poses in (near, far)]
    np.testing.assert_allclose(moved[0], moved[1], atol=1e-6)


def test_intrinsics_of_another_resolution_are_refused(tmp_path):
    record(tmp_path / "scans" / "a", camera=np.diag([4, 4, 1.0]) @ CAMERA)
    with pytest.raises(UserError, match=r"principal point \(254, 190\) lies outside of the images of 128 x 96 pixels"):
        posed(tmp_path).verify()


def in_millimeters_of_translation(pose):
    scaled = pose.copy()
    scaled[:3, 3] *= 1000
    return scaled


@pytest.mark.parametrize("scene", ["office", "kitchen-b"])
@pytest.mark.parametrize(
    ("written", "found"),
    [
        (lambda pose: pose, None),
        (np.linalg.inv, "inverted poses"),
        (lambda pose: pose @ np.diag([1.0, -1.0, -1.0, 1.0]), "OpenGL axes"),
        (in_millimeters_of_translation, "depth x 1000"),
    ],
)
def test_mistakes_are_named_on_real_recordings(shared_data, scene, written, found):
    spec = DataSpec(size=(48, 64), views=1, split="train", cache=Path("unused"))
    data = Posed(spec, root=shared_data / "rgbd" / scene)
    needed = frozenset({"image", "depth", "intrinsics", "world_from_camera"})

    def small(frame):
        view = data.load(0, frame, needed)
        gray, depth, intrinsics = at_resolution(view["image"], view["depth"], view["intrinsics"])
        return PosedDepth(gray, depth, intrinsics, written(view["world_from_camera"]))

    frames = [small(frame) for frame in range(data.frame_count(0))]
    typical = float(np.median(frames[0].depth[frames[0].depth > 0]))
    pairs = choose_pairs(np.stack([frame.world_from_camera for frame in frames]), typical)
    assert judge([(frames[first], frames[second]) for first, second in pairs]).better == found
