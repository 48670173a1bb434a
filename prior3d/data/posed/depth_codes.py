"""Meaning of the values in depth files, as a reader declares it: units, unknown values, and what is measured."""

from pathlib import Path
from typing import Literal, get_args

import numpy as np

from prior3d.contracts.fields import UNKNOWN_DEPTH
from prior3d.data.decoding import damage
from prior3d.data.depth_files import read_depth_values
from prior3d.errors import UserError

Along = Literal["axis", "ray"]
"""Whether depth is measured along the camera's axis, or is the distance along the ray of each pixel."""

DepthBits = Literal[8, 16]


class DepthCodes:
    """Meaning of the values in depth files: the options `depth_scale` and `invalid_depth`.

    Whole numbers (16-bit PNG, TIFF and PGM, npy of integers) are in units of the option `depth_scale`. Floating-point
    numbers (TIFF, EXR, PFM, npy) are meters unless `float_scale` is set. Values that are negative or not finite are
    unknown.

    Args:
        scale: Units of whole numbers per meter.
        invalid: Values that mean "not measured".
        along: Whether the values are depth along the camera's axis, or distances along the ray of each pixel;
            `FileRecording` converts these.
        float_scale: Units of floating-point numbers per meter.
        bits: Fewest bits of a whole number: 8 for formats that store depth in a byte.

    Raises:
        UserError: An option is wrong; the error names it.
    """

    def __init__(
        self,
        scale: float,
        invalid: tuple[int, ...],
        along: Along = "axis",
        float_scale: float = 1.0,
        bits: DepthBits = 16,
    ) -> None:
        if not (0 < scale < np.inf and 0 < float_scale < np.inf):
            raise UserError(f"expected units per meter above 0, got {min(scale, float_scale)}", "depth_scale")
        if not all(0 <= value <= 65535 for value in invalid):
            raise UserError(f"expected values of 16 bits, 0 to 65535, got {list(invalid)}", "invalid_depth")
        if along not in get_args(Along):
            raise UserError(f"expected {' or '.join(get_args(Along))}, got {along}", "depth_along")
        self.along = along
        self.facts = f"depth {scale} {invalid}"
        if (along, float_scale, bits) != ("axis", 1.0, 16):
            self.facts += f" {along} {float_scale} {bits}"
        self._scale, self._float_scale, self._bits, self._invalid = scale, float_scale, bits, invalid
        self._meters = (np.arange(65536) / scale).astype(np.float32)
        self._meters[list(invalid)] = UNKNOWN_DEPTH

    def read(self, path: Path) -> np.ndarray:
        """Return the depth map of a file, [h, w] float32 meters, 0 = unknown; see `read_depth_values`.

        Raises:
            DamagedFile: The file is no depth map of a known format, is damaged, or has too few bits.
            UserError: It is an EXR file, and OpenEXR is not installed.
        """
        values = read_depth_values(path)
        with damage(path):
            if problem := depth_problem(8 * values.dtype.itemsize, self._bits):
                raise ValueError(problem)
        return self.meters(values)

    def meters(self, values: np.ndarray) -> np.ndarray:
        """Return depth [h, w] float32 in meters, 0 = unknown, from the values [h, w] of a file."""
        if values.dtype == np.uint16:
            return self._meters.take(values)
        scale = self._float_scale if values.dtype.kind == "f" else self._scale
        with np.errstate(invalid="ignore", over="ignore"):
            meters = (values / scale).astype(np.float32)
            known = np.isfinite(meters) & (meters > 0) & ~np.isin(values, self._invalid)
        return np.where(known, meters, np.float32(UNKNOWN_DEPTH))


def depth_problem(bits: int, least: int) -> str | None:
    """Return why values of so many bits are no depth, None if they are."""
    return None if bits >= least else f"expected a {least}-bit gray image, got mode L: {bits} bits are not depth here"
