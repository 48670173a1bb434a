"""The dataset of posed recordings in any format that a reader knows, and its former name `posed_rgbd`."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from prior3d.contracts.dataset import DataSpec
from prior3d.contracts.reader import Reader
from prior3d.data.posed.cameras import Calibration, FocalAndCenter, PixelCenters
from prior3d.data.posed.dataset import DEFAULT_PAIRS, DEFAULT_SURFACE
from prior3d.data.posed.files import seen_in
from prior3d.data.posed.pairs import PairOptions
from prior3d.data.posed.recorded import Choice, RecordedScenes
from prior3d.data.posed.surface import SurfaceOptions
from prior3d.errors import UserError, section
from prior3d.registry import Registry
from prior3d.registry.schema import plain, validate_options

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
        pairs: PairOptions = DEFAULT_PAIRS,
        surface: SurfaceOptions = DEFAULT_SURFACE,
    ) -> None:
        folder = _existing(root)
        cls = _recognised(folder) if format == "auto" else _registry().get("readers", format, "format")
        with section("reader"):
            options = validate_options(cls, reader or {}, "")
        with section("reader", shared=("root",)):
            made = cls(folder, **options)
        choice = Choice(
            scenes,
            validation_scenes,
            test_scenes,
            min_depth,
            max_depth,
            frame_step,
            max_frames,
            depth_to_color,
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
        pairs: PairOptions = DEFAULT_PAIRS,
        surface: SurfaceOptions = DEFAULT_SURFACE,
    ) -> None:
        folder, registry = _existing(root), _registry()
        classes = {name: registry.get("readers", name) for name in _LAYOUTS.values()}
        if layout == "auto":
            found = [name for name, cls in classes.items() if cls.recognises(folder)]
        else:
            found = [_LAYOUTS[layout]]
        options = {
            "intrinsics": intrinsics,
            "pixel_centers": pixel_centers,
            "depth_scale": depth_scale,
            "invalid_depth": invalid_depth,
        }
        readers = [classes[name](folder, **options) for name in found]
        if not readers:
            raise UserError(_unrecognised(folder, classes), "root")
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
        )
        super().__init__(spec, readers, choice, pairs, surface)
        self._new_form = _new_form(found, validate_options(type(readers[0]), {}, ""), options)

    def describe(self) -> list[str]:
        """Return lines for the log, the first of which says what this dataset is called now."""
        return [self._new_form, *super().describe()]


def _registry() -> Registry:
    return Registry()


def _existing(root: Path) -> Path:
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise UserError(f"no folder {folder}", "root")
    return folder


def _recognised(folder: Path) -> type[Reader]:
    """Return the reader that is surest that a folder is of its format.

    Raises:
        UserError: none recognises it, or two are equally sure.
    """
    registry, classes = _registry(), {}
    for plugin in registry.list("readers"):
        with suppress(UserError):  # a broken plugin ends only the runs that name it
            classes[plugin.name] = registry.get("readers", plugin.name)
    sure = {name: cls.recognises(folder) for name, cls in classes.items()}
    best = [name for name, score in sure.items() if score > 0 and score == max(sure.values())]
    if not best:
        broken = sorted({plugin.name for plugin in registry.list("readers")} - classes.keys())
        raise UserError(_unrecognised(folder, classes) + "".join(f"; {name} is broken" for name in broken), "root")
    if len(best) > 1:
        raise UserError(f"{' and '.join(best)} both recognise {folder}: set the one it is", "format")
    return classes[best[0]]


def _unrecognised(folder: Path, formats: Mapping[str, type[Reader]]) -> str:
    return f"no format ({', '.join(formats) or 'none is installed'}) recognises {folder}: {seen_in(folder)}"


def _in_convention(calibration: Calibration, pixel_centers: PixelCenters) -> Calibration:
    return calibration if pixel_centers == "integer" else replace(calibration, pixel_centers=pixel_centers)


def _new_form(formats: list[str], defaults: Mapping[str, object], options: Mapping[str, object]) -> str:
    """Return in a line how a recipe says the same with `posed`."""
    changed = {name: plain(value) for name, value in options.items() if plain(value) != plain(defaults[name])}
    inner = ", ".join(f"{name}: {value}" for name, value in changed.items())
    named = f"name: posed, format: {formats[0]}" if len(formats) == 1 else "name: posed, a dataset for each format"
    return f"posed_rgbd is called posed now: {named}{f', reader: {{{inner}}}' if inner else ''}"
