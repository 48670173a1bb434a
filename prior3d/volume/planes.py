"""Reading features from three axis-aligned planes, and measuring how much each plane holds."""

import torch
import torch.nn.functional as F
from torch import Tensor

from prior3d.geometry import in_full_precision

# (column coordinate, row coordinate) of each plane: the first letter of the plane's name runs along its columns.
PLANE_AXES = {"xy": (0, 1), "xz": (0, 2), "yz": (1, 2)}


@in_full_precision
def sample_planes(planes: Tensor, points: Tensor, *, reduce: str = "concat") -> Tensor:
    """Project points to the three planes and read the planes bilinearly.

    The planes are XY, XZ, YZ in this order. In each plane, columns (last axis) run along the first letter and rows
    along the second: `planes[n, 0, :, row, column]` lies at y(row), x(column); plane 1 at z(row), x(column); plane 2 at
    z(row), y(column). Cell i of S has its center at -1 + (2 i + 1) / S, so the box [-1, 1] covers the cells edge to
    edge and the XY plane is aligned with the pixels of an image that covers the same square. Values are constant in the
    outer half cell and outside the box; a caller that renders points outside must drop their density.

    Args:
        planes: [N, 3, P, S, S] features on the planes.
        points: [N, M, 3] positions (x, y, z) in the box [-1, 1]^3.
        reduce: `concat` concatenates the channels of the three planes (XY, XZ, YZ), `mean` averages them.

    Returns:
        [N, M, 3 P] features for `concat` and [N, M, P] for `mean`, in the wider dtype of both inputs.

    Raises:
        ValueError: if shapes or `reduce` are other than these.

    Reference:
        Chan et al. 2022, arXiv 2112.07945, introduced the representation. Its released code reads (x, y), (x, z) and
        (z, x), so YZ is missing. Here all three projections are distinct.

    >>> sample_planes(torch.rand(1, 3, 5, 8, 8), torch.zeros(1, 4, 3)).shape
    torch.Size([1, 4, 15])
    """
    if planes.ndim != 5 or planes.shape[1] != 3:
        raise ValueError(f"expected planes [N, 3, P, S, S], got {list(planes.shape)}")
    if points.ndim != 3 or points.shape[-1] != 3 or points.shape[0] != planes.shape[0]:
        raise ValueError(f"expected points [{planes.shape[0]}, M, 3], got {list(points.shape)}")
    if reduce not in ("concat", "mean"):
        raise ValueError(f"expected reduce 'concat' or 'mean', got {reduce!r}")
    dtype = torch.promote_types(planes.dtype, points.dtype)
    coordinates = points.to(dtype).unbind(-1)
    projections = [torch.stack([coordinates[a], coordinates[b]], dim=-1) for a, b in PLANE_AXES.values()]
    grid = torch.stack(projections, dim=1)  # [N, 3, M, 2]
    read = F.grid_sample(
        planes.flatten(0, 1).to(dtype),
        grid.flatten(0, 1).unsqueeze(1),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )  # [N * 3, P, 1, M]
    read = read.squeeze(2).unflatten(0, (-1, 3))  # [N, 3, P, M]
    return read.mean(dim=1).transpose(1, 2) if reduce == "mean" else read.flatten(1, 2).transpose(1, 2)


@in_full_precision
def plane_energy(planes: Tensor, *, centered: bool = False) -> Tensor:
    """Return the mean squared value of each plane over the batch.

    With one fixed camera, the XY plane alone can hold an RGB-D image. In that case the energies of XZ and YZ stay near
    zero.

    Args:
        planes: [N, 3, P, S, S] features on the planes.
        centered: first subtract each channel's mean over its plane, since a constant plane has energy but does not
            distinguish points any better than an empty one.

    Returns:
        [3] energy of XY, XZ, YZ.

    Raises:
        ValueError: if `planes` has another shape.

    >>> plane_energy(torch.ones(1, 3, 5, 8, 8)).tolist()
    [1.0, 1.0, 1.0]
    """
    if planes.ndim != 5 or planes.shape[1] != 3:
        raise ValueError(f"expected planes [N, 3, P, S, S], got {list(planes.shape)}")
    if centered:
        planes = planes - planes.mean(dim=(-2, -1), keepdim=True)
    return planes.square().mean(dim=(0, 2, 3, 4))
