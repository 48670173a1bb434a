"""Fusion equals its plain definition, takes bounded memory, and reads one frame while it adds another."""

import threading
import weakref

import numpy as np
import pytest
from plain_fusion import plain_fusion
from posed_boxes import box_views

from prior3d.data.posed.fusion import PosedFrame, fuse
from prior3d.data.posed.surface import SurfaceOptions
from prior3d.data.posed.voxels import KeyNumbers, VoxelSums

SIZE = (30, 40)


def box_frames(count=12, image_factor=1):
    """Frames within a box, with noise, unknown and broken depth, and colors by the pixel."""
    rng = np.random.default_rng(count)
    depth, intrinsics, poses = (values.numpy() for values in box_views(count))
    depth = depth + 0.004 * rng.standard_normal(depth.shape).astype(np.float32)
    depth[rng.random(depth.shape) < 0.05] = 0
    depth[rng.random(depth.shape) < 0.01] = np.nan
    size = tuple(round(image_factor * side) for side in depth.shape[1:])
    images = rng.integers(0, 256, (count, *size, 3), dtype=np.uint8)
    return [
        PosedFrame(*frame) for frame in zip(depth, intrinsics.astype(float), poses.astype(float), images, strict=True)
    ]


@pytest.mark.parametrize(
    "options",
    [
        SurfaceOptions(),
        SurfaceOptions(0.05, min_frames=1),
        SurfaceOptions(0.05, min_frames=4, edge=0.5),
        SurfaceOptions(0.2, min_frames=3),
        SurfaceOptions(2e-6, min_frames=1, edge=0.5),  # most points are beyond the farthest voxel
    ],
)
@pytest.mark.parametrize("image_factor", [1, 0.5])
def test_fused_frames_are_those_of_the_plain_definition(options, image_factor):
    frames = box_frames(image_factor=image_factor)
    points, colors = fuse(iter(frames), options)
    expected, expected_colors = plain_fusion(frames, options)
    assert points.dtype == np.float64 and colors.dtype == np.uint8
    assert len(points) == len(expected) > 10
    assert np.array_equal(colors, expected_colors)
    assert np.abs(points - expected).max() < 1e-12


def test_fusing_is_the_same_again_bit_by_bit():
    first, again = (fuse(iter(box_frames()), SurfaceOptions(0.02)) for _ in range(2))
    assert np.array_equal(first.points, again.points) and np.array_equal(first.colors, again.colors)


def test_few_frames_are_in_memory_at_once():
    alive, most = weakref.WeakSet(), []

    class Depth(np.ndarray):
        """An array that can be counted."""

        __hash__ = object.__hash__

    def frames():
        for number in range(8):
            depth = box_frames(2)[number % 2].depth.view(Depth)
            alive.add(depth)
            most.append(len(alive))
            yield box_frames(2)[number % 2]._replace(depth=depth)
            del depth

    fuse(frames(), SurfaceOptions(0.05))
    assert max(most) <= 3


def test_frames_are_read_in_the_calling_thread_and_errors_of_either_side_arrive():
    """Readers may keep handles that belong to one thread."""
    readers = []

    def frames():
        for frame in box_frames(3):
            readers.append(threading.get_ident())
            yield frame

    fuse(frames(), SurfaceOptions(0.05))
    assert set(readers) == {threading.get_ident()} and len(readers) == 3

    def damaged():
        yield box_frames(1)[0]
        raise OSError("truncated")

    with pytest.raises(OSError, match="truncated"):
        fuse(damaged(), SurfaceOptions(0.05))
    with pytest.raises(np.linalg.LinAlgError):
        fuse([frame._replace(intrinsics=np.diag([50.0, 0, 1])) for frame in box_frames(2)], SurfaceOptions(0.05))
    before = threading.active_count()
    fuse(iter(box_frames(2)), SurfaceOptions(0.05))
    assert threading.active_count() == before


@pytest.mark.parametrize("spread", [1, 2**20, 2**40])
def test_numbers_of_keys_are_those_of_a_dict(spread):
    rng, numbers, known = np.random.default_rng(0), KeyNumbers(), {}
    assert len(numbers.of(np.zeros(0, np.int64))) == 0
    for count in (1, 50, 3000, 20_000, 40_000):
        keys = rng.integers(0, count, 2 * count) * spread
        found = numbers.of(keys)
        assert np.array_equal(numbers.keys[found], keys)
        for key, number in zip(keys.tolist(), found.tolist(), strict=True):
            assert known.setdefault(key, number) == number
        assert len(numbers) == len(known) == len(set(known.values()))
        assert max(known.values()) == len(known) - 1
    assert numbers.bytes < 40 * len(numbers) + 2**15


@pytest.mark.parametrize(("apart", "most"), [(1, 160), (4, 800)])
def test_memory_is_bounded_by_the_number_of_voxels_and_does_not_grow_with_frames(apart, most):
    """Voxels side by side, and each alone in its cell."""
    places = [axis.ravel() * 0.01 * apart for axis in np.meshgrid(*[np.arange(40) + 0.5] * 3, indexing="ij")]
    voxels, colors = VoxelSums(0.01), [np.full(64_000, value, np.uint8) for value in (1, 2, 250)]
    for _ in range(2):
        voxels.add(places, colors)
    twice = voxels.bytes
    assert len(voxels) == 64_000 and twice < most * 64_000
    for _ in range(4):
        voxels.add(places, colors)
    assert voxels.bytes == twice and len(voxels) == 64_000
    points, means = voxels.means(6)
    assert np.allclose(points, np.stack(places, axis=1)) and (means == [1, 2, 250]).all()
    assert len(voxels.means(7)[0]) == 0
