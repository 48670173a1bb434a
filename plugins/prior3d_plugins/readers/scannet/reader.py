"""The reader of ScanNet as people have it: `.sens` files, exported folders, `scannet_frames_25k`."""

from collections.abc import Sequence
from pathlib import Path

from prior3d import BY_MARKER, BY_NAMES, Camera, Reader, Recording, UserError
from prior3d.data.posed import (
    DepthCodes,
    FocalAndCenter,
    GivenIntrinsics,
    PixelCenters,
    RGBDFolder,
    color_size,
    depth_size,
    has_scene,
    match_frames,
    nearest_file,
    scaled,
)
from prior3d_plugins.readers.scannet.alignment import read_alignment
from prior3d_plugins.readers.scannet.classes import LabelSet, names_of
from prior3d_plugins.readers.scannet.labels import CATEGORY, LabelOptions
from prior3d_plugins.readers.scannet.recording import ScanNetRecording
from prior3d_plugins.readers.scannet.scenes import (
    COLOR,
    DEPTH,
    EXPORTED_INTRINSICS,
    FRAMES_25K_INTRINSICS,
    POSE,
    ScanNetScene,
    has_stream,
    is_scene,
    scenes_in,
)
from prior3d_plugins.readers.scannet.sens_recording import SensRecording

_UNITS_PER_METER = 1000.0


class ScanNet(Reader):
    """ScanNet: `.sens` files as they are, exported folders, or `scannet_frames_25k`.

    - `scene0000_00/scene0000_00.sens`: read frame by frame, nothing is unpacked.
    - Exported: `color/0.jpg`, `depth/0.png` (16 bits), `pose/0.txt` and `intrinsic/intrinsic_depth.txt`.
    - `scannet_frames_25k`: `color/000000.jpg`, `depth/000000.png`, `pose/000000.txt` and `intrinsics_depth.txt`.

    If there are intrinsics of the color camera, too, the two cameras share one center but have different lenses; depth
    is then looked up along the color camera's rays. Poses are 4x4 camera-to-world matrices in meters, OpenCV axes.

    Next to the frames are read: label images (`label-filt`, or `label`), instance images (`instance-filt`, or
    `instance`) and `<scene>_vh_clean_2.ply` as the surface.

    Args:
        root: folder of scenes, or the folder of one scene.
        intrinsics: fx, fy, cx, cy in pixels of the depth maps, or a file with these numbers or a matrix; used for
            scenes without an intrinsics file.
        pixel_centers: coordinate of the center of the first pixel in the principal points of `intrinsics` and of files:
            0 ("integer", as the exporter writes them) or 0.5 ("half").
        depth_scale: depth file units per meter; by default those in the header of a `.sens` file, and 1000 for others.
        invalid_depth: values in the depth files that mean "not measured".
        labels: classes of the field `semantic`: "nyu40" (0 to 39) or "scannet20", the benchmark's (0 to 19); 255 =
            ignore. "raw" gives ScanNet's own categories as the field `scannet/category`. By default NYU40, if there are
            label images and, unless they are of `scannet_frames_25k`, the table for their ids.
        label_table: ScanNet's file `scannetv2-labels.combined.tsv`; by default the one in `root` or next to it.
        axis_alignment: whether `axisAlignment` of a scene's `<scene>.txt`, if it has one, turns poses and surface: z is
            then up, and walls follow the axes.

    Raises:
        UserError: no scene was found, or an option is wrong.
    """

    def __init__(
        self,
        root: Path,
        *,
        intrinsics: FocalAndCenter | Path | None = None,
        pixel_centers: PixelCenters = "integer",
        depth_scale: float | None = None,
        invalid_depth: tuple[int, ...] = (0, 65535),
        labels: LabelSet | None = None,
        label_table: Path | None = None,
        axis_alignment: bool = True,
    ) -> None:
        super().__init__(root)
        self._given = GivenIntrinsics(intrinsics, pixel_centers)
        self._depth = DepthCodes(_UNITS_PER_METER if depth_scale is None else depth_scale, invalid_depth)
        self._depth_scale, self._invalid_depth = depth_scale, invalid_depth
        self._align = axis_alignment
        self._scenes = scenes_in(self.root)
        self._labels = LabelOptions(labels, label_table, self.root, self._scenes)
        self.provides = frozenset({"image", "depth"}) | self._labels.provides
        self.fields = (CATEGORY,) if CATEGORY.name in self.provides else ()
        self.class_names = names_of(self._labels.labels) if "semantic" in self.provides else ()

    @classmethod
    def recognizes(cls, folder: Path) -> int:
        """Return `BY_MARKER` for `.sens` files, `BY_NAMES` if a folder is or contains scenes of separate files."""
        if not has_scene(folder, is_scene):
            return 0
        return BY_MARKER if has_stream(folder) else BY_NAMES

    def scenes(self) -> Sequence[str]:
        """Return the names of the scenes, sorted."""
        return list(self._scenes)

    def open(self, scene: str) -> Recording:
        """Open one scene; see `Reader.open`.

        Raises:
            UserError: files are unmatched or cannot be read, or intrinsics are missing.
        """
        place = self._scenes[scene]
        if place.sens is not None:
            pixels = SensRecording(place.sens, self._given, self._depth_scale, self._invalid_depth)
            numbers, size = range(len(pixels.frames)), pixels.color_size
        else:
            pixels, numbers, size = self._open_files(scene, place)
        labels = self._labels.of_scene(place, numbers, size)
        return ScanNetRecording(pixels, labels, read_alignment(place.about) if self._align else None, place.mesh)

    def _open_files(self, scene: str, place: ScanNetScene) -> tuple[Recording, Sequence[int], tuple[int, int]]:
        files = match_frames(scene, place.folder, COLOR, DEPTH, POSE)
        size, of_depth = color_size(file.color for file in files), depth_size(file.depth for file in files)
        names = FRAMES_25K_INTRINSICS if place.is_frames_25k else EXPORTED_INTRINSICS
        own = [nearest_file(place.folder, self.root, [name]) for name in names]
        depth, color = (None if path is None else self._given.read(path) for path in own)
        apart = depth is not None and color is not None
        if color is None:
            depth = self._given.declared() if depth is None else depth
            if depth is None:
                advice = f"set fx, fy, cx, cy or add {names[0]}"
                raise UserError(f"no intrinsics for scene {scene}: {advice}", "intrinsics")
            color = scaled(depth, of_depth, size)
        camera = Camera("pinhole", color, size, depth_size=of_depth, depth_intrinsics=depth if apart else None)
        more = [path for path in own if path is not None]
        recording = RGBDFolder(files, camera, self._depth, more, self._given.unused(bool(more)))
        return recording, [file.number for file in files], size
