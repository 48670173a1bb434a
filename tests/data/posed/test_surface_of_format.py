"""Surfaces that come with a recording: a mesh's vertices or points, instead of depth that is fused."""

import numpy as np
import pytest

from prior3d.contracts.dataset import DataSpec
from prior3d.contracts.reader import Camera, Cloud, Frame, Reader, Recording
from prior3d.contracts.view import View
from prior3d.data.posed import PosedDataset, RecordedScenes, SurfaceOptions
from prior3d.errors import DamagedFile, UserError

SIZE = (6, 8)
POINTS = np.array([[0.0, 0, 2], [0.5, 0.25, 3], [-1, 0, 2.5]])
COLORS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)


class Meshed(Recording):
    origin = np.zeros(3)
    colors = COLORS

    def __init__(self):
        camera = Camera("pinhole", np.array([[8.0, 0, 4], [0, 8, 3], [0, 0, 1]]), SIZE, depth_size=SIZE)
        pose = np.eye(4)
        pose[:3, 3] = self.origin
        self.frames = [Frame(str(number), camera, pose.copy()) for number in range(2)]

    def read(self, frame, fields):
        values = {"image": np.zeros((*SIZE, 3), np.uint8), "depth": np.ones(SIZE, np.float32)}
        return View({name: values[name] for name in fields & set(values)})

    def fingerprint(self, frames=None):
        return "same"

    def surface(self):
        return Cloud(POINTS + self.origin, self.colors)


class Far(Meshed):
    origin = np.array([500_000.25, 4_000_000.5, 100.0])


class Colorless(Meshed):
    colors = None


class Bare(Meshed):
    def surface(self):
        return None


class Damaged(Meshed):
    def surface(self):
        raise DamagedFile("mesh.ply", "truncated")


class Format(Reader):
    def __init__(self, root, made):
        super().__init__(root)
        self._made = made

    @classmethod
    def recognizes(cls, folder):
        return 0

    def scenes(self):
        return ["a"]

    def open(self, scene):
        return self._made()


def dataset(tmp_path, made):
    spec = DataSpec(SIZE, 1, "train", tmp_path / "cache")
    return RecordedScenes(spec, [Format(tmp_path, made)], surface=SurfaceOptions(source="format"))


def rows(points):
    return sorted(map(tuple, np.asarray(points, np.float64).tolist()))


def test_the_points_of_the_recording_are_the_surface(tmp_path):
    surface = dataset(tmp_path, Meshed).surface(0)
    assert rows(surface.points) == rows(POINTS)
    colored = {tuple(point): tuple(color) for point, color in zip(surface.points.tolist(), surface.colors, strict=True)}
    assert colored == {tuple(point): tuple(color) for point, color in zip(POINTS.tolist(), COLORS, strict=True)}
    assert dataset(tmp_path / "other", Colorless).surface(0).colors is None


def test_points_move_with_the_cameras_to_the_origin(tmp_path):
    made = dataset(tmp_path, Far)
    pose = made.load(0, 0, frozenset({"world_from_camera"}))["world_from_camera"]
    np.testing.assert_allclose(rows(made.surface(0).points - pose[:3, 3]), rows(POINTS), atol=1e-5)
    assert np.abs(pose[:3, 3]).max() < 1


def test_no_surface_is_one_line_and_a_damaged_one_is_damage(tmp_path):
    with pytest.raises(UserError, match="scene a: its format has no mesh and no points: set depth") as caught:
        dataset(tmp_path, Bare).surface(0)
    assert caught.value.key == "surface.source"
    made = dataset(tmp_path / "other", Damaged)
    assert len(made.surface(0)) == 0


def test_a_dataset_without_recordings_has_no_surfaces_of_its_own(tmp_path):
    class Other(PosedDataset):
        def frame_count(self, scene):
            return 1

        def load(self, scene, frame, fields):
            return View({})

        def scene_fingerprint(self, scene):
            return "same"

    other = Other(DataSpec(SIZE, 1, "train", tmp_path), surface=SurfaceOptions(source="format"))
    other.scenes = ["a"]
    with pytest.raises(UserError, match="brings no meshes and no points: set depth"):
        other.surface(0)


def test_options_that_surfaces_were_made_with_before_still_count():
    assert SurfaceOptions().making == {"voxel_size": 0.01, "max_frames": 200, "min_frames": 2, "edge": 0.02}
    assert SurfaceOptions(source="format", edge=0.1).making == {"source": "format"}
