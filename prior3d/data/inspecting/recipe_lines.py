"""The line of a recipe that mends a finding, where the format has an option for it."""

from collections.abc import Mapping

import numpy as np

from prior3d.contracts.reader import Camera
from prior3d.data.inspecting.findings import Finding


def recipe_line(finding: Finding, camera: Camera, options: Mapping[str, object]) -> str:
    """Return the line that mends a finding; "" if no option does and the files must be changed.

    Args:
        finding: What was found.
        camera: Camera of the scene as it was read.
        options: The reader's options with their values.
    """
    line = finding.line
    if line.startswith("depth_scale / ") and isinstance(options.get("depth_scale"), int | float):
        return f"data.reader: {{depth_scale: {options['depth_scale'] / float(line.split()[-1]):g}}}"
    if line.startswith("intrinsics ") and "intrinsics" in options:
        focal_x, focal_y, left, top = _numbers(camera, 0.0 if options.get("pixel_centers") == "half" else 0.5)
        factor = float(line.split()[-1]) if " x " in line else 1.0
        if "swapped" in line:
            left, top = top, left
        numbers = ", ".join(f"{value * factor:.6g}" for value in (focal_x, focal_y, left, top))
        return f"data.reader: {{intrinsics: [{numbers}]}} (a file of intrinsics counts first: correct it)"
    if line == "depth_to_color":
        zoom = finding.zoom
        focal_x, focal_y, left, top = _numbers(camera, 0.5)
        values = {"fx": focal_x * zoom, "fy": focal_y * zoom, "cx": left, "cy": top}
        shift = ", ".join(f"{value:.3f}" for value in finding.shift_m)
        return 'data.depth_to_color: {"*": {' + _shown(values) + f", translation: [{shift}]" + "}}"
    return line if line.startswith("data.") else ""


def _numbers(camera: Camera, first_center: float) -> np.ndarray:
    matrix = camera.intrinsics
    return np.array([matrix[0, 0], matrix[1, 1], matrix[0, 2] - first_center, matrix[1, 2] - first_center])


def _shown(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name}: {value:.6g}" for name, value in values.items())
