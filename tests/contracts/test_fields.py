"""Fields move, are batched and kept as the table says, those of plugins as prior3d's own."""

import numpy as np
import pytest
import torch

from prior3d.contracts.dataset import Dataset, DataSpec, View, table_of
from prior3d.contracts.fields import FIELDS, Field, missing_fields
from prior3d.data.sample.augmentation import AugmentOptions, assemble
from prior3d.data.sample.loading import DrawnSamples, DrawStream, make_loader, raise_errors, to_float
from prior3d.data.sample.placement import centered, crop
from prior3d.errors import UserError
from prior3d.probes.probe_data import ProbeData

SOURCE, SIZE = (20, 40), (10, 20)
FLOW = Field("acme/flow", "[B, V, 2, H, W]", "float32", "shares of the image's size", moves="vectors")
HEAT = Field("acme/heat", "[B, V, H, W]", "uint8", "degrees", moves="resample")
POINTS = Field("acme/points", "[N, 3]", "float32", "meters", batches="pack")
COLOR = Field("acme/points_color", "[N]", "int64", "hue", batches="pack", rows_of="acme/points")
SPEED = Field("acme/speed", "[B, V]", "float32", "meters per second", kept_as="float16")
PLACE = Field("acme/place", "[B, 2]", "int64", "of the whole sample")
OWN = (FLOW, HEAT, POINTS, COLOR, SPEED, PLACE)
NAMES = frozenset(field.name for field in OWN)
LABELS = frozenset({"instances", "boxes", "box_labels", "box_instances"})


class Acme(Dataset):
    """Images with fields of its own; frame n has n points and n + 1 boxes."""

    fields = OWN
    provides = NAMES | LABELS | {"image"}

    def __init__(self, spec, fields=OWN, provides=provides):
        super().__init__(spec)
        self.fields, self.provides, self.scenes = fields, frozenset(provides), ["one"]
        self.asked = set()

    def __len__(self):
        return 4

    def fingerprint(self, frames=None):
        return ""

    def frame_count(self, scene):
        return 4

    def sample(self, index, fields, generator):
        return [self.load(0, (index + view) % 4, fields) for view in range(self.spec.views)]

    def load(self, scene, frame, fields):
        self.asked |= fields
        rows, columns = np.mgrid[: SOURCE[0], : SOURCE[1]]
        boxes = np.array([[4 * n, 2 * n, 4 * n + 4, 2 * n + 2] for n in range(frame + 1)], np.float32)
        values = {
            "image": np.full((*SOURCE, 3), 10 * frame, np.uint8),
            "acme/flow": np.stack([columns, rows], -1).astype(np.float32),
            "acme/heat": np.full((SOURCE[0] // 2, SOURCE[1] // 2), 51 * frame, np.uint8),
            "acme/points": np.full((frame, 3), frame, np.float32),
            "acme/points_color": np.full(frame, 7 * frame),
            "acme/speed": 0.5 * frame,
            "acme/place": [3, 4],
            "instances": (columns // 8).astype(np.uint16),
            "boxes": boxes,
            "box_labels": np.arange(frame + 1) - 1,
            "box_instances": np.arange(frame + 1),
        }
        return View({name: value for name, value in values.items() if name in fields}, scene, frame, SOURCE)


@pytest.fixture
def spec(tmp_path):
    return lambda views=2: DataSpec(SIZE, views, "train", tmp_path)


def batch_of(dataset, fields, workers=0, augment=None):
    samples = DrawnSamples(dataset, frozenset(fields), augment, 0, False)
    batch = next(iter(make_loader(samples, DrawStream(0, 1, 2), workers)))
    raise_errors(batch)
    return to_float({name: value for name, value in batch.items() if name != "damaged"}, samples.table)


@pytest.mark.parametrize("workers", [0, 1])
def test_fields_of_a_dataset_reach_the_batch_as_their_table_says(spec, workers):
    batch = batch_of(Acme(spec()), NAMES, workers)
    frames = [0, 1, 1, 2]  # of the four views
    assert batch["acme/flow"].shape == (2, 2, 2, *SIZE) and batch["acme/flow"].dtype == torch.float32
    assert torch.equal(batch["acme/flow"][1, 1, 0], torch.arange(1.0, 40, 2).expand(10, 20))
    assert torch.equal(batch["acme/flow"][0, 0, 1], torch.arange(1.0, 20, 2)[:, None].expand(10, 20))
    assert torch.allclose(batch["acme/heat"].flatten(0, 1)[:, 0, 0], torch.tensor(frames) / 5)
    assert batch["acme/points"].tolist() == [[frame] * 3 for frame in (1, 1, 2, 2)]
    assert batch["acme/points_view"].tolist() == [1, 2, 3, 3]
    assert batch["acme/points_color"].tolist() == [7, 7, 14, 14]
    assert batch["acme/speed"].tolist() == [[0, 0.5], [0.5, 1]] and batch["acme/speed"].dtype == torch.float32
    assert batch["acme/place"].tolist() == [[3, 4], [3, 4]]


def test_only_what_is_asked_for_is_decoded_and_made(spec):
    dataset = Acme(spec())
    batch = batch_of(dataset, {"acme/points_view"})
    assert dataset.asked == {"acme/points"}
    assert set(batch) == {"scene", "frame", "acme/points", "acme/points_view"}


def test_mirrored_vectors_point_the_other_way_and_lie_on_the_other_side(spec):
    plain, mirrored = (batch_of(Acme(spec()), {"acme/flow"}, augment=AugmentOptions((1, 1), flip=p)) for p in (0, 1))
    flow, turned = plain["acme/flow"], mirrored["acme/flow"]
    assert torch.equal(turned[:, :, 0], -flow[:, :, 0].flip(-1)) and torch.equal(
        turned[:, :, 1], flow[:, :, 1].flip(-1)
    )


def test_a_field_that_a_mirror_spoils_refuses_flips(spec):
    fixed = Field("acme/goal", "[B, V, 3]", "float32", "meters, world", mirrors=False)
    dataset = Acme(spec(), (*OWN, fixed), {*Acme.provides, "acme/goal"})
    with pytest.raises(UserError, match=r"augment\.flip: flips mirror the world, so they do not go with acme/goal"):
        batch_of(dataset, {"acme/goal"}, augment=AugmentOptions(flip=0.5))


def test_boxes_move_with_the_image_and_their_labels_in_step(spec):
    batch = batch_of(Acme(spec()), LABELS)
    assert batch["instances"].dtype == torch.int64 and batch["instances"][0, 0, 0].tolist() == [
        n // 4 for n in range(20)
    ]
    counts = [1, 2, 2, 3]
    assert batch["boxes_view"].tolist() == [view for view, count in enumerate(counts) for _ in range(count)]
    of_last = batch["boxes_view"] == 3
    assert batch["boxes"][of_last].tolist() == [[0, 0, 2, 1], [2, 1, 4, 2], [4, 2, 6, 3]]
    assert batch["box_labels"][of_last].tolist() == [-1, 0, 1] and batch["box_instances"][of_last].tolist() == [0, 1, 2]


def test_boxes_are_clipped_dropped_and_mirrored():
    boxes = np.array([[0, 0, 40, 20], [0, 0, 10, 5], [-5, 8, 12, 30], [12, 4, 12, 9], [10, 0, 20, 20]], np.float32)
    half = crop(SOURCE, SIZE, 0.5, 0.5, 0.5, mirrored=False)  # columns 10 to 30, rows 5 to 15, at full size
    found, kept = half.boxes(boxes)
    assert kept.tolist() == [0, 2, 4]
    assert np.allclose(found, [[0, 0, 20, 10], [0, 3, 2, 10], [0, 0, 10, 10]])
    found, kept = crop(SOURCE, SIZE, 0.5, 0.5, 0.5, mirrored=True).boxes(boxes)
    assert kept.tolist() == [0, 2, 4]
    assert np.allclose(found, [[0, 0, 20, 10], [18, 3, 20, 10], [10, 0, 20, 10]])
    none, kept = half.boxes(np.zeros((0, 4), np.float32))
    assert none.shape == (0, 4) and len(kept) == 0


def test_boxes_hold_the_same_pixels_before_and_after():
    """The box around an object's pixels, moved, is the box around the moved pixels, to a pixel."""
    ids = np.zeros((200, 400), np.int64)
    ids[60:130, 90:250] = 1
    box = np.array([[90, 60, 250, 130]], np.float32)
    for mirrored in (False, True):
        placement = crop((200, 400), (50, 100), 0.7, 0.3, 0.6, mirrored=mirrored)
        rows, columns = np.nonzero(placement.nearest(ids))
        around = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.abs(placement.boxes(box)[0][0] - around).max() <= 0.5


def test_maps_of_numbers_are_resampled_at_any_resolution():
    ramp = np.linspace(0, 1, 80, dtype=np.float32)[None].repeat(40, 0)
    for image_size in (SOURCE, (40, 80)):
        small = centered(image_size, SIZE).resample(ramp)
        assert small.dtype == np.float32 and small.shape == SIZE
        assert np.allclose(small[:, 1:-1], (np.arange(20) * 4 + 1.5)[1:-1] / 79, atol=1e-3)
    two = centered(SOURCE, SIZE).resample(np.stack([ramp, 1 - ramp], -1).astype(np.float64))
    assert two.shape == (*SIZE, 2) and np.allclose(two.sum(-1), 1, atol=1e-6)


def test_rows_that_do_not_go_together_are_one_clear_error():
    view = View({"boxes": np.zeros((2, 4), np.float32), "box_labels": np.zeros(3)}, 1, 5, SOURCE)
    with pytest.raises(ValueError, match="expected box_labels of 2 rows, as boxes has, got 3 in scene 1, frame 5"):
        assemble([view], SIZE, None, frozenset({"box_labels"}), torch.Generator())


def test_a_value_of_the_whole_sample_is_the_same_in_all_views(spec):
    views = [View({"acme/place": [3, place]}, size=SOURCE) for place in (4, 5)]
    with pytest.raises(ValueError, match=r"expected one acme/place for all views of a sample, got \[3, 4\], \[3, 5\]"):
        assemble(views, SIZE, None, frozenset({"acme/place"}), torch.Generator(), table_of(Acme(spec())))


def test_probes_read_fields_of_plugins_and_packed_ones(spec):
    data = ProbeData({"held_out": Acme(spec(1))})
    every = torch.tensor([3, 0, 2])
    assert data.field("held_out", "acme/flow").take(every).shape == (3, 2, *SIZE)
    speed = data.field("held_out", "acme/speed").take(every)
    assert speed.tolist() == [1.5, 0, 1] and speed.dtype == torch.float16
    assert data.field("held_out", "instances").take(every).dtype == torch.int32
    assert data.field("held_out", "acme/place").take(every).tolist() == [[3, 4]] * 3
    points = data.field("held_out", "acme/points")
    assert len(points) == 4 and [len(rows) for rows in points.take(every)] == [3, 0, 2]
    assert points.take(every)[0].tolist() == [[3] * 3] * 3 and points.take(every)[1].shape == (0, 3)
    assert [rows.tolist() for rows in data.field("held_out", "box_labels").take(every)] == [
        [-1, 0, 1, 2],
        [-1],
        [-1, 0, 1],
    ]
    batches = list(data.batches("held_out", frozenset({"boxes", "acme/heat"}), batch=3))
    assert batches[0]["boxes_view"].tolist() == [0, 1, 1, 2, 2, 2] and batches[1]["boxes_view"].tolist() == [0] * 4
    assert torch.allclose(batches[0]["acme/heat"][:, 0, 0], torch.tensor([0, 0.2, 0.4]))
    folder = data.folder
    data.close()
    assert not folder.exists()


def test_a_packed_field_without_a_row_can_be_kept(spec):
    class Empty(Acme):
        def frame_count(self, scene):
            return 1  # which has no points

    data = ProbeData({"held_out": Empty(spec(1))})
    assert data.field("held_out", "acme/points").take(torch.tensor([0]))[0].shape == (0, 3)
    data.close()


@pytest.mark.parametrize(
    ("fields", "provides", "expected"),
    [
        ((), {"image", "acme/flow"}, r"Acme provides acme/flow, and nothing says what that is: add Field\('acme/flow'"),
        ((), {"image", "dept"}, "Acme provides dept, and nothing says what that is"),
        ((Field("depth", "[B, V, H, W]", "float32", "d"),), {"image"}, "a field depth, which is one of prior3d's own"),
        ((Field("flow", "[B, V, H, W]", "float32", "d"),), {"image"}, "'flow': a plugin's own are called <plugin>/<f"),
        ((FLOW, HEAT, Field("acme/flow", "[B, V, H, W]", "float32", "d")), {"image"}, "both bring a field acme/flow"),
        ((COLOR,), {"image"}, "acme/points_color is made from acme/points, which is not a field"),
    ],
)
def test_a_name_stands_for_one_thing(spec, fields, provides, expected):
    with pytest.raises(UserError, match=expected) as caught:
        DrawnSamples(Acme(spec(), fields, provides), frozenset({"image"}), None, 0, False)
    assert caught.value.key == "name"


def test_plugins_of_one_field_agree_on_it_or_are_refused():
    table = FIELDS.with_fields(OWN, "Acme")
    assert table.with_fields((FLOW,), "AcmeTwo")["acme/flow"] == FLOW
    with pytest.raises(UserError, match="Beta and Acme both bring a field acme/flow, and the two differ"):
        table.with_fields((Field("acme/flow", "[B, V, 2, H, W]", "float32", "pixels", moves="nearest"),), "Beta")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"shape": "[V, 3]"}, "expected \\[B, ...\\], or \\[N, ...\\] where packed"),
        ({"shape": "[B, V, 3]", "moves": "nearest"}, "expected \\[B, V, H, W\\] or"),
        ({"shape": "[B, H, W]", "moves": "nearest"}, "expected \\[B, V, H, W\\] or"),
        ({"shape": "[N, 3]", "batches": "pack", "moves": "boxes"}, "expected packed \\[N, 4\\]"),
        ({"shape": "[B, V, 4]", "moves": "boxes"}, "expected packed \\[N, 4\\]"),
        ({"shape": "[B, V, 3]", "moves": "intrinsics"}, "expected \\[B, V, 3, 3\\]"),
        ({"shape": "[B, V, 3]", "rows_of": "boxes"}, "expected rows of boxes to be packed"),
        ({"shape": "[B, V, 3]", "dtype": "float"}, "expected the dtype of a/b to be one of"),
        ({"shape": "[B, V, 3]", "moves": "sideways"}, "expected the moves of a/b to be one of"),
        ({"shape": "[B, V, 3]", "kept_as": "uint3"}, "expected kept_as of a/b to be one of"),
    ],
)
def test_a_field_that_cannot_be_is_refused(given, expected):
    with pytest.raises(ValueError, match=expected):
        Field(**{"name": "a/b", "dtype": "float32", "meaning": "m"} | given)


def test_what_is_made_from_a_plugins_field_is_not_missing():
    kind = Field("acme/kind", "[B]", "int64", "of flow", made_from="acme/flow")
    table = FIELDS.with_fields((*OWN, kind), "Acme")
    provides = frozenset({"acme/flow", "acme/points"})
    assert missing_fields(("acme/kind", "acme/points_view", "depth|acme/flow", "scene"), provides, table) == []
    assert missing_fields(("acme/heat",), provides, table) == ["acme/heat"]
