import numpy as np
import pytest
import torch

from prior3d.contracts.dataset import View
from prior3d.data.sample.augmentation import AugmentOptions, assemble
from prior3d.data.sample.photometric import LUMA, NEEDS_DRAWS, ColorChange, apply_change, draw_change
from prior3d.data.sample.placement import centered, crop
from prior3d.errors import UserError

POSED = frozenset({"image", "image_clean", "depth", "intrinsics", "world_from_camera"})
NO_COLOR = AugmentOptions(jitter=0.0, grayscale=0.0, blur=0.0)
SOURCE, SIZE = (120, 160), (48, 64)


def make_view(image_size=SOURCE, depth_size=None, frame=0):
    """An image that tells its own coordinates (red = column, green = row) and depth that numbers its pixels."""
    height, width = image_size
    depth_size = depth_size or image_size
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([columns, rows, np.full_like(rows, 90)], axis=-1).astype(np.uint8)
    numbers = np.arange(1, depth_size[0] * depth_size[1] + 1, dtype=np.float32).reshape(depth_size)
    values = {
        "image": image,
        "depth": numbers,
        "intrinsics": np.array([[150.0, 0, 81.2], [0, 149.0, 58.3], [0, 0, 1]]),
        "world_from_camera": np.eye(4),
        "semantic": (numbers % 7).astype(np.uint8),
        "pseudo_depth": numbers,
        "pseudo_kind": 1,
    }
    return View(values, scene=3, frame=frame)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pixel_centers(size=SIZE):
    """Homogeneous centers of all pixels, [3, H, W] float64."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    return np.stack([x, y, np.ones(size)])


def source_pixels(view, sample, index=0):
    """Where the output's pixel centers lie in the source, by the intrinsics before and after alone, [2, H, W]."""
    after = sample["intrinsics"][index].double().numpy()
    rays = np.einsum("ij,jhw->ihw", np.linalg.inv(after), pixel_centers())
    return np.einsum("ij,jhw->ihw", view["intrinsics"], rays)[:2]


@pytest.mark.parametrize("seed", range(5))
def test_image_and_intrinsics_move_together(seed):
    view = make_view()
    sample = assemble([view], SIZE, AugmentOptions(crop=(0.5, 0.8)), POSED, seeded(seed))
    x, y = source_pixels(view, sample)
    red, green = sample["image_clean"][0, :2].double().numpy()
    inner = np.s_[2:-2, 2:-2]  # at the image's border, antialiasing has pixels on one side only
    for seen, expected in ((red, x - 0.5), (green, y - 0.5)):
        error = (seen - expected)[inner]
        assert np.abs(error).max() < 1.0, "more than one source pixel off"
        assert abs(error.mean()) < 0.1, "shifted"


@pytest.mark.parametrize("depth_size", [SOURCE, (60, 80), (240, 320), (97, 131)])
def test_depth_is_the_nearest_pixel_of_its_own_resolution(depth_size):
    view = make_view(depth_size=depth_size)
    fields = POSED | {"semantic", "pseudo_depth"}
    sample = assemble([view], SIZE, AugmentOptions(crop=(0.5, 0.9)), fields, seeded(4))
    x, y = source_pixels(view, sample)
    column = x * depth_size[1] / SOURCE[1]
    row = y * depth_size[0] / SOURCE[0]
    number = np.floor(row) * depth_size[1] + np.floor(column) + 1
    clear = (np.abs(column - column.round()) > 1e-3) & (np.abs(row - row.round()) > 1e-3)
    depth = sample["depth"][0].numpy()
    assert clear.mean() > 0.9
    assert np.array_equal(depth[clear], number[clear].astype(np.float32))
    assert np.array_equal(sample["semantic"][0].numpy(), depth.astype(np.int64) % 7)
    assert torch.equal(sample["pseudo_depth"], sample["depth"])
    assert sample["pseudo_kind"].item() == 1


def test_unprojected_depth_stays_on_its_plane():
    view, normal, distance = make_view(), np.array([0.3, -0.2, 0.93]), 2.0
    rays = np.einsum("ij,jhw->ihw", np.linalg.inv(view["intrinsics"]), pixel_centers(SOURCE))
    view["depth"] = (distance / np.einsum("i,ihw->hw", normal, rays)).astype(np.float32)
    sample = assemble([view], SIZE, AugmentOptions(crop=(0.6, 0.7)), POSED, seeded(1))

    def residual(intrinsics):
        rays = np.einsum("ij,jhw->ihw", np.linalg.inv(intrinsics), pixel_centers())
        return np.abs(np.einsum("i,ihw->hw", normal, rays * sample["depth"][0].double().numpy()) - distance)

    # a ray through a pixel's center meets depth measured half a source pixel away at most, along x and along y
    bound = 0.5 * (0.3 / 150 + 0.2 / 149) * view["depth"].max()
    assert residual(sample["intrinsics"][0].double().numpy()).max() < bound + 1e-5
    assert residual(view["intrinsics"]).max() > 10 * bound, "the unmoved intrinsics would have passed as well"


def test_plane_across_the_view_is_exact():
    view = make_view()
    view["depth"] = np.full(SOURCE, 1.75, dtype=np.float32)
    sample = assemble([view], SIZE, AugmentOptions(), POSED, seeded(1))
    assert (sample["depth"] == 1.75).all()


@pytest.mark.parametrize("options", [NO_COLOR, AugmentOptions()])
def test_crops_are_related_by_their_homographies(options):
    view, fields = make_view(), frozenset({"image_crops", "crop_from_image", "image"})
    sample = assemble([view, view], SIZE, options, fields, seeded(6))
    whole = assemble([view], SIZE, None, frozenset({"image"}), seeded(0))["image"][0].double().numpy()
    assert sample["image_crops"].shape == (2, 3, *SIZE)
    for index in range(2):
        image_from_crop = np.linalg.inv(sample["crop_from_image"][index].double().numpy())
        x, y = np.einsum("ij,jhw->ihw", image_from_crop, pixel_centers())[:2]
        # the image's colors are linear in its coordinates: read them off in the middle and extrapolate
        per_column, per_row = (whole[0, 24, 54] - whole[0, 24, 10]) / 44, (whole[1, 40, 32] - whole[1, 8, 32]) / 32
        red = whole[0, 24, 10] + per_column * (x - 10.5)
        green = whole[1, 8, 32] + per_row * (y - 8.5)
        if options is NO_COLOR:
            seen = sample["image_crops"][index].double().numpy()
            for channel, expected in ((seen[0], red), (seen[1], green)):
                error = (channel - expected)[2:-2, 2:-2] / per_column
                assert np.abs(error).max() < 0.6, "pixels of the un-augmented image"
                assert abs(error.mean()) < 0.1
    assert not torch.allclose(sample["crop_from_image"][0], sample["crop_from_image"][1])
    corners = sample["crop_from_image"].double().inverse() @ torch.tensor([[0.0, 0, 1], [64, 48, 1]]).double().T
    assert corners[:, :2].amin() > -1e-3 and (corners[:, 0] < 64.001).all() and (corners[:, 1] < 48.001).all()


def test_crops_come_from_a_view_chosen_at_random():
    views = [make_view(), make_view()]
    views[1]["image"] = np.full((*SOURCE, 3), 255, dtype=np.uint8)
    fields = frozenset({"image_crops"})
    from_second = [assemble(views, SIZE, NO_COLOR, fields, seeded(s))["image_crops"].min() == 255 for s in range(40)]
    assert 8 < sum(from_second) < 32


def test_color_changes_leave_geometry_alone():
    fields = POSED | {"image_crops", "crop_from_image", "semantic"}
    colored = assemble([make_view()], SIZE, AugmentOptions(grayscale=1.0), fields, seeded(2))
    plain = assemble([make_view()], SIZE, NO_COLOR, fields, seeded(2))
    for name in fields - {"image", "image_crops"}:
        assert torch.equal(colored[name], plain[name]), name
    assert torch.equal(plain["image"], plain["image_clean"])
    assert not torch.equal(colored["image"], colored["image_clean"])
    assert not torch.equal(colored["image_crops"], plain["image_crops"])


def test_the_same_draw_gives_the_same_sample_whatever_else_is_asked_for():
    views, options = [make_view(), make_view(frame=1)], AugmentOptions()
    fields = POSED | {"image_crops", "crop_from_image", "semantic"}
    first, again, other = (assemble(views, SIZE, options, fields, seeded(s)) for s in (0, 0, 1))
    for name in fields:
        assert torch.equal(first[name], again[name]), name
    assert not torch.equal(first["image"], other["image"])
    alone = assemble(views, SIZE, options, frozenset({"image"}), seeded(0))
    assert set(alone) == {"image", "scene", "frame"}
    assert torch.equal(alone["image"], first["image"])
    assert not torch.equal(first["intrinsics"][0], first["intrinsics"][1]), "each view has its own crop"


def test_dtypes_and_shapes_are_those_of_the_table():
    fields = POSED | {"semantic", "pseudo_depth", "image_crops", "crop_from_image", "surface", "plugin/own"}
    views = [make_view(frame=5), make_view(frame=7)]
    sample = assemble(views, SIZE, AugmentOptions(), fields, seeded())
    assert {name: (tuple(value.shape), value.dtype) for name, value in sample.items()} == {
        "image": ((2, 3, 48, 64), torch.uint8),
        "image_clean": ((2, 3, 48, 64), torch.uint8),
        "depth": ((2, 48, 64), torch.float32),
        "pseudo_depth": ((2, 48, 64), torch.float32),
        "pseudo_kind": ((), torch.int64),
        "semantic": ((2, 48, 64), torch.int64),
        "intrinsics": ((2, 3, 3), torch.float32),
        "world_from_camera": ((2, 4, 4), torch.float32),
        "scene": ((), torch.int64),
        "frame": ((2,), torch.int64),
        "image_crops": ((2, 3, 48, 64), torch.uint8),
        "crop_from_image": ((2, 3, 3), torch.float32),
    }
    assert sample["scene"] == 3 and sample["frame"].tolist() == [5, 7]
    assert all(value.is_contiguous() for value in sample.values())


def test_without_augmentation_a_view_of_the_right_size_is_untouched():
    view = make_view()
    sample = assemble([view], SOURCE, None, POSED | {"image_crops", "crop_from_image"}, seeded())
    assert np.array_equal(sample["image"][0].permute(1, 2, 0).numpy(), view["image"])
    assert np.array_equal(sample["depth"][0].numpy(), view["depth"])
    assert np.allclose(sample["intrinsics"][0].numpy(), view["intrinsics"])
    assert torch.allclose(sample["crop_from_image"], torch.eye(3))


def test_without_augmentation_the_largest_centered_crop_is_taken():
    assert centered((480, 640), (100, 100)).box == (80, 0, 560, 480)
    assert centered((480, 640), (90, 160)).box == (0, 60, 640, 420)


def test_crops_keep_the_aspect_and_lie_within_the_image():
    rng = np.random.default_rng(0)
    for _ in range(300):
        image_size, size = rng.integers(20, 700, 2), rng.integers(10, 300, 2)
        share, across, down = rng.uniform(0.3, 1.0), rng.random(), rng.random()
        placed = crop(tuple(image_size.tolist()), tuple(size.tolist()), share, across, down, mirrored=False)
        left, top, right, bottom = placed.box
        assert left >= 0 and top >= 0 and right <= image_size[1] and bottom <= image_size[0]
        scale = placed.output_from_image
        assert scale[0, 0] == pytest.approx(scale[1, 1], rel=1e-9)
        largest = min(image_size[0] / size[0], image_size[1] / size[1])
        assert 1 / scale[0, 0] == pytest.approx(share * largest, rel=1e-9)
        placed.image(np.zeros((*image_size, 3), dtype=np.uint8))  # Pillow accepts the box


def test_shrinking_averages_rather_than_skips_pixels():
    view = make_view()
    view["image"] = np.repeat((np.indices(SOURCE).sum(0) % 2 * 255).astype(np.uint8)[..., None], 3, axis=-1)
    for size in ((30, 40), (12, 16)):
        image = assemble([view], size, None, frozenset({"image"}), seeded())["image"]
        assert (image.int() - 127).abs().max() <= 3, "a pattern of single pixels must turn gray, not alias"


def test_flips_move_all_maps_together_and_are_refused_for_poses():
    options = AugmentOptions(flip=1.0, crop=(0.7, 0.7), jitter=0, grayscale=0, blur=0)
    fields = frozenset({"image", "semantic", "pseudo_depth", "image_crops", "crop_from_image"})
    flipped = assemble([make_view()], SIZE, options, fields, seeded(3))
    straight = assemble([make_view()], SIZE, AugmentOptions(flip=0.0, crop=(0.7, 0.7)), fields, seeded(3))
    for name in ("semantic", "pseudo_depth"):
        assert torch.equal(flipped[name], straight[name].flip(-1)), name
    assert (flipped["image"][0, 0, :, :-1] >= flipped["image"][0, 0, :, 1:]).all(), "red falls from left to right"
    mirror = torch.tensor([[-1.0, 0, 64], [0, 1, 0], [0, 0, 1]])
    assert torch.allclose(flipped["crop_from_image"], mirror @ straight["crop_from_image"], atol=1e-4)
    with pytest.raises(UserError, match=r"^augment\.flip: flips mirror the world.*intrinsics"):
        assemble([make_view()], SIZE, options, POSED, seeded())


def test_views_may_lack_what_nobody_asks_for_but_nothing_else():
    view = make_view()
    del view.values["image"], view.values["semantic"]
    view.size = SOURCE
    sample = assemble([view], SIZE, None, frozenset({"depth", "intrinsics"}), seeded())
    assert sample["depth"].shape == (1, *SIZE)
    with pytest.raises(ValueError, match="expected image in every view, got none in scene 3, frame 0"):
        assemble([view], SIZE, None, POSED, seeded())
    with pytest.raises(ValueError, match="expected semantic in every view"):
        assemble([view], SIZE, None, frozenset({"semantic"}), seeded())
    view.size = None
    with pytest.raises(ValueError, match="expected the image or its size"):
        assemble([view], SIZE, None, frozenset({"depth"}), seeded())
    other = make_view()
    other["pseudo_kind"] = 0
    with pytest.raises(ValueError, match="expected one pseudo_kind"):
        assemble([make_view(), other], SIZE, None, frozenset({"pseudo_depth"}), seeded())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": (0.0, 1.0)}, r"expected crop.*got \[0.0, 1.0\]"),
        ({"crop": (0.9, 0.8)}, "expected crop"),
        ({"crop": (0.5, 1.2)}, "expected crop"),
        ({"blur_sigma": (2.0, 1.0)}, "expected blur_sigma"),
        ({"grayscale": 1.5}, "expected grayscale from 0 to 1, got 1.5"),
        ({"brightness": -0.1}, "expected brightness from 0 to 1"),
        ({"hue": 0.6}, "expected hue from 0 to 0.5"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AugmentOptions(**options)


def noise(size=(40, 50), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def change_of(numbers, jitter=(0.4, 0.3, 0.2, 0.1), probabilities=(1.0, 0.0, 0.0), sigma=(0.5, 1.5)):
    assert len(numbers) == NEEDS_DRAWS
    return draw_change(iter(numbers), jitter, probabilities, sigma)


def test_color_change_is_brightness_saturation_hue_contrast_one_after_the_other():
    change = change_of([0.0, 0.9, 0.8, 0.1, 0.5, 0.9, 0.9, 0.5])  # no hue: 0.5 is the middle
    brightness, contrast, saturation = 1 + 0.4 * 0.8, 1 + 0.3 * 0.6, 1 - 0.2 * 0.8
    image = noise()
    expected = image.astype(np.float64) * brightness
    gray = expected @ LUMA
    expected = saturation * expected + (1 - saturation) * gray[..., None]
    expected = contrast * (expected - gray.mean()) + gray.mean()
    assert np.abs(apply_change(image, change) - np.clip(expected, 0, 255)).max() <= 0.51


def test_hue_turns_colors_but_keeps_brightness():
    change = change_of([0.0, 0.5, 0.5, 0.5, 1.0, 0.9, 0.9, 0.5], jitter=(0, 0, 0, 1 / 3))
    image = 100 + noise() // 16
    changed = apply_change(image, change)
    assert np.abs(changed.astype(int) - image).max() > 5
    assert np.abs(changed @ LUMA - image @ LUMA).max() < 1
    third = change.matrix
    assert np.allclose(third @ third @ third, np.eye(3)), "three thirds of the circle are a full turn"


def test_gray_images_have_no_color_and_blur_lowers_variance_only():
    gray = apply_change(noise(), change_of([0.9, 0, 0, 0, 0, 0.0, 0.9, 0.5], probabilities=(0.0, 1.0, 0.0)))
    assert (np.ptp(gray.astype(int), axis=-1) <= 1).all()
    blurred = apply_change(noise(), change_of([0.9, 0, 0, 0, 0, 0.9, 0.0, 0.5], probabilities=(0.0, 0.0, 1.0)))
    assert blurred.std() < 0.5 * noise().std()
    assert abs(blurred.mean() - noise().mean()) < 1.5


def test_a_change_that_changes_nothing_returns_the_same_bytes():
    change = change_of([0.9] * NEEDS_DRAWS, probabilities=(0.0, 0.0, 0.0))
    assert np.array_equal(apply_change(noise(), change), noise())
    assert np.array_equal(apply_change(noise(), ColorChange(np.eye(3))), noise())


def test_blur_grows_with_the_height_of_the_run():
    view, options = make_view(), AugmentOptions(crop=(1.0, 1.0), jitter=0, grayscale=0, blur=1, blur_sigma=(4.0, 4.0))
    view["image"] = np.zeros((*SOURCE, 3), dtype=np.uint8)
    view["image"][:, 80:] = 255  # a step's slope tells the sigma
    for height, width in (SOURCE, (240, 320)):
        row = assemble([view], (height, width), options, frozenset({"image"}), seeded())["image"][0, 0, height // 2]
        sigma = 255 / (row.float().diff().max().item() * np.sqrt(2 * np.pi))
        assert sigma == pytest.approx(4.0 * height / 240, rel=0.15)
