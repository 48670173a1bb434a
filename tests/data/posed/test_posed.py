from pathlib import Path

import numpy as np
import pytest
import torch

from prior3d.contracts.dataset import DataSpec, View
from prior3d.data.posed.dataset import PosedDataset
from prior3d.data.posed.pairs import PairOptions
from prior3d.errors import DamagedFile, UserError

SIZE = (60, 80)
FIELDS = frozenset({"image", "depth", "intrinsics", "world_from_camera"})


class Wall(PosedDataset):
    """Scenes of cameras 2 m before a wall, `step` meters apart; a view shows 3.2 m of it."""

    def __init__(
        self,
        spec: DataSpec,
        counts: tuple[int, ...] = (6, 3),
        step: float = 0.8,
        damaged: tuple[int, ...] = (),
        depth_size: tuple[int, int] = SIZE,
        version: int = 0,
        pairs: PairOptions = PairOptions(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__(spec, pairs)
        self.counts, self.step, self.bad, self.depth_size, self.version = counts, step, damaged, depth_size, version
        self.scenes = [f"wall-{scene}" for scene in range(len(counts))]
        self.loaded: list[tuple[int, int, frozenset[str]]] = []

    def frame_count(self, scene: int) -> int:
        return self.counts[scene]

    def scene_fingerprint(self, scene: int) -> str:
        return f"{scene} {self.counts} {self.step} {self.depth_size} {self.version}"

    def load(self, scene: int, frame: int, fields: frozenset[str]) -> View:
        self.loaded.append((scene, frame, fields))
        if frame in self.bad:
            raise DamagedFile(Path(f"{scene}/{frame}.png"), "truncated")
        view = View(scene=scene, frame=frame)
        if "depth" in fields:
            view["depth"] = np.full(self.depth_size, 2.0, np.float32)
        if "intrinsics" in fields:
            view["intrinsics"] = np.array([[50.0, 0, 40], [0, 50, 30], [0, 0, 1]])
            view.size = SIZE
        if "world_from_camera" in fields:
            view["world_from_camera"] = np.eye(4)
            view["world_from_camera"][0, 3] = 1e4 + self.step * frame  # meters: float32 ends at a millimeter here
        return view


@pytest.fixture
def spec(tmp_path):
    return lambda views=2, seed=0: DataSpec(SIZE, views, "train", tmp_path / "cache", seed)


def draws(dataset: PosedDataset, count: int, start: int = 0) -> list[list[tuple[int, int]]]:
    samples = [dataset.sample(n, FIELDS, torch.Generator().manual_seed(n)) for n in range(start, start + count)]
    return [[(view.scene, view.frame) for view in views] for views in samples]


def test_pairs_are_mined_once_and_then_read_from_the_cache(spec):
    first = Wall(spec())
    first.prepare()
    assert sorted((scene, frame) for scene, frame, _ in first.loaded) == [
        (scene, frame) for scene, count in enumerate((6, 3)) for frame in range(count)
    ]
    assert {fields for *_, fields in first.loaded} == {FIELDS - {"image"}}
    again = Wall(spec(seed=7))
    again.prepare()
    assert again.loaded == []
    table = again.pairs(0)
    # 0.8 of 3.2 m apart: 0.75 for neighbors, 0.5 for the next
    pairs = set(zip(table.first.tolist(), table.second.tolist(), strict=True))
    assert pairs == {(a, a + k) for k in (1, 2) for a in range(6 - k)}


@pytest.mark.parametrize("change", [{"version": 1}, {"pairs": PairOptions(min_overlap=0.6)}])
def test_other_content_or_options_are_mined_anew(spec, change):
    Wall(spec()).prepare()
    changed = Wall(spec(), **change)
    changed.prepare()
    assert changed.loaded


def test_single_views_are_every_frame_once_an_epoch_in_an_order_of_their_own(spec):
    dataset = Wall(spec(views=1))
    dataset.prepare()
    assert dataset.loaded == []  # nothing to mine
    assert len(dataset) == 9
    every = [[(scene, frame)] for scene, count in enumerate((6, 3)) for frame in range(count)]
    epochs = [draws(dataset, 9, start) for start in (0, 9, 18)]
    assert all(sorted(epoch) == every for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert draws(Wall(spec(views=1)), 4, 11) == epochs[1][2:6]  # no matter what was drawn before
    assert draws(Wall(spec(views=1, seed=1)), 9) != epochs[0]


def test_two_views_are_pairs_in_either_order(spec):
    dataset = Wall(spec())
    samples = draws(dataset, 60)
    gaps = {second[1] - first[1] for first, second in samples}
    assert gaps == {-2, -1, 1, 2}
    assert all(first[0] == second[0] for first, second in samples)
    assert {first[0] for first, _ in samples} == {0, 1}
    assert draws(Wall(spec()), 5, 20) == samples[20:25]


def test_three_views_are_partners_of_the_first(spec):
    for views in draws(Wall(spec(views=3)), 40):
        frames = [frame for _, frame in views]
        assert len(set(frames)) == 3
        assert all(abs(frame - frames[0]) <= 2 for frame in frames)


def test_only_the_fields_asked_for_are_decoded(spec):
    dataset = Wall(spec())
    (view, _) = dataset.sample(0, frozenset({"depth"}), torch.Generator().manual_seed(0))
    assert "depth" in view
    assert "intrinsics" not in view


def test_a_split_without_pairs_is_one_clear_error(spec):
    dataset = Wall(spec(), step=3.0)
    with pytest.raises(UserError, match=r"no two views .*train split .*30%.*pairs\.min_overlap") as caught:
        dataset.prepare()
    assert caught.value.key is None  # the section in hand
    assert "no pairs of views" in dataset.describe()
    with pytest.raises(UserError, match="overlaps with 4 others"):
        Wall(spec(views=5), counts=(3, 3)).prepare()


def test_damaged_frames_are_left_out_and_named_also_from_the_cache(spec):
    for _ in range(2):
        dataset = Wall(spec(), damaged=(2,))
        dataset.prepare()
        assert [(str(damage.path), damage.why) for damage in dataset.damaged] == [
            ("0/2.png", "truncated"),
            ("1/2.png", "truncated"),
        ]
        assert all(frame != 2 for views in draws(dataset, 30) for _, frame in views)
        assert dataset.pairs(0).second.max() == 5  # frames keep their numbers


def test_long_scenes_are_thinned_evenly_and_said_to_be(spec):
    dataset = Wall(spec(), counts=(21,), step=0.1, pairs=PairOptions(max_frames=5))
    dataset.prepare()
    assert [frame for _, frame, _ in dataset.loaded] == [0, 5, 10, 15, 20]
    assert set(dataset.pairs(0).first.tolist()) | set(dataset.pairs(0).second.tolist()) == {0, 5, 10, 15, 20}
    assert "1 scenes were thinned to 5 frames to find pairs" in dataset.describe()


def test_intrinsics_are_those_of_the_image_also_for_smaller_depth_maps(spec):
    overlaps = [Wall(spec(), depth_size=size).pairs(0).overlap[0].item() for size in (SIZE, (30, 40))]
    assert overlaps == pytest.approx([0.75, 0.75], abs=0.03)


def test_depth_maps_of_different_sizes_make_the_same_pairs(spec):
    class Mixed(Wall):
        def load(self, scene: int, frame: int, fields: frozenset[str]) -> View:
            view = super().load(scene, frame, fields)
            view["depth"] = np.full([(60, 80), (30, 40), (80, 60)][frame % 3], 2.0, np.float32)
            return view

    pairs, mixed = Wall(spec()).pairs(0), Mixed(spec(), version=2).pairs(0)
    assert torch.equal(mixed.first, pairs.first) and torch.equal(mixed.second, pairs.second)
    assert torch.allclose(mixed.overlap, pairs.overlap, atol=0.03)


def test_narrow_sets_are_said_to_be_so(spec):
    lines = Wall(spec()).describe()
    assert lines[0] == "2 scenes, 9 frames"
    assert any("hardly show anything from two sides" in line for line in lines)
