"""Path of a room's camera: around the room and up and down, looking across it."""

import math
from dataclasses import dataclass

import numpy as np

LOWEST, HIGHEST = 1.0, 1.9
"""Range of the camera's height, meters."""

ROLL = 6.0
"""Largest sideways tilt of the camera, degrees."""


@dataclass(frozen=True)
class Trajectory:
    """A walk around the middle of a room, as a curve that any number of views can be taken from.

    Attributes:
        room_size: Size [3] of the room, meters.
        start, sweep: Start and extent of the walk, radians around the middle of the room.
        swing: Amplitude of the camera's height, meters.
        phases: Phases [4] of the camera's distance and height and of its target, radians.
    """

    room_size: np.ndarray
    start: float
    sweep: float
    swing: float
    phases: np.ndarray

    def poses(self, count: int) -> np.ndarray:
        """Return `count` evenly spaced poses, world_from_camera [count, 4, 4] float64, OpenCV axes."""
        turn = self.start + self.sweep * np.arange(count) / count
        radius = 0.15 + 0.2 * np.sin(2 * turn + self.phases[0])
        height = (LOWEST + HIGHEST) / 2 + self.swing * np.sin(3 * turn + self.phases[1])
        ahead = turn + math.copysign(1, self.sweep) * (2.6 + 0.5 * np.sin(2 * turn + self.phases[2]))
        aim = 0.9 + 0.3 * np.sin(2 * turn + self.phases[3])
        roll = math.radians(ROLL) * np.sin(5 * turn + self.phases[2])
        middle, extent = self.room_size[:2, None] / 2, self.room_size[:2, None]
        centers = np.stack([*(middle + extent * radius * _circle(turn)), height], axis=1)
        targets = np.stack([*(middle + extent * 0.45 * _circle(ahead)), aim], axis=1)
        return look_at(centers, targets, roll)


def draw_trajectory(rng: np.random.Generator, room_size: np.ndarray) -> Trajectory:
    """Draw a walk through a room of the given size, [3] meters."""
    return Trajectory(
        room_size=room_size,
        start=rng.uniform(0, 2 * math.pi),
        sweep=rng.choice([-1.0, 1.0]) * rng.uniform(1.0, 1.4) * math.pi,
        swing=rng.uniform(0.5, 1.0) * (HIGHEST - LOWEST) / 2,
        phases=rng.uniform(0, 2 * math.pi, 4),
    )


def look_at(centers: np.ndarray, targets: np.ndarray, roll: np.ndarray) -> np.ndarray:
    """Point cameras at targets.

    Args:
        centers: Camera centers [F, 3], meters.
        targets: Targets [F, 3], meters, not straight above or below.
        roll: Rotation [F] of each camera about its optical axis, radians; at 0, x is level.

    Returns:
        Poses world_from_camera [F, 4, 4].
    """
    forward = _normalized(targets - centers)
    level = _normalized(np.cross(forward, [0.0, 0.0, 1.0]))
    down = np.cross(forward, level)
    cosine, sine = np.cos(roll)[:, None], np.sin(roll)[:, None]
    poses = np.tile(np.eye(4), (len(centers), 1, 1))
    poses[:, :3, 0] = cosine * level + sine * down
    poses[:, :3, 1] = cosine * down - sine * level
    poses[:, :3, 2] = forward
    poses[:, :3, 3] = centers
    return poses


def pinhole(size: tuple[int, int], field_of_view: float) -> np.ndarray:
    """Return the intrinsics [3, 3] of a camera of `field_of_view` degrees across an image of `size` (height, width)."""
    height, width = size
    focal = width / 2 / math.tan(math.radians(field_of_view) / 2)
    return np.array([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])


def _circle(turn: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(turn), np.sin(turn)])


def _normalized(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
