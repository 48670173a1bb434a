"""The gsplat engine's operators: against a double with the signatures and layouts of gsplat 1.5.3, and on a GPU."""

import sys
import types

import pytest
import torch

from prior3d.splat import Gaussians, lift_average, render_scenes, view_operator
from prior3d.splat.projection import project_gaussians
from prior3d_plugins.engines.splat_gsplat import CHANNEL_CHUNK, GsplatViews, SplatGsplat

SIZE = (24, 40)
GRIDS = [None, (6, 10), (5, 7)]
calls: list[str] = []


def fully_fused_projection(
    means,  # [N, 3]
    covars,
    quats,  # [N, 4]
    scales,  # [N, 3]
    viewmats,  # [C, 4, 4]
    Ks,  # [C, 3, 3]
    width,
    height,
    eps2d=0.3,
    near_plane=0.01,
    far_plane=1e10,
    radius_clip=0.0,
    packed=False,
    sparse_grad=False,
    calc_compensations=False,
    camera_model="pinhole",
    opacities=None,  # [N]
):
    assert covars is None and eps2d == 0.3 and near_plane == 0.01 and opacities.shape == means.shape[:1]
    assert viewmats.shape == (len(Ks), 4, 4) and Ks.shape[1:] == (3, 3)
    calls.append("project")
    views = []
    for viewmat, camera in zip(viewmats, Ks, strict=True):
        shape = means, quats, scales, opacities, camera, torch.linalg.inv(viewmat), (height, width)
        found = project_gaussians(*shape)
        hidden = (found.radii <= 0).any(-1)
        blank = [
            torch.where(hidden.view(-1, *[1] * (part.ndim - 1)), torch.nan, part)  # gsplat leaves these as they were
            for part in (found.pixels, found.depths, found.conics)
        ]
        views.append((found.radii.ceil().int(), *blank))
    return *(torch.stack(parts) for parts in zip(*views, strict=True)), None


def isect_tiles(
    means2d,  # [nnz, 2]
    radii,  # [nnz, 2]
    depths,  # [nnz]
    tile_size,
    tile_width,
    tile_height,
    sort=True,
    segmented=False,
    packed=False,
    n_images=None,
    image_ids=None,
    gaussian_ids=None,
):
    assert packed and sort and means2d.shape == radii.shape == (len(depths), 2) and radii.dtype == torch.int32
    assert image_ids.dtype == gaussian_ids.dtype == torch.int64 and image_ids.shape == gaussian_ids.shape
    assert int(image_ids.max()) < n_images
    calls.append("sort")
    found = []
    for row in (radii > 0).all(1).nonzero()[:, 0].tolist():
        low = ((means2d[row] - radii[row]) / tile_size).floor().clamp(min=0).int().tolist()
        high = ((means2d[row] + radii[row]) / tile_size).ceil().int().tolist()
        for y in range(low[1], min(high[1], tile_height)):
            for x in range(low[0], min(high[0], tile_width)):
                tile = int(image_ids[row]) * tile_width * tile_height + y * tile_width + x
                found.append((tile, float(depths[row]), row))
    found.sort()
    keys, rows = (torch.tensor([each[place] for each in found]) for place in (0, 2))
    return None, keys.long(), rows.int()


def isect_offset_encode(isect_ids, n_images, tile_width, tile_height):
    tiles = torch.arange(n_images * tile_height * tile_width)
    return torch.searchsorted(isect_ids, tiles).int().view(n_images, tile_height, tile_width)


def rasterize_to_pixels(
    means2d,  # [nnz, 2]
    conics,  # [nnz, 3]
    colors,  # [nnz, channels]
    opacities,  # [nnz]
    image_width,
    image_height,
    tile_size,
    isect_offsets,  # [I, tile_height, tile_width]
    flatten_ids,  # [n_isects]
    backgrounds=None,
    masks=None,
    packed=False,
    absgrad=False,
):
    rows = len(means2d)
    assert packed and means2d.shape == (rows, 2) and conics.shape == (rows, 3) and opacities.shape == (rows,)
    assert len(colors) == rows and 0 < colors.shape[1] <= CHANNEL_CHUNK
    assert flatten_ids.dtype == isect_offsets.dtype == torch.int32
    calls.append("rasterize")
    images, down, across = isect_offsets.shape
    ends = torch.cat([isect_offsets.flatten()[1:], torch.tensor([len(flatten_ids)], dtype=torch.int32)])
    image = colors.new_zeros(images, down * tile_size, across * tile_size, colors.shape[1])
    within = torch.arange(tile_size, dtype=means2d.dtype) + 0.5
    for tile, (start, end) in enumerate(zip(isect_offsets.flatten().tolist(), ends.tolist(), strict=True)):
        view, (y, x) = tile // (down * across), divmod(tile % (down * across), across)
        part = flatten_ids[start:end].long()
        dy = within[:, None, None] + y * tile_size - means2d[part, 1]
        dx = within[None, :, None] + x * tile_size - means2d[part, 0]
        xx, xy, yy = conics[part].unbind(-1)
        alpha = (opacities[part] * (-0.5 * (xx * dx * dx + yy * dy * dy) - xy * dx * dy).exp()).clamp(max=0.999)
        alpha = torch.where(alpha >= 1 / 255, alpha, 0.0)
        behind = (1 - alpha).cumprod(-1)
        weights = alpha * torch.cat([torch.ones_like(behind[..., :1]), behind[..., :-1]], -1) * (behind > 1e-4)
        across_tile = slice(x * tile_size, (x + 1) * tile_size)
        image[view, y * tile_size : (y + 1) * tile_size, across_tile] = weights @ colors[part]
    return image[:, :image_height, :image_width], None


@pytest.fixture
def double(monkeypatch):
    """A module `gsplat` of the functions above; it counts their calls."""
    module = types.ModuleType("gsplat")
    for function in (fully_fused_projection, isect_tiles, isect_offset_encode, rasterize_to_pixels):
        setattr(module, function.__name__, function)
    monkeypatch.setitem(sys.modules, "gsplat", module)
    calls.clear()


def cameras(camera, views, start=0.0):
    return tuple(torch.stack(part) for part in zip(*(camera(start + 0.15 * v) for v in range(views)), strict=True))


@pytest.mark.parametrize("grid", GRIDS)
def test_views_are_the_matrix_and_its_transpose_after_one_sort(random_scene, camera, double, grid):
    scene, values = random_scene(40, CHANNEL_CHUNK + 3)
    wanted = view_operator(scene, *cameras(camera, 3), SIZE, grid)
    found = GsplatViews(scene, *cameras(camera, 3), SIZE, grid)
    maps = torch.randn(3, CHANNEL_CHUNK + 2, *wanted.size, generator=torch.Generator().manual_seed(0)).double()
    assert (found.views, found.count, found.size) == (3, 40, wanted.size) and torch.equal(found.areas, wanted.areas)
    for one, other in (
        (found.render(values), wanted.render(values)),
        (found.gather(maps), wanted.gather(maps)),
        (found.seen(), wanted.seen()),
        (found.mass(), wanted.mass()),
    ):
        assert other.abs().sum() > 1
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    assert calls == ["project", "sort", *["rasterize"] * 6]  # two chunks of channels, there and back


@pytest.mark.parametrize("grid", GRIDS)
def test_views_of_scenes_of_any_size_are_rendered_in_one_call(random_scene, camera, double, grid):
    scenes, values = zip(*(random_scene(count, 5, seed=count) for count in (40, 15, 25)), strict=True)
    views = [2, 1, 3]
    intrinsics, poses = cameras(camera, 6, start=-0.2)
    wanted = render_scenes(scenes, values, views, intrinsics, poses, SIZE, grid)
    found = SplatGsplat().render_scenes(scenes, values, views, intrinsics, poses, SIZE, grid)
    assert wanted.abs().sum((1, 2, 3)).min() > 1
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    assert calls == ["project"] * 3 + ["sort", "rasterize"]
    single = []
    for scene, columns, own in zip(scenes, values, torch.arange(6).split(views), strict=True):
        single += [view_operator(scene, intrinsics[v], poses[v], SIZE, grid).render(columns) for v in own]
    assert torch.equal(wanted, torch.cat(single))  # by the torch engine: one by one, to the last bit


def test_views_of_nothing_are_empty(random_scene, camera, double):
    scene, values = random_scene(20, 3)
    intrinsics, pose = camera()
    pose[2, 3] += 50
    found = GsplatViews(scene, intrinsics[None], pose[None], SIZE, (6, 10))
    assert not found.render(values).any() and not found.seen().any()
    assert not found.gather(torch.ones(1, 3, 6, 10)).any()


def test_scenes_that_do_not_fit_are_refused(random_scene, camera):
    scene, values = random_scene(5, 3)
    intrinsics, poses = cameras(camera, 2)
    for views in ([1, 2], [2, 0], [2]):
        with pytest.raises(ValueError, match=r"a pose for each view, got 2 scenes, 2 values, views .*, 2 poses"):
            render_scenes([scene] * 2, [values] * 2, views, intrinsics, poses, SIZE)
    with pytest.raises(ValueError, match=r"expected values \[5, C\] with C > 0, got \[4, 3\]"):
        render_scenes([scene], [values[:4]], [2], intrinsics, poses, SIZE)


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@pytest.fixture
def on_gpu(random_scene, camera):
    """Scenes, values, views per scene and cameras on the GPU, float32."""
    pytest.importorskip("gsplat")
    made = [random_scene(count, CHANNEL_CHUNK + 7, seed=count) for count in (300, 120, 200)]
    scenes: list[Gaussians] = [scene.to(torch.float32).to("cuda") for scene, _ in made]
    intrinsics, poses = (part.float().cuda() for part in cameras(camera, 6, start=-0.2))
    return scenes, [values.float().cuda() for _, values in made], [2, 1, 3], intrinsics, poses


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("grid", GRIDS)
def test_gsplat_renders_scenes_together_as_one_by_one(on_gpu, grid):
    found = render_scenes(*on_gpu, SIZE, grid, engine="gsplat")
    wanted = render_scenes(*on_gpu, SIZE, grid, engine="torch")
    assert (found - wanted).norm() < 2e-3 * wanted.norm()
    scenes, values, views, intrinsics, poses = on_gpu
    start = 0
    for scene, columns, count in zip(scenes, values, views, strict=True):
        here = slice(start, start := start + count)
        alone = view_operator(scene, intrinsics[here], poses[here], SIZE, grid, engine="gsplat").render(columns)
        torch.testing.assert_close(found[here], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@gpu
def test_gsplat_lifts_many_views_at_once_as_one_by_one(on_gpu):
    scenes, _, _, intrinsics, poses = on_gpu
    maps = torch.randn(6, CHANNEL_CHUNK + 9, 6, 10, device="cuda")
    lifted = {}
    for at_once in (1, 4, 6):
        views = (part.split(at_once) for part in (intrinsics, poses, maps))
        lifted[at_once] = lift_average(
            (view_operator(scenes[0], *camera, SIZE, (6, 10), engine="gsplat"), part)
            for *camera, part in zip(*views, strict=True)
        )
    for found in (lifted[4], lifted[6]):
        torch.testing.assert_close(found.features, lifted[1].features, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found.mass, lifted[1].mass, rtol=1e-4, atol=1e-4)
        assert (found.views != lifted[1].views).float().mean() < 0.01


@pytest.mark.gpu
@gpu
def test_gsplat_waits_once_for_all_scenes_and_once_for_an_operator(on_gpu, count_waits):
    scenes, values, _, intrinsics, poses = on_gpu
    render_scenes(*on_gpu, SIZE, (6, 10), engine="gsplat")  # loads the kernels
    assert count_waits(lambda: render_scenes(*on_gpu, SIZE, (6, 10), engine="gsplat")) == (0, 1)
    arguments = scenes[0], intrinsics, poses, SIZE, (6, 10)
    assert count_waits(lambda: view_operator(*arguments, engine="gsplat")) == (0, 1)
    made, maps = view_operator(*arguments, engine="gsplat"), torch.randn(6, 40, 6, 10, device="cuda")
    assert count_waits(lambda: (made.render(values[0]), made.gather(maps), made.seen())) == (0, 0)
