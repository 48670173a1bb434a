import numpy as np
import pytest
import torch

from prior3d.data.posed import pairs
from prior3d.data.posed.pairs import PairOptions, PairSampler, PairTable, angle_bin, describe_pairs, mine_pairs

HEIGHT, WIDTH, FOCAL, DISTANCE = 40, 60, 50.0, 2.0
VIEW_WIDTH = DISTANCE * WIDTH / FOCAL  # meters of the wall that a view shows


def intrinsics(count: int) -> torch.Tensor:
    matrix = torch.tensor([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]])
    return matrix.expand(count, 3, 3)


def shifted(offsets: list[float]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cameras side by side before a wall, which look straight at it."""
    poses = torch.eye(4).repeat(len(offsets), 1, 1)
    poses[:, 0, 3] = torch.tensor(offsets)
    return torch.full((len(offsets), HEIGHT, WIDTH), DISTANCE), intrinsics(len(offsets)), poses


def turned(degrees: list[float]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cameras at one place within a ball of radius 2 m, turned about the vertical axis."""
    angles = torch.deg2rad(torch.tensor(degrees))
    poses = torch.eye(4).repeat(len(degrees), 1, 1)
    poses[:, 0, 0], poses[:, 0, 2] = angles.cos(), angles.sin()
    poses[:, 2, 0], poses[:, 2, 2] = -angles.sin(), angles.cos()
    x = (torch.arange(WIDTH) + 0.5 - WIDTH / 2) / FOCAL
    y = (torch.arange(HEIGHT) + 0.5 - HEIGHT / 2) / FOCAL
    depth = DISTANCE / (1 + x[None] ** 2 + y[:, None] ** 2).sqrt()
    return depth.expand(len(degrees), HEIGHT, WIDTH), intrinsics(len(degrees)), poses


def table(*rows: tuple[int, int, float]) -> PairTable:
    first, second, angle = (torch.tensor(column) for column in zip(*rows, strict=True))
    return PairTable(first, second, torch.full((len(rows),), 0.5), angle.float(), torch.ones(len(rows)))


def drawn(sampler: PairSampler, count: int) -> list[tuple[int, list[int]]]:
    generator = torch.Generator().manual_seed(0)
    return [sampler.sample(generator) for _ in range(count)]


def test_overlap_of_shifted_views_of_a_wall():
    found = mine_pairs(*shifted([0.0, VIEW_WIDTH / 4, VIEW_WIDTH * 0.8]))
    assert list(zip(found.first.tolist(), found.second.tolist(), strict=True)) == [(0, 1), (1, 2)]
    torch.testing.assert_close(found.overlap, torch.tensor([0.75, 0.45]), atol=0.03, rtol=0)
    torch.testing.assert_close(found.baseline_m, VIEW_WIDTH * torch.tensor([0.25, 0.55]), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.angle_deg, torch.zeros(2), atol=1e-3, rtol=0)


def test_angles_of_turned_views_and_the_largest_allowed():
    angles = [0.0, 10.0, 25.0]
    found = mine_pairs(*turned(angles))
    torch.testing.assert_close(found.angle_deg, torch.tensor([10.0, 25.0, 15.0]), atol=1e-3, rtol=0)
    torch.testing.assert_close(found.baseline_m, torch.zeros(3), atol=1e-6, rtol=0)
    assert (found.overlap.diff().sign() == torch.tensor([-1.0, 1.0])).all()
    assert mine_pairs(*turned(angles), PairOptions(max_angle=12.0)).angle_deg.tolist() == pytest.approx([10.0])


def test_threshold_and_limits_are_obeyed():
    views = shifted([0.0, VIEW_WIDTH / 4])
    assert len(mine_pairs(*views, PairOptions(min_overlap=0.8))) == 0
    depth, *cameras = views
    depth = depth + torch.tensor([0.0, 0.05])[:, None, None]  # the second camera measures 5 cm too far
    assert len(mine_pairs(depth, *cameras)) == 0
    assert len(mine_pairs(depth, *cameras, PairOptions(max_distance=0.06))) == 1
    assert len(mine_pairs(depth, *cameras, PairOptions(relative_distance=0.03))) == 1


def test_no_view_one_view_and_unknown_depth_have_no_pairs():
    for offsets in ([], [0.0]):
        assert len(mine_pairs(*shifted(offsets))) == 0
    depth, *cameras = shifted([0.0, 0.1])
    assert len(mine_pairs(torch.zeros_like(depth), *cameras)) == 0


def test_the_coarse_look_loses_no_pair(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    views = shifted((torch.rand(30, generator=generator) * 3).tolist())
    looked_twice = mine_pairs(*views)
    monkeypatch.setattr(pairs, "_COARSE_SAMPLES", 10**6)
    looked_once = mine_pairs(*views)
    assert 100 < len(looked_once) < 435
    assert looked_twice.first.tolist() == looked_once.first.tolist()
    assert looked_twice.second.tolist() == looked_once.second.tolist()


def test_a_table_survives_the_disk_and_its_bytes_are_stable(tmp_path):
    found = mine_pairs(*shifted([0.0, 0.2, 0.5]))
    for name in ("a.npz", "b.npz"):
        found.save(tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    loaded = PairTable.load(tmp_path / "a.npz")
    for column in ("first", "second", "overlap", "angle_deg", "baseline_m"):
        original, read = getattr(found, column), getattr(loaded, column)
        assert read.dtype == original.dtype
        assert torch.equal(read, original)


def test_rows_are_chosen_by_mask():
    chosen = table((0, 1, 3.0), (0, 2, 40.0), (1, 2, 41.0))[torch.tensor([True, False, True])]
    assert chosen.angle_deg.tolist() == [3.0, 41.0]
    assert len(chosen) == 2


def test_bins_include_their_lower_edge():
    assert angle_bin(torch.tensor([0.0, 14.9, 15.0, 29.9, 30.0, 180.0])).tolist() == [0, 0, 1, 1, 2, 2]
    assert int(angle_bin(20.0)) == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"min_overlap": 0.0}, "min_overlap"),
        ({"min_overlap": 1.5}, "min_overlap"),
        ({"max_distance": 0.0}, "max_distance"),
        ({"relative_distance": -0.1}, "relative_distance"),
        ({"samples": 0}, "samples"),
        ({"max_frames": 1}, "max_frames"),
        ({"max_angle": 0.0}, "max_angle"),
        ({"views": "self", "geometry": "permuted"}, "views: self or geometry: permuted"),
    ],
)
def test_options_out_of_range_are_refused(wrong, message):
    with pytest.raises(ValueError, match=f"expected.*{message}"):
        PairOptions(**wrong)


def test_bins_then_scenes_then_pairs_are_drawn_evenly_in_either_order():
    many = table(*((0, second, 5.0) for second in range(1, 91)), (0, 91, 20.0), (0, 92, 50.0))
    few = table((0, 1, 5.0), (0, 2, 20.0))
    angles = [dict(zip(t.second.tolist(), t.angle_deg.tolist(), strict=True)) for t in (many, few)]
    draws = drawn(PairSampler([many, few]), 3000)
    bins = np.bincount([int(angle_bin(angles[scene][max(frames)])) for scene, frames in draws])
    assert bins == pytest.approx([1000, 1000, 1000], abs=110)
    narrow = [(scene, max(frames)) for scene, frames in draws if angles[scene][max(frames)] == 5.0]
    assert sum(scene for scene, _ in narrow) == pytest.approx(len(narrow) / 2, abs=60)
    assert len({second for scene, second in narrow if scene == 0}) > 85
    assert sum(frames[0] == 0 for _, frames in draws) == pytest.approx(1500, abs=110)


def test_empty_bins_and_scenes_are_passed_over():
    draws = drawn(PairSampler([table((0, 1, 5.0))[torch.tensor([False])], table((3, 7, 90.0))]), 20)
    assert {(scene, tuple(sorted(frames))) for scene, frames in draws} == {(1, (3, 7))}


def test_draws_follow_the_generator():
    sampler = PairSampler([table(*((0, second, 5.0) for second in range(1, 50)))])
    assert drawn(sampler, 20) == drawn(sampler, 20)


def test_further_views_are_partners_of_the_first():
    star = table((0, 1, 5.0), (0, 2, 20.0), (0, 3, 50.0), (4, 5, 5.0))
    draws = drawn(PairSampler([star], views=3), 200)
    assert all(frames[0] == 0 and len(set(frames)) == 3 for _, frames in draws)
    assert {tuple(frames[1:]) for _, frames in draws} == {(1, 2), (1, 3), (2, 1), (2, 3), (3, 1), (3, 2)}
    assert not PairSampler([star], views=5)
    with pytest.raises(ValueError, match="4 partners"):
        PairSampler([star], views=5).sample(torch.Generator())


def test_descriptions_give_angles_and_warn_of_hardly_moving_views():
    wide = describe_pairs([table((0, 1, 10.0), (0, 2, 20.0)), table((0, 1, 40.0))])
    assert len(wide) == 1
    assert "3 pairs" in wide[0]
    assert "angle median 20.0 degrees" in wide[0]
    assert "baseline median 1.00 m" in wide[0]
    assert "0-15: 1, 15-30: 1, 30-180: 1" in wide[0]
    narrow = describe_pairs([table((0, 1, 1.0), (0, 2, 4.0), (1, 2, 90.0))])
    assert "median angle between paired views is 4.0 degrees, under 5" in narrow[1]
    assert describe_pairs([]) == ["no pairs of views"]
