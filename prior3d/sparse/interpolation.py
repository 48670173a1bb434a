"""Features at positions between voxels."""

from itertools import product

import torch
from torch import Tensor

from prior3d.sparse.coordinates import KeyBox
from prior3d.sparse.tensor import SparseTensor


def interpolate(x: SparseTensor, queries: Tensor) -> Tensor:
    """Interpolate trilinearly between the eight voxels around each position.

    Absent voxels count as zero and weights are not renormalized, as in MinkowskiEngine. Differentiable in features and
    positions. The value of a voxel sits at its coordinates (its lower corner), not at its center.

    Args:
        x: sparse tensor of features [N, C].
        queries: [Q, 4] positions (batch, x, y, z), floating point, in units of the finest grid.

    Returns:
        [Q, C] features.

    Raises:
        ValueError: if the shape is wrong, or the positions are integers.

    >>> from prior3d.sparse import SparseTensor
    >>> coordinates = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0], [0, 5, 0, 0]], dtype=torch.int32)
    >>> x = SparseTensor(torch.tensor([[1.0], [2.0], [3.0]]), coordinates)
    >>> interpolate(x, torch.tensor([[0, 0.5, 0, 0]])).tolist()
    [[1.5]]
    """
    if queries.ndim != 2 or queries.shape[1] != 4 or not queries.is_floating_point():
        raise ValueError(f"expected floating-point queries [Q, 4], got {queries.dtype} {list(queries.shape)}")
    scaled = queries[:, 1:] / x.stride
    base = scaled.detach().floor()
    fraction = scaled - base
    out = x.features.new_zeros(len(queries), x.features.shape[1])
    if len(x) == 0:
        return out
    low, high = x.level.bounds(x.stride)
    box = KeyBox.around([(low, high)], x.batch_size, margin=2)
    keys = box.keys(x.level.sorted_cells(x.stride))
    ended = torch.cat([keys, keys.new_full((1,), -1)])
    # Far positions move to the rim of the box, where there are no voxels; beyond it, they would alias.
    floor = torch.tensor([[-1, *(c - 2 for c in low)], [x.batch_size, *(c + 1 for c in high)]], device=queries.device)
    cells = torch.cat([queries[:, :1].detach(), base], dim=1).long().clamp(floor[0], floor[1])
    first = box.keys(cells)
    for corner in product((0, 1), repeat=3):
        wanted = first + box.shift(corner)
        place = torch.searchsorted(keys, wanted)
        present = ended[place] == wanted
        side = torch.tensor(corner, device=queries.device)
        weight = torch.where(side == 1, fraction, 1 - fraction).prod(dim=1) * present
        rows = x.level.rows(place.clamp(max=len(x) - 1))
        out = out + weight[:, None].to(out.dtype) * x.features[rows]
    return out
