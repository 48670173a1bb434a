"""Pairs from tracks: which frames see the same points, as the recording says, instead of depth maps compared."""

import numpy as np
import pytest
import torch

from prior3d.contracts.dataset import DataSpec
from prior3d.contracts.reader import Camera, Frame, Reader, Recording
from prior3d.contracts.view import View
from prior3d.data.posed import PairOptions, PosedDataset, RecordedScenes, Tracks, pairs_of_tracks
from prior3d.errors import DamagedFile, UserError

SIZE = (6, 8)
OVERLAP = {
    "first": np.array([0, 0, 1, 2]),
    "second": np.array([1, 3, 3, 3]),
    "overlap": np.array([0.9, 0.2, 0.5, 0.4], np.float32),
}


def turned(degrees, x):
    angle = np.radians(degrees)
    pose = np.eye(4)
    pose[0, [0, 2]], pose[2, [0, 2]] = (np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))
    pose[0, 3] = x
    return pose


class Tracked(Recording):
    def __init__(self, sizes=(SIZE,) * 4):
        cameras = [Camera("pinhole", np.diag([8.0, 8, 1]), size, depth_size=size) for size in sizes]
        for camera in cameras:
            camera.intrinsics[:2, 2] = 4, 3
        problems = [None, None, "no pose", None]
        self.frames = [
            Frame(str(row), camera, turned(10 * row, row), problem)
            for row, (camera, problem) in enumerate(zip(cameras, problems, strict=True))
        ]

    def read(self, frame, fields):
        return View({"image": np.zeros((*SIZE, 3), np.uint8)} if "image" in fields else {})

    def fingerprint(self, frames=None):
        return "same"

    def overlap(self):
        return OVERLAP


class Untracked(Tracked):
    def overlap(self):
        return None


class Damaged(Tracked):
    def overlap(self):
        raise DamagedFile("points.bin", "truncated")


class Format(Reader):
    """A format without depth, which knows tracks."""

    provides = frozenset({"image"})

    def __init__(self, root, made=Tracked):
        super().__init__(root)
        self._made = made

    @classmethod
    def recognizes(cls, folder):
        return 0

    def scenes(self):
        return ["a"]

    def open(self, scene):
        return self._made()


def dataset(tmp_path, made=Tracked, **options):
    spec = DataSpec(SIZE, 2, "train", tmp_path / "cache")
    return RecordedScenes(spec, [Format(tmp_path, made)], pairs=PairOptions(source="tracks", **options))


def test_pairs_are_those_that_share_enough_points(tmp_path):
    table = dataset(tmp_path).pairs(0)  # frame 2 has no pose: frame 3 of the recording is the third that is used
    assert table.first.tolist() == [0, 1] and table.second.tolist() == [1, 2]
    torch.testing.assert_close(table.overlap, torch.tensor([0.9, 0.5]))
    torch.testing.assert_close(table.angle_deg, torch.tensor([10.0, 20.0]))
    torch.testing.assert_close(table.baseline_m, torch.tensor([1.0, 2.0]))
    assert dataset(tmp_path, min_overlap=0.1).pairs(0).first.tolist() == [0, 0, 1]
    assert dataset(tmp_path, max_angle=15.0).pairs(0).first.tolist() == [0]


def test_a_format_without_depth_makes_pairs_of_tracks(tmp_path):
    pairs = dataset(tmp_path)
    pairs.prepare()
    drawn = {tuple(sorted(pairs.chosen_frames(index, torch.Generator().manual_seed(index))[1])) for index in range(20)}
    assert drawn == {(0, 1), (1, 2)}


def test_long_scenes_are_thinned():
    options = PairOptions(source="tracks", max_frames=2, min_overlap=0.1)
    poses = np.stack([turned(10 * row, row) for row in (0, 1, 3)])
    table = pairs_of_tracks(OVERLAP, [0, 1, 3], poses, options)
    assert len(table) == 1 and table.second.item() - table.first.item() in (1, 2)


@pytest.mark.parametrize(
    ("made", "options", "message"),
    [
        (
            Untracked,
            {},
            r"^pairs\.source: scene a: its format does not know which frames see the same points: set depth",
        ),
        (Damaged, {}, r"^no two views .* overlap: 1 files are damaged, the first: points\.bin: truncated"),
        (Tracked, {"min_overlap": 1.0}, r"^no two views .* share 100% of their points: lower pairs\.min_overlap"),
    ],
)
def test_what_gives_no_pairs_says_why(tmp_path, made, options, message):
    with pytest.raises(UserError, match=message):
        dataset(tmp_path, made, **options).prepare()


class Blind(Tracked):
    """Its depth maps differ in size, and none knows anything."""

    def read(self, frame, fields):
        view = super().read(frame, fields)
        if "depth" in fields:
            view["depth"] = np.zeros((6, 8), np.float32)
        return view


def test_those_who_compare_depth_are_pointed_to_tracks(tmp_path):
    class Deep(Format):
        """A format with depth."""

        provides = frozenset({"image", "depth"})

    spec = DataSpec(SIZE, 2, "train", tmp_path / "cache")
    with pytest.raises(UserError, match=r"lower the threshold; this format also knows .*: set pairs\.source: tracks$"):
        RecordedScenes(spec, [Deep(tmp_path, Blind)]).prepare()


def test_datasets_without_recordings_have_no_tracks(tmp_path):
    class Own(PosedDataset):
        def frame_count(self, scene):
            return 2

        def load(self, scene, frame, fields):
            raise AssertionError("nothing is decoded")

        def scene_fingerprint(self, scene):
            return "same"

    spec = DataSpec(SIZE, 2, "train", tmp_path / "cache")
    own = Own(spec, PairOptions(source="tracks"))
    own.scenes = ["a"]
    with pytest.raises(UserError, match=r"^pairs\.source: this dataset does not know which frames see"):
        own.prepare()


def test_the_tables_of_depth_keep_their_keys():
    assert "source" not in PairOptions().mining
    assert PairOptions(source="tracks").mining["source"] == "tracks"


def test_tracks_count_each_observation_once():
    points = np.arange(9.0).reshape(3, 3)
    rows, frames = np.array([0, 0, 0, 2, 2, 1, 1]), np.array([1, 0, 0, 2, 0, 1, -1])
    tracks = Tracks.of_observations(points, None, rows, frames, count=4, least=2)
    np.testing.assert_array_equal(tracks.points, points[[0, 2]])  # point 1 is seen once by a frame that counts
    assert [seen.tolist() for seen in tracks.seen] == [[0, 1], [0], [1], []]
    overlap = tracks.overlap()
    assert overlap["first"].tolist() == [0, 0] and overlap["second"].tolist() == [1, 2]
    np.testing.assert_allclose(overlap["overlap"], [2 / 3, 2 / 3])
    assert overlap["first"].dtype == np.int64 and overlap["overlap"].dtype == np.float32
    assert len(Tracks(points, None, []).overlap()["first"]) == 0
