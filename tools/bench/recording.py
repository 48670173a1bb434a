"""A recording to measure on: views along a walk through a synthetic room, written as 7-Scenes files."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from prior3d_plugins.datasets.synthetic_rooms.rendering import render
from prior3d_plugins.datasets.synthetic_rooms.rooms import draw_room
from prior3d_plugins.datasets.synthetic_rooms.sensor import draw_sensor
from prior3d_plugins.datasets.synthetic_rooms.styles import style_of
from prior3d_plugins.datasets.synthetic_rooms.trajectories import pinhole

_FIELD_OF_VIEW_DEG = 57.4
"""That of the depth camera of 7-Scenes: 585 pixels of focal length for 640 of width."""

_UNKNOWN_SHARE = 0.05
_MILLIMETERS = 1000


def write_recording(
    folder: Path,
    frames: int,
    size: tuple[int, int],
    seed: int = 0,
    progress: Callable[[Iterable, str, int], Iterable] = lambda items, description, total: items,
) -> None:
    """Render one room and write color (JPEG), depth (16-bit PNG, millimeters), poses and intrinsics.

    Depth has the noise of a Kinect and unknown pixels, so that overlaps are as ragged as those of real recordings.

    Args:
        folder: Folder of the scene, made here.
        frames: Number of views along the walk.
        size: Height and width of color and depth.
        seed: Seed of the room, the walk and the noise.
        progress: Shows progress.

    Reference:
        Nguyen, Izadi and Lovell, Modeling Kinect sensor noise for improved 3D reconstruction and tracking, 2012: the
        standard deviation of depth at z meters is 0.0012 + 0.0019 (z - 0.4)^2.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    room = draw_room(rng, style_of("train", texture="independent", families="shared"))
    poses = room.trajectory.poses(frames)
    camera = pinhole(size, _FIELD_OF_VIEW_DEG)
    sensor = draw_sensor(rng, frames, 0.1, 0.01, (seed,))
    own = camera.copy()
    own[:2, 2] -= 0.5  # in these files the center of the first pixel is 0
    np.savetxt(folder / "camera-intrinsics.txt", own)
    for frame in progress(range(frames), "rendering", frames):
        one = draw_sensor(rng, 1, 0.0, sensor.noise, (seed, frame))
        one.gains[:] = sensor.gains[frame]
        view = render(room, poses[frame : frame + 1], camera, size, one)
        depth = view.depth[0] + (0.0012 + 0.0019 * (view.depth[0] - 0.4) ** 2) * rng.standard_normal(size)
        stored = np.rint(depth * _MILLIMETERS).clip(1, 65534).astype(np.uint16)
        stored[rng.random(size) < _UNKNOWN_SHARE] = 0
        name = folder / f"frame-{frame:06d}"
        Image.fromarray(view.image[0]).save(f"{name}.color.jpg", quality=90)
        Image.fromarray(stored).save(f"{name}.depth.png")
        np.savetxt(f"{name}.pose.txt", poses[frame])
