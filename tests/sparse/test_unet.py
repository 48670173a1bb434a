"""U-Nets: the published layout, behavior on a batch, and that they can be trained."""

import pytest
import torch

from prior3d import sparse
from prior3d.errors import UserError


def cloud(seed, count=400, extent=20):
    generator = torch.Generator().manual_seed(seed)
    return torch.unique(torch.randint(-extent, extent, (count, 3), generator=generator), dim=0)


def published_34c(in_channels, out_channels):
    """Names and shapes of MinkUNet34C's state, written down from MinkowskiEngine's example network."""
    shapes = {}

    def convolution(name, volume, into, out):
        shapes[f"{name}.kernel"] = (volume, into, out) if volume > 1 else (into, out)

    def norm(name, channels):
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.bn.{part}"] = (channels,)
        shapes[f"{name}.bn.num_batches_tracked"] = ()

    def block(name, into, out):
        convolution(f"{name}.conv1", 27, into, out)
        norm(f"{name}.norm1", out)
        convolution(f"{name}.conv2", 27, out, out)
        norm(f"{name}.norm2", out)
        if into != out:
            convolution(f"{name}.downsample.0", 1, into, out)
            norm(f"{name}.downsample.1", out)

    convolution("conv0p1s1", 125, in_channels, 32)
    norm("bn0", 32)
    down = [("conv1p1s2", 32, 32, 2), ("conv2p2s2", 32, 64, 3), ("conv3p4s2", 64, 128, 4), ("conv4p8s2", 128, 256, 6)]
    for i, (name, into, out, blocks) in enumerate(down, start=1):
        convolution(name, 8, into, into)
        norm(f"bn{i}", into)
        for b in range(blocks):
            block(f"block{i}.{b}", into if b == 0 else out, out)
    up = [
        *(("convtr4p16s2", 256, 256, 128), ("convtr5p8s2", 256, 128, 64)),
        *(("convtr6p4s2", 128, 96, 32), ("convtr7p2s2", 96, 96, 32)),
    ]
    for i, (name, into, out, skip) in enumerate(up, start=4):
        convolution(name, 8, into, out)
        norm(f"bntr{i}", out)
        block(f"block{i + 1}.0", out + skip, out)
        block(f"block{i + 1}.1", out, out)
    shapes["final.kernel"] = (96, out_channels)
    shapes["final.bias"] = (1, out_channels)
    return shapes


def test_mink_unet34c_has_the_published_layout():
    network = sparse.mink_unet34c(3, 96)
    assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == published_34c(3, 96)
    assert sum(p.numel() for p in network.parameters()) == 37_863_424
    assert sum(p.numel() for p in sparse.mink_unet_small(3, 96).parameters()) < 1_000_000


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return sparse.mink_unet_small(3, 8)


def test_output_lives_on_the_input_voxels_and_each_item_is_its_own(small):
    network = small.eval()
    clouds = [cloud(0), torch.zeros(0, 3, dtype=torch.long), cloud(1), torch.tensor([[-5, 3, 2]])]
    coordinates = sparse.batch_coordinates(clouds)
    features = torch.randn(len(coordinates), 3)
    x = sparse.SparseTensor(features, coordinates)
    with torch.no_grad():
        out = network(x)
        assert out.level is x.level
        assert sorted(x.manager.levels) == [1, 2, 4, 8, 16]
        order = torch.randperm(len(coordinates))
        shuffled = network(sparse.SparseTensor(features[order], coordinates[order]))
        torch.testing.assert_close(shuffled.features, out.features[order], rtol=1e-4, atol=1e-5)
        moved = coordinates + torch.tensor([0, 16, -32, 48], dtype=torch.int32)
        torch.testing.assert_close(network(sparse.SparseTensor(features, moved)).features, out.features)
        for item, own in enumerate(clouds):
            rows = coordinates[:, 0] == item
            if len(own):
                alone = network(sparse.SparseTensor(features[rows], sparse.batch_coordinates([own])))
                torch.testing.assert_close(alone.features, out.features[rows], rtol=1e-4, atol=1e-5)


def test_skips_come_after_the_upsampled_channels(small):
    seen = {}
    hooks = [
        small.get_submodule(f"bntr{i}").register_forward_hook(
            lambda module, args, out, i=i: seen.update({("up", i): out.features.relu()})
        )
        for i in range(4, 8)
    ]
    hooks += [
        small.get_submodule(f"block{i + 1}").register_forward_pre_hook(
            lambda module, args, i=i: seen.update({("joined", i): args[0].features})
        )
        for i in range(4, 8)
    ]
    coordinates = sparse.batch_coordinates([cloud(5)])
    small.eval()(sparse.SparseTensor(torch.randn(len(coordinates), 3), coordinates))
    for hook in hooks:
        hook.remove()
    for i in range(4, 8):
        up, joined = seen["up", i], seen["joined", i]
        assert joined.shape[1] > up.shape[1]
        assert torch.equal(joined[:, : up.shape[1]], up)


def test_every_parameter_gets_a_finite_gradient_and_training_helps(small):
    network = small.train()
    coordinates = sparse.batch_coordinates([cloud(2), cloud(3)])
    target = (coordinates[:, 1:] % 8 < 4).float()  # a pattern that only position among neighbors tells
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    losses = []
    for _ in range(12):
        out = network(sparse.SparseTensor(torch.ones(len(coordinates), 3), coordinates))
        loss = (out.features[:, :3] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_batches_are_counted_once_by_every_normalization_that_used_them():
    network = sparse.mink_unet_small(1, 4)
    x = sparse.SparseTensor(torch.ones(2, 1), torch.tensor([[0, 0, 0, 0], [0, 17, 0, 0]], dtype=torch.int32))
    for _ in range(2):
        network.train()(x)
    network.eval()(x)
    assert {int(value) for name, value in network.state_dict().items() if name.endswith("num_batches_tracked")} == {2}
    alone = sparse.BatchNorm(1)
    alone(x)
    assert alone.bn.num_batches_tracked == 1


def test_one_voxel_trains(small):
    network = small.train()
    x = sparse.SparseTensor(torch.ones(1, 3), torch.tensor([[0, -1, 2, 3]], dtype=torch.int32))
    out = network(x).features
    out.sum().backward()
    assert out.isfinite().all()


def test_bf16_stays_close_to_float32(small):
    network = small.eval()
    coordinates = sparse.batch_coordinates([cloud(4)])
    x = sparse.SparseTensor(torch.randn(len(coordinates), 3), coordinates)
    with torch.no_grad():
        exact = network(x).features
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = network(x).features
    assert out.dtype == torch.bfloat16
    assert (out.float() - exact).square().mean() < 1e-3 * exact.square().mean()


def test_stages_are_checked():
    with pytest.raises(ValueError, match="expected 8 planes and layers, got 2 and 8"):
        sparse.MinkUNet(3, 3, planes=(8, 8), layers=(1,) * 8)


def test_channels_grow_with_the_width():
    narrow, wide = (sparse.mink_unet_small(1, 8, width=width) for width in (0.1, 2.0))
    assert narrow.conv0p1s1.kernel.shape == (27, 1, 4)  # never fewer than 4
    assert wide.block4[0].conv1.kernel.shape == (27, 96, 128)
    assert wide.final.kernel.shape == (64, 8)  # the output's own channels stay


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "spcnov",
            r"^engine: unknown sparse engine 'spcnov', did you mean 'spconv'\? \(there are: auto, spconv, ",
        ),
        ("sparse/troch", r"^engine: unknown sparse engine 'troch', did you mean 'torch'\?"),
    ],
)
def test_an_engine_that_is_not_there_is_an_error_not_a_fallback(name, message):
    with pytest.raises(UserError, match=message):
        sparse.mink_unet_small(3, 3, engine=name)


def test_a_form_of_the_kernel_map_is_made_once_and_again_for_its_transpose():
    x = sparse.SparseTensor(torch.ones(2, 1), torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0]], dtype=torch.int32))
    kernel_map, made = x.manager.kernel_map(1, 1, 3), []

    def longest(pairs):
        made.append(pairs)
        return max(pairs.counts)

    assert [kernel_map.cached("acme/longest", longest) for _ in range(3)] == [2, 2, 2]
    assert kernel_map.cached("acme/other", lambda pairs: pairs.in_size) == 2
    assert kernel_map.transposed.cached("acme/longest", longest) == 2
    assert made == [kernel_map, kernel_map.transposed]
