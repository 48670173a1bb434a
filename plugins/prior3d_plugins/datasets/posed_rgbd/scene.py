"""One scene opened: its usable frames with their poses, and its cameras; no image is decoded for it."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prior3d.data.decoding import image_size
from prior3d.data.posed.cameras import Calibration, pinhole, pose_problem, read_numbers, read_pinhole
from prior3d.data.posed.registration import CameraPair
from prior3d.errors import DamagedFile, UserError
from prior3d_plugins.datasets.posed_rgbd.layouts import FrameFiles, SceneFolder, list_frames

FocalAndCenter = tuple[float, float, float, float]
"""Focal lengths along x and y and principal point, pixels: fx, fy, cx, cy."""


@dataclass(frozen=True)
class CameraOptions:
    """What the recipe says about cameras, see `PosedRGBD`."""

    root: Path
    intrinsics: FocalAndCenter | Path | None
    pixel_centers: str

    def declared(self) -> np.ndarray | None:
        """Return the pinhole matrix [3, 3] of `data.intrinsics`, if it is set."""
        if self.intrinsics is None:
            return None
        if isinstance(self.intrinsics, Path):
            path = self.intrinsics.expanduser()
            if not path.is_file():
                raise UserError(f"no file {path}", "data.intrinsics")
            return read_pinhole(path, self.pixel_centers, "data.intrinsics")
        if min(self.intrinsics[:2]) <= 0:
            raise UserError(f"expected positive focal lengths, got {list(self.intrinsics[:2])}", "data.intrinsics")
        return pinhole(*self.intrinsics, self.pixel_centers)


@dataclass(frozen=True)
class OpenScene:
    """What is known of a scene before any of its images is decoded.

    Attributes:
        frames: the frames whose poses can be used, in order.
        world_from_color: [F, 4, 4] float64 poses of the COLOUR camera, metres.
        dropped: what was wrong with the poses of the frames left out, and how often.
        image_intrinsics: [3, 3] float64 of the colour camera, pixels of its images, centres at +0.5.
        image_size: height and width of the colour images, pixels.
        depth_size: height and width of the depth maps, pixels.
        cameras: how depth gets into the colour camera.
        own_intrinsics: whether the intrinsics come from a file of the scene.
    """

    frames: Sequence[FrameFiles]
    world_from_color: np.ndarray
    dropped: Counter[str]
    image_intrinsics: np.ndarray
    image_size: tuple[int, int]
    depth_size: tuple[int, int]
    cameras: CameraPair
    own_intrinsics: bool


def open_scene(
    folder: SceneFolder,
    options: CameraOptions,
    calibration: Calibration | None,
    choose: Callable[[Sequence[FrameFiles]], Sequence[FrameFiles]],
) -> OpenScene:
    """List a scene's frames, read its poses and intrinsics, and check that they fit together.

    Args:
        folder: the scene.
        options: what the recipe says about cameras.
        calibration: of its colour camera, where depth is not registered to it.
        choose: picks the frames to use.

    Raises:
        UserError: if files are unmatched or there are no intrinsics.
    """
    chosen = choose(list_frames(folder))
    color_size = _first_size([frame.color for frame in chosen])
    depth_size = _first_size([frame.depth for frame in chosen])
    depth_intrinsics, color_intrinsics, own = _intrinsics(folder, options, depth_size, color_size)
    color_from_depth = np.eye(4)
    if calibration is not None:
        color_from_depth = calibration.color_from_depth
        color_intrinsics = pinhole(
            calibration.fx, calibration.fy, calibration.cx, calibration.cy, options.pixel_centers
        )
    numbers = [read_numbers(frame.pose) for frame in chosen]
    problems = [pose_problem(pose) for pose in numbers]
    poses = [pose.reshape(4, 4) for pose, problem in zip(numbers, problems, strict=True) if problem is None]
    return OpenScene(
        frames=[frame for frame, problem in zip(chosen, problems, strict=True) if problem is None],
        world_from_color=np.array(poses).reshape(-1, 4, 4) @ np.linalg.inv(color_from_depth),
        dropped=Counter(problem for problem in problems if problem is not None),
        image_intrinsics=color_intrinsics,
        image_size=color_size,
        depth_size=depth_size,
        cameras=CameraPair(depth_intrinsics, _scaled(color_intrinsics, color_size, depth_size), color_from_depth),
        own_intrinsics=own,
    )


def _intrinsics(
    folder: SceneFolder, options: CameraOptions, depth_size: tuple[int, int], color_size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Return the intrinsics of the depth and the colour camera, each in its own pixels, and whether files said so."""
    depth_file = _nearest_file(folder, options.root, folder.layout.depth_intrinsics)
    color_file = _nearest_file(folder, options.root, folder.layout.color_intrinsics)
    depth, color = (
        read_pinhole(path, options.pixel_centers, "data.root") if path else None for path in (depth_file, color_file)
    )
    own = depth is not None or color is not None
    if depth is None:
        depth = _scaled(color, color_size, depth_size) if color is not None else options.declared()
    if depth is None:
        names = " or ".join(folder.layout.depth_intrinsics)
        raise UserError(f"no intrinsics for scene {folder.name}: set fx, fy, cx, cy or add {names}", "data.intrinsics")
    return depth, color if color is not None else _scaled(depth, depth_size, color_size), own


def _nearest_file(folder: SceneFolder, root: Path, names: Sequence[str]) -> Path | None:
    """Return the first of these files in the scene or, sequences of one sensor often share it, in a folder above."""
    above = folder.path
    while True:
        for name in names:
            if (above / name).is_file():
                return above / name
        if above in (root, above.parent):
            return None
        above = above.parent


def _scaled(intrinsics: np.ndarray, size: tuple[int, int], new_size: tuple[int, int]) -> np.ndarray:
    """Return intrinsics in the pixels of the same field of view at another size (height, width)."""
    return np.diag([new_size[1] / size[1], new_size[0] / size[0], 1.0]) @ intrinsics


def _first_size(paths: Sequence[Path]) -> tuple[int, int]:
    """Return the size of a scene's images, from the first whose header can be read."""
    damage: DamagedFile | None = None
    for path in paths:
        try:
            return image_size(path)
        except DamagedFile as error:
            damage = damage or error
    raise UserError(f"none of {len(paths)} files can be read, the first: {damage}", "data.root")
