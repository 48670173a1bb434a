"""The contract of a reader: one file format of posed recordings, as scenes, frames and cameras."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from prior3d.contracts.fields import Field
from prior3d.contracts.view import View

BY_NAMES, BY_METADATA, BY_MARKER = 10, 20, 30
"""How sure `Reader.recognises` is: by the names of files alone, by a file of metadata that several formats share, by a
file that this format alone has."""


@dataclass(frozen=True, eq=False)
class Camera:
    """A camera as a format describes it; frames that share one camera share one object.

    Attributes:
        model: `pinhole`, or a lens model by OpenCV's name.
        intrinsics: [3, 3] float64, pixels of `size`, pixel centers at +0.5.
        size: height and width of the images, pixels.
        distortion: coefficients in the order of OpenCV; none for a pinhole.
        depth_size: height and width of the depth maps, pixels; None where the format has no depth.
        depth_intrinsics: [3, 3] float64 of the camera that took the depth maps, pixels of `depth_size`; None where
            depth is registered to color, that is, shows the same field of view.
        color_from_depth: [4, 4] float64, meters: pose of the depth camera in the axes of this one; None for the same
            place and direction.
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
    """One frame of a recording, nothing of it decoded.

    Attributes:
        name: of the frame within its scene, for messages.
        camera: that took it.
        world_from_camera: [4, 4] float64, meters, OpenCV axes, of the color camera; None where it is not known.
        problem: why the frame cannot be used ("no pose", "pose not finite"), None where it can. Such frames are left
            out, counted, and named in the log: lost tracking is normal.
        time: seconds, where the format has them.
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
        colors: [N, 3] uint8 RGB; None where there are none.
    """

    points: np.ndarray
    colors: np.ndarray | None


class Recording(ABC):
    """One scene of a format, opened: its frames are listed, nothing is decoded yet. It can be pickled.

    Attributes:
        frames: in order; those that cannot be used, too, with their `problem`. A long scene may make them when they
            are asked for: with `frame_step`, most never are.
        notes: lines for the log on what was found, left out or goes unused.
    """

    frames: Sequence[Frame]
    notes: Sequence[str] = ()

    @abstractmethod
    def read(self, frame: int, fields: frozenset[str]) -> View:
        """Decode one frame at the resolution of its files.

        The camera and the pose are in `frames` and need not be in the view.

        Args:
            frame: index into `frames`.
            fields: what to decode, of what the reader provides. Depth is in meters along the axis of the camera that
                took it, 0 = unknown: moving it to the color camera is done by those who read the recording.

        Raises:
            DamagedFile: a file cannot be decoded, or has another size than the frame's camera says.
        """

    @abstractmethod
    def fingerprint(self, frames: Sequence[int] | None = None) -> str:
        """Return a text that changes when what the scene holds does; cheap: names, sizes and times of files.

        Args:
            frames: indices of those that matter; None for all.
        """

    def surface(self) -> Cloud | None:
        """Return the mesh or the points of the format, None where it has none."""
        return None

    def overlap(self) -> Mapping[str, np.ndarray] | None:
        """Return which frames see the same points, where the format knows: columns of a pair table; None otherwise."""
        return None


class Reader(ABC):
    """One file format of posed recordings; subclasses take `root` and typed keyword options.

    Errors of the user's making raise `UserError` from the constructor, `scenes` or `open`, with the name of the option
    (`root`, `intrinsics`) as key. `prior3d.data.posed.files` and `prior3d.data.posed.cameras` have what readers share;
    `prior3d.testing.check_reader` tries whether a reader keeps to this.

    Args:
        root: folder of the data.

    Attributes:
        provides: fields that `Recording.read` decodes; cameras and poses are always there.
        fields: fields of its own, named `<plugin>/<field>`; those of them that it provides stand in `provides`, too.
    """

    contract: ClassVar[int] = 1
    provides: frozenset[str] = frozenset({"image", "depth"})
    fields: tuple[Field, ...] = ()

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    @classmethod
    @abstractmethod
    def recognises(cls, folder: Path) -> int:
        """Return 0 if a folder is not of this format, else how sure that is; `format: auto` takes the highest.

        Quick, even for a folder of many scenes: it looks at names, not into all files.

        Args:
            folder: exists; the root of scenes, or one scene.

        Returns:
            0, `BY_NAMES`, `BY_METADATA` or `BY_MARKER`; a number between them where two formats are still confused.
        """

    @abstractmethod
    def scenes(self) -> Sequence[str]:
        """Return the names of the scenes below the root, sorted: paths below it, with `/`."""

    @abstractmethod
    def open(self, scene: str) -> Recording:
        """Open one scene: list its frames, cameras and poses.

        Args:
            scene: one of `scenes()`.
        """
