"""The controls of a study: samples whose views are one, or whose images have the geometry of others."""

import numpy as np
import pytest
import torch
from PIL import Image

from prior3d.contracts.dataset import DataSpec, View
from prior3d.contracts.fields import Field
from prior3d.data.posed.controls import Controlled, permute_frames, with_control, with_geometry
from prior3d.data.posed.dataset import PosedDataset
from prior3d.data.posed.pairs import PairOptions
from prior3d.data.sample.augmentation import AugmentOptions
from prior3d.data.sample.loading import DrawnSamples
from prior3d.errors import UserError
from prior3d.geometry import match_views, unproject
from prior3d_plugins.datasets.image_folder import ImageFolder
from prior3d_plugins.datasets.synthetic_rooms import SyntheticRooms

FIELDS = frozenset({"image", "depth", "intrinsics", "world_from_camera", "semantic"})
SIZE = (48, 64)
SELF, PERMUTED = "self", "permuted"
FORMER = {SELF: PairOptions(views="self"), PERMUTED: PairOptions(geometry="permuted")}
NO_PAIRS = torch.zeros(0, 2, dtype=torch.int64)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def rooms(cache, control: str | None = None, views: int = 2, seed: int = 0, **options) -> PosedDataset:
    spec = DataSpec(SIZE, views, "train", cache, seed)
    made = SyntheticRooms(spec, **{"rooms": 2, "frames": 24, **options})
    made = with_control(made, control)
    made.prepare()
    return made


def sample(dataset: PosedDataset, draw: int, fields: frozenset[str] = FIELDS) -> list[View]:
    return dataset.sample(draw, fields, torch.Generator().manual_seed(draw))


def geometry(view: View) -> list[torch.Tensor]:
    return [torch.from_numpy(array).float() for array in (view["depth"], view["intrinsics"], view["world_from_camera"])]


def matches(a: View, b: View) -> tuple[torch.Tensor, torch.Tensor]:
    tensors = (tensor for pair in zip(geometry(a), geometry(b), strict=True) for tensor in pair)
    return tuple(pixels.long() for pixels in match_views(*tensors, max_distance=0.05, relative_distance=0.02))


def points_at(view: View, pixels: torch.Tensor) -> torch.Tensor:
    return unproject(*geometry(view))[pixels[:, 1], pixels[:, 0]]


# self


@pytest.mark.parametrize("views", [2, 3])
def test_self_pairs_are_one_frame_drawn_as_the_first_of_mined_pairs_are(cache, views):
    mined, self_pairs = rooms(cache, views=views), rooms(cache, SELF, views=views)
    for draw in range(30):
        true, control = sample(mined, draw), sample(self_pairs, draw)
        assert len(control) == views
        assert {(view.scene, view.frame) for view in control} == {(true[0].scene, true[0].frame)}
        for view in control:
            for name in FIELDS:
                np.testing.assert_array_equal(view[name], true[0][name])
        control[0]["image"][:] = 0  # each view is the caller's own
        assert control[1]["image"].any()


def test_self_pairs_are_augmented_apart_and_match_by_the_same_code(cache):
    samples = DrawnSamples(rooms(cache, SELF), FIELDS, AugmentOptions(crop=(0.6, 0.8)), 0, False)
    found = []
    for draw in range(5):
        views = samples[draw]
        poses = views["world_from_camera"]
        assert torch.equal(poses[0], poses[1])
        assert not torch.equal(views["image"][0], views["image"][1])
        assert not torch.equal(views["intrinsics"][0], views["intrinsics"][1])
        a, b = ([views[name][view] for name in ("depth", "intrinsics", "world_from_camera")] for view in (0, 1))
        found.append(len(match_views(*(tensor for pair in zip(a, b, strict=True) for tensor in pair))[0]))
    assert min(found) > 200


# permuted


def test_permuted_geometry_has_as_many_matches_between_the_wrong_pixels(cache):
    true, control = rooms(cache), rooms(cache, PERMUTED)
    counts, right, wrong = [], [], []
    for draw in range(40):
        counts.append([len(matches(*sample(dataset, draw))[0]) for dataset in (true, control)])
        for dataset, off in ((true, right), (control, wrong)):
            views = sample(dataset, draw)
            shown = [true.load(view.scene, view.frame, FIELDS) for view in views]  # what the images really are of
            pixels = matches(*views)
            off.append((points_at(shown[0], pixels[0]) - points_at(shown[1], pixels[1])).norm(dim=-1))
    counts = np.array(counts)
    np.testing.assert_array_equal(counts[:, 0], counts[:, 1])
    assert counts.mean() > 500
    assert (torch.cat(right) < 0.1).float().mean() > 0.999
    assert (torch.cat(wrong) < 0.2).float().mean() < 0.05
    assert torch.cat(wrong).median() > 1.0


def test_permuted_geometry_is_that_of_another_frame_all_of_it_and_nothing_else(cache):
    control, true = rooms(cache, PERMUTED), rooms(cache)
    image_of = {}
    for draw in range(60):
        drawn = zip(sample(control, draw), sample(true, draw), strict=True)
        for view, own in drawn:
            shown = true.load(view.scene, view.frame, FIELDS)
            assert view.scene == own.scene
            assert view.frame != own.frame
            for name in ("image", "semantic"):
                np.testing.assert_array_equal(view[name], shown[name])
            for name in ("depth", "intrinsics", "world_from_camera"):
                np.testing.assert_array_equal(view[name], own[name])
            image_of.setdefault((own.scene, own.frame), set()).add(view.frame)
    assert all(len(frames) == 1 for frames in image_of.values())  # one fixed permutation
    assert len({(scene, *frames) for (scene, _), frames in image_of.items()}) == len(image_of)


def test_a_field_of_a_plugin_goes_with_the_pose_or_with_the_image(cache):
    class Rooms(SyntheticRooms):
        fields = (
            Field("acme/plane", "[B, V]", "float32", "distance of the nearest plane, meters", of_geometry=True),
            Field("acme/tint", "[B, V]", "float32", "tint of the image"),
        )

        def load(self, scene, frame, fields):
            view = super().load(scene, frame, fields & FIELDS)
            own = {name: np.float32(frame) for name in fields - FIELDS}
            return View(view.values | own, view.scene, view.frame, view.size)

    made = Rooms(DataSpec(SIZE, 2, "train", cache, 0), rooms=2, frames=24)
    made.prepare()
    fields = FIELDS | {"acme/plane", "acme/tint"}
    for draw in range(5):
        both = zip(sample(with_control(made, PERMUTED), draw, fields), sample(made, draw, fields), strict=True)
        for view, own in both:
            assert view["acme/tint"] == view.frame != own.frame
            assert view["acme/plane"] == own.frame


def test_permutations_follow_the_seed_and_survive_workers(cache):
    frames = [
        [[view.frame for view in sample(rooms(cache, PERMUTED, seed=seed), draw)] for draw in range(20)]
        for seed in (0, 0, 1)
    ]
    assert frames[0] == frames[1] != frames[2]


def test_single_views_are_permuted_too(cache):
    control, true = rooms(cache, PERMUTED, views=1), rooms(cache, views=1)
    shown = []
    for draw in range(len(true)):
        (view,), (own,) = sample(control, draw), sample(true, draw)
        assert view.frame != own.frame
        np.testing.assert_array_equal(view["depth"], own["depth"])
        shown.append((view.scene, view.frame))
    assert len(set(shown)) == len(true)  # every image once an epoch


def test_one_frame_cannot_be_permuted(tmp_path):
    with pytest.raises(UserError, match="at least 2 frames") as caught:
        rooms(tmp_path, PERMUTED, views=1, frames=1)
    assert caught.value.key == "control"


def test_surfaces_are_cut_out_for_the_geometry_a_view_has(cache):
    fields = FIELDS | {"surface", "surface_view"}
    own, permuted = (DrawnSamples(rooms(cache, options), fields, None, 0, False)[3] for options in (None, PERMUTED))
    assert len(own["surface"]) > 1000
    assert torch.equal(own["surface"], permuted["surface"])
    assert not torch.equal(own["image"], permuted["image"])


@pytest.mark.parametrize("control", [SELF, PERMUTED])
def test_controls_leave_tables_their_cache_and_single_frames_alone(cache, control, monkeypatch):
    true = rooms(cache)
    assert FORMER[control].mining == PairOptions().mining
    assert PairOptions(min_overlap=0.5).mining != PairOptions().mining
    monkeypatch.setattr(PosedDataset, "_mine", lambda *args: pytest.fail("mined again"))
    dataset = rooms(cache, control)
    for scene in range(2):
        assert torch.equal(dataset.pairs(scene).first, true.pairs(scene).first)
        for name in FIELDS:
            views = [source.load(scene, 5, FIELDS) for source in (dataset, true)]
            np.testing.assert_array_equal(*(view[name] for view in views))
    assert any(line.startswith("control ") for line in dataset.describe())
    assert not any(line.startswith("control ") for line in true.describe())


def test_permutations_leave_no_frame_in_place_and_part_what_overlaps():
    frames = torch.arange(10, 50)
    pairs = torch.stack([frames[:-1], frames[1:]], 1)
    image_of = permute_frames(frames, pairs, torch.Generator().manual_seed(0))
    assert sorted(image_of) == sorted(image_of.values()) == frames.tolist()
    assert all(frame != other for frame, other in image_of.items())
    assert sum(abs(image_of[a] - image_of[b]) == 1 for a, b in pairs.tolist()) <= 2
    assert sum(abs(frame - other) == 1 for frame, other in image_of.items()) <= 2
    assert permute_frames(torch.tensor([3, 8]), NO_PAIRS, torch.Generator()) == {3: 8, 8: 3}
    with pytest.raises(ValueError, match="expected at least 2 frames, got 1"):
        permute_frames(torch.tensor([3]), NO_PAIRS, torch.Generator())


def test_frames_of_different_sizes_cannot_be_exchanged():
    image, other = View({"image": np.zeros((4, 6, 3), np.uint8)}, frame=1), View(size=(8, 12), frame=2)
    with pytest.raises(UserError, match=r"one size within a scene, got \(4, 6\) in frame 1 and \(8, 12\) in frame 2"):
        with_geometry(image, other, {"depth"})


@pytest.mark.parametrize("control", [SELF, PERMUTED])
def test_the_former_names_among_the_pair_options_give_the_same_samples(cache, control):
    former = with_control(rooms(cache, pairs=FORMER[control]), None)
    assert isinstance(former, Controlled) and former.control == control
    current = rooms(cache, control)
    for draw in range(10):
        for view, other in zip(sample(former, draw), sample(current, draw), strict=True):
            assert (view.scene, view.frame, view.size) == (other.scene, other.frame, other.size)
            for name in FIELDS:
                np.testing.assert_array_equal(view[name], other[name])


def test_controls_that_make_no_sense_are_refused(cache):
    data = rooms(cache)
    assert with_control(data, None) is data
    with pytest.raises(UserError, match="control: this is permuted, but the older options in pairs say self"):
        with_control(SyntheticRooms(data.spec, pairs=FORMER[SELF]), PERMUTED)
    (cache / "images").mkdir()
    Image.new("RGB", (8, 8)).save(cache / "images" / "a.png")
    images = ImageFolder(DataSpec(SIZE, 1, "train", cache), root=cache / "images")
    with pytest.raises(UserError, match="control: only posed data has controls"):
        with_control(images, SELF)
