"""What is unusual: field of view, principal point and scale, against cameras and rooms in general."""

import numpy as np

from prior3d.data.inspecting.findings import Finding
from prior3d.data.inspecting.sample import SceneSample

_FIELD = (25.0, 125.0)  # degrees across
_OFF_CENTER = 0.12  # of the width or height
_SQUARE = 0.15
_ROOM_M = (0.3, 9.0)  # median depth


def odd_cameras(sample: SceneSample) -> list[Finding]:
    """Return findings about the intrinsics: field of view, principal point, shape of pixels."""
    found = []
    for frame in list(sample.frames.values())[:1]:
        (height, width), matrix = frame.depth.shape, frame.intrinsics
        across = np.degrees(2 * np.arctan(width / 2 / abs(matrix[0, 0])))
        if not _FIELD[0] <= across <= _FIELD[1]:
            mend = "the focal length is unusual: are the intrinsics those of this image size?"
            found.append(Finding("field of view", f"{across:.0f} degrees across", mend, "intrinsics", sure=False))
        off = np.abs(matrix[:2, 2] / [width, height] - 0.5)
        if off.max() > _OFF_CENTER:
            figure = f"at {matrix[0, 2] / width:.0%} of the width and {matrix[1, 2] / height:.0%} of the height"
            mend = "the principal point is far from the center: are cx and cy exchanged, or those of another size?"
            found.append(Finding("principal point", figure, mend, "intrinsics", sure=False))
        if abs(np.log(abs(matrix[0, 0] / matrix[1, 1]))) > _SQUARE:
            figure = f"fx is {abs(matrix[0, 0] / matrix[1, 1]):.2f} fy"
            mend = "the pixels are not square: are the intrinsics those of an image of another shape?"
            found.append(Finding("focal lengths", figure, mend, "intrinsics", sure=False))
    return found


def odd_scale(sample: SceneSample) -> list[Finding]:
    """Return a finding if depth is unusual for a room."""
    known = sample.known_depth()
    found = []
    if len(known) and not _ROOM_M[0] <= np.median(known) <= _ROOM_M[1]:
        mend = "no usual room is that large or small: check depth_scale and the unit of the poses (fine outdoors)"
        figure = f"median depth {np.median(known):.3g} m"
        found.append(Finding("scale", figure, mend, "depth_scale", sure=False))
    return found
