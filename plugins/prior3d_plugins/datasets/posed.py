"""The dataset of posed recordings in any format that a reader knows, and its former name `posed_rgbd`."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

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
    RecordedScenes,
    SurfaceOptions,
    existing_root,
    make_reader,
    recognising,
)

_LAYOUTS = {"frames": "sevenscenes", "scannet": "scannet"}


class Posed(RecordedScenes):
    """Scenes of posed views, in any format that a reader knows.

    `prior3d-train --list` names the readers: they are the formats. The options of a format stand in the section
    `reader`, `reader: {depth_scale: 5000}` say. Views carry the pose and intrinsics of the color camera, and depth
    registered to it at the depth maps' own resolution. Frames that cannot be used are left out, counted and named in
    the log.

    Scenes are named by patterns throughout: `kitchen-*`, a name, or a folder of sequences (`chess` for `chess/seq-01`).

    Args:
        spec: what every dataset is given.
        root: folder of scenes, or one scene.
        format: a reader; "auto" asks every reader whether it recognises the folder.
        reader: options of the format.
        scenes: which to train on; empty = all that are not kept for validation or test.
        validation_scenes: scenes of the split "validation".
        test_scenes: scenes of the split "test".
        min_depth: meters; nearer depth is dropped.
        max_depth: meters; depth beyond is dropped.
        frame_step: use every n-th frame.
        max_frames: use at most this many frames of a scene, the first ones.
        depth_to_color: the color camera of scenes whose depth is not registered to it, by pattern; the first pattern
            that fits counts. Depth is re-projected into it, see `CameraPair`.
        check_poses: what happens where neighboring frames show that poses, depth and images contradict each other
            (inverted poses, other axes, another unit): "refuse" ends the run if that is half of the scenes or more, and
            warns of fewer; "warn" only warns; "off" does not look.
        pairs: which two views of a scene make a pair.
        surface: how a scene's surface is fused from its frames, for priors that read it.

    Raises:
        UserError: the folder or what an option names is missing, no format fits, or options contradict each other.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        root: Path,
        format: str = "auto",
        reader: dict[str, Any] | None = None,
        scenes: tuple[str, ...] = (),
        validation_scenes: tuple[str, ...] = (),
        test_scenes: tuple[str, ...] = (),
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
    """The former name of `posed`, for recipes written before it: both formats of RGB-D folders, their options here.

    Args:
        spec: what every dataset is given.
        root: folder of scenes, or one scene.
        scenes: which to train on; empty = all that are not kept for validation or test.
        validation_scenes: scenes of the split "validation".
        test_scenes: scenes of the split "test".
        layout: how files are named: "frames" is the format `sevenscenes`, "scannet" that name; "auto" reads both.
        intrinsics: of the reader.
        pixel_centers: of the reader, and of `depth_to_color`.
        depth_scale: of the reader.
        invalid_depth: of the reader.
        min_depth: meters; nearer depth is dropped.
        max_depth: meters; depth beyond is dropped.
        frame_step: use every n-th frame.
        max_frames: use at most this many frames of a scene, the first ones.
        depth_to_color: the color camera of scenes whose depth is not registered to it, by pattern.
        check_poses: what happens where neighboring frames show that poses, depth and images contradict each other
            (inverted poses, other axes, another unit): "refuse" ends the run if that is half of the scenes or more, and
            warns of fewer; "warn" only warns; "off" does not look.
        pairs: which two views of a scene make a pair.
        surface: how a scene's surface is fused from its frames, for priors that read it.

    Raises:
        UserError: the folder or what an option names is missing, or options contradict each other.
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
        if layout == "auto":  # both, where some scenes are of the one and some of the other
            found = recognising(existing_root(root), _LAYOUTS.values())
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
        """Return lines for the log, the first of which says what this dataset is called now."""
        return [self._new_form, *super().describe()]


def _in_convention(calibration: Calibration, pixel_centers: PixelCenters) -> Calibration:
    return calibration if pixel_centers == "integer" else replace(calibration, pixel_centers=pixel_centers)
