"""Mining of a scene's pairs: the plain result, each map decoded once, progress, interruption, memory."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from plain_overlap import plain_pairs
from posed_boxes import box_views

from prior3d.contracts.dataset import DataSpec
from prior3d.contracts.view import View
from prior3d.data.posed.dataset import PosedDataset
from prior3d.data.posed.depth_maps import DepthMaps
from prior3d.data.posed.pairs import PairOptions, mine_pairs
from prior3d_plugins.datasets.posed import Posed


class Boxes(PosedDataset):
    """Scenes of ten views of a box."""

    def __init__(self, cache: Path, scenes: int = 3) -> None:
        super().__init__(
            DataSpec((30, 40), 2, "train", cache, 0), PairOptions(min_overlap=0.15, relative_distance=0.02)
        )
        self.scenes = [f"box-{number}" for number in range(scenes)]
        self.decoded: Counter[tuple[int, int]] = Counter()
        self._views = [box_views(10, seed, turn=70.0) for seed in range(scenes)]

    def frame_count(self, scene: int) -> int:
        return 10

    def scene_fingerprint(self, scene: int) -> str:
        return str(scene)

    def load(self, scene: int, frame: int, fields: frozenset[str]) -> View:
        self.decoded[scene, frame] += "depth" in fields
        depth, intrinsics, poses = (t[frame].numpy() for t in self._views[scene])
        values = {"depth": depth, "intrinsics": intrinsics.astype(np.float64), "world_from_camera": poses}
        return View(values, scene, frame, depth.shape)


OPTIONS = [
    PairOptions(max_distance=0.1),
    PairOptions(min_overlap=0.05, max_distance=0.05),  # too small for the coarse look to leave anything out
    PairOptions(min_overlap=0.2, samples=100, max_angle=50.0, relative_distance=0.05),
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("field_of_view", [35.0, 100.0])
def test_mined_pairs_are_those_of_the_plain_definition(options, field_of_view):
    views = box_views(30, field_of_view=field_of_view, turn=80.0)
    found, (first, second, overlap) = mine_pairs(*views, options), plain_pairs(*views, options)
    assert 10 < len(found) < 400
    assert torch.equal(found.first, first)
    assert torch.equal(found.second, second)
    assert torch.equal(found.overlap, overlap)


@pytest.mark.parametrize("scene", ["kitchen-a", "office"])
def test_pairs_of_a_real_recording_are_those_of_the_plain_definition(shared_data, tmp_path, scene):
    spec = DataSpec((240, 320), 2, "train", tmp_path, 0)
    options = PairOptions(samples=300)
    dataset = Posed(spec, root=shared_data / "rgbd" / scene, frame_step=5, pairs=options, check_poses="off")
    dataset.prepare()
    views = [dataset.load(0, frame, frozenset({"depth", "intrinsics", "world_from_camera"})) for frame in range(10)]
    views = views[: dataset.frame_count(0)]
    stacked = (
        torch.from_numpy(np.stack([view[name] for view in views]))
        for name in ("depth", "intrinsics", "world_from_camera")
    )
    depth, intrinsics, poses = stacked
    first, second, overlap = plain_pairs(depth, intrinsics.float(), poses, options)
    found = dataset.pairs(0)
    found = found[(found.first < 10) & (found.second < 10)]
    assert len(found) > 10
    # The first of all frames is the origin of the world in both.
    assert torch.equal(found.first, first)
    assert torch.equal(found.second, second)
    assert torch.equal(found.overlap, overlap)


def test_each_map_is_decoded_once_and_progress_is_shown_within_a_scene(tmp_path):
    seen = []

    def progress(items, description, total):
        taken = 0
        for item in items:
            yield item
            taken += 1
        seen.append((description, taken, total))

    dataset = Boxes(tmp_path, 1)
    dataset.prepare(progress)
    assert set(dataset.decoded.values()) == {1}
    assert all(done == total for _, done, total in seen)
    compared = [total for description, _, total in seen if description == "box-0: comparing views"]
    assert compared == [10, 10]  # few points, then all, of every view
    assert ("box-0: reading frames", 10, 10) in seen


def test_an_interrupted_scene_is_mined_again_and_finished_ones_are_not(tmp_path):
    def interrupted(items, description, total):
        for done, item in enumerate(items):
            if description.endswith("comparing views") and done == 4 and len(finished()) == 1:
                raise KeyboardInterrupt
            yield item

    def finished():
        return sorted(path.name for path in (tmp_path / "pairs").iterdir() if path.name[0] != ".")

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyboardInterrupt):
            Boxes(tmp_path).prepare(interrupted)
    finally:
        torch.set_num_threads(before)
    done = finished()
    assert len(done) == 1
    assert not list((tmp_path / "pairs").glob(".*.partial"))

    dataset = Boxes(tmp_path)
    dataset.prepare()
    assert len({scene for scene, _ in dataset.decoded}) == 2
    assert len(finished()) == 3
    assert done[0] in finished()
    whole = Boxes(tmp_path / "whole")
    whole.prepare()
    for scene in range(3):
        for column in ("first", "second", "overlap", "angle_deg", "baseline_m"):
            assert torch.equal(getattr(dataset.pairs(scene), column), getattr(whole.pairs(scene), column))


@pytest.mark.parametrize("scale", [1000, 5000])
def test_depth_maps_take_two_bytes_a_pixel_where_that_is_exact(scale):
    codes = np.arange(65536).reshape(256, 256)
    meters = (codes / scale).astype(np.float32)
    maps = DepthMaps()
    maps.append(meters)
    assert np.array_equal(maps[0].numpy(), meters)
    assert maps.bytes == (2 if scale == 1000 else 4) * 65536


@pytest.mark.parametrize("odd", [np.nan, np.inf, -1.0, 0.0004, 65.536, 1e30])
def test_depth_maps_keep_what_is_no_millimeter(odd):
    meters = np.full((3, 4), 1.234, np.float32)
    meters[1, 2] = odd
    maps = DepthMaps()
    maps.append(meters)
    assert np.array_equal(maps[0].numpy(), meters, equal_nan=True)
    assert maps.sizes == {(3, 4): 1}
