"""The correspondence probe against features whose answer is known."""

import hashlib

import pytest
import torch
from torch import nn

from prior3d.backbone import Maps
from prior3d.contracts.dataset import DataSpec
from prior3d.contracts.probe import metrics_of
from prior3d.errors import UserError
from prior3d.geometry import view_angle
from prior3d.probes.models import FrozenModel
from prior3d.probes.probe_data import ProbeData
from prior3d.randomness import generator
from prior3d_plugins.datasets.posed import PosedRGBD
from prior3d_plugins.datasets.synthetic_rooms import SyntheticRooms
from prior3d_plugins.probes.correspondence import Correspondence
from prior3d_plugins.probes.correspondence.matching import (
    DescribedPair,
    _nearest,
    features_at,
    match_cells,
    match_pixels,
)
from prior3d_plugins.probes.correspondence.view_pairs import (
    PosedView,
    cell_centers,
    choose_pairs,
    read_views,
    share_points,
)

DETAIL = {"pairs_per_bin": 3, "detail": True}


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    spec = DataSpec(size=(96, 128), views=2, split="test", cache=tmp_path_factory.mktemp("cache"))
    made = SyntheticRooms(spec, test_rooms=2, frames=12)
    made.prepare()
    data = ProbeData({"held_out": made})
    yield data
    data.close()


class Planted(nn.Module):
    """Stands in for a backbone: gives every cell of known images a code of the 3D point it shows."""

    def __init__(self, data, stride, of_point):
        super().__init__()
        size = data.size
        self.codes = {}
        cells = cell_centers(size, (size[0] // stride, size[1] // stride))
        directions = torch.randn(3, 48, generator=generator("directions")) * 4
        for row in range(len(data.frames["held_out"])):
            (view,) = read_views(data, (row,), torch.device("cpu"))
            place = view.points_at(cells) if of_point else torch.nn.functional.pad(cells / 30, (0, 1))
            phase = (place @ directions).unflatten(0, (size[0] // stride, -1)).movedim(-1, 0)
            image = data.field("held_out", "image").take(torch.tensor([row])).float() / 255
            self.codes[self.name_of(image[0])] = torch.cat([phase.sin(), phase.cos()])

    @staticmethod
    def name_of(image):
        return hashlib.sha256(image.mul(255).round().byte().numpy().tobytes()).hexdigest()

    def forward(self, images, reads):
        return Maps({}, torch.stack([self.codes[self.name_of(image)] for image in images]), None)


class Noise(nn.Module):
    """Stands in for a backbone that has learned nothing."""

    def forward(self, images, reads):
        return Maps({}, torch.randn(len(images), 64, 24, 32), None)


class Constant(nn.Module):
    """Stands in for a collapsed backbone."""

    def forward(self, images, reads):
        return Maps({}, torch.ones(len(images), 8, 24, 32), None)


def metrics(probe, model, data):
    return metrics_of(probe, probe.measure(FrozenModel([model]), data))


def test_features_of_the_3d_point_score_near_perfect(rooms):
    found = metrics(Correspondence(pairs_per_bin=5), Planted(rooms, 4, of_point=True), rooms)
    assert found["recall@6px, all"] > 0.9
    assert found["feature distance ratio, all"] < 0.1
    bins = {f"recall@6px, {name}" for name in ("0-15 deg", "15-30 deg", "30-60 deg", "60-180 deg")}
    assert set(found) - bins == {"recall@6px, all", "feature distance ratio, all"} and bins & set(found)


def test_random_and_constant_features_score_at_chance(rooms):
    torch.manual_seed(0)
    random = metrics(Correspondence(**DETAIL), Noise(), rooms)
    assert random["recall@6px, all"] < 0.04  # a disc of 6 pixels holds about 7 of 768 cells
    assert random["recall@5cm, all"] < 0.02 and random["recall@20px of 480 rows, all"] < 0.03
    assert random["feature distance ratio, all"] == pytest.approx(1, abs=0.02)
    assert random["cosine, same point"] == pytest.approx(0, abs=0.02)
    collapsed = metrics(Correspondence(**DETAIL), Constant(), rooms)
    assert collapsed["feature distance ratio, all"] == pytest.approx(1)
    assert collapsed["cosine, other point"] == pytest.approx(1)


def test_the_encoder_is_read_where_it_is_asked_for(rooms):
    class Two(Planted):
        """A decoder that knows nothing on an encoder that knows the points, at two strides."""

        def forward(self, images, reads):
            codes = super().forward(images, reads).dense
            return Maps({4: codes[:, :48], 16: codes[:, 48:, ::4, ::4]}, torch.ones(len(images), 8, 24, 32), None)

    model = Two(rooms, 4, of_point=True)
    collapsed = metrics(Correspondence(pairs_per_bin=2), model, rooms)
    assert collapsed == metrics(Correspondence(pairs_per_bin=2, features="dense"), Constant(), rooms)
    found = metrics(Correspondence(pairs_per_bin=2, features="encoder"), model, rooms)
    assert found["recall@6px, all"] > 0.5 > 10 * collapsed["recall@6px, all"]
    assert found["feature distance ratio, all"] < 0.5
    probe, models = Correspondence(pairs_per_bin=1, features="encoder"), {"planted": FrozenModel([model])}
    shown = {"planted": probe.measure(models["planted"], rooms).shown}
    assert set(probe.plot(models, rooms, shown)) == {"matches"}


def test_precise_matches_of_3d_points_reach_what_is_possible(rooms):
    found = metrics(Correspondence(pairs_per_bin=1, detail=True, cell=1), Planted(rooms, 1, of_point=True), rooms)
    # a pixel is 3 cm wide at 2.5 m: which limits what any features can reach
    for name in ("1cm", "2cm", "5cm", "5px of 480 rows", "10px of 480 rows", "20px of 480 rows"):
        assert found[f"recall@{name}, all"] > found[f"recall@{name}, right pixel"] - 0.05
    assert found["recall@5cm, all"] > 0.95 and found["recall@10px of 480 rows, all"] > 0.97
    assert found["recall@1cm, all"] < found["recall@2cm, all"] < found["recall@5cm, all"]
    assert found["cosine, same point"] > 0.95 > found["cosine, other point"]


def test_features_of_the_place_in_the_image_are_not_those_of_the_point(rooms):
    found = metrics(Correspondence(pairs_per_bin=5), Planted(rooms, 4, of_point=False), rooms)
    assert found["recall@6px, all"] < 0.3 and found["feature distance ratio, all"] > 0.5


def test_detail_leaves_the_main_figures_as_they_are(rooms):
    short, long = (
        metrics(Correspondence(pairs_per_bin=2, detail=detail), Planted(rooms, 4, of_point=True), rooms)
        for detail in (False, True)
    )
    assert short.items() <= long.items() and len(long) > len(short) + 30
    assert Correspondence.lower_is_better & set(short) == {"feature distance ratio, all"}


def test_scores_are_additive_over_scenes_and_told_in_detail_later(rooms):
    probe = Correspondence(**DETAIL)
    scores = probe.measure(FrozenModel([Planted(rooms, 4, of_point=True)]), rooms).scores
    assert scores.groups == ("test-000", "test-001")
    assert len(Correspondence().summarize(scores.total())) <= 6
    one = scores.total(torch.tensor([1.0, 0.0]))
    assert (
        one["points"].sum() + scores.total(torch.tensor([0.0, 1.0]))["points"].sum() == scores.total()["points"].sum()
    )
    assert set(probe.summarize(one)) <= set(probe.summarize(scores.total()))
    brief = Correspondence(pairs_per_bin=3).measure(FrozenModel([Constant()]), rooms).scores
    assert "recall@5cm, all" not in probe.summarize(brief.total())  # never measured: left out


def test_a_larger_radius_finds_more_and_the_choice_of_pairs_is_fixed(rooms):
    near, far, again = (
        metrics_of(probe, probe.controls(rooms)["raw patches"])["recall@12px, all" if pixels > 6 else "recall@3px, all"]
        for pixels, probe in ((p, Correspondence(pairs_per_bin=5, pixels=p)) for p in (3.0, 12.0, 12.0))
    )
    assert near < far == again


def test_position_alone_is_the_same_place_in_the_image(rooms):
    probe = Correspondence()
    found = metrics_of(probe, probe.controls(rooms)["position"])
    assert found["recall@6px, 0-15 deg"] > found["recall@6px, 30-60 deg"]


def test_pairs_are_balanced_over_their_own_angles(rooms):
    pairs = choose_pairs(rooms, 6)
    counts = torch.bincount(torch.tensor([pair.bin for pair in pairs]))
    assert counts[:3].tolist() == [6, 6, 6] and len(pairs) == len({pair.rows for pair in pairs})
    for pair in pairs:
        low, high = ((0, 15), (15, 30), (30, 60), (60, 180))[pair.bin]
        assert low <= pair.angle_deg < high
        a, b = read_views(rooms, pair.rows, torch.device("cpu"))
        assert float(view_angle(a.world_from_camera, b.world_from_camera)) == pytest.approx(pair.angle_deg, abs=1e-2)
        assert rooms.frames["held_out"][pair.rows[0]][0] == rooms.frames["held_out"][pair.rows[1]][0]


def test_pairs_of_frames_that_were_left_out_are_left_out(rooms):
    held_out = rooms.parts["held_out"]
    fewer = ProbeData({"held_out": held_out}, most=10)
    every = {tuple(rooms.frames["held_out"][row] for row in pair.rows) for pair in choose_pairs(rooms, 10**6)}
    kept = {tuple(fewer.frames["held_out"][row] for row in pair.rows) for pair in choose_pairs(fewer, 10**6)}
    left = set(fewer.frames["held_out"])
    assert kept == {pair for pair in every if set(pair) <= left} and 0 < len(kept) < len(every)
    with pytest.raises(UserError, match="no two of the 1 held-out images overlap"):
        choose_pairs(ProbeData({"held_out": held_out}, most=1), 5)


def test_points_are_visible_where_the_other_view_measured_them():
    """A wall 2 m away, seen again from 1 m to the right, half of it hidden there by a nearer one."""
    intrinsics = torch.tensor([[20.0, 0, 16], [0, 20, 8], [0, 0, 1]])
    moved = torch.eye(4)
    moved[0, 3] = 1.0
    depth = torch.full((16, 32), 2.0)
    depth[0, 0] = 0  # unknown
    hiding = torch.full((16, 32), 2.0)
    hiding[8:] = 1.0
    a, b = PosedView(depth, intrinsics, torch.eye(4)), PosedView(hiding, intrinsics, moved)
    shared = share_points(a, b, cell_centers((16, 32), (16, 32)))
    assert len(shared.cells) == 16 * 32 - 1
    torch.testing.assert_close(shared.points[0], torch.tensor([(1.5 - 16) / 20 * 2, (0.5 - 8) / 20 * 2, 2.0]))
    torch.testing.assert_close(shared.target, shared.cells - torch.tensor([10.0, 0.0]))  # 20 pixels * 1 m / 2 m
    assert torch.equal(shared.visible, (shared.cells[:, 0] > 10) & (shared.cells[:, 1] < 8))
    turned = torch.diag(torch.tensor([-1.0, 1, -1, 1]))
    behind = share_points(a, PosedView(hiding, intrinsics, turned), shared.cells)
    assert not behind.visible.any() and torch.isinf(behind.target).all()


def test_precise_matches_are_counted_by_hand():
    """One row of a wall, seen twice from one place, the last two points taken for each other."""
    depth, intrinsics = torch.full((1, 4), 1.9), torch.tensor([[100.0, 0, 2], [0, 100.0, 0.5], [0, 0, 1]])
    a = PosedView(depth, intrinsics, torch.eye(4))
    angle = torch.tensor([[0.0, 0.3, 0.7, 1.2], [0.0, 0.3, 1.2, 0.7]])
    maps = torch.stack([angle.cos(), angle.sin()], 1)[:, :, None]  # [2, 2, 1, 4]
    pair = DescribedPair(a, a, share_points(a, a, cell_centers((1, 4), (1, 4))), maps)
    counts = match_pixels(pair, 0.5)
    # off by a pixel: by 1.9 cm, and by 480 pixels of 480 rows
    assert counts["precise, found"].tolist() == [2, 4, 4, 2, 2, 2] and counts["precise, points"] == 4
    assert counts["right, found"].tolist() == [4] * 6 and counts["surest, points"] == 2
    matches = match_cells(pair, torch.arange(4))
    assert matches.error.tolist() == [0, 0, 1, 1]


def test_nearest_is_brute_force_and_surest_is_the_ratio_test():
    queries, candidates = torch.randn(2, 50, 8, generator=generator("features"))
    queries, candidates = (nn.functional.normalize(x, dim=1) for x in (queries, candidates))
    index, sureness = _nearest(queries, candidates.T)
    distance = 1 - nn.functional.cosine_similarity(queries[:, None], candidates[None], dim=-1)
    assert torch.equal(index, distance.argmin(1))
    two = distance.sort(1).values[:, :2]
    torch.testing.assert_close(sureness, 1 - two[:, 0] / two[:, 1], atol=1e-4, rtol=1e-3)


def test_features_are_read_bilinearly_at_pixels():
    maps = torch.tensor([[[1.0, 0.0], [3.0, 0.0]], [[0.0, 1.0], [0.0, 2.0]]])  # cells of 4 x 8 pixels
    centers = cell_centers((8, 16), (2, 2))
    assert torch.equal(centers, torch.tensor([[4.0, 2], [12, 2], [4, 6], [12, 6]]))
    read = features_at(maps, centers, (8, 16))
    torch.testing.assert_close(read, torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]]))
    between = features_at(maps, torch.tensor([[8.0, 6.0]]), (8, 16))
    torch.testing.assert_close(between, nn.functional.normalize(torch.tensor([[1.5, 1.0]])))


def test_matches_are_drawn_for_each_model(rooms):
    models = {"before": FrozenModel([Noise()]), "after": FrozenModel([Planted(rooms, 4, of_point=True)])}
    probe = Correspondence()
    shown = {name: probe.measure(model, rooms).shown for name, model in models.items()}
    (figure,) = probe.plot(models, rooms, shown).values()
    titles = [axis.get_title() for axis in figure.axes]
    assert len(titles) == 2 * len({pair.bin for pair in choose_pairs(rooms, 40)})
    right = {
        name: [int(title.split(": ")[1].split(" %")[0]) for title in titles if title.startswith(name)]
        for name in models
    }
    assert min(right["after"]) > 80 and max(right["before"]) < 10


def test_data_without_pairs_is_refused(squares):
    with pytest.raises(UserError, match="Squares has none"):
        choose_pairs(ProbeData({"held_out": squares("test")}), 5)


def test_3d_points_of_a_real_scene(shared_data, tmp_path):
    spec = DataSpec(size=(120, 160), views=2, split="train", cache=tmp_path)
    office = PosedRGBD(spec, root=shared_data / "rgbd", scenes=["office"])
    data = ProbeData({"held_out": office}, most=12)
    found = metrics(Correspondence(pairs_per_bin=2, detail=True), Planted(data, 1, of_point=True), data)
    assert found["recall@6px, all"] > 0.9 and found["recall@20px of 480 rows, all"] > 0.9
    # the sensor disagrees with itself by more than 5 cm at many a point
    assert found["recall@5cm, all"] > found["recall@5cm, right pixel"] - 0.05 > 0.4
    assert found["feature distance ratio, all"] < 0.1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_a_gpu_as_on_a_cpu(rooms):
    class Blurred(nn.Module):
        def forward(self, images, reads):
            return Maps({}, nn.functional.avg_pool2d(images, 4), None)

    probe = Correspondence(**DETAIL)
    on_cpu, on_gpu = (probe.measure(FrozenModel([Blurred()], device), rooms).scores for device in ("cpu", "cuda"))
    assert metrics_of(probe, on_gpu) == pytest.approx(metrics_of(probe, on_cpu), abs=0.02)  # one of 124 points
