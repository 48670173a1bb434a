"""Lines of inspect: summaries of short scenes, and recipe lines that recipes accept."""

import numpy as np
import pytest
import yaml

from prior3d import Camera
from prior3d.data.inspecting.checks import Finding
from prior3d.data.inspecting.recipe_lines import recipe_line
from prior3d.data.inspecting.sample import SceneSample
from prior3d.data.inspecting.summary import pair_matrix, summary_lines
from prior3d.data.posed import Calibration
from prior3d.data.posed.plausibility import PosedDepth

MATRIX = np.array([[500.0, 0, 320.5], [0, 510, 240.5], [0, 0, 1]])
CAMERA = Camera("pinhole", MATRIX, (480, 640), depth_size=(480, 640))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_scenes_of_few_frames(count):
    frame = PosedDepth(np.zeros((12, 16), np.float32), np.full((12, 16), 2, np.float32), MATRIX / 40, np.eye(4))
    frame.intrinsics[2, 2] = 1
    frames = dict.fromkeys(range(count), frame)
    sample = SceneSample("a", frames, np.stack([np.eye(4)] * count), (480, 640), (12, 16))
    overlap, angle = pair_matrix(sample)
    np.testing.assert_allclose(overlap, np.ones((count, count)), atol=1e-6)
    np.testing.assert_allclose(angle, np.zeros((count, count)), atol=1e-6)
    assert summary_lines(sample)[0] == f"a: {count} frames, images 640x480, depth 16x12"


@pytest.mark.parametrize(("centers", "left"), [("half", 641.0), ("integer", 640.0), (None, 640.0)])
def test_intrinsics_are_a_list_as_readers_take_them(centers, left):
    options = {"intrinsics": None} | ({} if centers is None else {"pixel_centers": centers})
    line = recipe_line(Finding("half size", "", "", "intrinsics x 2"), CAMERA, options)
    text, _, advice = line.partition(" (")
    assert text.startswith("data.reader: ") and advice == "a file of intrinsics counts first: correct it)"
    (numbers,) = yaml.safe_load(text.removeprefix("data.reader: ")).values()
    assert numbers[:3] == [1000, 1020, left]


def test_a_color_camera_is_what_the_option_takes():
    line = recipe_line(Finding("not registered", "", "", "depth_to_color"), CAMERA, {})
    (calibration,) = yaml.safe_load(line.removeprefix("data.depth_to_color: ")).values()
    made = Calibration(**calibration)
    assert made.fx == 500 and made.cx == 320 and len(made.translation) == 3
