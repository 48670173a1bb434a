"""Placement of furniture in a room: nothing inside anything else, outside the room, or in the camera's way."""

import math
from collections.abc import Callable, Mapping

import numpy as np

from prior3d_plugins.datasets.synthetic_rooms.catalog import draw_design
from prior3d_plugins.datasets.synthetic_rooms.design import Design
from prior3d_plugins.datasets.synthetic_rooms.trajectories import Trajectory

CLEARANCE = 0.3
"""Meters kept free around every position of the camera."""

ON_WALLS = {"door": (0.0, 0.0), "window": (0.85, 1.1), "picture": (1.0, 1.5)}
"""Kinds that are fixed to a wall, and the range of their lower edge above the floor, meters."""

AROUND = ("door", "bed", "sofa", "shelf", "cabinet", "window", "shelf", "cabinet", "lamp", "plant")
AROUND += ("picture", "picture", "picture", "window", "lamp", "plant")
AMIDST = ("plant", "chair", "clutter", "clutter")

_TRIES = 25
_WALK_SAMPLES = 64

Pose = np.ndarray  # world_from_piece [4, 4]
Placed = tuple[Design, Pose]


def furnish(
    rng: np.random.Generator,
    room_size: np.ndarray,
    trajectory: Trajectory,
    variants: Mapping[str, tuple[str, ...]],
) -> list[Placed]:
    """Draw the furniture of a room; things that fit nowhere are left out.

    Args:
        rng: Source of randomness.
        room_size: Size [3] of the room, meters.
        trajectory: Path of the camera.
        variants: Allowed variants of every kind.

    Returns:
        Designs and their poses, world_from_piece [4, 4].
    """
    room = _FreeSpace(rng, room_size, trajectory, variants)
    tables = [room.put("table", room.anywhere) for _ in range(2)]
    for table in filter(None, tables):
        for side in range(4):
            room.put("chair", lambda chair, table=table, side=side: room.beside(chair, *table, side))
    cabinets = [placed for kind in AROUND if (placed := room.put(kind, room.against_wall)) and kind == "cabinet"]
    for support in filter(None, [*tables, *cabinets]):
        room.put("clutter", lambda clutter, support=support: room.on_top(clutter, *support))
    for kind in AMIDST:
        room.put(kind, room.anywhere)
    return room.placed


class _FreeSpace:
    """A room that is being furnished: axis-aligned boxes around everything in it."""

    def __init__(
        self,
        rng: np.random.Generator,
        size: np.ndarray,
        trajectory: Trajectory,
        variants: Mapping[str, tuple[str, ...]],
    ) -> None:
        self.rng = rng
        self.size = size
        self.variants = variants
        self.cameras = trajectory.poses(_WALK_SAMPLES)[:, :3, 3]
        self.placed: list[Placed] = []
        self._taken: list[tuple[np.ndarray, np.ndarray]] = []

    def put(self, kind: str, where: Callable[[Design], Pose]) -> Placed | None:
        """Put a new design of a kind at the first of several proposed places that is free."""
        design = draw_design(kind, self.rng, self.variants[kind])
        for _ in range(_TRIES):
            pose = where(design)
            low, high = _box_around(design, pose)
            if self._is_free(low, high):
                self._taken.append((low, high))
                self.placed.append((design, pose))
                return design, pose
        return None

    def _is_free(self, low: np.ndarray, high: np.ndarray) -> bool:
        touch = 1e-4  # meters: things may stand on each other
        if (low < -touch).any() or (high > self.size + touch).any():
            return False
        if any((low + touch < top).all() and (high - touch > bottom).all() for bottom, top in self._taken):
            return False
        away = np.maximum(np.maximum(low - self.cameras, self.cameras - high), 0)
        return np.linalg.norm(away, axis=1).min() > CLEARANCE

    def anywhere(self, design: Design) -> Pose:
        """Propose a place on the floor, with a random rotation."""
        x, y = self.rng.uniform(0.15, 0.85, 2) * self.size[:2]
        return _pose(x, y, 0.0, self.rng.uniform(0, 2 * math.pi))

    def against_wall(self, design: Design) -> Pose:
        """Propose a place with the back to one of the walls, at y = 0, x = size, y = size or x = 0 in this order."""
        side, along = int(self.rng.integers(4)), self.rng.uniform(0, 1)
        gap = 0.0 if design.kind in ON_WALLS else self.rng.uniform(0.01, 0.04)
        offset = gap - design.bounds[0][1]
        x, y = along * self.size[0], along * self.size[1]
        x, y = ((x, offset), (self.size[0] - offset, y), (x, self.size[1] - offset), (offset, y))[side]
        return _pose(x, y, self.rng.uniform(*ON_WALLS.get(design.kind, (0.0, 0.0))), side * math.pi / 2)

    def beside(self, chair: Design, table: Design, table_pose: Pose, side: int) -> Pose:
        """Propose a place for a chair at a side of a table, facing the table."""
        reach = table.bounds[1][1 - side % 2] + self.rng.uniform(0.3, 0.45)
        turn = side * math.pi / 2
        return table_pose @ _pose(reach * math.sin(turn), -reach * math.cos(turn), 0.0, turn + self.rng.normal(0, 0.2))

    def on_top(self, clutter: Design, support: Design, support_pose: Pose) -> Pose:
        """Propose a place on top of something, near its middle."""
        x, y = self.rng.uniform(-0.6, 0.6, 2) * support.bounds[1][:2]
        return support_pose @ _pose(x, y, support.bounds[1][2], self.rng.uniform(0, 2 * math.pi))


def _box_around(design: Design, pose: Pose) -> tuple[np.ndarray, np.ndarray]:
    low, high = design.bounds
    middle = pose[:3, :3] @ ((low + high) / 2) + pose[:3, 3]
    reach = np.abs(pose[:3, :3]) @ ((high - low) / 2)
    return middle - reach, middle + reach


def _pose(x: float, y: float, z: float, yaw: float) -> Pose:
    pose = np.eye(4)
    pose[:2, :2] = [[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]]
    pose[:3, 3] = x, y, z
    return pose
