"""The pixel-voxel prior: the contract, matches against brute force on real frames, the joint sample, empty batches."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from prior3d.contracts.dataset import DataSpec
from prior3d.contracts.prior import BackboneSpec, Features
from prior3d.data.posed.surface import SURFACE_NEEDS, SurfaceOptions, add_surface, frustum_box
from prior3d.data.sample.augmentation import AugmentOptions, assemble
from prior3d.data.sample.loading import collate
from prior3d.errors import UserError
from prior3d.geometry import unproject
from prior3d.registry.schema import validate_options
from prior3d.testing import check_prior, evaluate, example_backbone, example_batch, example_features
from prior3d_plugins.datasets.posed import PosedRGBD
from prior3d_plugins.priors.pixel_voxel import PixelVoxel
from prior3d_plugins.priors.pixel_voxel.chunks import Grids, Points, random_grids, voxelize, within_reach
from prior3d_plugins.priors.pixel_voxel.matching import match_pixels, sample_matches

SIZE = (96, 128)
STRIDE = 4


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunks": "first", "voxel_size": 0.1, "width": 0.5},
        {"negatives": "batch", "exclude_radius": 0.1, "voxel_size": 0.1},
        {"exclude_radius": 0.1, "max_voxels": 60, "chunk_far": 1.5, "up": "y", "max_turn": 0.0, "points": 5000},
    ],
)
def test_keeps_to_the_contract(options):
    check_prior(PixelVoxel, options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"voxel_size": 0.0}, "voxel_size"),
        ({"chunks": "all"}, "chunks"),
        ({"up": "down"}, "up"),
        ({"unet": "18"}, "unet"),
        ({"max_turn": 200.0}, "max_turn"),
        ({"chunk_far": -1.0}, "chunk_far"),
        ({"width": 5.0}, "width: expected a number of at most 4, got 5"),
        ({"unet_channels": 3200}, "unet_channels: expected a number of at most 512, got 3200"),
        ({"colour": True}, "colour"),
    ],
)
def test_bad_options_are_refused_by_name(options, message):
    with pytest.raises(UserError, match=message):
        validate_options(PixelVoxel, options, "priors.pixel_voxel")


def test_an_engine_that_cannot_be_had_is_an_error_of_the_users_making():
    with pytest.raises(
        UserError, match=r"^engine: unknown sparse engine 'minkowski' \(there are: auto, spconv, torch, triton\)"
    ):
        PixelVoxel(example_backbone(), engine="minkowski")


@pytest.fixture(scope="module")
def office(shared_data, tmp_path_factory):
    """A batch of two samples of two real views, cropped by augmentation, with surfaces fused from eleven frames."""
    spec = DataSpec(SIZE, 2, "train", tmp_path_factory.mktemp("cache"))
    surface = SurfaceOptions(voxel_size=0.02, max_points=40_000)
    dataset = PosedRGBD(spec, root=shared_data / "rgbd" / "office", frame_step=5, surface=surface)
    fields = SURFACE_NEEDS | {"image"}
    samples = []
    for number, frames in enumerate(((0, 1), (5, 7))):
        stream = torch.Generator().manual_seed(number)
        views = [dataset.load(0, frame, fields) for frame in frames]
        sample = assemble(views, SIZE, AugmentOptions(), fields, stream)
        add_surface(sample, dataset, stream)
        samples.append({**sample, "damaged": []})
    batch = collate(samples)
    batch.pop("damaged")
    return {**batch, "image": batch["image"].float() / 255}


def real_prior(**options):
    spec = BackboneSpec("example", SIZE, 16, STRIDE, {4: 8}, 8, True)
    return PixelVoxel(spec, up="y", **{"voxel_size": 0.1, **options})


def points_of(batch, colors=False):
    return Points(batch["surface"], batch["surface_view"], batch["surface_color"] if colors else None)


def cameras(batch):
    return [batch[name].flatten(0, 1) for name in ("depth", "intrinsics", "world_from_camera")]


def all_matches(batch, voxels, grids, stride=STRIDE):
    grid = tuple(-(-side // stride) for side in batch["depth"].shape[-2:])
    return match_pixels(*cameras(batch), grid, stride, voxels, grids)


def voxels_by_hand(points, grids, chunk):
    """Voxels of world points of one chunk, in float64 and with a rotation matrix, independently of `Grids`."""
    angle = float(grids.turn[chunk])
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    local = (points.double().numpy() - grids.origin[chunk].double().numpy())[..., list(grids.axes)]
    return local @ turn.T / grids.voxel_size + grids.shift[chunk].double().numpy()


def points_by_hand(batch, view, pixels):
    depth, intrinsics, pose = (values[view].double().numpy() for values in cameras(batch))
    column, row = np.floor(pixels.numpy()).astype(int).T
    rays = np.linalg.inv(intrinsics) @ np.stack([column + 0.5, row + 0.5, np.ones(len(row))])
    return (pose[:3, :3] @ (rays * depth[row, column])).T + pose[:3, 3], depth[row, column]


@pytest.mark.parametrize("voxel_size", [0.04, 0.1])
def test_every_match_on_real_frames_is_what_brute_force_finds(office, voxel_size):
    torch.manual_seed(0)
    grids = random_grids(cameras(office)[2], voxel_size, 180.0, "y")
    voxels = voxelize(points_of(office), grids, 10**6).coordinates
    match = all_matches(office, voxels, grids)
    steps = [(x, y, z) for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1)]
    for view in range(4):
        occupied = {tuple(voxel[1:]) for voxel in voxels.tolist() if voxel[0] == view}
        points, depth = points_by_hand(office, view, match.pixels[view])
        positions = voxels_by_hand(torch.from_numpy(points), grids, view)
        clear = np.abs(positions - positions.round()).min(1) > 1e-3  # elsewhere float32 may floor otherwise
        matched = 0
        for slot in np.flatnonzero(clear):
            here = np.floor(positions[slot]).astype(int)
            around = {tuple(here + step) for step in steps} & occupied if depth[slot] > 0 else set()
            assert bool(match.valid[view, slot]) == bool(around)
            if around:
                chunk, *voxel = voxels[match.voxels[view, slot]].tolist()
                distance = {v: np.linalg.norm(np.array(v) + 0.5 - positions[slot]) for v in around}
                best = tuple(here) if tuple(here) in occupied else min(distance, key=distance.get)
                assert chunk == view and tuple(voxel) in around
                assert distance[tuple(voxel)] == pytest.approx(distance[best], abs=1e-3)
                assert bool(match.contained[view, slot]) == (tuple(here) in occupied)
                matched += 1
        assert matched > 0.8 * (clear & (depth > 0)).sum() > 100


def test_the_pixel_of_a_match_lies_in_its_cell_and_has_depth(office):
    prior = real_prior(points=300)
    match = prior._sample(office).match
    depth = office["depth"].flatten(0, 1)
    column, row = match.pixels.floor().long().unbind(-1)
    assert torch.equal(match.cells, row // STRIDE * (SIZE[1] // STRIDE) + column // STRIDE)
    assert (depth.flatten(1).gather(1, row * SIZE[1] + column)[match.valid] > 0).all()
    for view in range(4):
        valid = match.valid[view]
        assert valid.sum() > 100
        for ids in (match.cells[view][valid], match.voxels[view][valid]):
            assert len(ids.unique()) == len(ids), "a cell or a voxel twice would be its own negative"


def test_the_pixel_of_a_cell_is_drawn_among_those_with_depth():
    batch = example_batch()
    depth = torch.zeros_like(batch["depth"])
    depth[..., 1::4, 2::4] = 1.5  # one known pixel per cell
    batch["depth"] = depth
    grids = random_grids(cameras(batch)[2], 0.1, 0.0, "z")
    match = all_matches(batch, torch.zeros(1, 4, dtype=torch.int32), grids)
    assert (match.pixels % 4 == torch.tensor([2.5, 1.5])).all()
    batch["depth"] = torch.full_like(depth, 1.5)
    drawn = torch.stack([all_matches(batch, torch.zeros(1, 4, dtype=torch.int32), grids).pixels for _ in range(9)])
    assert (drawn[..., 0] % 4).unique().tolist() == [0.5, 1.5, 2.5, 3.5]


def test_matches_vanish_when_the_pose_is_wrong(office):
    prior = real_prior()
    right = prior._sample(office).match.valid.float().mean()
    wrong = {**office, "world_from_camera": office["world_from_camera"].clone()}
    wrong["world_from_camera"][..., :3, :3] @= torch.diag(torch.tensor([-1.0, 1.0, -1.0]))  # looks the other way
    assert right > 0.8
    assert prior._sample(wrong).match.valid.float().mean() < 0.01


def test_joint_sample_is_each_view_with_its_own_chunk(office):
    """(C_i, C_j, V_i, V_j): chunk b * V + v holds the voxels of that view's surface, and its pixels match them."""
    sample = real_prior()._sample(office)
    assert len(sample.match.valid) == 4 and (sample.match.valid.sum(1) > 100).all()
    for view in range(4):
        own = office["surface"][office["surface_view"] == view]
        expected = np.unique(np.floor(voxels_by_hand(own, sample.grids, view)).astype(int), axis=0)
        found = sample.voxels[sample.voxels[:, 0] == view, 1:].numpy()
        difference = {tuple(v) for v in expected} ^ {tuple(v) for v in found}
        assert len(difference) < 0.005 * len(expected), "but for rounding at voxel borders"
        rows = sample.match.voxels[view][sample.match.valid[view]]
        assert (sample.voxels[rows, 0] == view).all()
    features = features_of(office, torch.randn(2, 2, 16, 24, 32))
    gradient = torch.autograd.grad(evaluate(real_prior(), office, features)[0], features["image"].dense)[0]
    assert (gradient.flatten(2).abs().sum(-1) > 0).all(), "each of the four images is pulled to its chunk"


def test_first_has_one_chunk_per_pair(office):
    prior = real_prior(chunks="first")
    sample = prior._sample(office)
    assert sample.voxels[:, 0].unique().tolist() == [0, 1] and len(sample.match.valid) == 2
    for pair in range(2):
        own = office["surface"][office["surface_view"] == 2 * pair]
        expected = np.unique(np.floor(voxels_by_hand(own, sample.grids, pair)).astype(int), axis=0)
        assert len(expected) == pytest.approx(int((sample.voxels[:, 0] == pair).sum()), rel=0.005)
    features = features_of(office, torch.randn(2, 2, 16, 24, 32))
    gradient = torch.autograd.grad(evaluate(prior, office, features)[0], features["image"].dense)[0]
    assert (gradient[:, 0].abs().sum((1, 2, 3)) > 0).all() and (gradient[:, 1] == 0).all()


def features_of(batch, dense):
    return {"image": Features(dense=dense.requires_grad_())}


class PlaceOfVoxel(nn.Module):
    """Stands in for the 3D network: a code of a voxel's place in the world."""

    def __init__(self, prior):
        super().__init__()
        self.prior = prior

    def forward(self, x):
        return x.with_features(code(self.prior.grids.centers(x.coordinates)))


def code(points):
    directions = torch.randn(3, 8, generator=torch.Generator().manual_seed(3)) * 3
    return torch.cat([(points @ directions).sin(), (points @ directions).cos()], -1)


def test_the_loss_compares_a_pixel_with_the_voxel_it_sees(office):
    """Features that are a code of the 3D point on both sides: nearly no loss; the views' images exchanged: much."""
    prior = real_prior(voxel_size=0.04, temperature=0.05, points=100)
    draw = prior._sample

    def keep_grids(batch):
        sample = draw(batch)
        prior.grids = sample.grids
        return sample

    prior._sample = keep_grids
    prior.unet = PlaceOfVoxel(prior)
    prior.pixel_head, prior.voxel_head = nn.Identity(), nn.Identity()
    dense = code(unproject(*cameras(office))[:, 2::4, 2::4]).movedim(-1, 1).unflatten(0, (2, 2))
    right = evaluate(prior, office, {"image": Features(dense=dense)})[0]
    wrong = evaluate(prior, office, {"image": Features(dense=dense.flip(1))})[0]
    assert right < 1.6 < math.log(100) < wrong  # in between: what features without meaning have


def test_turn_and_shift_leave_the_matches_the_same():
    batch = example_batch()
    size = 0.083  # meters; the room's walls at 0.5 and 2 m are not at the border of a voxel
    straight = random_grids(cameras(batch)[2], size, 0.0, "z")._replace(shift=torch.zeros(4, 3))
    quarter = straight._replace(turn=torch.full((4,), torch.pi / 2), shift=torch.zeros(4, 3))
    anyhow = random_grids(cameras(batch)[2], size, 180.0, "z")
    assert len({*anyhow.turn.tolist()}) == 4 and anyhow.turn.abs().max() > 0.5
    found = {}
    for name, grids in {"straight": straight, "quarter": quarter, "anyhow": anyhow}.items():
        voxels = voxelize(points_of(batch), grids, 10**6).coordinates
        torch.manual_seed(0)
        match = all_matches(batch, voxels, grids, stride=1)
        found[name] = match, grids.centers(voxels)[match.voxels], len(voxels)
    for match, _, _ in found.values():  # the surface is the views' own
        assert match.valid.all() and match.contained.all()
    for match, centers, _ in found.values():
        assert (centers - match.points).norm(dim=-1).max() < size * 3**0.5 / 2 + 1e-4
    # the voxels of a quarter turn are the same cubes, but for points within rounding of a border
    same = (found["straight"][1] - found["quarter"][1]).norm(dim=-1) < 1e-4
    assert same.float().mean() > 0.95
    assert ((found["straight"][1] - found["anyhow"][1]).norm(dim=-1) > 1e-3).float().mean() > 0.9


@pytest.mark.parametrize("up", ["x", "y", "z"])
def test_chunks_are_turned_about_the_vertical_only(up):
    poses = torch.eye(4).repeat(3, 1, 1)
    poses[:, :3, 3] = torch.randn(3, 3)
    grids = random_grids(poses, 0.5, 180.0, up)
    points, chunk = torch.randn(50, 3), torch.arange(50) % 3
    positions = grids.positions(points, chunk)
    vertical = "xyz".index(up)
    height = (points - grids.origin[chunk])[:, vertical] / 0.5 + grids.shift[chunk, 2]
    torch.testing.assert_close(positions[:, 2], height)
    for number in range(3):  # rigid: distances and handedness stay
        own = chunk == number
        torch.testing.assert_close(
            torch.cdist(positions[own], positions[own]) * 0.5, torch.cdist(points[own], points[own])
        )
        (a, b, c), (d, e, f) = (values[own][1:4] - values[own][0] for values in (points, positions * 0.5))
        torch.testing.assert_close(torch.linalg.cross(a, b) @ c, torch.linalg.cross(d, e) @ f)
    voxels = torch.cat([chunk[:, None], positions.floor().long()], 1)
    torch.testing.assert_close(grids.positions(grids.centers(voxels), chunk), voxels[:, 1:] + 0.5)


def test_the_nearest_voxels_of_each_chunk_stay(office):
    grids = random_grids(cameras(office)[2], 0.1, 180.0, "y")
    everything = voxelize(points_of(office), grids, 10**6).coordinates
    kept = voxelize(points_of(office), grids, 200).coordinates
    assert torch.bincount(kept[:, 0].long()).tolist() == [200] * 4
    for view in range(4):
        distance = [
            (grids.centers(voxels[voxels[:, 0] == view]) - grids.origin[view]).norm(dim=-1)
            for voxels in (everything, kept)
        ]
        torch.testing.assert_close(distance[0].sort().values[:200], distance[1].sort().values)


def test_a_cap_on_distance_gives_the_box_of_the_shorter_frustum(office):
    far = 2.5
    kept = within_reach(office["surface"], office["surface_view"], *cameras(office)[1:], SIZE, far)
    for view in range(4):
        depth, intrinsics, pose = (values[view].numpy() for values in cameras(office))
        low, high = frustum_box(depth, intrinsics, pose, far=far)
        own = office["surface_view"] == view
        points = office["surface"][own].double().numpy()
        inside, outside = (((points >= low - m) & (points <= high + m)).all(1) for m in (-1e-4, 1e-4))
        found = kept[own].numpy()
        assert found[inside].all() and not found[~outside].any() and found.mean() < 0.9


@pytest.mark.parametrize("chunks", ["each", "first"])
def test_without_a_surface_the_loss_is_exactly_0_and_connected(chunks):
    prior, batch = PixelVoxel(example_backbone(), chunks=chunks), example_batch(known=False)
    features = example_features(batch, ("image",))
    loss, scalars = evaluate(prior, batch, features)
    assert loss.item() == 0 and all(value == 0 for value in scalars.values())
    gradients = torch.autograd.grad(loss, [features["image"].dense, *prior.parameters()])
    assert all((gradient == 0).all() for gradient in gradients)
    assert prior.plot(batch, features) == {}


def test_a_surface_that_no_pixel_meets_gives_0_and_is_connected():
    prior, batch = PixelVoxel(example_backbone()), example_batch()
    batch["depth"] = torch.zeros_like(batch["depth"])
    features = example_features(batch, ("image",))
    loss, scalars = evaluate(prior, batch, features)
    assert loss.item() == 0 and scalars["matches"] == 0 and scalars["voxels"] > 0
    gradients = torch.autograd.grad(loss, [features["image"].dense, *prior.parameters()])
    assert all((gradient == 0).all() for gradient in gradients)


def test_one_view_without_surface_or_depth_leaves_the_others_alone():
    batch = example_batch()
    mine = batch["surface_view"] != 3
    batch["surface"], batch["surface_view"] = batch["surface"][mine], batch["surface_view"][mine]
    batch["depth"][0, 1] = torch.nan
    prior, features = PixelVoxel(example_backbone()), example_features(batch, ("image",))
    loss, _ = evaluate(prior, batch, features)
    gradient = torch.autograd.grad(loss, features["image"].dense)[0].flatten(2).abs().sum(-1)
    assert torch.isfinite(loss) and loss > 0
    assert (gradient > 0).tolist() == [[True, False], [True, False]]


def test_the_gradient_reaches_the_images_and_every_parameter_of_the_3d_network(office):
    prior = real_prior(width=0.5)
    features = features_of(office, torch.randn(2, 2, 16, 24, 32))
    loss, scalars = evaluate(prior, office, features)
    loss.backward()
    assert features["image"].dense.grad.abs().sum() > 0
    silent = [name for name, value in prior.named_parameters() if value.grad is None or not value.grad.abs().sum() > 0]
    assert silent == [] and torch.isfinite(loss)
    assert 0.5 < scalars["contained"] <= 1 and scalars["voxels"] > 500


def test_one_view_is_enough():
    batch = {
        name: value[:, :1] if name not in ("scene", "pseudo_kind", "surface", "surface_view") else value
        for name, value in example_batch().items()
    }
    first = batch["surface_view"] % 2 == 0
    batch["surface"], batch["surface_view"] = batch["surface"][first], batch["surface_view"][first] // 2
    prior = PixelVoxel(example_backbone())
    assert prior.views == 1
    loss, scalars = evaluate(prior, batch, example_features(batch, ("image",)))
    assert loss > 0 and scalars["matches"] > 0.3


def test_negatives_of_one_place_are_excluded_in_the_batch_but_not_across_scenes():
    batch = example_batch()
    prior = PixelVoxel(example_backbone(), negatives="batch", exclude_radius=0.2, points=50)
    assert "scene" in prior.needs
    torch.manual_seed(0)
    match = prior._sample(batch).match
    exclude = prior._exclude(batch, match).as_one_group().mask()[0]
    points, scene = match.points.flatten(0, 1).double(), torch.tensor([0, 0, 1, 1]).repeat_interleave(50)
    distance = (points[:, None] - points).norm(dim=-1)
    border = (distance - 0.2).abs() < 1e-5
    expected = (distance < 0.2) & (scene[:, None] == scene)
    assert torch.equal(exclude | border, expected | border) and expected.sum() > 200 + 10
    batch["scene"][:] = 7
    assert prior._exclude(batch, match).as_one_group().mask().sum() > expected.sum()


def test_the_networks_have_their_sizes():
    def count(**options):
        return sum(value.numel() for value in PixelVoxel(example_backbone(), **options).unet.parameters())

    assert 0.8e6 < count() < 0.95e6 and count(width=0.5) < 0.3 * count()
    assert 37e6 < count(unet="34c", unet_channels=96) < 38.5e6


def test_the_sample_is_drawn_from_the_global_generator():
    batch, prior = example_batch(), PixelVoxel(example_backbone(), voxel_size=0.1)

    def voxels(seed):
        torch.manual_seed(seed)
        return prior._sample(batch).voxels

    assert torch.equal(voxels(1), voxels(1)) and not torch.equal(voxels(1)[:100], voxels(2)[:100])


def test_the_picture_is_of_the_first_views_own_chunk(office):
    prior = real_prior()
    figures = prior.plot(office, features_of(office, torch.randn(2, 2, 16, 24, 32)))
    (panels,) = (figure.axes for figure in figures.values())
    assert list(figures) == ["matches"] and len(panels) == 3
    assert panels[0].get_title().startswith("384 matched pixels")
    dots, squares = panels[0].collections[0], panels[1].collections[0]
    # a matched pixel's nearest voxels in the image have about its color: the same height
    assert len(squares.get_offsets()) > 500
    distance = np.linalg.norm(dots.get_offsets()[:, None] - squares.get_offsets()[None], axis=-1)
    difference = dots.get_facecolors() - squares.get_facecolors()[distance.argmin(1)]
    assert np.median(np.abs(difference[:, :3]).max(1)) < 0.15


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_finds_the_same_matches():
    batch = example_batch()
    grids = random_grids(cameras(batch)[2], 0.1, 180.0, "z")
    voxels = voxelize(points_of(batch), grids, 10**6).coordinates
    here = all_matches(batch, voxels, grids, stride=1)
    on_gpu = {name: value.cuda() for name, value in batch.items()}
    there_grids = Grids(grids.origin.cuda(), grids.turn.cuda(), grids.shift.cuda(), grids.voxel_size, grids.axes)
    there_voxels = voxelize(points_of(on_gpu), there_grids, 10**6).coordinates
    there = all_matches(on_gpu, there_voxels, there_grids, stride=1)
    assert torch.equal(there.valid.cpu(), here.valid)
    same = there_voxels[there.voxels].cpu() == voxels[here.voxels]
    assert same.all(-1).float().mean() > 0.995  # floor may differ at borders
    with torch.autocast("cuda", torch.bfloat16):
        sampled = sample_matches(there, 50)
    assert sampled.valid.all() and len(sampled.voxels[0].unique()) == 50
    check_prior(PixelVoxel)
