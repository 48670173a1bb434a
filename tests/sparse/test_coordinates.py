"""Coordinate checks, kernel maps against brute force, the cache, quantization and batching."""

import pytest
import torch

from prior3d import sparse
from prior3d.sparse.coordinates import coarsen, coordinate_map
from prior3d.sparse.kernel_map import build_kernel_map


def voxels(rows):
    return torch.tensor(rows, dtype=torch.int32)


def random_level(seed, extent=6, count=80, stride=1):
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randint(-extent, extent, (count, 4), generator=generator, dtype=torch.int32) * stride
    cells[:, 0] = torch.randint(0, 3, (count,), generator=generator)
    return coordinate_map(torch.unique(cells, dim=0)[torch.randperm(len(torch.unique(cells, dim=0)))], stride)


def test_offsets_run_along_the_first_axis_first():
    assert sparse.kernel_offsets(3)[:4].tolist() == [[-1, -1, -1], [0, -1, -1], [1, -1, -1], [-1, 0, -1]]
    assert sparse.kernel_offsets(2).tolist()[:3] == [[0, 0, 0], [1, 0, 0], [0, 1, 0]]
    assert sparse.kernel_offsets(3)[13].tolist() == [0, 0, 0]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("size", "dilation"), [(1, 1), (2, 1), (3, 1), (3, 2), (4, 1), (5, 1)])
@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 4])
def test_kernel_map_equals_brute_force(seed, size, dilation, factor, stride):
    source = random_level(seed, stride=stride)
    target = source if factor == 1 else source.coarser(factor)
    found = build_kernel_map(source, target, size, dilation)
    row_of = {tuple(c): row for row, c in enumerate(source.coordinates.tolist())}
    for offset, (in_rows, out_rows) in zip(sparse.kernel_offsets(size).tolist(), found.pairs, strict=True):
        wanted = set()
        for out_row, (batch, *cell) in enumerate(target.coordinates.tolist()):
            tap = (batch, *(c + o * dilation * stride for c, o in zip(cell, offset, strict=True)))
            if tap in row_of:
                wanted.add((row_of[tap], out_row))
        pairs = list(zip(in_rows.tolist(), out_rows.tolist(), strict=True))
        assert len(pairs) == len(wanted)
        assert set(pairs) == wanted
    if found.identity is not None:
        in_rows, out_rows = found.pairs[found.identity]
        assert torch.equal(in_rows, out_rows)
        assert len(in_rows) == len(source)
    assert found.transposed.pairs[0][0] is not None
    assert torch.equal(found.transposed.in_rows, found.out_rows)


def test_levels_and_kernel_maps_are_made_once_and_shared():
    x = sparse.SparseTensor(torch.ones(3, 2), voxels([[0, 0, 0, 0], [0, 1, 0, 0], [1, 5, -3, 2]]))
    first, second = (sparse.Convolution(2, 2, 2, stride=2)(x) for _ in range(2))
    assert first.level is second.level
    assert first.manager is x.manager
    assert x.manager.kernel_map(1, 2, 2) is x.manager.kernel_map(1, 2, 2)
    up = sparse.TransposedConvolution(2, 2, 2, stride=2)(first)
    assert up.level is x.level
    assert torch.equal((up + x).features, up.features + x.features)


@pytest.mark.parametrize("far", [2**31 - 1, -(2**31)])
def test_extreme_coordinates_do_not_alias(far):
    rows = voxels([[0, far, 0, 0], [0, -5, 1, 0], [0, 0, 1, 0]])
    x = sparse.SparseTensor(torch.ones(3, 1), rows)
    assert sparse.SumPool(3)(x).features.tolist() == [[1.0], [1.0], [1.0]]


@pytest.mark.parametrize(
    ("coordinates", "options", "message"),
    [
        (torch.zeros(2, 4), {}, r"expected int32 coordinates \[N, 4\], got torch.float32 \[2, 4\]"),
        (voxels([[0, 1, 2]]), {}, r"got torch.int32 \[1, 3\]"),
        (voxels([[0, 1, 2, 3], [0, 1, 2, 3]]), {}, r"expected unique coordinates, got 1 duplicates"),
        (voxels([[-1, 1, 2, 3]]), {}, r"expected batch indices of 0 or more in the first column, got -1"),
        (voxels([[4, 1, 2, 3]]), {"batch_size": 4}, r"expected batch indices below batch_size 4, got 4"),
        (voxels([[0, 2, 4, 3]]), {"stride": 2}, r"expected coordinates that are multiples of the stride 2"),
        (
            voxels([[0, -(2**31), -(2**31), -(2**31)], [0, 2**31 - 1, 2**31 - 1, 2**31 - 1]]),
            {},
            r"expected coordinates within 2\^63 cells",
        ),
    ],
)
def test_bad_coordinates(coordinates, options, message):
    with pytest.raises(ValueError, match=message):
        sparse.SparseTensor(torch.zeros(len(coordinates), 1), coordinates, **options)


def test_bad_tensors():
    rows = voxels([[0, 1, 2, 3], [0, 2, 2, 3]])
    x = sparse.SparseTensor(torch.zeros(2, 1), rows)
    with pytest.raises(ValueError, match=r"expected features \[2, C\], got \[3, 1\]"):
        sparse.SparseTensor(torch.zeros(3, 1), rows)
    with pytest.raises(ValueError, match="expected either coordinates or a manager"):
        sparse.SparseTensor(torch.zeros(2, 1), rows, manager=x.manager)
    with pytest.raises(ValueError, match="expected tensors on the same voxels, got 2 at stride 1 and 1 at stride 4"):
        sparse.concatenate([x, sparse.SumPool(4, stride=4)(x)])
    with pytest.raises(ValueError, match="expected at least one sparse tensor"):
        sparse.concatenate([])
    with pytest.raises(ValueError, match=r"expected a boolean mask \[2\]"):
        sparse.prune(x, torch.ones(2))
    with pytest.raises(ValueError, match="expected features on cpu, got meta"):
        sparse.SparseTensor(torch.zeros(2, 1, device="meta"), rows)


@pytest.mark.parametrize("packed", [False, True])
def test_quantization_equals_a_dictionary(packed):
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(2000, 3, generator=generator)
    batch = torch.randint(0, 3, (2000,), generator=generator) if packed else None
    labels = torch.randint(0, 3, (2000,), generator=generator)
    out = sparse.sparse_quantize(points, 0.4, batch=batch, labels=labels, ignore_label=255)
    first, members = {}, []
    for i, cell in enumerate((points / 0.4).floor().int().tolist()):
        cell = (*([batch[i].item()] if packed else []), *cell)
        if cell not in first:
            first[cell] = len(first)
            members.append([])
        members[first[cell]].append(i)
        assert out.inverse_map[i] == first[cell]
    assert out.coordinates.tolist() == [list(cell) for cell in first]
    assert out.unique_map.tolist() == [rows[0] for rows in members]
    agreed = [set(labels[rows].tolist()) for rows in members]
    assert out.labels.tolist() == [found.pop() if len(found) == 1 else 255 for found in agreed]
    assert 255 in out.labels
    assert (out.labels != 255).any()


def test_quantization_floors_below_zero_and_in_the_points_dtype():
    points = torch.tensor([[-0.01, 0.0, 0.99], [-1.0, 1.0, -1.01]], dtype=torch.float64)
    assert sparse.sparse_quantize(points).coordinates.tolist() == [[-1, 0, 0], [-1, 1, -2]]
    assert sparse.sparse_quantize(points[:0]).coordinates.shape == (0, 3)


@pytest.mark.parametrize(
    ("points", "options", "message"),
    [
        (torch.zeros(2, 2), {}, r"expected points \[N, 3\], got \[2, 2\]"),
        (torch.zeros(2, 3), {"voxel_size": 0.0}, "expected a voxel size above 0, got 0.0"),
        (torch.zeros(2, 3), {"labels": torch.zeros(3)}, r"expected labels \[2\], got \[3\]"),
        (torch.tensor([[0, 0, float("nan")]]), {}, "expected finite points within int32 voxels"),
        (torch.tensor([[0, 0, 1e12]]), {}, "expected finite points within int32 voxels"),
    ],
)
def test_bad_points(points, options, message):
    with pytest.raises(ValueError, match=message):
        sparse.sparse_quantize(points, **options)


def test_batching_keeps_the_index_of_an_empty_cloud():
    clouds = [voxels([[1, 2, 3], [-4, 5, 6]]), torch.zeros(0, 3, dtype=torch.int64), torch.tensor([[7, 8, -9]])]
    out = sparse.batch_coordinates(clouds)
    assert out.dtype == torch.int32
    assert out.tolist() == [[0, 1, 2, 3], [0, -4, 5, 6], [2, 7, 8, -9]]
    with pytest.raises(ValueError, match=r"expected integer voxels \[N, 3\], got torch.float32 \[1, 3\]"):
        sparse.batch_coordinates([torch.zeros(1, 3)])
    with pytest.raises(ValueError, match="expected at least one cloud"):
        sparse.batch_coordinates([])


def test_merging_duplicates():
    features = torch.tensor([[1.0], [2.0], [4.0]])
    coordinates = voxels([[1, 0, 0, 0], [0, 5, 5, 5], [1, 0, 0, 0]])
    for how, wanted in {"first": [[1.0], [2.0]], "mean": [[2.5], [2.0]], "sum": [[5.0], [2.0]]}.items():
        merged, unique = sparse.merge_duplicates(features, coordinates, how)
        assert merged.tolist() == wanted
        assert unique.tolist() == [[1, 0, 0, 0], [0, 5, 5, 5]]
    with pytest.raises(ValueError, match="expected how to be first, mean or sum, got 'max'"):
        sparse.merge_duplicates(features, coordinates, "max")


def test_several_levels_at_once_equal_one_after_the_other():
    level = random_level(3, extent=20, count=400)
    one = level
    for factor, made in zip((2, 4, 8, 16), coarsen(level, (2, 4, 8, 16)), strict=True):
        one = one.coarser(2)
        assert torch.equal(made.coordinates, one.coordinates)
        assert (made.stride, made.low, made.high, made.order) == (factor, one.low, one.high, None)


@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 1), (2, 1), (5, 1), (2, 2), (3, 2), (1, 2)])
def test_the_table_of_neighbors_holds_the_pairs(kernel_size, stride):
    level = random_level(4)
    target = level if stride == 1 else level.coarser(stride)
    kernel_map = build_kernel_map(level, target, kernel_size)
    assert kernel_map.mirrored == (stride == 1 and kernel_size % 2 == 1)
    tables = [kernel_map.neighbors(), kernel_map.transposed.neighbors()]  # before the pairs are listed
    again = build_kernel_map(level, target, kernel_size)
    assert sum(again.counts) == len(again.in_rows)  # lists them
    tables += [again.neighbors(), again.transposed.neighbors()]  # made of the pairs
    for view, *made in ((kernel_map, tables[0], tables[2]), (kernel_map.transposed, tables[1], tables[3])):
        wanted = torch.full((kernel_size**3, view.out_size), -1, dtype=torch.int32)
        for k, (in_rows, out_rows) in enumerate(view.pairs):
            wanted[k, out_rows] = in_rows.int()
        assert all(torch.equal(table, wanted) for table in made)
    assert kernel_map.near is (level.order if stride == 1 else target.order)
    assert kernel_map.transposed.transposed == kernel_map != kernel_map.transposed
