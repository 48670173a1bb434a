import pytest
import torch

from prior3d.errors import UserError
from prior3d.splat import Gaussians, rasterize, tiles

SIZE = (25, 35)
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def leaves_of(scene, values):
    tensors = (scene.means, scene.quaternions, scene.scales, scene.opacities, values)
    return [tensor.clone().requires_grad_() for tensor in tensors]


def gradients(render, scene, values, weights):
    """Gradients of a weighted sum of everything rendered, in means, quaternions, scales, opacities and values."""
    leaves = leaves_of(scene, values)
    outputs = render(Gaussians(*leaves[:4]), leaves[4])
    return torch.autograd.grad(sum((o * w).sum() for o, w in zip(outputs, weights, strict=True)), leaves)


def facing(depth_m, opacities):
    """Balls one behind the other on the optical axis of an identity pose that looks at a pixel's center."""
    count = len(depth_m)
    means = torch.zeros(count, 3, dtype=torch.float64)
    means[:, 2] = torch.tensor(depth_m)
    quaternions = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64).repeat(count, 1)
    opacities = torch.tensor(opacities, dtype=torch.float64)
    scene = Gaussians(means, quaternions, torch.full((count, 3), 0.05, dtype=torch.float64), opacities)
    intrinsics = torch.tensor([[20.0, 0, 4.5], [0, 20, 3.5], [0, 0, 1]], dtype=torch.float64)
    return scene, intrinsics, torch.eye(4, dtype=torch.float64)


@pytest.mark.parametrize(("channels", "dtype"), [(3, torch.float64), (64, torch.float64), (64, torch.float32)])
def test_values_and_gradients_equal_a_sum_over_all_gaussians_in_every_pixel(
    brute_force, random_scene, camera, channels, dtype
):
    scene, values = random_scene(80, channels)
    intrinsics, pose = camera(0.2)
    expected = brute_force(scene, values, intrinsics, pose, SIZE)
    rendered = rasterize(scene.to(dtype), values.to(dtype), intrinsics, pose, SIZE)
    tolerance = 1e-10 if dtype == torch.float64 else 2e-4
    assert rendered.alpha.dtype == dtype
    assert 0.3 < rendered.alpha.mean() < 0.99
    for name, want, got in zip(rendered._fields, expected, rendered, strict=True):
        assert torch.allclose(got.double(), want, atol=tolerance, rtol=tolerance), name

    draw = torch.Generator().manual_seed(0)
    weights = [torch.randn(want.shape, generator=draw, dtype=torch.float64) for want in expected]
    wanted = gradients(lambda g, v: brute_force(g, v, intrinsics, pose, SIZE), scene, values, weights)
    found = gradients(
        lambda g, v: rasterize(g, v, intrinsics, pose, SIZE),
        scene.to(dtype),
        values.to(dtype),
        [w.to(dtype) for w in weights],
    )
    for name, want, got in zip(("means", "quaternions", "scales", "opacities", "values"), wanted, found, strict=True):
        assert want.abs().max() > 0.1, name
        relative = (got.double() - want).norm() / want.norm()
        assert relative < (1e-9 if dtype == torch.float64 else 2e-3), (name, relative)


def test_gradcheck(random_scene, camera):
    scene, values = random_scene(5, 2, seed=3)
    scene = Gaussians(scene.means, scene.quaternions, scene.scales * 2, scene.opacities)
    background = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)

    def render(means, quaternions, scales, opacities, values, background):
        gaussians = Gaussians(means, quaternions, scales, opacities)
        return tuple(rasterize(gaussians, values, *camera(0.1), (9, 11), background=background))

    # a small step: alpha jumps where it crosses 1/255, and no pixel is within 1e-7 of that here
    leaves = (*leaves_of(scene, values), background)
    assert torch.autograd.gradcheck(render, leaves, eps=1e-7, atol=1e-4)


def test_two_layers_in_closed_form():
    scene, intrinsics, pose = facing([2.0, 3.0], [0.6, 0.7])
    values = torch.tensor([[1.0, 0], [0, 1]], dtype=torch.float64)
    background = torch.tensor([10.0, 20], dtype=torch.float64)
    image, depth, alpha = rasterize(scene, values, intrinsics, pose, (8, 9), background=background)
    weights = torch.tensor([0.6, 0.4 * 0.7], dtype=torch.float64)
    assert torch.allclose(image[:, 3, 4], weights + 0.12 * background)
    assert torch.allclose(alpha[3, 4], weights.sum())
    assert torch.allclose(depth[3, 4], (weights * torch.tensor([2.0, 3.0])).sum() / weights.sum())
    swapped = rasterize(scene[torch.tensor([1, 0])], values.flip(0), intrinsics, pose, (8, 9), background=background)
    assert torch.equal(swapped.values, image)


def test_alpha_is_clamped_and_a_pixel_ends_before_its_transmittance_is_used_up():
    scene, intrinsics, pose = facing([1.0, 2.0, 3.0], [1.0, 0.89, 0.5])
    image, _, alpha = rasterize(scene, torch.eye(3), intrinsics, pose, (8, 9))
    # 0.999, then 1e-3 * 0.89 leaves 1.1e-4, then half of that would leave less than 1e-4: not drawn
    assert torch.allclose(image[:, 3, 4], torch.tensor([0.999, 0.00089, 0], dtype=torch.float64))
    assert torch.allclose(alpha[3, 4], torch.tensor(0.99989, dtype=torch.float64))


def test_views_are_rendered_as_if_alone(random_scene, camera):
    scene, values = random_scene(40, 3)
    intrinsics, poses = zip(camera(0.0), camera(0.4), strict=True)
    together = rasterize(scene, values, torch.stack(intrinsics), torch.stack(poses), SIZE)
    assert together.values.shape == (2, 3, *SIZE)
    assert together.depth.shape == together.alpha.shape == (2, *SIZE)
    shared = rasterize(scene, values, intrinsics[0], torch.stack(poses), SIZE)
    for view in range(2):
        alone = rasterize(scene, values, intrinsics[view], poses[view], SIZE)
        for name in alone._fields:
            assert torch.equal(getattr(together, name)[view], getattr(alone, name))
            assert torch.equal(getattr(shared, name)[view], getattr(alone, name))


def test_nothing_in_view_is_background_with_zero_gradients(random_scene, camera):
    scene, values = random_scene(10, 2)
    intrinsics, pose = camera()
    pose[:3, 3] += torch.tensor([0, 0, 50.0])
    leaves = leaves_of(scene, values)
    background = torch.tensor([0.25, 0.5], dtype=torch.float64)
    image, depth, alpha = rasterize(Gaussians(*leaves[:4]), leaves[4], intrinsics, pose, SIZE, background=background)
    assert torch.equal(image, background[:, None, None].expand_as(image))
    assert not depth.any() and not alpha.any()
    (image.sum() + depth.sum()).backward()
    assert all(not leaf.grad.any() for leaf in leaves)


def test_the_size_of_a_batch_changes_nothing(random_scene, camera, monkeypatch):
    scene, values = random_scene(60, 5)
    render = lambda g, v: rasterize(g, v, *camera(), SIZE)  # noqa: E731
    weights = [torch.randn(out.shape, dtype=torch.float64) for out in render(scene, values)]
    images, grads = render(scene, values), gradients(render, scene, values, weights)
    monkeypatch.setattr(tiles, "BATCH_ELEMENTS", 1)
    assert all(torch.allclose(a, b, atol=1e-13) for a, b in zip(images, render(scene, values), strict=True))
    again = gradients(render, scene, values, weights)
    assert all(torch.allclose(a, b, atol=1e-11) for a, b in zip(grads, again, strict=True))


def test_autocast_and_half_precision_values_do_not_touch_geometry(random_scene, camera):
    scene, values = random_scene(60, 4)
    scene, values = scene.to(torch.float32), values.bfloat16()
    plain = rasterize(scene, values.float(), *camera(), SIZE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = rasterize(scene, values, *camera(), SIZE)
    for name in plain._fields:
        assert getattr(inside, name).dtype == torch.float32
        assert torch.equal(getattr(inside, name), getattr(plain, name))


@pytest.mark.parametrize(("switch", "reduced"), [("allow_tf32", True), ("fp32_precision", "tf32")])
def test_the_precision_of_matrix_products_is_put_back_however_it_was_set(random_scene, camera, switch, reduced):
    scene, values = random_scene(5, 1)
    matmul = torch.backends.cuda.matmul
    if not hasattr(matmul, switch):
        pytest.skip(f"this PyTorch has no {switch}")
    before = getattr(matmul, switch)
    try:
        setattr(matmul, switch, reduced)
        rasterize(scene, values, *camera(), SIZE)
        assert getattr(matmul, switch) == reduced
    finally:
        setattr(matmul, switch, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": torch.zeros(4, 3)}, r"expected values \[5, C\] with C > 0, got \[4, 3\]"),
        ({"values": torch.zeros(5, 0)}, r"expected values \[5, C\] with C > 0, got \[5, 0\]"),
        ({"world_from_camera": torch.eye(3)}, r"expected world_from_camera .* got \[3, 3\]"),
        ({"intrinsics": torch.zeros(2, 3, 3)}, r"expected intrinsics \[3, 3\] or \[3, 3\], got \[2, 3, 3\]"),
        ({"background": torch.zeros(3)}, r"expected background \[1\], got \[3\]"),
    ],
)
def test_what_does_not_fit_is_named(random_scene, camera, change, message):
    scene, values = random_scene(5, 1)
    intrinsics, pose = camera()
    given = {"values": values, "intrinsics": intrinsics, "world_from_camera": pose} | change
    with pytest.raises(ValueError, match=message):
        rasterize(scene, size=SIZE, **given)


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("opengl", r"^engine: unknown splat engine 'opengl' \(there are: auto, gsplat, torch\)"),
        ("gslat", r"unknown splat engine 'gslat', did you mean 'gsplat'\?"),
        ("gsplat", r"^engine: splat engine 'gsplat' cannot run here: gsplat runs on CUDA devices, not on cpu: install"),
    ],
)
def test_an_engine_that_cannot_be_had_is_named(random_scene, camera, engine, message):
    with pytest.raises(UserError, match=message):
        rasterize(*random_scene(5, 1), *camera(), SIZE, engine=engine)


def test_auto_is_the_reference_on_a_cpu(random_scene, camera):
    scene, values = random_scene(40, 3)
    outputs = [rasterize(scene, values, *camera(), SIZE, engine=engine) for engine in ("auto", "torch", "splat/torch")]
    for other in outputs[1:]:
        assert all(torch.equal(*pair) for pair in zip(outputs[0], other, strict=True))


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("channels", [3, 64])
def test_torch_engine_on_cuda_equals_itself_on_cpu(random_scene, camera, channels):
    scene, values = random_scene(200, channels)
    intrinsics, pose = camera(0.2)
    expected = rasterize(scene, values, intrinsics, pose, SIZE)
    weights = [torch.randn_like(out) for out in expected]
    wanted = gradients(lambda g, v: rasterize(g, v, intrinsics, pose, SIZE), scene, values, weights)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")  # TF32 everywhere else
        on_gpu, moved = scene.to(torch.float32).to("cuda"), values.float().cuda()
        rendered = rasterize(on_gpu, moved, intrinsics.cuda(), pose.cuda(), SIZE)
        render = lambda g, v: rasterize(g, v, intrinsics.cuda(), pose.cuda(), SIZE)  # noqa: E731
        found = gradients(render, on_gpu, moved, [w.float().cuda() for w in weights])
    finally:
        torch.set_float32_matmul_precision(before)
    for want, got in zip(expected, rendered, strict=True):
        assert torch.allclose(got.cpu().double(), want, atol=2e-4, rtol=2e-4)
    for want, got in zip(wanted, found, strict=True):
        assert (got.cpu().double() - want).norm() < 2e-3 * want.norm()


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("channels", [3, 64, 70])
def test_gsplat_equals_the_reference_in_values_and_gradients(random_scene, camera, channels):
    pytest.importorskip("gsplat")
    scene, values = random_scene(200, channels)
    scene, values = scene.to(torch.float32).to("cuda"), values.float().cuda()
    intrinsics, poses = zip(camera(0.0), camera(0.4), strict=True)
    pose = (torch.stack(intrinsics).cuda(), torch.stack(poses).cuda())
    background = torch.linspace(-1, 1, channels, device="cuda")
    outputs = [rasterize(scene, values, *pose, SIZE, engine=e, background=background) for e in ("torch", "gsplat")]
    for want, got in zip(*outputs, strict=True):
        assert torch.allclose(got, want, atol=1e-3, rtol=1e-3)
    weights = [torch.randn_like(out) for out in outputs[0]]
    weights[1] = weights[1] * (outputs[0].alpha > 0.05)  # expected depth divides by alpha
    grads = [
        gradients(
            lambda g, v, e=e: rasterize(g, v, *pose, SIZE, engine=e, background=background), scene, values, weights
        )
        for e in ("torch", "gsplat")
    ]
    for want, got in zip(*grads, strict=True):
        assert (got - want).norm() < 1e-2 * want.norm()
