"""The reader of 7-Scenes and 3DMatch: a color, a depth and a pose file per frame, in the scene's folder."""

from collections.abc import Sequence
from pathlib import Path

from prior3d import BY_NAMES, Camera, Reader, Recording, UserError
from prior3d.data.posed import (
    COLOR_EXTENSIONS,
    DepthCodes,
    FileNames,
    FocalAndCenter,
    GivenIntrinsics,
    PixelCenters,
    RGBDFolder,
    color_size,
    depth_size,
    find_scenes,
    has_scene,
    match_frames,
    nearest_file,
    scaled,
)

_COLOR = FileNames("color", "", r"frame-(\d+)\.color", COLOR_EXTENSIONS)
_DEPTH = FileNames("depth", "", r"frame-(\d+)\.depth", ("png",))
_POSE = FileNames("pose", "", r"frame-(\d+)\.pose", ("txt",))
_INTRINSICS = ("camera-intrinsics.txt", "intrinsics.txt")


class SevenScenes(Reader):
    """7-Scenes and 3DMatch: folders of `frame-000000.color.png` or `.jpg`, `.depth.png` (16 bits) and `.pose.txt`.

    `camera-intrinsics.txt` (fx fy cx cy, or a matrix) lies in the scene's folder or in one above it. Poses are 4x4
    camera-to-world matrices in meters, OpenCV axes. The reader assumes that depth is registered to color. If it is not,
    as in 7-Scenes, the intrinsics files and the poses belong to the depth camera: set `depth_to_color` of the dataset.

    Args:
        root: folder of scenes, or the folder of one scene.
        intrinsics: fx, fy, cx, cy in pixels of the depth maps, or a file with these numbers or a matrix; used for
            scenes without an intrinsics file.
        pixel_centers: coordinate of the center of the first pixel in the principal points of `intrinsics` and of files:
            0 ("integer", as in the sensors' own files) or 0.5 ("half").
        depth_scale: depth file units per meter.
        invalid_depth: values in the depth files that mean "not measured".

    Raises:
        UserError: no scene was found, or an option is wrong.
    """

    def __init__(
        self,
        root: Path,
        *,
        intrinsics: FocalAndCenter | Path | None = None,
        pixel_centers: PixelCenters = "integer",
        depth_scale: float = 1000.0,
        invalid_depth: tuple[int, ...] = (0, 65535),
    ) -> None:
        super().__init__(root)
        self._given = GivenIntrinsics(intrinsics, pixel_centers)
        self._depth = DepthCodes(depth_scale, invalid_depth)
        expected = "frame-000000.color.png, .depth.png and .pose.txt"
        self._folders = find_scenes(self.root, _is_scene, expected)

    @classmethod
    def recognizes(cls, folder: Path) -> int:
        """Return `BY_NAMES` if a folder or one of its subfolders has frames of this format."""
        return BY_NAMES if has_scene(folder, _is_scene) else 0

    def scenes(self) -> Sequence[str]:
        """Return the names of the scenes, sorted."""
        return list(self._folders)

    def open(self, scene: str) -> Recording:
        """Open one scene; see `Reader.open`.

        Raises:
            UserError: files are unmatched or cannot be read, or intrinsics are missing.
        """
        folder = self._folders[scene]
        files = match_frames(scene, folder, _COLOR, _DEPTH, _POSE)
        size, of_depth = color_size(file.color for file in files), depth_size(file.depth for file in files)
        own = nearest_file(folder, self.root, _INTRINSICS)
        matrix = self._given.declared() if own is None else self._given.read(own)
        if matrix is None:
            names = " or ".join(_INTRINSICS)
            raise UserError(f"no intrinsics for scene {scene}: set fx, fy, cx, cy or add {names}", "intrinsics")
        camera = Camera("pinhole", scaled(matrix, of_depth, size), size, depth_size=of_depth)
        more = [] if own is None else [own]
        return RGBDFolder(files, camera, self._depth, more, self._given.unused(bool(more)))


def _is_scene(folder: Path) -> bool:
    return any(names.any_in(folder) for names in (_COLOR, _DEPTH, _POSE))
