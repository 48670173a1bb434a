"""The blocks together: one image overfitted, bf16 training, pictures of a known volume."""

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prior3d.losses import in_file_space, scale_and_shift_invariant_loss
from prior3d.volume import (
    CubeSpace,
    DenseHead,
    FrustumSpace,
    RadianceMLP,
    Space,
    TriplaneDecoder,
    orbit_pose,
    pixel_positions,
    plane_energy,
    random_pixels,
    read_pixels,
    render_planes,
    render_view,
)

SIZE = 64


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    # hundreds of small steps: on busy cores two threads spend most of the time waiting for each other
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def disc_before_background() -> tuple[Tensor, Tensor]:
    """RGB [1, 3, H, W] and depth [1, H, W] of a disc in front of a slanted wall, none of it centered."""
    y, x = torch.meshgrid(*2 * [(torch.arange(SIZE) + 0.5) / SIZE * 2 - 1], indexing="ij")
    disc = (x - 0.1) ** 2 + (y + 0.1) ** 2 < 0.45**2
    front = torch.stack([0.9 + 0 * x, 0.3 + 0.3 * x, 0.2 + 0 * x])
    wall = torch.stack([0.2 + 0 * x, 0.4 + 0.2 * y, 0.7 + 0.2 * x])
    return torch.where(disc, front, wall)[None], torch.where(disc, 1.4 + 0 * x, 2.5 + 0.2 * y)[None]


class Model(nn.Module):
    """Learnable tokens, decoder and field of the small demo."""

    def __init__(self, images: int = 1) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(images, 64, 16, 16) / 2)
        self.decoder = TriplaneDecoder(64, width=128, blocks=2, plane_size=16)
        self.field = RadianceMLP(96)

    def loss(self, space: Space, rgb: Tensor, file: Tensor, kind: Tensor) -> Tensor:
        planes = self.decoder(self.tokens)
        indices = random_pixels(len(rgb), 256, SIZE, SIZE, device=rgb.device)
        rays = space.samples(pixel_positions(indices, SIZE, SIZE), 16, jitter=True)
        out = render_planes(planes, self.field, rays)
        prediction = in_file_space(out.depth, out.inverse_depth, kind)
        mask = torch.ones_like(prediction, dtype=torch.bool)
        depth_loss = scale_and_shift_invariant_loss(prediction, read_pixels(file, indices), mask)
        return F.smooth_l1_loss(out.values, read_pixels(rgb, indices)) + 0.5 * depth_loss


def correlation(a: Tensor, b: Tensor) -> float:
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()


@pytest.mark.parametrize(("space", "kind"), [(FrustumSpace(), 1), (CubeSpace(), 0)])
def test_one_image_is_overfitted(space: Space, kind: int) -> None:
    torch.manual_seed(0)
    rgb, depth = disc_before_background()
    file = 900 / depth - 40 if kind else 30 * depth + 5  # in a unit of its own
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(80):
        optimizer.zero_grad()
        model.loss(space, rgb, file, torch.tensor([kind])).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        planes = model.decoder(model.tokens)
    picture, rendered, opacity = render_view(planes, model.field, space, SIZE, SIZE, 32)
    assert correlation(rendered, depth) > 0.9
    assert F.mse_loss(picture, rgb) < 10**-1.6
    assert ((opacity >= 0) & (opacity <= 1)).all()
    assert (plane_energy(planes, centered=True) > 0.01).all()


def test_dense_head_overfits_the_same_image() -> None:
    torch.manual_seed(0)
    rgb, depth = disc_before_background()
    tokens, head = nn.Parameter(torch.randn(1, 64, 16, 16) / 2), DenseHead(64, width=32)
    optimizer = torch.optim.AdamW([tokens, *head.parameters()], lr=3e-3)
    mask = torch.ones_like(depth, dtype=torch.bool)
    for _ in range(60):
        picture, predicted = head(tokens, SIZE, SIZE)
        loss = F.smooth_l1_loss(picture, rgb)
        loss = loss + scale_and_shift_invariant_loss(1 / predicted, 900 / depth, mask, gradient_weight=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert correlation(predicted, depth) > 0.9


def test_bf16_training_stays_finite_with_the_renderer_in_float32() -> None:
    torch.manual_seed(0)
    rgb, depth = disc_before_background()
    rgb, depth = rgb.expand(2, -1, -1, -1), depth.expand(2, -1, -1)
    model, kind = Model(images=2), torch.tensor([0, 1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(10):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert model.decoder(model.tokens).dtype == torch.bfloat16
            loss = model.loss(FrustumSpace(), rgb, depth, kind)
        assert loss.dtype == torch.float32
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in model.parameters())
        optimizer.step()
        assert loss.isfinite()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_bf16_step_on_the_gpu_is_finite_and_does_not_wait_for_it() -> None:
    torch.manual_seed(0)
    rgb, depth = (x.cuda() for x in disc_before_background())
    model, kind = Model().cuda(), torch.tensor([1], device="cuda")
    for step in range(3):  # the first step allocates and chooses kernels
        torch.cuda.set_sync_debug_mode("error" if step else "default")
        try:
            with torch.autocast("cuda", dtype=torch.bfloat16):
                loss = model.loss(FrustumSpace(), rgb, depth, kind)
            loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all(p.grad.isfinite().all() for p in model.parameters())


class Ball(nn.Module):
    """Opaque ball of radius 0.25 in the fixed camera's frame, read off planes that hold their own coordinates."""

    def __init__(self, space: Space, center: Tensor) -> None:
        super().__init__()
        self.space, self.center = space, center

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        x, y, z = features[..., 0], features[..., 1], features[..., 3]  # XY holds x, y; XZ holds x, z
        if isinstance(self.space, CubeSpace):
            points = torch.stack([x, y, z + self.space.radius], dim=-1)
        else:
            depth = 1 / (1 + (z + 1) / 2 * (1 / 3 - 1))
            tangent = math.tan(math.radians(25))
            points = torch.stack([x * tangent * depth, y * tangent * depth, depth], dim=-1)
        return 200.0 * ((points - self.center).norm(dim=-1) < 0.25), torch.ones_like(points)


@pytest.mark.parametrize(("space", "center"), [(FrustumSpace(), (0.2, -0.1, 1.8)), (CubeSpace(), (0.2, -0.1, 4.7))])
@pytest.mark.parametrize("angles", [(0, 0), (8, 0), (0, 8), (-6, 5)])
def test_a_ball_is_seen_where_it_projects_to(
    space: Space, center: tuple[float, float, float], angles: tuple[float, float]
) -> None:
    size = 64
    middle = (2 * torch.arange(size) + 1) / size - 1
    row, column = torch.meshgrid(middle, middle, indexing="ij")
    planes = torch.stack([column, row]).expand(1, 3, -1, -1, -1)
    ball = Ball(space, torch.tensor(center))
    pose = orbit_pose(*angles, pivot_depth=(space.near + space.far) / 2)
    _, depth, opacity = render_view(planes, ball, space, 64, 64, 96, canonical_from_camera=pose, chunk=1000)
    x, y, z, _ = (torch.linalg.inv(pose) @ torch.tensor([*center, 1.0])).tolist()
    half_width, half_height = space.half_extents(1.0)
    seen = opacity[0] > 0.5
    # the outline of a ball off the axis is not quite centered on its center's image: two pixels of 64
    assert column[seen].mean().item() == pytest.approx(x / z / half_width, abs=0.04)
    assert row[seen].mean().item() == pytest.approx(y / z / half_height, abs=0.04)
    assert depth[0][seen].min().item() == pytest.approx(z - 0.25, abs=0.05)


def test_field_and_renderer_run_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    planes, field = torch.randn(1, 3, 8, 8, 8), RadianceMLP(24)
    rays = FrustumSpace().samples(pixel_positions(torch.arange(16)[None], 4, 4), 8)
    expected = render_planes(planes, field, rays)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = render_planes(planes, field, rays)
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


def test_the_field_runs_without_reduced_matrix_products_and_leaves_the_setting_alone() -> None:
    seen = []

    class Watched(RadianceMLP):
        def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
            seen.append(torch.get_float32_matmul_precision())
            return super().forward(features)

    rays = FrustumSpace().samples(pixel_positions(torch.arange(16)[None], 4, 4), 8)
    torch.set_float32_matmul_precision("medium")
    try:
        render_planes(torch.randn(1, 3, 8, 8, 8), Watched(24), rays)
        assert (seen, torch.get_float32_matmul_precision()) == (["highest"], "medium")
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("space", [FrustumSpace(), CubeSpace()])
def test_nothing_outside_the_box_stops_light(space: Space) -> None:
    planes, field = torch.zeros(1, 3, 8, 4, 4), RadianceMLP(24, density_bias=50.0)  # density 50 everywhere
    pivot_depth = (space.near + space.far) / 2
    views = [
        render_view(planes, field, space, 16, 16, 64, canonical_from_camera=orbit_pose(angle, 0, pivot_depth))
        for angle in (0, 40)
    ]
    assert views[0][2].min() > 0.99
    # seen from the side, the box covers a part of the picture, and rays beside it reach the far end
    opacity, depth = views[1][2], views[1][1]
    assert opacity.max() > 0.99
    if isinstance(space, FrustumSpace):
        assert opacity.min() == 0
        assert depth[opacity == 0].unique().numel() == 1
    beyond = space.samples(torch.tensor([[[0.0, 0.0]]]), 64, canonical_from_camera=orbit_pose(40, 0, pivot_depth))
    out = render_planes(planes, field, beyond)
    assert out.weights[~beyond.inside].abs().max() == 0
    assert (~beyond.inside).any()
