"""Projections, alignment and energy of the three planes."""

import pytest
import torch

from prior3d.volume import pixel_positions, plane_energy, sample_planes

AXES = ((0, 1), (0, 2), (1, 2))  # XY, XZ, YZ: column coordinate, row coordinate


def centers(size: int) -> torch.Tensor:
    return (2 * torch.arange(size, dtype=torch.float64) + 1) / size - 1


def bilinear_function(plane: int, column: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    # not symmetric in its arguments and different for every plane: swapped axes or planes cannot pass
    return (plane + 1) * column - 0.3 * (plane + 2) * row + 0.7 * column * row + plane


def known_planes(size: int) -> torch.Tensor:
    row, column = torch.meshgrid(centers(size), centers(size), indexing="ij")
    return torch.stack([bilinear_function(plane, column, row) for plane in range(3)])[None, :, None]


def inner_points(count: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(1, count, 3, generator=generator, dtype=torch.float64) * 2 - 1
    return uniform * (1 - 1 / size)  # the outer half cell is held constant


@pytest.mark.parametrize("plane", range(3))
def test_each_plane_is_read_at_its_own_pair_of_coordinates(plane: int) -> None:
    points = inner_points(200, 8)
    read = sample_planes(known_planes(8), points)[0, :, plane]
    first, second = AXES[plane]
    torch.testing.assert_close(read, bilinear_function(plane, points[0, :, first], points[0, :, second]))


@pytest.mark.parametrize("axis", range(3))
def test_moving_along_one_axis_changes_the_two_planes_that_hold_it(axis: int) -> None:
    points = inner_points(20, 8)
    moved = points.clone()
    moved[..., axis] *= -0.5
    changed = (sample_planes(known_planes(8), points) - sample_planes(known_planes(8), moved)).abs().amax(
        dim=(0, 1)
    ) > 0
    assert changed.tolist() == [axis in axes for axes in AXES]


def test_xy_plane_is_pixel_aligned() -> None:
    planes = torch.randn(2, 3, 4, 6, 6)
    uv = pixel_positions(torch.arange(36).expand(2, -1), 6, 6)
    points = torch.cat([uv, torch.zeros(2, 36, 1)], dim=-1)
    read = sample_planes(planes, points)[..., :4]
    torch.testing.assert_close(read, planes[:, 0].flatten(2).transpose(1, 2))


def test_mean_is_the_mean_of_concat_and_the_border_is_held() -> None:
    planes = torch.randn(2, 3, 5, 4, 4)
    points = torch.rand(2, 30, 3) * 2 - 1
    parts = sample_planes(planes, points).unflatten(-1, (3, 5))
    torch.testing.assert_close(sample_planes(planes, points, reduce="mean"), parts.mean(dim=2))
    corner = sample_planes(planes, torch.full((2, 1, 3), 5.0))
    torch.testing.assert_close(corner.unflatten(-1, (3, 5))[:, 0], planes[..., -1, -1])


def test_gradients() -> None:
    planes = torch.randn(1, 3, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    points = (inner_points(6, 4) * 0.9).requires_grad_()
    assert torch.autograd.gradcheck(sample_planes, (planes, points))


def test_half_precision_planes_are_read_in_float32_under_autocast() -> None:
    planes, points = torch.randn(1, 3, 2, 4, 4).bfloat16(), torch.rand(1, 9, 3) * 2 - 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        read = sample_planes(planes, points)
    assert read.dtype == torch.float32
    torch.testing.assert_close(read, sample_planes(planes.float(), points))


def test_energy_is_per_plane_and_centering_removes_constants() -> None:
    planes = torch.zeros(2, 3, 4, 6, 6)
    planes[:, 1] = 3.0
    planes[:, 2, :, ::2] = 2.0
    torch.testing.assert_close(plane_energy(planes), torch.tensor([0.0, 9.0, 2.0]))
    torch.testing.assert_close(plane_energy(planes, centered=True), torch.tensor([0.0, 0.0, 1.0]))


def test_wrong_shapes_are_refused() -> None:
    planes, points = torch.zeros(1, 3, 2, 4, 4), torch.zeros(1, 5, 3)
    with pytest.raises(ValueError, match=r"expected planes \[N, 3, P, S, S\], got \[1, 2, 2, 4, 4\]"):
        sample_planes(planes[:, :2], points)
    with pytest.raises(ValueError, match=r"expected points \[1, M, 3\], got \[1, 5, 2\]"):
        sample_planes(planes, points[..., :2])
    with pytest.raises(ValueError, match="expected reduce 'concat' or 'mean', got 'sum'"):
        sample_planes(planes, points, reduce="sum")
    with pytest.raises(ValueError, match=r"expected planes \[N, 3, P, S, S\]"):
        plane_energy(planes[0])
