"""Twelve planted faults are named on real recordings, and clean ones raise no alarm."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prior3d.contracts.dataset import DataSpec
from prior3d.data.inspecting.checks import check_sample
from prior3d.data.inspecting.readings import (
    depth_from_distance,
    depth_times,
    inverted,
    mirrored,
    scaled_focal,
    swapped_center,
    turned_axes,
)
from prior3d.data.inspecting.sample import take_sample
from prior3d.data.posed import Calibration
from prior3d_plugins.datasets.posed import Posed

AXES = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0.0]])
KITCHEN = Calibration(528, 528, 321, 239, (-0.025, 0, 0))  # fitted, see the README of the data


def sampled(shared_data, scene, calibration=None):
    spec = DataSpec(size=(48, 64), views=1, split="train", cache=Path("unused"))
    options = {} if calibration is None else {"depth_to_color": {"*": calibration}}
    return take_sample(Posed(spec, root=shared_data / "rgbd" / scene, **options), 0)


def every(change):
    """Change all frames, and all poses, sampled or not."""

    def planted(sample):
        first = next(iter(sample.frames.values()))
        poses = [change(replace(first, world_from_camera=pose)).world_from_camera for pose in sample.poses]
        return replace(sample, frames={n: change(f) for n, f in sample.frames.items()}, poses=np.array(poses))

    return planted


def along_the_ray(frame):
    divided = depth_from_distance(frame).depth
    ratio = np.divide(frame.depth, divided, out=np.zeros_like(divided), where=divided > 0)
    return replace(frame, depth=frame.depth * ratio)


def larger_world(frame):
    pose = frame.world_from_camera.copy()
    pose[:3, 3] *= 5
    return replace(frame, world_from_camera=pose)


def shuffled(sample):
    return sample.with_poses(sample.poses[np.random.default_rng(0).permutation(len(sample.poses))])


def stuck(sample):
    poses, third = sample.poses.copy(), len(sample.poses) // 3
    poses[third : 2 * third] = poses[third]
    return sample.with_poses(poses)


def duplicated(sample):
    frames = dict(sample.frames)
    for n in [n for n in frames if n % 4 == 3 and n - 1 in frames]:
        frames[n] = replace(frames[n], gray=frames[n - 1].gray, depth=frames[n - 1].depth)
    return replace(sample, frames=frames)


def delayed(sample):
    frames = {n: replace(f, gray=sample.frames[n - 5].gray) for n, f in sample.frames.items() if n - 5 in sample.frames}
    return replace(sample, frames=frames)


FAULTS = {
    "inverted poses": (every(inverted), "inverted poses"),
    "swapped axes": (every(lambda frame: turned_axes(frame, AXES)), "swapped axes: z, x, y"),
    "scale x5": (every(larger_world), "scale: depth x 5"),
    "scale x5 of all": (every(lambda frame: larger_world(depth_times(frame, 5))), "scale"),
    "intrinsics of half size": (every(lambda frame: scaled_focal(frame, 0.5)), "intrinsics of half size"),
    "principal point swapped": (every(swapped_center), "principal point swapped"),
    "shuffled poses": (shuffled, "shuffled poses"),
    "depth along the ray": (every(along_the_ray), "depth along the ray"),
    "mirrored images": (every(lambda frame: mirrored(frame, depth=False)), "mirrored images"),
    "mirrored images and depth": (every(mirrored), "mirrored images and depth"),
    "stuck pose": (stuck, "stuck pose"),
    "duplicated frames": (duplicated, "duplicated frames"),
    "wrong depth unit": (every(lambda frame: depth_times(frame, 1000)), "scale: depth x 0.001"),
    "color delayed": (delayed, "color delayed by 5 frames"),
}


@pytest.mark.slow
@pytest.mark.parametrize("scene", ["office", "kitchen-b"])
def test_planted_faults_are_named(shared_data, scene):
    sample = sampled(shared_data, scene)
    missed = {}
    for fault, (plant, kind) in FAULTS.items():
        sure = [finding.kind for finding in check_sample(plant(sample))]
        if set(sure) - {kind, "depth not registered", "scale"} or kind not in sure:
            missed[fault] = sure
    assert not missed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scene", "calibration", "kinds"),
    [
        ("office", None, []),
        ("kitchen-a", KITCHEN, []),
        ("kitchen-b", KITCHEN, []),
        ("kitchen-a", None, ["depth not registered"]),
        ("kitchen-b", None, ["depth not registered"]),
    ],
)
def test_no_false_alarm_on_clean_data(shared_data, scene, calibration, kinds):
    assert [finding.kind for finding in check_sample(sampled(shared_data, scene, calibration))] == kinds
