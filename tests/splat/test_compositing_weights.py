import pytest
import torch

from prior3d.splat import compositing_weights, rasterize

SIZE = (26, 37)


@pytest.fixture
def view(random_scene, camera):
    scene, values = random_scene(80, 7)
    return scene, values, *camera(0.2)


def test_weights_times_values_is_what_is_rendered(view):
    scene, values, intrinsics, pose = view
    weights = compositing_weights(scene, intrinsics, pose, SIZE)
    rendered = rasterize(scene, values, intrinsics, pose, SIZE)
    assert torch.allclose((weights.matrix() @ values).T.view(7, *SIZE), rendered.values)
    assert torch.allclose(weights.mass()[0], rendered.alpha)
    assert (weights.weights > 0).all()
    assert torch.equal(weights.matrix(transposed=True).to_dense(), weights.matrix().to_dense().T)


def test_within_a_pixel_they_come_front_to_back(view):
    scene, _, intrinsics, pose = view
    weights = compositing_weights(scene, intrinsics, pose, SIZE)
    depth = ((scene.means - pose[:3, 3]) @ pose[:3, :3])[weights.gaussians, 2]
    same_pixel = weights.pixels.diff() == 0
    assert same_pixel.sum() > 100
    assert (weights.pixels.diff() >= 0).all()
    assert (depth.diff()[same_pixel] >= 0).all()


def test_pooling_sums_over_the_cells_whose_pixels_centers_they_hold(view):
    scene, values, intrinsics, pose = view
    weights = compositing_weights(scene, intrinsics, pose, SIZE)
    image = (weights.matrix() @ values).T.view(7, *SIZE)
    for grid in ((13, 37), (5, 7), (1, 1), SIZE):
        pooled = weights.pooled(grid)
        row = ((torch.arange(SIZE[0]) + 0.5) / SIZE[0] * grid[0]).long()
        column = ((torch.arange(SIZE[1]) + 0.5) / SIZE[1] * grid[1]).long()
        expected = torch.zeros(7, grid[0], SIZE[1], dtype=image.dtype).index_add_(1, row, image)
        expected = torch.zeros(7, *grid, dtype=image.dtype).index_add_(2, column, expected)
        assert torch.allclose((pooled.matrix() @ values).T.view(7, *grid), expected)
        assert torch.allclose(pooled.seen(), weights.seen())
        assert torch.equal(pooled.areas, (row.bincount()[:, None] * column.bincount()).to(pooled.areas))
        key = pooled.pixels * len(scene) + pooled.gaussians
        assert (key.diff() > 0).all()  # one entry per cell and Gaussian


def test_a_view_of_nothing_has_no_entries(view):
    scene, values, intrinsics, pose = view
    pose = pose.clone()
    pose[2, 3] += 50
    weights = compositing_weights(scene, intrinsics, pose, SIZE).pooled((2, 3))
    assert len(weights.weights) == 0
    assert not (weights.matrix() @ values).any()
    assert not weights.seen().any()


@pytest.mark.parametrize("grid", [(27, 30), (10, 38), (0, 5)])
def test_a_grid_finer_than_the_image_is_refused(view, grid):
    scene, _, intrinsics, pose = view
    with pytest.raises(ValueError, match=rf"at most 26 x 37 cells, got {grid[0]} x {grid[1]}"):
        compositing_weights(scene, intrinsics, pose, SIZE).pooled(grid)


def test_several_views_at_once_are_refused(view):
    scene, _, intrinsics, pose = view
    with pytest.raises(ValueError, match=r"expected one view, world_from_camera \[4, 4\], got \[2, 4, 4\]"):
        compositing_weights(scene, intrinsics, pose.expand(2, 4, 4), SIZE)
