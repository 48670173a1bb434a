"""Token decoder, point network and the ablation head."""

import pytest
import torch
import torch.nn.functional as F

from prior3d.volume import DenseHead, RadianceMLP, TriplaneDecoder
from prior3d.volume.decoder import _at_cells, grid_encoding
from prior3d.volume.field import linear_tail_exp


def small_decoder(**options: int) -> TriplaneDecoder:
    torch.manual_seed(0)
    return TriplaneDecoder(**{"token_channels": 12, "width": 32, "blocks": 2, "heads": 4, "plane_size": 8} | options)


@pytest.mark.parametrize(("height", "width"), [(3, 4), (16, 16), (1, 1), (7, 5)])
def test_any_token_grid_gives_the_same_planes_shape(height: int, width: int) -> None:
    assert small_decoder(plane_channels=6)(torch.randn(2, 12, height, width)).shape == (2, 3, 6, 8, 8)


def test_default_size_is_four_and_a_half_million_parameters() -> None:
    assert sum(p.numel() for p in TriplaneDecoder(384).parameters()) == pytest.approx(4.54e6, rel=0.01)


def test_every_parameter_and_every_token_gets_a_gradient() -> None:
    decoder, tokens = small_decoder(), torch.randn(2, 12, 4, 5, requires_grad=True)
    decoder(tokens).square().sum().backward()
    # keys' biases shift all logits of a query alike: softmax does not see them
    assert [name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    assert (tokens.grad.abs().sum(dim=1) > 0).all()


def test_images_do_not_mix_and_token_order_matters() -> None:
    decoder, tokens = small_decoder().eval(), torch.randn(2, 12, 4, 5)
    planes = decoder(tokens)
    torch.testing.assert_close(decoder(tokens[1:])[0], planes[1])
    assert (decoder(tokens.flip(3)) - planes).abs().max() > 1e-3


def test_planes_hardly_depend_on_the_resolution_of_smooth_tokens() -> None:
    coarse = torch.randn(1, 12, 3, 3)
    decoder = small_decoder()
    low, high = (decoder(F.interpolate(coarse, size=(n, n), mode="bicubic", align_corners=False)) for n in (16, 32))
    other = decoder(F.interpolate(torch.randn(1, 12, 3, 3), size=(16, 16), mode="bicubic"))
    assert (low - high).norm() < 0.05 * (low - other).norm()


def test_queries_start_from_the_tokens_their_cells_project_to() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(2, 5, 4, 4)
    xy, xz, yz = _at_cells(tokens, 4).transpose(2, 3).unflatten(3, (4, 4)).unbind(1)
    torch.testing.assert_close(xy, tokens)
    for row, column in ((0, 1), (3, 2)):
        torch.testing.assert_close(xz[..., row, column], tokens[..., column].mean(-1))  # z, x: a column of the image
        torch.testing.assert_close(yz[..., row, column], tokens[..., column, :].mean(-1))  # z, y: a row of the image
    # finer tokens are averaged, none is skipped
    fine = torch.randn(2, 5, 12, 8)
    torch.testing.assert_close(
        _at_cells(fine, 4)[:, 0].transpose(1, 2).unflatten(2, (4, 4)), F.avg_pool2d(fine, (3, 2))
    )


def test_an_untrained_decoder_already_sees_the_image() -> None:
    decoder = small_decoder().eval()
    planes = decoder(torch.randn(2, 12, 4, 5))
    for plane in range(3):
        assert (planes[0, plane] - planes[1, plane]).norm() > 0.3 * planes[0, plane].norm()  # attention alone: 0.15


def test_encoding_tells_columns_from_rows_and_spans_the_image() -> None:
    codes = grid_encoding(2, 3, 8)
    assert codes.shape == (6, 8)
    torch.testing.assert_close(codes[0, :4], codes[3, :4])  # same column
    torch.testing.assert_close(codes[0, 4:], codes[2, 4:])  # same row
    assert codes.unique(dim=0).shape[0] == 6
    # the center cell of an odd grid is the image's center at any size
    torch.testing.assert_close(grid_encoding(3, 3, 8)[4], grid_encoding(5, 5, 8)[12])


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="expected an even plane_size, got 7"):
        small_decoder(plane_size=7)
    with pytest.raises(ValueError, match=r"expected a width that 4 and heads \(3\) divide, got 32"):
        small_decoder(heads=3)
    with pytest.raises(ValueError, match=r"expected tokens \[N, C, h, w\], got \[2, 20, 12\]"):
        small_decoder()(torch.zeros(2, 20, 12))


def test_initial_density_keeps_about_half_of_the_light() -> None:
    torch.manual_seed(0)
    density, rgb = RadianceMLP(24)(torch.randn(4, 100, 24))
    assert density.shape == (4, 100)
    assert rgb.shape == (4, 100, 3)
    assert 0.3 < torch.exp(-2 * density).mean() < 0.7
    assert (rgb > 0).all()
    assert (rgb < 1).all()


def test_an_untrained_field_already_tells_points_apart() -> None:
    torch.manual_seed(0)
    rgb = RadianceMLP(96)(0.5 * torch.randn(500, 96))[1]
    assert rgb.std(dim=0).min() > 0.02


def test_density_activations() -> None:
    features = torch.randn(5, 24, dtype=torch.float64)
    for kind, expected in (("softplus", F.softplus), ("exp", torch.exp)):
        field = RadianceMLP(24, density=kind, density_bias=-2.0).double()
        raw = field.network(features)[:, 0] - 2
        torch.testing.assert_close(field(features)[0], expected(raw))
    with pytest.raises(ValueError, match="expected density 'softplus' or 'exp', got 'relu'"):
        RadianceMLP(24, density="relu")


def test_linear_tail_exp_is_smooth_at_its_knee_and_never_overflows() -> None:
    x = torch.tensor([-3.0, 4.9999, 5.0001, 6.0, 1e4], dtype=torch.float64, requires_grad=True)
    y = linear_tail_exp(x)
    y.sum().backward()
    torch.testing.assert_close(y[:3], x[:3].exp(), rtol=1e-7, atol=0)
    torch.testing.assert_close(x.grad[:2], x[:2].exp())
    torch.testing.assert_close(y[4], torch.tensor(5.0).double().exp() * (1e4 - 4))
    torch.testing.assert_close(x.grad[2:], torch.full((3,), 5.0).double().exp())


def test_dense_head_gives_maps_between_the_planes() -> None:
    torch.manual_seed(0)
    head, tokens = DenseHead(12, width=16), torch.randn(2, 12, 3, 4, requires_grad=True)
    rgb, depth = head(tokens, 24, 32)
    assert rgb.shape == (2, 3, 24, 32)
    assert depth.shape == (2, 24, 32)
    assert ((depth > 1) & (depth < 3)).all()
    (rgb.square().mean() + depth.mean()).backward()
    assert all(p.grad.abs().sum() > 0 for p in head.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert {x.dtype for x in head(tokens, 24, 32)} == {torch.float32}
    with pytest.raises(ValueError, match="expected a width that 4 divides, got 6"):
        DenseHead(12, width=6)
    with pytest.raises(ValueError, match=r"expected 0 < near < far, got near 3.0 and far 1.0"):
        DenseHead(12, near=3.0, far=1.0)
