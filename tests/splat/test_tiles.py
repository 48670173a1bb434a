import torch

from prior3d.splat import tiles
from prior3d.splat.projection import project_gaussians
from prior3d.splat.tiles import intersect_tiles, tile_batches, tiles_to_image

SIZE = (27, 37)  # no multiple of any tile


def project(random_scene, camera, count=150):
    scene, _ = random_scene(count, 1)
    intrinsics, world_from_camera = camera(0.1)
    shape = (scene.means, scene.quaternions, scene.scales, scene.opacities)
    return project_gaussians(*shape, intrinsics, world_from_camera, SIZE)


def test_every_tile_lists_what_reaches_into_it_front_to_back(random_scene, camera):
    projection = project(random_scene, camera)
    for tile_size in (4, 8, 16):
        lists = intersect_tiles(projection, SIZE, tile_size)
        assert (lists.rows, lists.columns) == (-(-SIZE[0] // tile_size), -(-SIZE[1] // tile_size))
        for tile in range(lists.rows * lists.columns):
            low = torch.tensor([tile % lists.columns, tile // lists.columns]) * tile_size
            overlaps = ((projection.pixels + projection.radii) >= low).all(-1)
            overlaps &= ((projection.pixels - projection.radii) < low + tile_size).all(-1)
            expected = (overlaps & (projection.radii > 0).all(-1)).nonzero().flatten()
            expected = expected[projection.depths[expected].argsort()]
            assert torch.equal(lists.gaussians[lists.starts[tile] : lists.starts[tile + 1]], expected)


def test_equal_depths_keep_the_order_of_their_indices(random_scene, camera):
    projection = project(random_scene, camera)
    projection = projection._replace(depths=torch.ones_like(projection.depths))
    lists = intersect_tiles(projection, SIZE)
    for begin, end in zip(lists.starts[:-1], lists.starts[1:], strict=True):
        assert (lists.gaussians[begin:end].diff() > 0).all()


def test_batches_hold_every_list_once_within_their_size(random_scene, camera, monkeypatch):
    lists = intersect_tiles(project(random_scene, camera), SIZE)
    for limit in (1, 20_000, 1 << 22):
        monkeypatch.setattr(tiles, "BATCH_ELEMENTS", limit)
        seen = {}
        for batch in tile_batches(lists, channels=100):
            padded = batch.gaussians.numel()
            assert padded * 100 <= limit or len(batch.tiles) == 1
            assert batch.valid.sum() >= 0.7 * padded
            for tile, gaussians, valid in zip(*batch, strict=True):
                assert tile.item() not in seen
                seen[tile.item()] = gaussians[valid]
        assert set(seen) == set(lists.starts.diff().nonzero().flatten().tolist())
        for tile, gaussians in seen.items():
            assert torch.equal(gaussians, lists.gaussians[lists.starts[tile] : lists.starts[tile + 1]])


def test_nothing_visible_makes_no_batch(random_scene, camera):
    projection = project(random_scene, camera)
    lists = intersect_tiles(projection._replace(radii=torch.zeros_like(projection.radii)), SIZE)
    assert len(lists.gaussians) == 0
    assert list(tile_batches(lists, 3)) == []


def test_tiles_are_laid_out_row_by_row(random_scene, camera):
    lists = intersect_tiles(project(random_scene, camera), SIZE, 8)
    tile = torch.arange(lists.rows * lists.columns)[:, None, None].expand(-1, 64, 1)
    pixel = torch.arange(64)[None, :, None].expand(len(tile), -1, 1)
    image = tiles_to_image(torch.cat([tile, pixel], -1), lists, SIZE)
    assert image.shape == (2, *SIZE)
    assert image[:, 0, 0].tolist() == [0, 0]
    assert image[:, 10, 21].tolist() == [lists.columns + 2, 2 * 8 + 5]
