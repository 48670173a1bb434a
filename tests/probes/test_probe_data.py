"""Frames of two parts, in order and thinned evenly; features that are read once and lie in files."""

import pytest
import torch

from prior3d.errors import DamagedFile, UserError
from prior3d.probes.probe_data import ProbeData


def test_every_frame_is_seen_once_in_order(data):
    assert data.frames["train"] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    names, groups = data.groups("held_out")
    assert names == ["scene-0", "scene-1"] and groups.tolist() == [0, 0, 0, 1, 1]
    batches = list(data.batches("train", frozenset({"image", "semantic", "label"}), batch=2))
    assert [len(batch["label"]) for batch in batches] == [2, 2, 1]
    semantic, label = torch.cat([batch["semantic"] for batch in batches]), data.field("train", "label")
    assert torch.equal(semantic[:, 0, 0], label.take(torch.arange(5)))


def test_images_of_a_single_scene_are_groups_themselves(squares):
    data = ProbeData({"held_out": squares("test", counts=(4,))})
    names, groups = data.groups("held_out")
    assert names == [f"scene-0/{frame}" for frame in range(4)] and groups.tolist() == [0, 1, 2, 3]
    data.close()


def test_thinning_is_even_and_keeps_both_ends(squares):
    data = ProbeData({"held_out": squares("test", counts=(10, 11))}, most=5)
    assert data.frames["held_out"] == [(0, 0), (0, 5), (1, 0), (1, 5), (1, 10)]
    data.close()


def test_features_are_those_of_the_model_and_read_only_once(data, pixels):
    calls = []
    read = pixels.read
    pixels.read = lambda images, kind="dense": (calls.append(len(images)), read(images, kind))[1]
    (first,), (second,) = data.features(pixels, "train"), data.features(pixels, "train")
    assert first is second and calls == [5]
    assert first.shape == (5, 3, 4, 6)
    rows = torch.tensor([3, 0])
    expected = data.field("train", "semantic").take(rows)[:, 2::4, 2::4].float() * 100 / 255
    assert (first.take(rows)[:, 0].float() - expected).abs().max() < 1e-3
    files = set(data.folder.iterdir())
    data.forget(pixels)
    assert len(files) - len(set(data.folder.iterdir())) == 1
    data.features(pixels, "train")
    assert calls == [5, 5]


def test_parts_of_a_model_are_kept_apart_and_pooled_features_are_vectors(data, two_parts):
    one, ten = data.features(two_parts, "held_out", "pooled")
    assert one.shape == ten.shape == (5, 3)
    assert (ten.take(torch.arange(5)) - 10 * one.take(torch.arange(5))).abs().max() < 2e-2


def test_nothing_is_left_behind(data, pixels):
    data.features(pixels, "train")
    folder = data.folder
    data.close()
    assert not folder.exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_frame_is_one_line(squares, workers):
    broken = squares("test")
    load = broken.load

    def damaged(scene, frame, fields):
        if (scene, frame) == (1, 1):
            raise DamagedFile("b.png", "it ends too soon")
        return load(scene, frame, fields)

    broken.load = damaged
    data = ProbeData({"held_out": broken}, workers=workers)
    with pytest.raises(UserError, match=r"^data: damaged file b.png: it ends too soon; probes see every frame"):
        data.field("held_out", "image")
    data.close()


def test_an_empty_part_is_refused(squares):
    with pytest.raises(UserError, match="the test split is empty"):
        ProbeData({"held_out": squares("test", counts=(0,))})


def test_wrong_names_of_parts_kinds_and_fields_are_refused(data, pixels):
    with pytest.raises(ValueError, match="expected one of train, held_out as part of the data, got 'test'"):
        data.features(pixels, "test")
    with pytest.raises(ValueError, match="as part of the data, got 'test'"):
        data.field("test", "semantic")
    with pytest.raises(ValueError, match="expected one of dense, encoder, pooled as kind of features, got 'dens'"):
        data.features(pixels, "held_out", "dens")
    with pytest.raises(ValueError, match=r"expected a field, got 'semantics'; there are .*, semantic, "):
        data.field("held_out", "semantics")
