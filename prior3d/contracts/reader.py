"""The contract of a reader: one file format of posed recordings, as scenes, frames and cameras."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from prior3d.contracts.view import View


@dataclass(frozen=True)
class Camera:
    """A camera as a format describes it; lenses that are not pinholes are undistorted by who reads the frames.

    Attributes:
        model: `pinhole`, or a distortion model by OpenCV's name.
        intrinsics: [3, 3] float64, pixels of `size`, pixel centres at +0.5.
        size: height and width of the images, pixels.
        distortion: coefficients in the order of OpenCV; none for a pinhole.
        depth_intrinsics: [3, 3] float64 of the camera that took the depth maps, pixels of `depth_size`; None where
            depth is registered to colour.
        depth_size: height and width of the depth maps, pixels; None where the format has no depth.
        color_from_depth: [4, 4] float64, metres: pose of the depth camera in the axes of this one.
    """

    model: Literal["pinhole", "opencv", "fisheye"]
    intrinsics: np.ndarray
    size: tuple[int, int]
    distortion: tuple[float, ...] = ()
    depth_intrinsics: np.ndarray | None = None
    depth_size: tuple[int, int] | None = None
    color_from_depth: np.ndarray | None = None


@dataclass(frozen=True)
class Frame:
    """One frame of a recording, nothing of it decoded.

    Attributes:
        name: of the frame within its scene, for messages.
        camera: that took it.
        world_from_camera: [4, 4] float64, metres, OpenCV axes, of the colour camera; None where it is not known.
        problem: why the frame cannot be used ("pose not finite"), None where it can.
        time: seconds, where the format has them.
    """

    name: str
    camera: Camera
    world_from_camera: np.ndarray | None
    problem: str | None = None
    time: float | None = None


class Cloud(NamedTuple):
    """Points of a scene with their colours.

    Attributes:
        points: [N, 3] float64, metres, world axes.
        colors: [N, 3] uint8 RGB; None where there are none.
    """

    points: np.ndarray
    colors: np.ndarray | None


class Recording(ABC):
    """One scene of a format, opened: its frames are listed, nothing is decoded yet.

    Attributes:
        frames: in order; those that cannot be used, too, with their `problem`.
        notes: lines for the log on what was found or left out.
    """

    frames: Sequence[Frame]
    notes: Sequence[str] = ()

    @abstractmethod
    def read(self, frame: int, fields: frozenset[str]) -> "View":
        """Decode one frame at the resolution of its files; depth in metres as the DEPTH camera took it.

        Args:
            frame: index into `frames`.
            fields: what to decode, of what the reader provides.

        Raises:
            DamagedFile: a file cannot be decoded.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a text that changes when the scene's files do; cheap: names, sizes and times of files."""

    def surface(self) -> Cloud | None:
        """Return the mesh or the points of the format, None where it has none."""
        return None

    def overlap(self) -> Mapping[str, np.ndarray] | None:
        """Return which frames see the same points, where the format knows: columns of a pair table; None otherwise."""
        return None


class Reader(ABC):
    """One file format of posed recordings; subclasses take `root` and typed keyword options.

    Errors of the user's making raise `UserError` with the name of the option (`root`) from the constructor or `open`.

    Attributes:
        provides: fields that its recordings can decode.
    """

    contract: ClassVar[int] = 1
    provides: frozenset[str] = frozenset({"image", "depth", "intrinsics", "world_from_camera"})

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    @classmethod
    @abstractmethod
    def recognises(cls, folder: Path) -> int:
        """Return 0 if a folder is not of this format, else how specific the format is; `auto` takes the highest."""

    @abstractmethod
    def scenes(self) -> Sequence[str]:
        """Return the names of the scenes below the root, sorted."""

    @abstractmethod
    def open(self, scene: str) -> Recording:
        """Open one scene: list its frames, cameras and poses."""
