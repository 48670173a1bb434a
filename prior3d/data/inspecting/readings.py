"""Other ways to read a scene's frames, each of which undoes one common mistake."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import permutations, product

import numpy as np

from prior3d.data.posed.plausibility import PosedDepth


@dataclass(frozen=True)
class OtherReading:
    """A way to read one frame that undoes a mistake.

    Attributes:
        kind: Name of the mistake.
        apply: Function from the frame as given to the frame as it may be meant.
        mend: What is wrong, and what to do.
        line: Line of a recipe's `data:` that does it; "" if the files must be changed.
    """

    kind: str
    apply: Callable[[PosedDepth], PosedDepth]
    mend: str
    line: str = ""


def scaled_focal(frame: PosedDepth, factor: float) -> PosedDepth:
    """Return a frame whose intrinsics are those of a larger or smaller image."""
    return replace(frame, intrinsics=np.diag([factor, factor, 1.0]) @ frame.intrinsics)


def swapped_center(frame: PosedDepth) -> PosedDepth:
    """Return a frame with cx and cy exchanged, in pixels of the depth map as in those of the image."""
    intrinsics = frame.intrinsics.copy()
    intrinsics[:2, 2] = intrinsics[[1, 0], 2]
    return replace(frame, intrinsics=intrinsics)


def depth_from_distance(frame: PosedDepth) -> PosedDepth:
    """Return a frame whose depth was a distance along the ray."""
    rows, columns = frame.depth.shape
    pixels = np.stack([*np.meshgrid(np.arange(columns) + 0.5, np.arange(rows) + 0.5), np.ones((rows, columns))])
    rays = np.einsum("ij,jhw->ihw", np.linalg.inv(frame.intrinsics), pixels)
    return replace(frame, depth=(frame.depth / np.linalg.norm(rays, axis=0)).astype(np.float32))


def mirrored(frame: PosedDepth, images: bool = True, depth: bool = True) -> PosedDepth:
    """Return a frame with its left and right exchanged."""
    gray = frame.gray[:, ::-1] if images else frame.gray
    return replace(frame, gray=gray, depth=frame.depth[:, ::-1] if depth else frame.depth)


def turned_axes(frame: PosedDepth, axes: np.ndarray) -> PosedDepth:
    """Return a frame whose camera axes are exchanged by a rotation [3, 3]."""
    pose = frame.world_from_camera.copy()
    pose[:3, :3] = pose[:3, :3] @ axes
    return replace(frame, world_from_camera=pose)


def inverted(frame: PosedDepth) -> PosedDepth:
    """Return a frame with the inverse pose."""
    return replace(frame, world_from_camera=np.linalg.inv(frame.world_from_camera))


def depth_times(frame: PosedDepth, factor: float) -> PosedDepth:
    """Return a frame with its depth multiplied."""
    return replace(frame, depth=frame.depth * np.float32(factor))


def all_axes() -> list[np.ndarray]:
    """Return the 23 rotations [3, 3] that exchange axes."""
    found = []
    for order, signs in product(permutations(range(3)), product((1.0, -1.0), repeat=3)):
        axes = np.zeros((3, 3))
        axes[range(3), order] = signs
        if np.linalg.det(axes) > 0 and not np.array_equal(axes, np.eye(3)):
            found.append(axes)
    return found


_POSES = "; poses must be camera-to-world, in OpenCV axes (x right, y down, z forward)"
_GL = np.diag([1.0, -1.0, -1.0])


def _axes_in_words(axes: np.ndarray) -> str:
    """Return the axes of the given camera in terms of OpenCV's: `x, -y, -z` for OpenGL."""
    rows = [(("-" if axes[:, k].min() < 0 else "") + "xyz"[int(np.abs(axes[:, k]).argmax())]) for k in range(3)]
    return ", ".join(rows)


def _scale(factor: float) -> OtherReading:
    word, times = ("small", factor) if factor > 1 else ("large", 1 / factor)
    return OtherReading(
        f"scale: depth x {factor:g}",
        lambda frame: depth_times(frame, factor),
        f"depth is {times:g} times too {word} against the poses: the unit of depth or that of the poses is wrong",
        f"depth_scale / {factor:g}",
    )


READINGS: Mapping[str, OtherReading] = {
    reading.kind: reading
    for reading in (
        OtherReading("inverted poses", inverted, "the poses seem to be camera_from_world: invert them" + _POSES),
        OtherReading(
            "OpenGL axes",
            lambda frame: turned_axes(frame, _GL),
            "the poses seem to have OpenGL axes (y up, z backward): flip y and z" + _POSES,
        ),
        OtherReading(
            "inverted poses with OpenGL axes",
            lambda frame: turned_axes(inverted(frame), _GL),
            "the poses seem to be camera_from_world with OpenGL axes: invert them, then flip y and z" + _POSES,
        ),
        *(
            OtherReading(
                f"swapped axes: {_axes_in_words(axes)}",
                lambda frame, axes=axes: turned_axes(frame, axes),
                f"the camera's axes seem swapped: its x, y, z are {_axes_in_words(axes)} of the poses" + _POSES,
            )
            for axes in all_axes()
            if not np.array_equal(axes, _GL)
        ),
        *(_scale(factor) for factor in (0.001, 0.1, 0.2, 0.5, 2.0, 5.0, 10.0, 1000.0)),
        OtherReading(
            "intrinsics of half size",
            lambda frame: scaled_focal(frame, 2.0),
            "the intrinsics seem to be those of images of half the size: multiply fx, fy, cx, cy by 2",
            "intrinsics x 2",
        ),
        OtherReading(
            "intrinsics of twice the size",
            lambda frame: scaled_focal(frame, 0.5),
            "the intrinsics seem to be those of images of twice the size (as 1296 x 968 against 640 x 480): halve"
            " fx, fy, cx, cy",
            "intrinsics x 0.5",
        ),
        OtherReading(
            "principal point swapped", swapped_center, "cx and cy seem to be exchanged", "intrinsics swapped center"
        ),
        OtherReading(
            "depth along the ray",
            depth_from_distance,
            "depth seems to be the distance along each pixel's ray: divide it by the length of the ray (x, y, 1)",
        ),
        OtherReading(
            "mirrored images and depth", mirrored, "images and depth seem mirrored against the poses: flip both"
        ),
        OtherReading(
            "mirrored images",
            lambda frame: mirrored(frame, depth=False),
            "the images seem mirrored against depth and poses: flip the images left to right",
        ),
        OtherReading(
            "mirrored depth",
            lambda frame: mirrored(frame, images=False),
            "depth seems mirrored against images and poses: flip it left to right",
        ),
    )
}
"""Dict from the kind of mistake to the reading that undoes it."""

FEW = tuple(kind for kind in READINGS if kind.startswith(("intrinsics", "principal", "depth along", "mirrored")))
"""The readings that `prior3d.data.posed.plausibility` does not try."""
