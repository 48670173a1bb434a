"""The reader of COLMAP's models: images, poses, sparse points with tracks, depth maps of its multi-view stereo."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Gt

from prior3d import BY_METADATA, Camera, Cloud, DamagedFile, Frame, Reader, Recording, UserError, View
from prior3d.data import read_header
from prior3d.data.posed import (
    ColmapCamera,
    ColmapImage,
    FileRecording,
    Tracks,
    colmap_depth_size,
    colmap_file,
    find_scenes,
    has_scene,
    read_colmap_cameras,
    read_colmap_depth,
    read_colmap_images,
    read_colmap_points,
    scaled,
    sparse_depth,
)

_MODELS = ("sparse/0", "sparse", ".")
_IMAGES = (".jpg", ".jpeg", ".png")
_HIGHEST = 2  # folders above a model without `sparse`, such as those of ETH3D, in which its images may be

DepthSource = Literal["sparse", "geometric", "photometric", "none"]


@dataclass(frozen=True)
class _Options:
    downscale: int
    scale: float | None
    depth: DepthSource
    depth_step: int
    min_track: int

    @property
    def unit(self) -> float:
        """Meters per unit of the model."""
        return 1.0 if self.scale is None else self.scale

    @property
    def is_dense(self) -> bool:
        return self.depth in ("geometric", "photometric")


class Colmap(Reader):
    """COLMAP: `sparse/0` (or `sparse`, or the folder itself) with cameras, images and points3D, and `images/`.

    Models are binary or text. Lenses that OpenCV has a model for are read; for others, `colmap image_undistorter` makes
    pinhole images. The world of a reconstruction has an arbitrary unit, unless it was aligned to something measured.
    Images that COLMAP has not registered have no pose and are no frames. With sparse depth, pairs of views are best
    taken from the points that two images share: `pairs: {source: tracks}` of the dataset.

    Args:
        root: folder of scenes, or the folder of one scene.
        model: folder of the model below the scene, such as `sparse/1`; by default the first of `sparse/0`, `sparse` and
            the scene's own folder that holds one.
        images: folder of the images below the scene.
        downscale: how many times smaller these images are than those of the model, for folders such as `images_4`.
        scale: meters per unit of the model. Without it, one unit counts as a meter.
        depth: "sparse" is the depth of the points that an image sees, 0 between them; "geometric" and "photometric" are
            the maps of COLMAP's multi-view stereo in `stereo/depth_maps`.
        depth_step: how many times smaller than the images the maps of sparse depth are. Larger pixels keep more points
            when views are resized to the size of training; a point moves by at most half of one.
        min_track: number of images that must see a point of the model; points of fewer are left out.

    Raises:
        UserError: no scene was found, or an option is wrong.
    """

    def __init__(
        self,
        root: Path,
        *,
        model: str | None = None,
        images: str = "images",
        downscale: Annotated[int, Ge(1)] = 1,
        scale: Annotated[float, Gt(0)] | None = None,
        depth: DepthSource = "sparse",
        depth_step: Annotated[int, Ge(1)] = 4,
        min_track: Annotated[int, Ge(1)] = 2,
    ) -> None:
        super().__init__(root)
        self._model = model
        self._images = images
        self._options = _Options(downscale, scale, depth, depth_step, min_track)
        if depth == "none":
            self.provides = frozenset({"image"})
        where = " or ".join(_MODELS) if model is None else model
        expected = f"cameras.bin and images.bin, or .txt, in {where}"
        self._folders = find_scenes(self.root, lambda folder: _model_of(folder, model) is not None, expected)

    @classmethod
    def recognizes(cls, folder: Path) -> int:
        """Return `BY_METADATA` if a folder is or contains models: data sets of other formats bring them, too."""
        return BY_METADATA if has_scene(folder, lambda folder: _model_of(folder) is not None) else 0

    def scenes(self) -> Sequence[str]:
        """Return the names of the scenes, sorted."""
        return list(self._folders)

    def open(self, scene: str) -> Recording:
        """Open one scene; see `Reader.open`.

        Raises:
            UserError: the model cannot be read, its images are missing or of another size, or a lens is not supported.
        """
        folder, options = self._folders[scene], self._options
        model = _model_of(folder, self._model)
        if model is None:
            raise UserError(f"the model in {folder} is gone", "root")
        tables = {name: colmap_file(model, name) for name in ("cameras", "images", "points3D")}
        cameras, images = read_colmap_cameras(tables["cameras"]), read_colmap_images(tables["images"])
        names = {image.name for image in images}
        if len(names) < len(images) or not images:
            wrong = "two images have one name" if images else "no image is registered"
            raise UserError(f"{wrong} in {tables['images']}", "root")
        unknown = next((image for image in images if image.camera not in cameras), None)
        if unknown is not None:
            missing = f"the camera {unknown.camera} of {unknown.name} is missing"
            raise UserError(f"{missing} in {tables['cameras']}", "root")
        if options.depth == "sparse" and tables["points3D"] is None:
            raise UserError(f"no points3D.bin in {model}, so there is no sparse depth: set none", "depth")
        pictures, found = self._pictures(folder, model, names)
        files = [_files_of(image.name, folder, pictures, found, options) for image in images]
        described, notes = self._cameras(images, files, cameras)
        frames = [
            _frame(image, own, *described[image.camera], options) for image, own in zip(images, files, strict=True)
        ]
        if options.scale is None:
            notes.append("the unit of a COLMAP model is arbitrary: one unit counts as a meter (reader.scale)")
        if unregistered := [name for name in found - names if name.lower().endswith(_IMAGES)]:
            notes.append(f"{len(unregistered)} images are not in the model and go unused, such as {min(unregistered)}")
        numbers = [image.number for image in images]
        more = [path for path in tables.values() if path is not None]
        return _ColmapRecording(frames, files, options, more, tables["points3D"], numbers, notes)

    def _pictures(self, folder: Path, model: Path, names: set[str]) -> tuple[Path, set[str]]:
        """Return the folder of the images, and the paths of all files below it."""
        for above in (folder, *(folder.parents[:_HIGHEST] if model == folder else ())):
            pictures = above / self._images
            found = {
                (place / file).relative_to(pictures).as_posix()
                for place, file in ((Path(place), file) for place, _, files in os.walk(pictures) for file in files)
            }
            if names & found:
                return pictures, found
        missing = f"none of the model's {len(names)} images is in {folder / self._images}"
        raise UserError(f"{missing}, such as {min(names)}: set their folder", "images")

    def _cameras(
        self, images: Sequence[ColmapImage], files: Sequence[Mapping[str, Path]], cameras: Mapping[int, ColmapCamera]
    ) -> tuple[dict[int, tuple[Camera, str | None]], list[str]]:
        """Return each camera and why its frames cannot be used, and a note on sizes that differ by a pixel."""
        files_of: dict[int, list[Mapping[str, Path]]] = {}
        for image, own in zip(images, files, strict=True):
            files_of.setdefault(image.camera, []).append(own)
        described = {number: self._camera(cameras[number], own) for number, own in files_of.items()}
        cut = [
            f"{_by(camera.size)} pixels, where the camera has {_by((model.height, model.width))}"
            for number, (camera, _) in described.items()
            if self._options.downscale == 1 and camera.size != ((model := cameras[number]).height, model.width)
        ]
        if not cut:
            return described, []
        who = f"the images of {len(cut)} of {len(described)} cameras are a pixel off: they have {cut[0]}"
        return described, [f"{who}; the intrinsics are used as they are"]

    def _camera(self, camera: ColmapCamera, files: Sequence[Mapping[str, Path]]) -> tuple[Camera, str | None]:
        times, expected = self._options.downscale, (camera.height, camera.width)
        size, problem = _first_size([own["image"] for own in files if "image" in own], _image_size)
        if size is None:
            size = tuple(max(1, round(pixels / times)) for pixels in expected)
        elif not _differ_by_a_pixel(size, expected, times):
            better = round(expected[0] / size[0])
            fits = better > 0 and _differ_by_a_pixel(size, expected, better)
            advice = f"set downscale: {better}" if fits else "set the folder of the images that the model is of"
            raise UserError(
                f"an image of {_by(size)} pixels, where its camera has {_by(expected)}: {advice}",
                "downscale" if fits else "images",
            )
        of_depth = None
        if self._options.depth == "sparse":
            of_depth = tuple(max(1, round(pixels / self._options.depth_step)) for pixels in size)
        if self._options.is_dense:
            of_depth, why = _first_size([own["depth"] for own in files if "depth" in own], colmap_depth_size)
            of_depth, problem = of_depth or size, problem or why
        described = camera.described(size, of_depth)
        if times > 1:
            described = replace(described, intrinsics=scaled(described.intrinsics, expected, size))
        return described, problem


def _files_of(name: str, folder: Path, pictures: Path, found: set[str], options: _Options) -> dict[str, Path]:
    files = {"image": pictures / name} if name in found else {}
    if options.is_dense:
        path = folder / "stereo" / "depth_maps" / f"{name}.{options.depth}.bin"
        files |= {"depth": path} if os.path.isfile(path) else {}
    return files


def _frame(
    image: ColmapImage, files: Mapping[str, Path], camera: Camera, problem: str | None, options: _Options
) -> Frame:
    pose = image.world_from_camera
    if pose is None:
        problem = "pose not finite, or no rotation"
    else:
        pose[:3, 3] *= options.unit
    if options.is_dense and "depth" not in files:
        problem = f"no {options.depth} depth map"
    return Frame(image.name, camera, pose, problem if "image" in files else "no image file")


def _differ_by_a_pixel(size: tuple[int, int], expected: tuple[int, int], times: int) -> bool:
    """Return whether images can be those of a camera at a fraction of its size, rounded or cut to whole pixels."""
    return all(abs(got - want / times) <= 1 for got, want in zip(size, expected, strict=True))


class _ColmapRecording(FileRecording):
    """A scene of COLMAP; its points are read on first access and not pickled."""

    def __init__(
        self,
        frames: Sequence[Frame],
        files: Sequence[Mapping[str, Path]],
        options: "_Options",
        tables: Sequence[Path],
        points: Path | None,
        numbers: Sequence[int],
        notes: Sequence[str],
    ) -> None:
        decoders = {"depth": partial(_read_dense, options.unit)} if options.is_dense else {}
        super().__init__(frames, files, decoders, tables, str(options), notes)
        self._options = options
        self._points = points
        self._numbers = numbers

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_tracks"}

    def read(self, frame: int, fields: frozenset[str]) -> View:
        """Decode one frame; see `Recording.read`."""
        view = super().read(frame, fields)
        if self._options.depth == "sparse" and "depth" in fields:
            one = self.frames[frame]
            points = self._tracks.points[self._tracks.seen[frame]]
            view["depth"] = sparse_depth(points, one.world_from_camera, one.camera)
        return view

    def surface(self) -> Cloud | None:
        """Return the points of the model; None if it has none."""
        return None if self._points is None else Cloud(self._tracks.points, self._tracks.colors)

    def overlap(self) -> Mapping[str, np.ndarray] | None:
        """Return which frames see the same points; None if the model has no points."""
        return None if self._points is None else self._tracks.overlap()

    @cached_property
    def _tracks(self) -> Tracks:
        found = read_colmap_points(self._points)
        order = np.argsort(self._numbers)
        numbers = np.array(self._numbers)[order]
        places = np.searchsorted(numbers, found.images).clip(max=len(numbers) - 1)
        frames = np.where(numbers[places] == found.images, order[places], -1)
        points = found.points * self._options.unit
        return Tracks.of_observations(points, found.colors, found.rows, frames, len(numbers), self._options.min_track)


def _model_of(folder: Path, model: str | None = None) -> Path | None:
    """Return the folder of a scene's model; None if there is none."""
    candidates = [folder / name for name in (_MODELS if model is None else (model,))]
    return next((one for one in candidates if colmap_file(one, "cameras") and colmap_file(one, "images")), None)


def _first_size(
    files: Sequence[Path], size_of: Callable[[Path], tuple[int, int]]
) -> tuple[tuple[int, int] | None, str | None]:
    """Return height and width of the first file that can be used, or None and why the last one cannot."""
    problem = None
    for path in files:
        try:
            return size_of(path), None
        except DamagedFile as damaged:
            problem = damaged.why
    return None, problem


def _image_size(path: Path) -> tuple[int, int]:
    header = read_header(path)
    if header.problem_as_calibrated:
        raise DamagedFile(path, header.problem_as_calibrated)
    return header.size


def _read_dense(unit: float, path: Path) -> np.ndarray:
    return read_colmap_depth(path) * np.float32(unit)


def _by(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"
