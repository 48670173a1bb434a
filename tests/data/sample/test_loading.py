import numpy as np
import pytest
import torch

from prior3d.contracts.dataset import Dataset, DataSpec, View
from prior3d.data.sample.augmentation import AugmentOptions
from prior3d.data.sample.loading import (
    DrawnSamples,
    DrawStream,
    collate,
    make_loader,
    raise_errors,
    to_device,
    to_float,
)
from prior3d.errors import DamagedFile, UserError


class Noise(Dataset):
    """Random images; some draws are damaged."""

    def __init__(self, spec, damaged=()):
        super().__init__(spec)
        self.broken = set(damaged)

    def __len__(self):
        return 100

    def fingerprint(self, frames=None):
        return str(self.broken)

    def sample(self, draw, fields, generator):
        if draw in self.broken:
            raise DamagedFile(f"{draw}.png", "cut short")
        content = np.random.default_rng(draw).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        return [View({"image": content}, scene=draw, frame=view) for view in range(self.spec.views)]


@pytest.fixture
def spec(tmp_path):
    return DataSpec(size=(16, 24), views=2, split="train", cache=tmp_path)


def samples_of(dataset, skip=False):
    return DrawnSamples(dataset, frozenset({"image"}), AugmentOptions(), seed=0, skip_damaged=skip)


def read(samples, stream, workers=0):
    return list(make_loader(samples, stream, workers))


def test_ranks_and_steps_share_the_draws_out_without_gap_or_overlap():
    seen = []
    for micro in range(3):
        for rank in range(2):
            stream = DrawStream(start=micro, stop=3, batch_size=4, rank=rank, world_size=2)
            seen += list(stream)[:4]
    assert seen == list(range(24))


def test_a_resumed_stream_is_the_rest_of_the_whole_one_and_counts_all_of_it():
    whole, rest = DrawStream(0, 5, 4), DrawStream(3, 5, 4)
    assert list(rest) == list(whole)[12:]
    assert len(rest) == len(whole) == 20


def test_the_number_of_workers_changes_nothing(spec):
    stream = DrawStream(0, 3, 4)
    alone, shared = (read(samples_of(Noise(spec)), stream, workers) for workers in (0, 2))
    for first, second in zip(alone, shared, strict=True):
        assert torch.equal(first["image"], second["image"]) and torch.equal(first["scene"], second["scene"])


def test_a_batch_has_the_shapes_of_the_table(spec):
    batch = read(samples_of(Noise(spec)), DrawStream(0, 1, 4))[0]
    assert batch["image"].shape == (4, 2, 3, 16, 24) and batch["image"].dtype == torch.uint8
    assert batch["scene"].tolist() == [0, 1, 2, 3] and batch["frame"].tolist() == [[0, 1]] * 4


def test_damage_ends_the_run_in_one_line(spec):
    batch = read(samples_of(Noise(spec, {2})), DrawStream(0, 1, 4), workers=1)[0]
    with pytest.raises(UserError) as caught:
        raise_errors(batch)
    expected = "data.on_damage: damaged file 2.png: cut short; repair it, or set on_damage: skip"
    assert str(caught.value) == expected


def test_skipped_damage_is_replaced_and_named(spec):
    batch = read(samples_of(Noise(spec, {2}), skip=True), DrawStream(0, 1, 4))[0]
    raise_errors(batch)
    assert batch["scene"].tolist() == [0, 1, 3, 3]
    assert batch["damaged"] == [("2.png", "cut short")]


def test_nothing_but_damage_is_an_error(spec):
    batch = read(samples_of(Noise(spec, range(1000)), skip=True), DrawStream(0, 1, 2))[0]
    with pytest.raises(UserError, match="20 samples in a row are damaged"):
        raise_errors(batch)


def test_packed_points_know_their_view_in_the_batch():
    def sample(points, views):
        return {
            "frame": torch.tensor([0, 1]),
            "surface": torch.rand(points, 3),
            "surface_view": torch.tensor(views),
            "damaged": [],
        }

    batch = collate([sample(2, [0, 1]), sample(3, [0, 0, 1])])
    assert batch["surface"].shape == (5, 3)
    assert batch["surface_view"].tolist() == [0, 1, 2, 2, 3]


def test_bytes_become_0_to_1_and_other_fields_stay():
    batch = to_float({"image": torch.tensor([0, 255], dtype=torch.uint8), "scene": torch.tensor([3])})
    assert batch["image"].tolist() == [0, 1] and batch["scene"].dtype == torch.int64


def test_what_is_made_of_an_image_has_the_image_decoded(spec):
    class Strict(Noise):
        def sample(self, draw, fields, generator):
            assert "image" in fields
            return super().sample(draw, fields, generator)

    samples = DrawnSamples(Strict(spec), frozenset({"image_crops", "crop_from_image"}), AugmentOptions(), 0, False)
    sample = samples[0]
    assert sample["image_crops"].shape == (2, 3, 16, 24) and "image" not in sample


def test_what_is_looked_up_on_the_host_stays_there():
    batch = {"image": torch.zeros(1, 1, 3, 2, 2), "scene": torch.tensor([3]), "frame": torch.zeros(1, 1)}
    moved = to_device(batch, "meta")
    assert {name: value.device.type for name, value in moved.items()} == {
        "image": "meta",
        "scene": "cpu",
        "frame": "meta",
    }
    assert moved["scene"] is batch["scene"] and list(moved) == list(batch)
