"""The reader of ScanNet's exporter: folders of color, depth, pose and intrinsics files."""

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

_COLOR = FileNames("color", "color", r"(\d+)", COLOR_EXTENSIONS)
_DEPTH = FileNames("depth", "depth", r"(\d+)", ("png",))
_POSE = FileNames("pose", "pose", r"(\d+)", ("txt",))
_DEPTH_INTRINSICS = "intrinsic/intrinsic_depth.txt"
_COLOR_INTRINSICS = "intrinsic/intrinsic_color.txt"


class ScanNet(Reader):
    """ScanNet's exporter: `color/0.jpg`, `depth/0.png` (16 bits), `pose/0.txt` and `intrinsic/intrinsic_depth.txt`.

    If `intrinsic/intrinsic_color.txt` exists, the two cameras share one center but have different lenses; depth is then
    looked up along the color camera's rays. Poses are 4x4 camera-to-world matrices in meters, OpenCV axes.

    Args:
        root: folder of scenes, or the folder of one scene.
        intrinsics: fx, fy, cx, cy in pixels of the depth maps, or a file with these numbers or a matrix; used for
            scenes without an intrinsics file.
        pixel_centers: coordinate of the center of the first pixel in the principal points of `intrinsics` and of files:
            0 ("integer", as the exporter writes them) or 0.5 ("half").
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
        self._folders = find_scenes(self.root, _is_scene, "the folders color, depth and pose")

    @classmethod
    def recognizes(cls, folder: Path) -> int:
        """Return `BY_NAMES` if a folder is or contains exported scenes."""
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
        own = [nearest_file(folder, self.root, [name]) for name in (_DEPTH_INTRINSICS, _COLOR_INTRINSICS)]
        depth, color = (None if path is None else self._given.read(path) for path in own)
        apart = depth is not None and color is not None
        if color is None:
            depth = self._given.declared() if depth is None else depth
            if depth is None:
                advice = f"set fx, fy, cx, cy or add {_DEPTH_INTRINSICS}"
                raise UserError(f"no intrinsics for scene {scene}: {advice}", "intrinsics")
            color = scaled(depth, of_depth, size)
        camera = Camera("pinhole", color, size, depth_size=of_depth, depth_intrinsics=depth if apart else None)
        more = [path for path in own if path is not None]
        return RGBDFolder(files, camera, self._depth, more, self._given.unused(bool(more)))


def _is_scene(folder: Path) -> bool:
    return any(names.any_in(folder) for names in (_COLOR, _DEPTH, _POSE))
