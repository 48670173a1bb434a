"""The reader of Replica as NICE-SLAM and iMAP rendered it: numbered frames, one trajectory, one camera for all."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Gt

from prior3d import BY_METADATA, Camera, Cloud, Frame, Reader, Recording, UserError
from prior3d.data.posed import (
    COLOR_EXTENSIONS,
    DepthCodes,
    FileNames,
    FileRecording,
    FocalAndCenter,
    color_size,
    depth_size,
    find_scenes,
    has_scene,
    nearest_file,
    numbers_of,
    pinhole,
    pose_problem,
    read_ply,
    read_rows,
)

_COLOR = FileNames("color", "results", r"frame(\d+)", COLOR_EXTENSIONS)
_DEPTH = FileNames("depth", "results", r"depth(\d+)", ("png",))
_CAMERA, _POSES = "cam_params.json", "traj.txt"
_SCALE = 6553.5


class Replica(Reader):
    """Replica of NICE-SLAM and iMAP: `office0/results/frame000000.jpg`, `depth000000.png`, `office0/traj.txt`.

    `traj.txt` has a 4x4 camera-to-world matrix per line, row by row, in meters, OpenCV axes; the number of a frame is
    that of its line, from 0. `cam_params.json` lies in the scene's folder or above it. `office0_mesh.ply` in or next to
    the scene's folder is its surface.

    Args:
        root: folder of scenes, or the folder of one scene.
        intrinsics: fx, fy, cx, cy in pixels of the images, centers of pixels at whole numbers; used for scenes without
            `cam_params.json`.
        depth_scale: depth file units per meter; by default that of `cam_params.json`, or 6553.5 without it.

    Raises:
        UserError: no scene was found, or an option is wrong.
    """

    def __init__(
        self,
        root: Path,
        *,
        intrinsics: FocalAndCenter | None = None,
        depth_scale: Annotated[float, Gt(0)] | None = None,
    ) -> None:
        super().__init__(root)
        if intrinsics is not None and min(intrinsics[:2]) <= 0:
            raise UserError(f"expected positive focal lengths, got {list(intrinsics[:2])}", "intrinsics")
        self._intrinsics, self._scale = intrinsics, depth_scale
        self._folders = find_scenes(self.root, _is_scene, "traj.txt and results/frame000000.jpg")

    @classmethod
    def recognizes(cls, folder: Path) -> int:
        """Return `BY_METADATA` if a folder is or contains scenes with `traj.txt` and `results`."""
        return BY_METADATA if has_scene(folder, _is_scene) else 0

    def scenes(self) -> Sequence[str]:
        """Return the names of the scenes, sorted."""
        return list(self._folders)

    def open(self, scene: str) -> Recording:
        """Open one scene; see `Reader.open`.

        Raises:
            UserError: the trajectory or the camera cannot be read, or intrinsics are missing.
        """
        folder = self._folders[scene]
        colors, depths = _COLOR.find(folder), _DEPTH.find(folder)
        if not colors or not depths:
            raise UserError(f"scene {scene} has {len(colors)} color and {len(depths)} depth files", "root")
        size = color_size(folder / name for name in colors.values())
        of_depth = depth_size(folder / name for name in depths.values())
        highest = self.root.parent if folder == self.root else self.root
        own = nearest_file(folder, highest, [_CAMERA])
        numbers, scale = (self._intrinsics, _SCALE) if own is None else _read_camera(own, size)
        if numbers is None:
            raise UserError(f"no intrinsics for scene {scene}: set fx, fy, cx, cy or add {_CAMERA}", "intrinsics")
        codes = DepthCodes(self._scale or scale, (0,))
        camera = Camera("pinhole", pinhole(*numbers, "integer"), size, depth_size=of_depth)
        poses = read_rows(folder / _POSES)
        frames, files = [], []
        for number in sorted(colors.keys() | depths.keys()):
            lacking = [what for what, names in (("color", colors), ("depth", depths)) if number not in names]
            pose = numbers_of(poses[number].words) if number < len(poses) else None
            problem = pose_problem(pose) if number < len(poses) else "no pose"
            if lacking:
                problem = f"no {lacking[0]} file"
            pose = pose.reshape(4, 4) if problem is None else None
            frames.append(Frame(str(number), camera, pose, problem))
            both = (("image", colors), ("depth", depths))
            files.append({field: folder / names[number] for field, names in both if number in names})
        name = f"{folder.resolve().name}_mesh.ply"
        meshes = [path for path in (folder / name, folder.parent / name) if path.is_file()][:1]
        more = [folder / _POSES, *([] if own is None else [own]), *meshes]
        notes = ["intrinsics goes unused: it has a file of its own"] if own and self._intrinsics else []
        facts = f"{codes.facts} {numbers}"
        return _ReplicaScene(
            frames, files, {"depth": codes.read}, more, facts, notes, mesh=meshes[0] if meshes else None
        )


class _ReplicaScene(FileRecording):
    """A recording with a mesh."""

    def __init__(self, *args: object, mesh: Path | None) -> None:
        super().__init__(*args)
        self._mesh = mesh

    def surface(self) -> Cloud | None:
        """Return the vertices of the mesh, None without one."""
        return None if self._mesh is None else read_ply(self._mesh)


def _is_scene(folder: Path) -> bool:
    return (folder / _POSES).is_file() and (_COLOR.any_in(folder) or _DEPTH.any_in(folder))


def _read_camera(path: Path, size: tuple[int, int]) -> tuple[FocalAndCenter, float]:
    """Return fx, fy, cx, cy and units per meter of `cam_params.json`."""
    try:
        camera = json.loads(path.read_text(encoding="utf-8"))["camera"]
        numbers = tuple(float(camera[name]) for name in ("fx", "fy", "cx", "cy"))
        of_file, scale = (int(camera["h"]), int(camera["w"])), float(camera["scale"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"expected a camera with w, h, fx, fy, cx, cy and scale in {path}", "root") from error
    if not (np.isfinite([*numbers, scale]).all() and min(*numbers[:2], scale) > 0):
        raise UserError(f"expected positive focal lengths and scale in {path}", "root")
    if of_file != size:
        raise UserError(f"{path} is of {of_file[1]}x{of_file[0]} pixels, the images have {size[1]}x{size[0]}", "root")
    return numbers, scale
