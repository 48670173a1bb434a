"""Sparse convolutions against torch's dense ones on random grids, and their gradients against finite differences."""

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn.functional import conv3d, conv_transpose3d

from prior3d import sparse
from prior3d.sparse.kernel_map import offset_range

LOW, SIZE = -8, 24  # the dense window on each axis, in finest cells; random voxels stay in -3..4


def random_voxels(seed, counts=(60, 0, 45, 1)):
    """Unique voxels around the origin in random order; one item without voxels, one with a single voxel."""
    generator = torch.Generator().manual_seed(seed)
    clouds = []
    for count in counts:
        cells = torch.randperm(8**3, generator=generator)[:count]
        clouds.append(torch.stack([cells // 64, cells // 8 % 8, cells % 8], dim=1) - 3)
    coordinates = sparse.batch_coordinates(clouds)
    return coordinates[torch.randperm(len(coordinates), generator=generator)]


def random_tensor(seed, channels, stride=1):
    coordinates = random_voxels(seed)
    coordinates[:, 1:] *= stride
    generator = torch.Generator().manual_seed(seed + 100)
    features = torch.randn(len(coordinates), channels, generator=generator, dtype=torch.float64, requires_grad=True)
    return sparse.SparseTensor(features, coordinates, stride=stride, batch_size=5)


def index_of(coordinates, stride):
    batch, x, y, z = coordinates.long().unbind(1)
    return batch, *((c - LOW) // stride for c in (x, y, z))


def to_dense(x):
    batch, i, j, k = index_of(x.coordinates, x.stride)
    size = SIZE // x.stride
    dense = x.features.new_zeros(x.batch_size, size, size, size, x.features.shape[1])
    return dense.index_put((batch, i, j, k), x.features).permute(0, 4, 1, 2, 3)


def at_voxels(dense, coordinates, stride):
    batch, i, j, k = index_of(coordinates, stride)
    return dense.permute(0, 2, 3, 4, 1)[batch, i, j, k]


def dense_weight(kernel, size):
    """[K^3, in, out] with x fastest -> [out, in, x, y, z]."""
    return kernel.reshape(size, size, size, *kernel.shape[-2:]).permute(4, 3, 2, 1, 0)


def dense_convolution(x, kernel, size, stride, dilation):
    before = -offset_range(size)[0] * dilation
    after = offset_range(size)[-1] * dilation
    dense = torch.nn.functional.pad(to_dense(x), (before, after) * 3)
    return conv3d(dense, dense_weight(kernel, size), stride=stride, dilation=dilation)


def dense_transposed(x, kernel, size, stride, dilation):
    before = -offset_range(size)[0] * dilation
    weight = dense_weight(kernel, size).transpose(0, 1)
    dense = conv_transpose3d(to_dense(x), weight, stride=stride, dilation=dilation)
    return dense[..., before:, before:, before:]  # its first cell is the first one reached, LOW - before


def gradients(out, *inputs):
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return torch.autograd.grad((out * weights).sum(), inputs, retain_graph=True)


def assert_same(ours, dense, *inputs):
    torch.testing.assert_close(ours, dense)
    torch.testing.assert_close(gradients(ours, *inputs), gradients(dense, *inputs))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("size", "stride", "dilation"),
    [
        *((1, 1, 1), (2, 1, 1), (3, 1, 1), (3, 1, 2), (4, 1, 1), (5, 1, 1), (2, 1, 3)),
        *((1, 2, 1), (2, 2, 1), (3, 2, 1), (3, 2, 2), (4, 2, 1), (2, 4, 1), (4, 4, 1)),
    ],
)
def test_convolution_equals_dense(seed, size, stride, dilation):
    x = random_tensor(seed, 3)
    module = sparse.Convolution(3, 4, size, stride=stride, dilation=dilation).double()
    out = module(x)
    expected = at_voxels(dense_convolution(x, module.kernel, size, stride, dilation), out.coordinates, stride)
    assert_same(out.features, expected, x.features, module.kernel)
    assert out.stride == stride
    cells = {(b, *(c // stride * stride for c in xyz)) for b, *xyz in x.coordinates.tolist()}
    assert sorted(map(tuple, out.coordinates.tolist())) == sorted(cells)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("size", "stride", "dilation"),
    [(1, 1, 1), (2, 1, 1), (3, 1, 1), (2, 2, 1), (3, 2, 1), (3, 2, 2), (4, 2, 1), (1, 2, 1)],
)
def test_transposed_convolution_to_cached_voxels_equals_dense(seed, size, stride, dilation):
    x = random_tensor(seed, 3)
    coarse = sparse.SumPool(stride, stride=stride)(x) if stride > 1 else x
    module = sparse.TransposedConvolution(3, 4, size, stride=stride, dilation=dilation).double()
    out = module(coarse)
    assert out.coordinates is x.coordinates
    expected = at_voxels(dense_transposed(coarse, module.kernel, size, stride, dilation), x.coordinates, 1)
    assert_same(out.features, expected, x.features, module.kernel)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("size", "dilation"), [(2, 1), (3, 1), (3, 2), (4, 1)])
def test_generative_convolution_equals_dense_and_reaches_every_cell(seed, size, dilation):
    x = random_tensor(seed, 3, stride=2)
    module = sparse.TransposedConvolution(3, 4, size, stride=2, dilation=dilation).double()
    out = module(x)
    taps = [tap * dilation for tap in offset_range(size)]
    reached = {
        (b, i + dx, j + dy, k + dz)
        for b, i, j, k in x.coordinates.tolist()
        for dx in taps
        for dy in taps
        for dz in taps
    }
    assert sorted(map(tuple, out.coordinates.tolist())) == sorted(reached)
    dense = dense_transposed(x, module.kernel, size, 2, dilation)
    assert_same(out.features, at_voxels(dense, out.coordinates, 1), x.features, module.kernel)


def test_generative_keeps_apart_from_a_level_that_is_there():
    x = random_tensor(0, 3)
    coarse = sparse.SumPool(2, stride=2)(x)
    cached = sparse.TransposedConvolution(3, 4, 2, stride=2).double()
    fresh = sparse.TransposedConvolution(3, 4, 2, stride=2, generative=True).double()
    fresh.load_state_dict(cached.state_dict())
    out = fresh(coarse)
    assert len(out) == 8 * len(coarse)
    assert x.manager.levels[1] is x.level
    row = {tuple(c): i for i, c in enumerate(out.coordinates.tolist())}
    there = [row[tuple(c)] for c in x.coordinates.tolist()]
    torch.testing.assert_close(out.features[there], cached(coarse).features)
    with pytest.raises(ValueError, match="another coordinate manager"):
        sparse.concatenate([x, out])


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_single_voxel_sees_only_its_own_weight(size):
    coordinates = torch.tensor([[0, -7, 3, 2**30]], dtype=torch.int32)
    module = sparse.Convolution(2, 3, size)
    features = torch.tensor([[1.0, -2.0]])
    out = module(sparse.SparseTensor(features, coordinates))
    own = module.kernel if size == 1 else module.kernel[size**3 // 2 if size % 2 else 0]
    torch.testing.assert_close(out.features, features @ own)


def test_no_voxels_at_all():
    x = sparse.SparseTensor(torch.zeros(0, 3, requires_grad=True), torch.zeros(0, 4, dtype=torch.int32), batch_size=2)
    down = sparse.Convolution(3, 4, 2, stride=2)
    up = sparse.TransposedConvolution(4, 5, 2, stride=2, bias=True)
    out = up(sparse.ReLU()(sparse.BatchNorm(4)(down(x))))
    assert out.features.shape == (0, 5)
    out.features.sum().backward()
    assert down.kernel.grad.abs().sum() == 0
    assert sparse.GlobalPool("max")(x).shape == (2, 3)


def test_coordinates_beyond_float32_are_divided_exactly():
    big = 2**24 + 1
    coordinates = torch.tensor([[0, big, 0, 0], [0, big + 1, 0, 0], [0, -big, 0, 0]], dtype=torch.int32)
    out = sparse.Convolution(1, 1, 2, stride=2)(sparse.SparseTensor(torch.ones(3, 1), coordinates))
    assert sorted(out.coordinates[:, 1].tolist()) == [-big - 1, big - 1, big + 1]


@pytest.mark.parametrize(
    "module",
    [
        sparse.Convolution(2, 3, 3, bias=True),
        sparse.Convolution(2, 3, 2),
        sparse.Convolution(2, 3, 1, bias=True),
        sparse.Convolution(2, 3, 3, stride=2),
        sparse.TransposedConvolution(2, 3, 3, stride=2, bias=True),
    ],
    ids=["subm3", "subm2", "linear", "down", "up"],
)
def test_gradcheck(module):
    coordinates = random_voxels(3, counts=(5, 0, 2))
    coordinates[:, 1:] *= 2
    module = module.double()
    names = [name for name, _ in module.named_parameters()]
    features = torch.randn(len(coordinates), 2, dtype=torch.float64, requires_grad=True)

    def run(features, *parameters):
        x = sparse.SparseTensor(features, coordinates, stride=2)
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x,)).features

    assert gradcheck(run, (features, *module.parameters()))


def test_repeated_runs_are_bit_identical():
    def run():
        x = random_tensor(1, 3)
        torch.manual_seed(0)
        module = sparse.Convolution(3, 8, 3).double()
        out = module(x).features
        return out, *gradients(out, x.features, module.kernel)

    for first, second in zip(run(), run(), strict=True):
        assert torch.equal(first, second)


def test_initial_range():
    for module, fan in ((sparse.Convolution(8, 32, 3, bias=True), 8), (sparse.TransposedConvolution(8, 32, 3), 32)):
        bound = (27 * fan) ** -0.5
        assert 0.97 * bound < module.kernel.abs().max() <= bound
        assert abs(module.kernel.mean()) < 0.05 * bound


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_products_and_sums_in_float32(dtype):
    x = random_tensor(2, 3)
    x = x.with_features(x.features.detach().float().requires_grad_())
    module = sparse.Convolution(3, 4, 3, bias=True)
    exact = module(x).features
    with torch.autocast("cpu", dtype=dtype):
        out = module(x).features
    assert out.dtype == dtype
    error = (out.float() - exact).abs().max() / exact.abs().max()
    assert 0 < error < 4 * torch.finfo(dtype).eps
    exact_grads = gradients(exact, x.features, module.kernel, module.bias)
    for ours, wanted in zip(gradients(out, x.features, module.kernel, module.bias), exact_grads, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - wanted).abs().max() < 8 * torch.finfo(dtype).eps * wanted.abs().max()


def test_half_precision_sums_do_not_lose_small_terms():
    cells = torch.cartesian_prod(*[torch.arange(-1, 2)] * 3)
    x = sparse.SparseTensor(torch.ones(27, 1), sparse.batch_coordinates([cells]))
    module = sparse.Convolution(1, 1, 3)
    torch.nn.init.ones_(module.kernel)
    module.kernel.data[13] = 256  # in bfloat16, 256 + 1 is 256
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module(x).features[13] == 256 + 26


def test_autocast_leaves_float64_alone():
    x = random_tensor(2, 3)
    module = sparse.Convolution(3, 4, 3).double()
    exact = module(x).features
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(x).features
    assert out.dtype == torch.float64
    assert torch.equal(out, exact)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sparse.Convolution(2, 3, 0), "expected kernel_size of 1 or more, got 0"),
        (lambda: sparse.MaxPool(2, stride=0), "expected stride of 1 or more, got 0"),
        (lambda: sparse.Convolution(2, 3, 3)(random_tensor(0, 4)), "expected 2 channels, got 4"),
        (
            lambda: sparse.TransposedConvolution(4, 3, 2, stride=2)(random_tensor(0, 4)),
            "expected a tensor whose stride 2 divides, got stride 1",
        ),
    ],
)
def test_bad_use(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("transposed", [False, True])
def test_cuda_equals_cpu(transposed):
    x = random_tensor(4, 3)
    module = sparse.Convolution(3, 6, 3, stride=2).double()
    modules = [module, sparse.TransposedConvolution(6, 5, 2, stride=2).double() if transposed else sparse.ReLU()]
    results = []
    for device in ("cpu", "cuda"):
        features = x.features.detach().to(device).requires_grad_()
        out = sparse.SparseTensor(features, x.coordinates.to(device), batch_size=5)
        for each in modules:
            out = each.to(device)(out)
        # Cells of a new level come in sorted order on both devices.
        results.append([t.cpu() for t in (out.features, *gradients(out.features.cpu(), features, module.kernel))])
        module.cpu()
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours, wanted)
