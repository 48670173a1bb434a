"""Shared-basis PCA and matched k-means of several models, against closed forms, scikit-learn and scipy."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment
from sklearn.decomposition import PCA
from torch import nn
from torch.nn import functional as F

from prior3d.backbone import Backbone
from prior3d.backbone.weights import load_encoder, read_weights
from prior3d.errors import UserError
from prior3d.evaluation.pictures import write_pictures
from prior3d.probes.models import FrozenModel
from prior3d.probes.pictures import (
    assign,
    fit_matched_clusters,
    fit_shared_axes,
    plot_clusters,
    plot_pca,
)
from prior3d.probes.pictures.matched_clusters import _overlaps


class Planted(nn.Module):
    """Smooth nonlinear features of the colors of cells, moved by a matrix [C, 8] and an offset."""

    def __init__(self, matrix=None, offset=0.0, stride=8, noise=0.0, size=(64, 96)):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(8, 3, generator=draw) * 2)
        self.matrix = nn.Parameter(torch.eye(8) if matrix is None else matrix)
        self.offset, self.stride, self.noise, self.size = offset, stride, noise, size
        self.encoder = SimpleNamespace(name="planted")
        self.spec = SimpleNamespace(encoder_channels={stride: len(self.matrix)})

    def forward(self, images, reads):
        cells = F.avg_pool2d(images, self.stride)
        hidden = torch.einsum("cd,ndhw->nchw", self.first, cells).sin()
        features = torch.einsum("cd,ndhw->nchw", self.matrix, hidden) + self.offset
        if self.noise:
            draw = torch.Generator().manual_seed(1)
            extra = self.noise * torch.randn(len(images), 40, *features.shape[-2:], generator=draw)
            features = torch.cat([features, extra], 1)
        return SimpleNamespace(dense=features, encoder={self.stride: features})


def model(*arguments, **options):
    return FrozenModel([Planted(*arguments, **options).eval()])


def rotation(channels, seed=3):
    return torch.linalg.qr(torch.randn(channels, channels, generator=torch.Generator().manual_seed(seed)))[0]


def smooth_images(count=2, size=(64, 96), seed=5):
    coarse = torch.rand(count, 3, 4, 6, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size, mode="bilinear")


def shown(figure, column):
    """Arrays of a column of a figure, from the top."""
    columns = figure.axes[0].get_gridspec().ncols
    return [np.asarray(axis.images[0].get_array()) for axis in figure.axes[column::columns]]


def factors(rows, count, seed=0):
    """Uncorrelated factors [rows, count] of variance 1."""
    x = torch.randn(rows, count, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(x - x.mean(0))[0] * rows**0.5


# --- shared axes


def test_one_model_alone_gives_its_own_principal_components():
    rows = torch.randn(500, 12, generator=torch.Generator().manual_seed(0)) * torch.linspace(3, 0.3, 12)
    axes = fit_shared_axes({"one": rows})
    reference = PCA(3).fit(rows.numpy())
    assert axes.shares["one"] == pytest.approx(reference.explained_variance_ratio_.sum(), abs=1e-4)
    scores = (rows - axes.means["one"]) @ axes.axes["one"]
    wanted = reference.transform(rows.numpy())
    for axis in range(3):
        assert abs(np.corrcoef(scores[:, axis], wanted[:, axis])[0, 1]) > 0.9999
    assert torch.allclose(scores.abs().quantile(0.98, 0), torch.ones(3), atol=1e-4)


@pytest.mark.parametrize("rows", [300, 20])  # more and fewer pixels than channels
def test_pictures_of_all_models_average_to_the_axes_of_all_channels_side_by_side(rows):
    draw = torch.Generator().manual_seed(1)
    samples = {
        name: torch.randn(rows, c, generator=draw) * torch.rand(c, generator=draw) for name, c in [("a", 30), ("b", 7)]
    }
    axes = fit_shared_axes(samples)
    mean = sum((samples[name] - axes.means[name]) @ axes.axes[name] for name in samples) / 2
    centered = [(sample - sample.mean(0)).double().numpy() for sample in samples.values()]
    joint = np.concatenate([x / np.linalg.svd(x, compute_uv=False)[0] for x in centered], 1)
    left, singular, right = np.linalg.svd(joint, full_matrices=False)
    for axis in range(3):
        assert abs(np.corrcoef(mean[:, axis], left[:, axis])[0, 1]) > 0.999
    explained = [(singular[:3] ** 2 * (part**2).sum(1)).sum() for part in (right[:3, :30], right[:3, 30:])]
    wanted = [
        value / (x**2).sum() * np.linalg.svd(x, compute_uv=False)[0] ** 2
        for value, x in zip(explained, centered, strict=True)
    ]
    assert list(axes.shares.values()) == pytest.approx(wanted, rel=1e-3)


def test_a_model_without_a_factor_is_gray_where_the_other_shows_it():
    common, only_a = factors(400, 2).unbind(1)
    a = torch.stack([common, 0.8 * only_a], 1)
    b = torch.stack([common, torch.zeros(400)], 1)
    axes = fit_shared_axes({"a": a, "b": b})
    first, second = (axes.colors(name, sample.T[:, None])[0] for name, sample in (("a", a), ("b", b)))
    assert np.allclose(first[:, 0], second[:, 0], atol=1e-3)
    assert first[:, 1].std() > 0.2
    assert np.allclose(second[:, 1], 0.5, atol=1e-3)
    assert np.allclose(first[:, 2], 0.5, atol=1e-3)  # two factors in all: no third axis
    assert axes.shares["a"] == pytest.approx(1, abs=1e-4)


def test_models_with_nothing_in_common_do_not_agree():
    x = factors(2000, 8)
    spread = torch.tensor([1.0, 0.7, 0.5, 0.3])
    axes = fit_shared_axes({"a": x[:, :4] * spread, "b": x[:, 4:] * spread})
    assert abs(axes.agreement["b"]) < 0.1


def test_a_constant_model_is_gray_and_harms_no_other():
    rows = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    constant = torch.full((200, 9), 1 / 3) + 1e-8 * torch.randn(200, 9)
    axes = fit_shared_axes({"a": rows, "constant": constant})
    assert axes.shares["constant"] == 0
    assert (axes.colors("constant", constant.T[:, None]) == 0.5).all()
    assert axes.shares["a"] == pytest.approx(fit_shared_axes({"a": rows}).shares["a"], rel=1e-4)


# --- figures


def test_identical_models_give_identical_pictures():
    models, images = {"a": model(), "b": model()}, smooth_images()
    # Rounding of the eigenvectors is all that may differ; 1e-4 is a fortieth of a step of 8 bits.
    for figure, tolerance in ((plot_pca(models, images), 1e-4), (plot_clusters(models, images), 0)):
        for first, second in zip(shown(figure, 1), shown(figure, 2), strict=True):
            assert first.shape == (8, 12, 3)
            assert np.abs(first - second).max() <= tolerance
            assert len(np.unique(first.reshape(-1, 3), axis=0)) > 3


def test_turned_scaled_and_shifted_features_give_the_same_picture():
    models = {"a": model(), "b": model(7.0 * rotation(8), offset=20.0)}
    pca, clusters = plot_pca(models, smooth_images()), plot_clusters(models, smooth_images())
    for first, second in zip(shown(pca, 1), shown(pca, 2), strict=True):
        assert first.std() > 0.1
        assert np.abs(first - second).max() < 1e-3
    for first, second in zip(shown(clusters, 1), shown(clusters, 2), strict=True):
        assert (first == second).all()


def test_turned_features_of_other_width_give_the_same_picture():
    wide = rotation(20)[:, :8]
    figure = plot_pca({"a": model(), "b": model(wide)}, smooth_images())
    for first, second in zip(shown(figure, 1), shown(figure, 2), strict=True):
        assert np.abs(first - second).max() < 1e-3


def test_channels_of_noise_change_the_share_but_hardly_the_picture():
    images = smooth_images()
    figure = plot_pca({"a": model(), "b": model(noise=0.1)}, images)
    for first, second in zip(shown(figure, 1), shown(figure, 2), strict=True):
        assert np.abs(first - second).mean() < 0.02
    clean, noisy = (int(axis.get_xlabel().split("%")[0].split()[-1]) for axis in figure.axes[-2:])
    variance = Planted()(images, ()).dense.movedim(1, -1).reshape(-1, 8).var(0).sum().item()
    assert noisy == pytest.approx(clean * variance / (variance + 40 * 0.01), abs=4)


def test_models_of_different_resolutions_show_their_own_cells():
    models = {"fine": model(stride=4), "coarse": model(rotation(8), stride=16)}
    images = smooth_images(3, (64, 64))
    figure = plot_pca(models, images)
    assert [picture.shape for picture in shown(figure, 1)] == [(16, 16, 3)] * 3
    assert [picture.shape for picture in shown(figure, 2)] == [(4, 4, 3)] * 3
    average = shown(figure, 1)[0].reshape(4, 4, 4, 4, 3).mean((1, 3))
    assert np.corrcoef(average.ravel(), shown(figure, 2)[0].ravel())[0, 1] > 0.9
    titles = [axis.get_title() for axis in figure.axes[:3]]
    assert titles == ["image", "fine", "coarse"]
    assert all(axis.images[0].get_interpolation() == "nearest" for axis in figure.axes[1:3])


def test_an_image_that_is_no_whole_number_of_cells_is_covered_exactly():
    figure = plot_pca({"a": model(stride=16)}, smooth_images(1, (60, 90)))
    assert shown(figure, 1)[0].shape == (4, 6, 3)
    assert figure.axes[1].images[0].get_extent() == [0, 90, 60, 0]


def test_several_backbones_side_by_side_are_one_model():
    both = FrozenModel([Planted(stride=4).eval(), Planted(100 * rotation(8), stride=8).eval()])
    assert shown(plot_pca({"both": both, "one": model()}, smooth_images()), 1)[0].shape == (16, 24, 3)


def test_real_backbones_of_different_kinds():
    torch.manual_seed(0)
    models = {
        name: FrozenModel([Backbone(name, (64, 64), **options).eval()])
        for name, options in [("test_vit", {}), ("test_convnext", {"decoder_stride": 4, "channels": 16})]
    }
    for kind in ("dense", "encoder"):
        figure = plot_pca(models, smooth_images(2, (64, 96)), kind)
        assert all(np.isfinite(picture).all() for column in (1, 2) for picture in shown(figure, column))
    assert shown(plot_clusters(models, smooth_images(), k=12), 2)[0].shape == (16, 24, 3)


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="expected features with a place"):
        plot_pca({"a": model()}, smooth_images(), "pooled")
    with pytest.raises(ValueError, match="expected models and images, got 0 and 2"):
        plot_pca({}, smooth_images())
    with pytest.raises(ValueError, match="expected 2 to 2048 clusters"):
        plot_clusters({"a": model()}, smooth_images(), k=1)
    with pytest.raises(UserError, match="features of planted are not finite"):
        plot_pca({"a": model(offset=float("nan"))}, smooth_images())


# --- clusters


def test_assignment_equals_scipy():
    draw = np.random.default_rng(0)
    for size in [1, 2, 3, 5, 8, 13]:
        for table in (draw.normal(size=(size, size)), draw.integers(0, 4, (size, size)), np.zeros((size, size))):
            columns = assign(table.tolist())
            assert sorted(columns) == list(range(size))
            best = table[linear_sum_assignment(table, maximize=True)].sum()
            assert table[range(size), columns].sum() == pytest.approx(best)


def test_assignment_is_not_greedy():
    assert assign([[10, 9], [9, 1]]) == [1, 0]


def test_permuted_labels_are_mapped_back():
    draw = torch.Generator().manual_seed(0)
    labels, order = torch.randint(7, (500,), generator=draw), torch.randperm(7, generator=draw)
    permuted = order[labels]
    damaged = torch.where(torch.rand(500, generator=draw) < 0.3, torch.randint(7, (500,), generator=draw), permuted)
    assert assign(_overlaps(labels, permuted, 7).tolist()) == order.tolist()
    assert assign(_overlaps(labels, damaged, 7).tolist()) == order.tolist()


def test_planted_clusters_are_found_and_numbered_alike():
    draw = torch.Generator().manual_seed(0)
    truth = torch.multinomial(torch.tensor([0.4, 0.3, 0.2, 0.1]), 600, replacement=True, generator=draw)
    sample = {}
    for name, channels in [("a", 6), ("b", 17)]:
        centers = 10 * torch.randn(4, channels, generator=draw) + 100
        sample[name] = centers[truth] + torch.randn(600, channels, generator=draw)
    clusters = fit_matched_clusters(sample, 4)
    for name, rows in sample.items():
        assert (clusters.labels(name, rows.T[:, None])[0] == truth.numpy()).all()  # numbered by size
    assert clusters.agreement == {"a": 1.0, "b": 1.0}


def test_unrelated_clusters_agree_hardly_and_seeds_repeat():
    draw = torch.Generator().manual_seed(0)
    sample = {name: torch.randn(3000, 4, generator=draw) for name in "ab"}
    first, again, other = (fit_matched_clusters(sample, 5, seed) for seed in (0, 0, 1))
    assert first.agreement["b"] < 0.3
    assert all((first.centers[name] == again.centers[name]).all() for name in "ab")
    assert any((first.centers[name] != other.centers[name]).any() for name in "ab")


def test_fewer_distinct_features_than_clusters():
    clusters = fit_matched_clusters({"a": torch.zeros(50, 3), "b": torch.randn(50, 2)}, 6)
    assert (clusters.labels("a", torch.zeros(3, 2, 2)) == 0).all()


# --- files


def save_images(folder, sizes):
    folder.mkdir(parents=True, exist_ok=True)
    for index, (height, width) in enumerate(sizes):
        pixels = (smooth_images(1, (height, width), index)[0].permute(1, 2, 0) * 255).byte().numpy()
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def test_writes_pages_of_images_of_any_size_the_same_each_time(tmp_path):
    folder = save_images(tmp_path / "in", [(40, 64), (64, 40), (200, 300), (30, 30), (64, 64), (64, 48), (50, 90)])
    models = {"a": model(), "b": model(rotation(8), stride=16)}
    written = write_pictures(models, [folder], tmp_path / "new" / "out", 64)
    names = ["pca-1.png", "clusters-1.png", "pca-2.png", "clusters-2.png"]
    assert [path.name for path in written] == names
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == sorted(names)
    assert all(min(Image.open(path).size) > 100 for path in written)
    again = write_pictures(models, [folder], tmp_path / "again", 64)
    assert [path.read_bytes() for path in written] == [path.read_bytes() for path in again]


def test_few_images_are_one_page(tmp_path):
    folder = save_images(tmp_path / "in", [(64, 64), (48, 64)])
    written = write_pictures({"a": model()}, [folder / "1.png", folder / "0.png"], tmp_path, 64)
    assert [path.name for path in written] == ["pca.png", "clusters.png"]


def test_bad_input_is_one_line_and_nothing_is_written(tmp_path):
    folder, out = save_images(tmp_path / "in", [(64, 64)]), tmp_path / "out"
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.png").write_bytes((folder / "0.png").read_bytes()[:-20])

    class Strict(Planted):
        def forward(self, images, reads):
            assert images.shape[-2:] == (32, 32), "height 64 is not 32"
            return super().forward(images, reads)

    cases = [
        ([], model(), "no images are given"),
        ([tmp_path / "empty"], model(), "no images (.jpg"),
        ([tmp_path / "none.png"], model(), "none.png: missing"),
        ([folder, tmp_path / "text.png"], model(), "text.png: no image"),
        ([tmp_path / "cut.png"], model(), "cannot read the image"),
        ([folder], FrozenModel([Strict(size=(32, 32)).eval()]), "planted cannot take images of 64 x 64 pixels"),
    ]
    for paths, one, message in cases:
        with pytest.raises(UserError) as caught:
            write_pictures({"a": one}, paths, out, 64)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not out.exists() or not list(out.iterdir())
    with pytest.raises(UserError, match="cannot make the folder"):
        write_pictures({"a": model()}, [folder], folder / "0.png" / "out", 64)


def test_trained_and_initial_weights_on_real_images(shared_data, tmp_path):
    models = {}
    for name in ("ImageNet", "again", "initial"):
        torch.manual_seed(0)
        options = {"timm_options": {"pad_type": "same"}, "mean": [0.5] * 3, "std": [0.5] * 3}
        backbone = Backbone("mobilenetv2_100", (96, 128), **options).eval()
        if name != "initial":
            weights = read_weights(shared_data / "weights" / "mobilenetv2_100_from_tflite.pth")
            load_encoder(backbone.encoder.model, weights, "the file")
        models[name] = FrozenModel([backbone])
    images = [shared_data / "rgbd" / "office" / f"frame-{frame:06d}.color.jpg" for frame in (935, 955)]
    written = write_pictures(models, images, tmp_path, 128, kind="encoder")
    page = np.asarray(Image.open(written[0]).convert("RGB")).astype(int)
    assert page.shape[1] > 1000
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(path).resize((128, 96)))) for path in images])
    figure = plot_pca(models, pixels.permute(0, 3, 1, 2) / 255, "encoder")
    trained, again, initial = (np.stack(shown(figure, column)) for column in (1, 2, 3))
    assert np.abs(trained - again).max() < 1e-3
    assert np.abs(trained - initial).mean() > 0.05


def test_of_many_images_some_are_drawn_and_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("prior3d.evaluation.pictures._MOST", 4)
    folder, said = save_images(tmp_path / "in", [(32, 32)] * 9), []
    written = write_pictures({"a": model()}, [folder], tmp_path / "out", 64, say=said.append)
    assert said == ["9 images are too many: 4 of them, evenly chosen, are plotted; name fewer to choose"]
    assert [path.name for path in written] == ["pca.png", "clusters.png"]


def test_names_are_wrapped_and_not_cut(tmp_path):
    long = "a-run-with-a-name-that-is-much-longer-than-any-panel-is-wide-20261130-182318"
    figure = plot_pca({long: model()}, smooth_images())
    (title,) = [axis.get_title() for axis in figure.axes if axis.get_title() not in ("", "image")]
    assert title.replace("\n", "") == long and max(map(len, title.split("\n"))) <= 40
