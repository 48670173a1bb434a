"""The correspondence probe against features whose answer is known."""

import hashlib

import pytest
import torch

from prior3d.data.augmentation import assemble
from prior3d.data.dataset import DataSpec
from prior3d.data.synthetic_rooms import SyntheticRooms
from prior3d.geometry import unproject
from prior3d.probes.correspondence import Correspondence
from prior3d.probes.probe import metrics_of
from prior3d.probes.probe_data import ProbeData
from prior3d.randomness import generator

FIELDS = frozenset({"image", "depth", "intrinsics", "world_from_camera"})


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    spec = DataSpec(size=(96, 128), views=2, split="test", cache=tmp_path_factory.mktemp("cache"))
    made = SyntheticRooms(spec, test_rooms=1, frames=12)
    made.prepare()
    return made


def name_of(image):
    return hashlib.sha256(image.mul(255).round().byte().numpy().tobytes()).hexdigest()


@pytest.fixture(scope="module")
def planted(rooms):
    """A model that gives every cell a code of the 3D point it shows, looked up by the image."""
    directions = torch.randn(3, 64, generator=generator("directions")) * 4
    codes = {}
    for frame in range(rooms.frame_count(0)):
        sample = assemble([rooms.load(0, frame, FIELDS)], rooms.spec.size, None, FIELDS, generator("none"))
        points = unproject(sample["depth"], sample["intrinsics"], sample["world_from_camera"])[0, 2::4, 2::4]
        phase = points @ directions
        codes[name_of(sample["image"][0].float() / 255)] = torch.cat([phase.sin(), phase.cos()], -1).movedim(-1, 0)
    return FrozenModel(lambda images: torch.stack([codes[name_of(image)] for image in images]), "cpu")


def test_features_of_the_3d_point_score_near_perfect(rooms, planted):
    found = Correspondence(pairs_per_bin=5).measure(planted, rooms)
    assert found["recall@6px, all"] > 0.9
    assert set(found) <= {f"recall@6px, {name}" for name in ("all", "0-15 deg", "15-30 deg", "30-180 deg")}


def test_random_features_score_at_chance(rooms):
    random = FrozenModel(lambda images: torch.randn(len(images), 64, 24, 32), "cpu")
    # a disc of 6 pixels holds about 7 of 768 cells
    assert Correspondence(pairs_per_bin=5).measure(random, rooms)["recall@6px, all"] < 0.04


def test_a_larger_radius_finds_more_and_the_choice_of_pairs_is_fixed(rooms):
    raw = [
        Correspondence(pairs_per_bin=5, pixels=pixels).controls(rooms)["raw patches"] for pixels in (3.0, 12.0, 12.0)
    ]
    near, far, again = (next(iter(metrics.values())) for metrics in raw)
    assert near < far == again


def test_position_alone_is_the_same_place_in_the_image(rooms):
    features = Correspondence().controls(rooms)["position"]
    assert features["recall@6px, 0-15 deg"] > features["recall@6px, 30-180 deg"]
