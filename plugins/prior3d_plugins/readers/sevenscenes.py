"""The reader of 7-Scenes and 3DMatch: a color, a depth and a pose file for each frame, in the scene's own folder."""

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
    camera-to-world matrices in meters, OpenCV axes. Depth is taken to be registered to color; where it is not, as in
    7-Scenes, both files and poses are of the depth camera: set `depth_to_color` of the dataset.

    Args:
        root: folder of scenes, or one scene.
        intrinsics: fx, fy, cx, cy in pixels of the depth maps, or a file with them or a matrix, for scenes that have no
            file of their own.
        pixel_centers: whether principal points here and in files count the center of the first pixel as 0 ("integer",
            as the sensors' own files do) or as 0.5 ("half").
        depth_scale: units of the depth files per meter.
        invalid_depth: values of the depth files that mean: not measured.

    Raises:
        UserError: there is no scene, or an option is wrong.
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
    def recognises(cls, folder: Path) -> int:
        """Return `BY_NAMES` for a folder with frames of this format in it or below."""
        return BY_NAMES if has_scene(folder, _is_scene) else 0

    def scenes(self) -> Sequence[str]:
        """Return the names of the scenes, sorted."""
        return list(self._folders)

    def open(self, scene: str) -> Recording:
        """Open one scene; see `Reader.open`.

        Raises:
            UserError: files are unmatched or cannot be read, or there are no intrinsics.
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
