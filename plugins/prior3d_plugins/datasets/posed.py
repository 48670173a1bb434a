"""The dataset of posed recordings in any format that has a reader, and its former name `posed_rgbd`."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from prior3d import DataSpec
from prior3d.data.posed import (
    DEFAULT_PAIRS,
    DEFAULT_SURFACE,
    Calibration,
    Checking,
    Choice,
    FocalAndCenter,
    PairOptions,
    PixelCenters,
    ReaderOptions,
    RecordedScenes,
    SceneNames,
    SurfaceOptions,
    existing_root,
    make_reader,
    recognizing,
)

_LAYOUTS = {"frames": "sevenscenes", "scannet": "scannet"}


class Posed(RecordedScenes):
    """Scenes of posed views, in any format that has a reader.

    `prior3d-train --list` lists the readers; each reads one format. The options of a format are in the section
    `reader`, for example `reader: {depth_scale: 5000}`. Views have the pose and intrinsics of the color camera. Their
    depth is registered to it, at the resolution of the depth maps. Unusable frames are left out; the log gives their
    number and names.

    Scenes are selected by patterns: `[kitchen-*]`, a name, or a folder of sequences (`[chess]` for `chess/seq-01`); or
    by a file with one name a line: `scenes: scannetv2_train.txt`. There `#` begins a comment, and the last part of a
    scene's name is enough.

    Args:
        spec: Settings that every dataset gets.
        root: Folder of scenes, or of one scene.
        format: Name of a reader; "auto" picks the reader that recognizes the folder.
        reader: Options of the format.
        scenes: Patterns of the scenes to train on, or a file with one name a line; empty for all scenes that are not
            held out for validation or test.
        validation_scenes: Patterns or a file of the scenes of the split "validation".
        test_scenes: Patterns or a file of the scenes of the split "test".
        min_depth: Smallest depth to keep, meters; nearer depth is dropped.
        max_depth: Largest depth to keep, meters; farther depth is dropped.
        frame_step: Use every n-th frame.
        max_frames: Use at most this many frames of a scene, the first ones.
        depth_to_color: Color camera of scenes whose depth is not registered to it, by pattern; the first matching
            pattern counts. Depth is re-projected into this camera, see `CameraPair`.
        check_poses: Action if neighboring frames show that poses, depth and images contradict each other (inverted
            poses, other axes, another unit). "refuse" ends the run if at least half of the scenes are affected, and
            warns if fewer are; "warn" only warns; "off" skips the check.
        pairs: Which two views of a scene make a pair.
        surface: How to fuse a scene's surface from its frames, for priors that read it.

    Raises:
        UserError: The folder or something that an option names is missing, no format fits, or options contradict each
            other.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        root: Path,
        format: str = "auto",
        reader: ReaderOptions = None,
        scenes: SceneNames = (),
        validation_scenes: SceneNames = (),
        test_scenes: SceneNames = (),
        min_depth: float = 0.0,
        max_depth: float | None = None,
        frame_step: int = 1,
        max_frames: int | None = None,
        depth_to_color: dict[str, Calibration] | None = None,
        check_poses: Checking = "refuse",
        pairs: PairOptions = DEFAULT_PAIRS,
        surface: SurfaceOptions = DEFAULT_SURFACE,
    ) -> None:
        made = make_reader(root, format, reader or {}, "reader")
        choice = Choice(
            scenes,
            validation_scenes,
            test_scenes,
            min_depth,
            max_depth,
            frame_step,
            max_frames,
            depth_to_color,
            check_poses,
        )
        super().__init__(spec, [made], choice, pairs, surface, "reader")


class PosedRGBD(RecordedScenes):
    """The former name of `posed`, for older recipes: both formats of RGB-D folders, with their options here.

    Args:
        spec: Settings that every dataset gets.
        root: Folder of scenes, or of one scene.
        scenes: Patterns of the scenes to train on; empty for all scenes that are not held out for validation or test.
        validation_scenes: Patterns of the scenes of the split "validation".
        test_scenes: Patterns of the scenes of the split "test".
        layout: Naming scheme of the files: "frames" is the format `sevenscenes`, "scannet" the format of that name;
            "auto" reads both.
        intrinsics: The reader's option of the same name.
        pixel_centers: The reader's option of the same name; applies to `depth_to_color`, too.
        depth_scale: The reader's option of the same name.
        invalid_depth: The reader's option of the same name.
        min_depth: Smallest depth to keep, meters; nearer depth is dropped.
        max_depth: Largest depth to keep, meters; farther depth is dropped.
        frame_step: Use every n-th frame.
        max_frames: Use at most this many frames of a scene, the first ones.
        depth_to_color: Color camera of scenes whose depth is not registered to it, by pattern.
        check_poses: Action if neighboring frames show that poses, depth and images contradict each other (inverted
            poses, other axes, another unit). "refuse" ends the run if at least half of the scenes are affected, and
            warns if fewer are; "warn" only warns; "off" skips the check.
        pairs: Which two views of a scene make a pair.
        surface: How to fuse a scene's surface from its frames, for priors that read it.

    Raises:
        UserError: The folder or something that an option names is missing, or options contradict each other.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        root: Path,
        scenes: tuple[str, ...] = (),
        validation_scenes: tuple[str, ...] = (),
        test_scenes: tuple[str, ...] = (),
        layout: Literal["auto", "frames", "scannet"] = "auto",
        intrinsics: FocalAndCenter | Path | None = None,
        pixel_centers: PixelCenters = "integer",
        depth_scale: float = 1000.0,
        invalid_depth: tuple[int, ...] = (0, 65535),
        min_depth: float = 0.0,
        max_depth: float | None = None,
        frame_step: int = 1,
        max_frames: int | None = None,
        depth_to_color: dict[str, Calibration] | None = None,
        check_poses: Checking = "refuse",
        pairs: PairOptions = DEFAULT_PAIRS,
        surface: SurfaceOptions = DEFAULT_SURFACE,
    ) -> None:
        options = {
            "intrinsics": intrinsics,
            "pixel_centers": pixel_centers,
            "depth_scale": depth_scale,
            "invalid_depth": invalid_depth,
        }
        if layout == "auto":  # both, since a set can mix scenes of the two
            found = recognizing(existing_root(root), _LAYOUTS.values())
            formats = [name for name in _LAYOUTS.values() if name in found]
        else:
            formats = [_LAYOUTS[layout]]
        readers = [make_reader(root, name, options) for name in formats]
        calibrations = {name: _in_convention(one, pixel_centers) for name, one in (depth_to_color or {}).items()}
        choice = Choice(
            scenes,
            validation_scenes,
            test_scenes,
            min_depth,
            max_depth,
            frame_step,
            max_frames,
            calibrations,
            check_poses,
        )
        super().__init__(spec, readers, choice, pairs, surface)
        named = f"format: {formats[0]}" if len(formats) == 1 else f"a dataset for each of {' and '.join(formats)}"
        self._new_form = f"posed_rgbd is called posed now: name: posed, {named}, its options under reader"

    def describe(self) -> list[str]:
        """Return lines for the log; the first gives the current name of this dataset."""
        return [self._new_form, *super().describe()]


def _in_convention(calibration: Calibration, pixel_centers: PixelCenters) -> Calibration:
    return calibration if pixel_centers == "integer" else replace(calibration, pixel_centers=pixel_centers)
