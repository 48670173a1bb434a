"""Quantize points to unique integer voxels, and join several clouds into one batch."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from prior3d.sparse.coordinates import KeyBox, packed_keys

_INT32 = torch.iinfo(torch.int32)


class Quantized(NamedTuple):
    """Voxels of a point cloud, in the order of their first points."""

    coordinates: Tensor  # [M, 3] int32; [M, 4] with the batch index first if one was given
    unique_map: Tensor  # [M] int64: the first point of each voxel
    inverse_map: Tensor  # [N] int64: the voxel of each point
    labels: Tensor | None = None  # [M] one label per voxel, if labels were given


def sparse_quantize(
    points: Tensor,
    voxel_size: float = 1.0,
    *,
    batch: Tensor | None = None,
    labels: Tensor | None = None,
    ignore_label: int = -100,
) -> Quantized:
    """Put points into voxels floor(point / voxel_size), computed in the points' dtype.

    Differs from MinkowskiEngine: a voxel whose points have different labels gets `ignore_label`. There (0.5.4), an
    indexing error gives it to another voxel.

    Args:
        points: [N, 3] positions, in any unit.
        voxel_size: edge of a voxel, in the points' unit.
        batch: [N] batch item of each point, to quantize a packed batch at once.
        labels: [N] integer label of each point.
        ignore_label: label of voxels whose points disagree.

    Returns:
        Voxels with `coordinates[inverse_map]` = the voxel of each point, and `inverse_map[unique_map]` = 0..M-1.

    Raises:
        ValueError: if shapes are wrong, the voxel size is not positive, or points are not finite or so far away that
            int32 cannot hold their voxel.

    >>> found = sparse_quantize(torch.tensor([[0.1, 0, 0], [0.9, 0, 0], [1.2, 0, 0]]), voxel_size=1.0)
    >>> found.coordinates.tolist(), found.inverse_map.tolist()
    ([[0, 0, 0], [1, 0, 0]], [0, 0, 1])
    """
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"expected points [N, 3], got {list(points.shape)}")
    if not voxel_size > 0:
        raise ValueError(f"expected a voxel size above 0, got {voxel_size}")
    for name, column in {"batch": batch, "labels": labels}.items():
        if column is not None and column.shape != (len(points),):
            raise ValueError(f"expected {name} [{len(points)}], got {list(column.shape)}")
    cells = (points / voxel_size).floor()
    # Not `> max`: that would let NaN pass.
    fit = ((cells >= _INT32.min) & (cells < _INT32.max)).all()
    cells = cells.int()
    if batch is not None:
        cells = torch.cat([batch.int()[:, None], cells], dim=1)
    unique_map, inverse_map = _first_occurrences(cells, fit)
    voxel_labels = None if labels is None else _agreed(labels, unique_map, inverse_map, ignore_label)
    return Quantized(cells[unique_map], unique_map, inverse_map, voxel_labels)


def merge_duplicates(
    features: Tensor, coordinates: Tensor, how: Literal["first", "mean", "sum"] = "first"
) -> tuple[Tensor, Tensor]:
    """Make coordinates unique: keep the first row of each voxel, or the mean or the sum of its rows.

    Args:
        features: [N, C] one row per coordinate.
        coordinates: [N, 4] int32, duplicates allowed.
        how: reduction of the rows that share a voxel: `first` (MinkowskiEngine's default), `mean` or `sum`.

    Returns:
        [M, C] features and [M, 4] unique coordinates, in order of first occurrence.

    Raises:
        ValueError: if `how` is unknown.

    >>> coordinates = torch.tensor([[0, 1, 0, 0], [0, 1, 0, 0]], dtype=torch.int32)
    >>> features, unique = merge_duplicates(torch.tensor([[1.0], [3.0]]), coordinates, "mean")
    >>> features.tolist(), unique.tolist()
    ([[2.0]], [[0, 1, 0, 0]])
    """
    if how not in ("first", "mean", "sum"):
        raise ValueError(f"expected how to be first, mean or sum, got '{how}'")
    unique_map, inverse_map = _first_occurrences(coordinates)
    if how == "first":
        return features[unique_map], coordinates[unique_map]
    merged = features.new_zeros(len(unique_map), features.shape[1]).index_add(0, inverse_map, features)
    if how == "mean":
        merged = merged / torch.bincount(inverse_map, minlength=len(unique_map))[:, None].to(merged.dtype)
    return merged, coordinates[unique_map]


def batch_coordinates(clouds: Sequence[Tensor]) -> Tensor:
    """Join voxels [N_i, 3] of several clouds into [sum N_i, 4] int32 with the batch index first.

    An empty cloud keeps its index; if it is the last one, pass `batch_size` to `SparseTensor`.

    Raises:
        ValueError: if there are no clouds, or one is not [N, 3] of integers.

    >>> batch_coordinates([torch.zeros(1, 3, dtype=torch.int32), torch.ones(1, 3, dtype=torch.int32)]).tolist()
    [[0, 0, 0, 0], [1, 1, 1, 1]]
    """
    if not clouds:
        raise ValueError("expected at least one cloud, got none")
    for cloud in clouds:
        if cloud.ndim != 2 or cloud.shape[1] != 3 or cloud.is_floating_point():
            raise ValueError(f"expected integer voxels [N, 3], got {cloud.dtype} {list(cloud.shape)}")
    index = [cloud.new_full((len(cloud), 1), i, dtype=torch.int32) for i, cloud in enumerate(clouds)]
    return torch.cat([torch.cat([i, cloud.int()], dim=1) for i, cloud in zip(index, clouds, strict=True)])


def _first_occurrences(cells: Tensor, fit: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the first row of each distinct row [M], in order, and the number of each row's class [N].

    The only host synchronization reads all that is checked and the number of rows. `fit` says whether the cells are
    what they should be: int32 cannot hold every float.
    """
    if len(cells) == 0:
        none = torch.empty(0, dtype=torch.long, device=cells.device)
        return none, none
    keys, low, high = packed_keys(cells if cells.shape[1] == 4 else F.pad(cells, (1, 0)))
    keys, order = keys.sort(stable=True)  # stable: the first of equal keys is the first row
    starts = torch.ones_like(keys, dtype=torch.bool)
    starts[1:] = keys[1:] != keys[:-1]
    fit = starts[0] if fit is None else fit  # the first row always starts a class
    *bounds, count, all_fit = torch.cat([low, high, torch.stack([starts.sum(), fit.long()])]).tolist()
    if not all_fit:
        raise ValueError("expected finite points within int32 voxels, got others")
    low, high = bounds[:4], bounds[4:]
    KeyBox.around([(low[1:], high[1:])], high[0] - low[0] + 1, 0)  # raises if keys would alias
    first = order[torch.nonzero_static(starts, size=count)[:, 0]]
    is_first = torch.zeros_like(starts)
    is_first[first] = True
    number = is_first.cumsum(0) - 1  # number of each first row, counted in input order
    inverse_map = torch.empty_like(order)
    inverse_map[order] = number[first][starts.cumsum(0) - 1]
    return first.sort().values, inverse_map


def _agreed(labels: Tensor, unique_map: Tensor, inverse_map: Tensor, ignore_label: int) -> Tensor:
    """Return the label of each voxel, or `ignore_label` if any of its points differs from the first."""
    own = labels[unique_map]
    differs = torch.zeros_like(unique_map, dtype=torch.bool)
    differs[inverse_map[labels != own[inverse_map]]] = True
    return own.masked_fill(differs, ignore_label)
