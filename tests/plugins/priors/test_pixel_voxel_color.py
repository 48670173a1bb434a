"""Colored voxels for the pixel-voxel prior: colors stay with their voxels, reach the network, change no default."""

import pytest
import torch

from prior3d.contracts.dataset import DataSpec
from prior3d.contracts.prior import BackboneSpec, Features
from prior3d.data.posed.surface import SurfaceOptions
from prior3d.data.sample.loading import DrawnSamples, collate
from prior3d.errors import UserError
from prior3d.pretraining.pictures import head
from prior3d.registry.schema import validate_options
from prior3d.sparse import SparseTensor
from prior3d.testing import check_prior, evaluate, example_backbone, example_batch, example_features
from prior3d_plugins.datasets.synthetic_rooms import SyntheticRooms
from prior3d_plugins.priors.pixel_voxel import PixelVoxel
from prior3d_plugins.priors.pixel_voxel.chunks import Points, random_grids, voxelize

SIZE = (48, 64)


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    """A batch of two samples of two augmented views of rooms, with colored surfaces."""
    spec = DataSpec(SIZE, 2, "train", tmp_path_factory.mktemp("cache"))
    surface = SurfaceOptions(voxel_size=0.05, min_frames=1, max_points=20_000)
    dataset = SyntheticRooms(spec, rooms=2, frames=8, surface=surface)
    dataset.prepare()
    samples = DrawnSamples(dataset, frozenset({"image", "surface_color"}), None, 0, False)
    batch = collate([samples[draw] for draw in range(2)])
    batch.pop("damaged")
    return {**batch, "image": batch["image"].float() / 255}


def prior_for(**options):
    return PixelVoxel(BackboneSpec("example", SIZE, 16, 4, {4: 8}, 8, True), **{"voxel_size": 0.1, **options})


def features_of(batch):
    dense = torch.randn(2, 2, 16, 12, 16, generator=torch.Generator().manual_seed(1))
    return {"image": Features(dense=dense.requires_grad_())}


@pytest.mark.parametrize("options", [{}, {"chunks": "first", "chunk_far": 1.5}, {"max_voxels": 60}])
def test_keeps_to_the_contract(options):
    check_prior(PixelVoxel, {"voxels": "color", "voxel_size": 0.1, **options})


def test_only_color_needs_colors():
    assert "surface_color" not in PixelVoxel(example_backbone()).needs
    assert "surface_color" in PixelVoxel(example_backbone(), voxels="color").needs
    with pytest.raises(UserError, match="voxels"):
        validate_options(PixelVoxel, {"voxels": "colour"}, "priors.pixel_voxel")


@pytest.mark.parametrize("most", [10**6, 100])
def test_a_voxel_has_the_mean_color_of_its_points_also_where_voxels_are_cut(rooms, most):
    points = Points(rooms["surface"], rooms["surface_view"], rooms["surface_color"])
    torch.manual_seed(0)
    grids = random_grids(rooms["world_from_camera"].flatten(0, 1), 0.1, 180.0, "z")
    voxels = voxelize(points, grids, most)
    cells = torch.cat([points.chunk[:, None], grids.positions(*points[:2]).floor().long()], 1).tolist()
    by_voxel = {}
    for cell, color in zip(map(tuple, cells), points.colors.double(), strict=True):
        by_voxel.setdefault(cell, []).append(color)
    expected = torch.stack([torch.stack(by_voxel[tuple(voxel)]).mean(0) for voxel in voxels.coordinates.tolist()])
    torch.testing.assert_close(voxels.colors, expected.float())
    assert len(voxels.coordinates) == min(most * 4, len(by_voxel)) and expected.std(0).min() > 0.05
    plain = voxelize(points._replace(colors=None), grids, most)
    assert plain.colors is None and torch.equal(plain.coordinates, voxels.coordinates)


@pytest.mark.parametrize("options", [{}, {"chunks": "first"}, {"chunk_far": 1.5}])
def test_the_network_is_given_occupancy_and_centered_colors_of_its_own_voxels(options):
    """Colors that are a code of the place they lie at stay within what a voxel's size makes of it."""
    batch = example_batch()
    batch["surface_color"] = batch["surface"] / 8 + 0.5
    sample = prior_for(voxels="color", **options)._sample(batch)
    assert sample.inputs.shape == (len(sample.voxels), 4) and (sample.inputs[:, 0] == 1).all()
    places = sample.grids.centers(sample.voxels) / 8
    assert (sample.inputs[:, 1:] - places).norm(dim=1).max() < 0.1 * 3**0.5 / 2 / 8 + 1e-5


def test_the_gradient_reaches_the_color_channels_of_the_stem(rooms):
    prior = prior_for(voxels="color")
    loss, scalars = evaluate(prior, rooms, features_of(rooms))
    (kernel,) = torch.autograd.grad(loss, prior.unet.conv0p1s1.kernel)
    assert kernel.shape[1] == 4 and (kernel.abs().sum((0, 2)) > 0).all() and scalars["matches"] > 0.2


def test_colors_change_the_loss_of_color_and_only_of_color(rooms):
    other = {**rooms, "surface_color": rooms["surface_color"].flip(0)}
    for voxels in ("occupancy", "color"):
        prior = prior_for(voxels=voxels)
        losses = []
        for batch in (rooms, other):
            torch.manual_seed(0)
            losses.append(prior(batch, features_of(batch))[0].item())
        assert (losses[0] == losses[1]) == (voxels == "occupancy")


def test_occupancy_is_as_it_was_before_there_were_colors():
    """The same parameters, draws and, to the bit, loss as of a network that is given ones, without any colors."""
    torch.manual_seed(0)
    prior, batch = PixelVoxel(example_backbone(), voxel_size=0.1), example_batch()
    torch.manual_seed(0)
    named = PixelVoxel(example_backbone(), voxel_size=0.1, voxels="occupancy")
    assert all(torch.equal(a, b) for a, b in zip(prior.parameters(), named.parameters(), strict=True))
    assert prior.unet.conv0p1s1.kernel.shape[1] == 1
    features = example_features(batch, ("image",))
    torch.manual_seed(5)
    loss = prior({name: value for name, value in batch.items() if name != "surface_color"}, features)[0]
    torch.manual_seed(5)
    sample = prior._sample(batch)
    given = []
    prior.unet.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    torch.manual_seed(5)
    again = prior(batch, features)[0]
    assert loss.item() == again.item()
    assert isinstance(given[0], SparseTensor) and torch.equal(given[0].features, torch.ones(len(sample.voxels), 1))
    assert torch.equal(given[0].coordinates, sample.voxels)


def test_the_head_of_a_batch_keeps_points_and_colors_together(rooms):
    first = head(rooms, 1)
    own = rooms["surface_view"] < 2
    assert 0 < own.sum() < len(own)
    for name in ("surface", "surface_color", "surface_view"):
        assert torch.equal(first[name], rooms[name][own])
    assert len(first["image"]) == 1
    figures = prior_for(voxels="color").plot(first, {"image": Features(dense=torch.randn(1, 2, 16, 12, 16))})
    assert list(figures) == ["matches"]
