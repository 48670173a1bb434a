"""How the files of a scene are named: which folders are scenes, and which files make a frame."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from prior3d.errors import UserError

_DEEPEST_SCENE = 3
"""How many folders below the root a scene may lie (`building/room/sequence`)."""


@dataclass(frozen=True)
class FileNames:
    """Where one sort of file lies within a scene.

    Attributes:
        folder: sub-folder of the scene; "" is the scene's own.
        pattern: regular expression of a file's whole name; its group 1 is the number of the frame.
    """

    folder: str
    pattern: re.Pattern[str]

    def find(self, scene: Path) -> dict[int, str]:
        """Return {number of the frame: path of its file below the scene}."""
        return dict(self._matches(scene))

    def any_in(self, scene: Path) -> bool:
        """Whether the scene has a file of this sort; looks no further than the first."""
        return next(self._matches(scene), None) is not None

    def _matches(self, scene: Path) -> Iterator[tuple[int, str]]:
        folder = scene / self.folder
        if not folder.is_dir():
            return
        with os.scandir(folder) as entries:
            for entry in entries:
                match = self.pattern.fullmatch(entry.name)
                if match:
                    yield int(match[1]), os.path.join(self.folder, entry.name)


@dataclass(frozen=True)
class Layout:
    """The file names of one way to store a scene.

    Attributes:
        files: "colour", "depth" and "pose" files.
        depth_intrinsics: names of the file with the depth camera's intrinsics, the first that exists counts.
        color_intrinsics: likewise for the colour camera, where the layout has them apart.
    """

    files: dict[str, FileNames]
    depth_intrinsics: tuple[str, ...]
    color_intrinsics: tuple[str, ...] = ()

    def describes(self, folder: Path) -> bool:
        """Whether a folder holds files named in this way."""
        return any(names.any_in(folder) for names in self.files.values())


LAYOUTS = {
    "frames": Layout(
        files={
            "colour": FileNames("", re.compile(r"frame-(\d+)\.color\.(?:png|jpe?g)", re.IGNORECASE)),
            "depth": FileNames("", re.compile(r"frame-(\d+)\.depth\.png", re.IGNORECASE)),
            "pose": FileNames("", re.compile(r"frame-(\d+)\.pose\.txt", re.IGNORECASE)),
        },
        depth_intrinsics=("camera-intrinsics.txt", "intrinsics.txt"),
    ),
    "scannet": Layout(
        files={
            "colour": FileNames("color", re.compile(r"(\d+)\.(?:png|jpe?g)", re.IGNORECASE)),
            "depth": FileNames("depth", re.compile(r"(\d+)\.png", re.IGNORECASE)),
            "pose": FileNames("pose", re.compile(r"(\d+)\.txt", re.IGNORECASE)),
        },
        depth_intrinsics=("intrinsic/intrinsic_depth.txt",),
        color_intrinsics=("intrinsic/intrinsic_color.txt",),
    ),
}
"""`frames` is the layout of 7-Scenes and 3DMatch, `scannet` that of ScanNet's exporter."""


@dataclass(frozen=True)
class SceneFolder:
    """One scene: its name (path below the root), where it lies, how its files are named."""

    name: str
    path: Path
    layout: Layout


@dataclass(frozen=True)
class FrameFiles:
    """The files of one frame."""

    number: int
    color: Path
    depth: Path
    pose: Path


def find_scenes(root: Path, layout: str) -> list[SceneFolder]:
    """Return the scenes in a folder, sorted by name; the folder itself may be the only one.

    Args:
        root: the folder.
        layout: a name of `LAYOUTS`, or "auto" for whichever describes a folder.

    Raises:
        UserError: if there is no such folder or no scene in it.
    """
    if not root.is_dir():
        raise UserError(f"no folder {root}", "data.root")
    layouts = list(LAYOUTS.values()) if layout == "auto" else [LAYOUTS[layout]]
    scenes = list(_walk(root, root, layouts, 0))
    if not scenes:
        raise UserError(
            f"no scene of the layout {layout} in {root}: expected frame-000000.color.png, .depth.png and .pose.txt, or"
            " the folders color, depth and pose",
            "data.root",
        )
    return sorted(scenes, key=lambda scene: scene.name)


def _walk(folder: Path, root: Path, layouts: list[Layout], depth: int) -> Iterator[SceneFolder]:
    for layout in layouts:
        if layout.describes(folder):
            name = folder.relative_to(root).as_posix() if depth else folder.resolve().name
            yield SceneFolder(name, folder, layout)
            return
    if depth < _DEEPEST_SCENE:
        for below in folder.iterdir():
            if below.is_dir() and not below.name.startswith("."):
                yield from _walk(below, root, layouts, depth + 1)


def names_scene(pattern: str, name: str) -> bool:
    """Whether a pattern (`kitchen-*`), a name or a folder of scenes (`chess` of `chess/seq-01`) means a scene."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern.rstrip('/')}/*")


def list_frames(scene: SceneFolder) -> list[FrameFiles]:
    """Return the frames of a scene in the order of their numbers.

    Raises:
        UserError: if some frame lacks its colour, depth or pose.
    """
    found = {kind: names.find(scene.path) for kind, names in scene.layout.files.items()}
    complete = set.intersection(*(set(files) for files in found.values()))
    unmatched = set().union(*found.values()) - complete
    if unmatched:
        first = min(unmatched)
        lacks = " and no ".join(kind for kind, files in found.items() if first not in files)
        counts = ", ".join(f"{len(files)} {kind}" for kind, files in found.items())
        raise UserError(
            f"scene {scene.name} has {counts} files; the first unmatched is frame {first}, with no {lacks}", "data.root"
        )
    return [FrameFiles(n, *(scene.path / files[n] for files in found.values())) for n in sorted(complete)]
