"""Corruptions: worse from level to level, the same for every model, and what their names say."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from prior3d.randomness import generator
from prior3d_plugins.probes.robustness.corruptions import CORRUPTIONS, LEVELS, SEVERITIES, corrupt


@pytest.fixture(scope="module")
def images():
    """Smooth shapes with edges, in 0..1, of 8-bit values."""
    y, x = torch.meshgrid(torch.arange(112.0), torch.arange(120.0), indexing="ij")
    pictures = [
        torch.stack([((x - a) ** 2 + (y - b) ** 2 < 900).float(), x / 119, (torch.sin(x / (3 + a / 9)) + 1) / 2])
        for a, b in ((40, 60), (80, 40), (60, 60))
    ]
    return (torch.stack(pictures) * 255).round() / 255


NAMES = ["a", "b", "c"]


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_every_level_is_worse_than_the_one_before(images, corruption):
    error = [(corrupt(images, corruption, level, NAMES) - images).square().mean((1, 2, 3)) for level in LEVELS]
    assert (torch.stack(error).diff(dim=0) > 0).all() and (error[0] > 0).all()
    assert len(SEVERITIES[corruption]) == len(LEVELS)


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_an_image_is_corrupted_alike_in_any_batch(images, corruption):
    together = corrupt(images, corruption, 3, NAMES)
    alone = torch.cat([corrupt(images[i : i + 1], corruption, 3, NAMES[i : i + 1]) for i in (2, 0, 1)])
    torch.rand(5)
    assert torch.allclose(together[[2, 0, 1]], alone, atol=1e-6)
    assert together.shape == images.shape and together.min() >= 0 and together.max() <= 1
    assert torch.allclose((together * 255).round(), together * 255, atol=1e-3)


def test_noise_is_gaussian_of_the_severity_and_differs_between_images():
    gray = torch.full((2, 3, 200, 200), 0.5)
    noise = corrupt(gray, "noise", 1, ["x", "y"]) - 0.5
    assert noise.std() == pytest.approx(0.08, rel=0.02) and abs(noise.mean()) < 2e-3
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.02
    more = corrupt(gray, "noise", 2, ["x", "y"]) - 0.5
    assert np.corrcoef(noise.ravel(), more.ravel())[0, 1] > 0.99


def test_blur_is_a_gaussian_that_grows_with_the_image():
    image = torch.rand(1, 3, 112, 120, generator=generator("blur"))
    found = corrupt(image, "blur", 3, ["x"])
    expected = gaussian_filter(image[0].double().numpy(), (0, 1.5, 1.5), mode="nearest", truncate=4.0)
    assert np.abs(found[0].numpy() - expected).max() < 0.6 / 255
    assert corrupt(torch.full((1, 3, 40, 40), 0.2), "blur", 5, ["x"]).eq(51 / 255).all()


def test_contrast_shrinks_the_distance_from_the_mean(images):
    mean = images.mean((2, 3), keepdim=True)
    assert torch.allclose(corrupt(images, "contrast", 3, NAMES) - mean, 0.2 * (images - mean), atol=0.51 / 255)


def test_what_is_not_known_is_refused(images):
    with pytest.raises(
        ValueError, match="expected one of noise, blur, contrast, jpeg at a level of 1 to 5, got fog, 1"
    ):
        corrupt(images, "fog", 1, NAMES)
    with pytest.raises(ValueError, match="got noise, 6"):
        corrupt(images, "noise", 6, NAMES)
    with pytest.raises(ValueError, match="a name for each of 3 images, got 1"):
        corrupt(images, "noise", 1, ["x"])
