"""The tool that says what guessing the mean depth would score."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest

from prior3d.probes.tasks import ProbeTask
from prior3d_plugins.probes.depth import Depth

TOOLS = Path(__file__).resolve().parents[2] / "tools"


def test_the_guess_is_the_mean_of_the_training_part_within_the_range(open_data, monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    spec = importlib.util.spec_from_file_location("constant_depth", TOOLS / "constant_depth.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def halves(rng, frame):  # 2 m and 4 m, and what is unknown or out of range on top
        depth = np.full((16, 24), 2.0, np.float32)
        depth[:, 12:] = 4.0
        depth[0], depth[1] = 0.0, 50.0
        return {"depth": depth}

    data = open_data(halves)
    found = module.of_a_constant(ProbeTask("depth", Depth(), data.parts, seeds=1, most=None))
    assert found["RMSE m"] == pytest.approx(1.0)  # from a guess of 3 m
    assert found["AbsRel"] == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert found["log10"] == pytest.approx((math.log10(3 / 2) + math.log10(4 / 3)) / 2)
    assert found["delta1"] == 0
