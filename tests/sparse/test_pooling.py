"""Pooling, normalization and interpolation: closed forms, empty items, ties, and gradients."""

import pytest
import torch
from torch.autograd import gradcheck

from prior3d import sparse

# Two items (0 and 2), nothing in 1 and 3; the first two voxels share a cell at stride 2, below zero too.
VOXELS = torch.tensor([[0, -2, 0, 0], [0, -1, 1, 0], [0, 3, 0, 1], [2, 0, 0, 0], [2, 1, 1, 1]], dtype=torch.int32)
VALUES = torch.tensor([[1.0], [3.0], [-5.0], [-2.0], [-4.0]], dtype=torch.float64)


def tensor(values=VALUES):
    return sparse.SparseTensor(values, VOXELS, batch_size=4)


@pytest.mark.parametrize(
    ("module", "wanted"),
    [
        (sparse.SumPool(2, stride=2), {(0, -2): 4.0, (0, 2): -5.0, (2, 0): -6.0}),
        (sparse.AvgPool(2, stride=2), {(0, -2): 2.0, (0, 2): -5.0, (2, 0): -3.0}),
        (sparse.MaxPool(2, stride=2), {(0, -2): 3.0, (0, 2): -5.0, (2, 0): -2.0}),
        # Only voxels on the coarse grid count under a kernel of one voxel.
        (sparse.MaxPool(1, stride=2), {(0, -2): 1.0, (0, 2): 0.0, (2, 0): -2.0}),
        (sparse.AvgPool(1, stride=2), {(0, -2): 1.0, (0, 2): 0.0, (2, 0): -2.0}),
    ],
)
def test_strided_pooling(module, wanted):
    out = module(tensor())
    got = {
        (b, x): value for (b, x, _, _), (value,) in zip(out.coordinates.tolist(), out.features.tolist(), strict=True)
    }
    assert got == wanted


def test_unpooling_copies_each_cell():
    x = tensor()
    out = sparse.AvgUnpool(2, stride=2)(sparse.AvgPool(2, stride=2)(x))
    assert out.level is x.level
    assert out.features.tolist() == [[2.0], [2.0], [-5.0], [-3.0], [-3.0]]


@pytest.mark.parametrize(
    ("mode", "wanted"), [("mean", [-1 / 3, 0, -3, 0]), ("max", [3, 0, -2, 0]), ("sum", [-1, 0, -6, 0])]
)
def test_global_pooling_has_a_row_per_item_and_zero_for_empty_ones(mode, wanted):
    out = sparse.GlobalPool(mode)(tensor())
    torch.testing.assert_close(out[:, 0], torch.tensor(wanted, dtype=torch.float64))


def test_global_pooling_of_one_voxel_per_item():
    x = sparse.SparseTensor(torch.tensor([[7.0]]), torch.tensor([[2, 5, 5, 5]], dtype=torch.int32))
    assert sparse.GlobalPool()(x).tolist() == [[0.0], [0.0], [7.0]]
    with pytest.raises(ValueError, match="expected mode mean, max or sum, got 'avg'"):
        sparse.GlobalPool("avg")


def test_tied_maxima_share_the_gradient():
    values = torch.tensor([[1.0], [1.0], [0.0], [0.0], [-1.0]], requires_grad=True)
    sparse.MaxPool(2, stride=2)(tensor(values)).features.sum().backward()
    assert values.grad.tolist() == [[0.5], [0.5], [1.0], [1.0], [0.0]]


@pytest.mark.parametrize(
    "module",
    [
        sparse.SumPool(3, stride=2),
        sparse.AvgPool(3),
        sparse.MaxPool(3),
        sparse.GlobalPool("mean"),
        sparse.GlobalPool("max"),
        sparse.InstanceNorm(2, eps=1e-3).double(),
        sparse.BatchNorm(2).double(),
    ],
    ids=lambda m: type(m).__name__,
)
def test_gradcheck(module):
    torch.manual_seed(0)
    values = torch.randn(len(VOXELS), 2, dtype=torch.float64, requires_grad=True)

    def run(features):
        out = module(tensor(features))
        return out if isinstance(out, torch.Tensor) else out.features

    assert gradcheck(run, (values,))


def test_interpolation_closed_form_and_gradients():
    x = sparse.SparseTensor(VALUES.clone().requires_grad_(), VOXELS)
    at_voxels = torch.cat([VOXELS[:, :1], VOXELS[:, 1:]], dim=1).double()
    torch.testing.assert_close(sparse.interpolate(x, at_voxels), VALUES)
    between = torch.tensor([[0, -1.5, 0.5, 0.0], [0, -1.5, 0.5, 0.25], [2, 0.5, 0.5, 0.5]], dtype=torch.float64)
    # Absent corners count as zero, the others keep their trilinear weights.
    wanted = torch.tensor([[0.25 * (1 + 3)], [0.75], [0.125 * (-2 - 4)]], dtype=torch.float64)
    torch.testing.assert_close(sparse.interpolate(x, between)[:, :1], wanted)
    positions = (between[:, 1:] + 0.1).requires_grad_()

    def run(features, xyz):
        return sparse.interpolate(sparse.SparseTensor(features, VOXELS), torch.cat([between[:, :1], xyz], dim=1))

    assert gradcheck(run, (x.features, positions))


def test_interpolation_is_zero_far_away_and_in_other_items():
    far = torch.tensor([[0, 1e9, 0, 0], [0, -1e9, 0, 0], [1, 0, 0, 0], [9, 0, 0, 0], [-3, 0, 0, 0], [0, 3, 0, 2**20]])
    assert sparse.interpolate(tensor(), far.double()).abs().sum() == 0
    # Rows of cells end to end: far along x in the row before is where an unguarded key would meet the voxel (3, 0, 1).
    beside = torch.tensor([[0, 3 + far, -1, 1] for far in range(2, 40)])
    assert sparse.interpolate(tensor(), beside.double()).abs().sum() == 0
    with pytest.raises(ValueError, match=r"expected floating-point queries \[Q, 4\]"):
        sparse.interpolate(tensor(), torch.zeros(1, 4, dtype=torch.long))


def test_interpolation_on_a_coarse_grid():
    x = sparse.SparseTensor(torch.tensor([[1.0], [3.0]]), torch.tensor([[0, 0, 0, 0], [0, 4, 0, 0]]).int(), stride=4)
    out = sparse.interpolate(x, torch.tensor([[0, 1.0, 0, 0], [0, 1.0, 2.0, 0]]))
    torch.testing.assert_close(out, torch.tensor([[1.5], [0.75]]))


def test_instance_norm_is_per_item():
    out = sparse.InstanceNorm(1).double()(tensor()).features[:, 0]
    for rows in (slice(0, 3), slice(3, 5)):
        assert out[rows].mean().abs() < 1e-12
        assert (out[rows].square().mean() - 1).abs() < 1e-6


def test_batch_norm_of_a_single_voxel_uses_running_statistics():
    module = sparse.BatchNorm(2)
    module.bn.running_mean.fill_(3.0)
    module.bn.running_var.fill_(4.0)
    x = sparse.SparseTensor(torch.tensor([[5.0, 1.0]]), torch.tensor([[0, 0, 0, 0]]).int())
    torch.testing.assert_close(module(x).features, torch.tensor([[1.0, -1.0]]))
    assert module.bn.running_mean.tolist() == [3.0, 3.0]
    assert module.bn.num_batches_tracked == 0
