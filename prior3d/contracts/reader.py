"""The contract of a reader: it turns one file format of posed recordings into scenes, frames and cameras."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from prior3d.contracts.fields import Field
from prior3d.contracts.view import View

BY_NAMES, BY_METADATA, BY_MARKER = 10, 20, 30
"""Confidence of `Reader.recognizes`: from file names alone, from a metadata file that several formats share, from a
file that only this format has."""


@dataclass(frozen=True, eq=False)
class Camera:
    """A camera as the format describes it; frames with the same camera share one object.

    The dataset undistorts what a lens bent: images, and all maps registered to them. A depth camera of its own
    (`depth_intrinsics`) is a pinhole.

    Attributes:
        model: `pinhole`, or a lens model of OpenCV: `opencv` (radial, tangential, rational) or `fisheye` (equidistant).
        intrinsics: [3, 3] float64, pixels of `size`, pixel centers at +0.5.
        size: height and width of the images, pixels.
        distortion: coefficients in OpenCV's order: k1 k2 p1 p2 [k3 [k4 k5 k6]] of `opencv`, k1 k2 k3 k4 of `fisheye`;
            empty for a pinhole.
        depth_size: height and width of the depth maps, pixels; None if the format has no depth.
        depth_intrinsics: [3, 3] float64, intrinsics of the depth camera, pixels of `depth_size`; None if depth is
            registered to color, that is, shows the same field of view.
        color_from_depth: [4, 4] float64, meters: pose of the depth camera in the axes of this camera; None if both
            poses are the same.
    """

    model: Literal["pinhole", "opencv", "fisheye"]
    intrinsics: np.ndarray
    size: tuple[int, int]
    distortion: tuple[float, ...] = ()
    depth_size: tuple[int, int] | None = None
    depth_intrinsics: np.ndarray | None = None
    color_from_depth: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame of a recording, not decoded yet.

    Attributes:
        name: name of the frame within its scene, for messages.
        camera: the camera that took it.
        world_from_camera: [4, 4] float64, meters, OpenCV axes: pose of the color camera; None if unknown.
        problem: why the frame cannot be used ("no pose", "pose not finite"); None for a usable frame. Unusable frames
            are left out, counted, and named in the log: lost tracking is normal.
        time: time stamp in seconds, if the format has one.
    """

    name: str
    camera: Camera
    world_from_camera: np.ndarray | None
    problem: str | None = None
    time: float | None = None


class Cloud(NamedTuple):
    """Points of a scene with their colors.

    Attributes:
        points: [N, 3] float64, meters, world axes.
        colors: [N, 3] uint8 RGB; None if the points have no colors.
    """

    points: np.ndarray
    colors: np.ndarray | None


class Recording(ABC):
    """One opened scene of a format: its frames are listed, but not decoded yet. It can be pickled.

    Attributes:
        frames: all frames in order, including unusable ones with their `problem`. A long scene may create them on
            access: with `frame_step`, most are never used.
        notes: lines for the log about what was found, left out or not used.
    """

    frames: Sequence[Frame]
    notes: Sequence[str] = ()

    @abstractmethod
    def read(self, frame: int, fields: frozenset[str]) -> View:
        """Decode one frame at the resolution of its files.

        The view need not contain the camera and the pose, which are in `frames`.

        Args:
            frame: index into `frames`.
            fields: the fields to decode, a subset of what the reader provides. Depth is in meters along the axis of the
                camera that took it, 0 = unknown; the caller moves it to the color camera.

        Raises:
            DamagedFile: a file cannot be decoded, or its size differs from that of the frame's camera.
        """

    @abstractmethod
    def fingerprint(self, frames: Sequence[int] | None = None) -> str:
        """Return a text that changes with the content of the scene; it must be cheap: names, sizes and times of files.

        Args:
            frames: indices of the frames to include; None for all.
        """

    def surface(self) -> Cloud | None:
        """Return the mesh or the points of the scene; None if the format has none."""
        return None

    def overlap(self) -> Mapping[str, np.ndarray] | None:
        """Return which frames see the same points, as columns of a pair table; None if the format lacks this.

        The dataset's option `pairs: {source: tracks}` makes pairs of it.

        Returns:
            `first` and `second` [P] int64, indices into `frames` with the smaller first, each pair once; `overlap` [P]
            float32, 0 to 1: the share of both frames' points that both see.

        Raises:
            DamagedFile: a file cannot be decoded.
        """
        return None


class Reader(ABC):
    """A reader of one file format of posed recordings; subclasses take `root` and typed keyword options.

    For a user's mistake, the constructor, `scenes` and `open` raise `UserError` with the name of the option (`root`,
    `intrinsics`) as key. `prior3d.data.posed.files` and `prior3d.data.posed.cameras` contain the code that readers
    share; `prior3d.testing.check_reader` checks that a reader follows this contract.

    Args:
        root: folder of the data.

    Attributes:
        contract: version of this contract. A plugin that sets the number it was written for is refused, in one line, by
            a prior3d with another number.
        provides: fields that `Recording.read` decodes; cameras and poses are always provided.
        fields: extra fields that this reader defines, named `<plugin>/<field>`; `provides` also lists those it can
            decode.
        class_names: names of the classes of `semantic`, by id; empty if there are none.
    """

    contract: ClassVar[int] = 1
    provides: frozenset[str] = frozenset({"image", "depth"})
    fields: tuple[Field, ...] = ()
    class_names: tuple[str, ...] = ()

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    @classmethod
    @abstractmethod
    def recognizes(cls, folder: Path) -> int:
        """Return 0 if a folder is not of this format, else the confidence that it is; `format: auto` takes the highest.

        It must be quick, even for a folder of many scenes: look at file names, do not open all files.

        Args:
            folder: an existing folder; the root of scenes, or one scene.

        Returns:
            0, `BY_NAMES`, `BY_METADATA` or `BY_MARKER`; a number between them if two formats could still be confused.
        """

    @abstractmethod
    def scenes(self) -> Sequence[str]:
        """Return the sorted names of the scenes: their paths relative to the root, with `/`."""

    @abstractmethod
    def open(self, scene: str) -> Recording:
        """Open one scene: list its frames, cameras and poses.

        Args:
            scene: one of `scenes()`.
        """
