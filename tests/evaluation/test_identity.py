"""Scores are of the data they were measured on, also where a stranger's dataset holds it."""

import numpy as np
import pytest

PLUGIN = '''
from pathlib import Path

import numpy as np

from prior3d.contracts.dataset import Dataset, View
from prior3d.files import fingerprint


class Plates(Dataset):
    """Images in .npy files."""

    splits = ("train", "test")

    def __init__(self, spec, *, root: Path):
        super().__init__(spec)
        self.scenes, self.files = ["all"], sorted(root.glob(f"{spec.split}-*.npy"))

    def __len__(self):
        return len(self.files)

    def fingerprint(self, frames=None):
        return fingerprint(self.files if frames is None else [self.files[frame] for _, frame in frames])

    def frame_count(self, scene):
        return len(self.files)

    def sample(self, index, fields, generator):
        return [self.load(0, index % len(self.files), fields)]

    def load(self, scene, frame, fields):
        return View({"image": np.load(self.files[frame])}, scene, frame)
'''


@pytest.fixture
def plates(tmp_path):
    """Arguments that measure on a stranger's dataset, and its files."""
    (tmp_path / "plates.py").write_text(PLUGIN)
    for split in ("train", "test"):
        for number in range(3):
            image = np.random.default_rng(number).integers(0, 255, (48, 64, 3), np.uint8)
            np.save(tmp_path / f"{split}-{number}.npy", image)
    arguments = ["--plugin", tmp_path / "plates.py", "data.name=plates", f"data.root={tmp_path}", "data.size=[48,64]"]
    return [*arguments, "data.workers=0"], tmp_path


def test_data_of_a_stranger_that_change_are_measured_again_and_others_are_not(evaluate, finished, plates, asked):
    arguments, folder = plates
    out = folder / "eval"

    def measured(*more):
        asked.clear()
        status, text, error = evaluate(finished, "--out", out, *arguments, *more)
        assert status == 0, error
        assert ("nothing is new" in text) == (not asked)
        return len(asked)

    assert measured() == 4
    assert measured() == 0
    np.save(folder / "test-1.npy", np.zeros((48, 64, 3), np.uint8))  # as large as before
    assert measured() == 4
    assert measured("probes.glow.max_images=1") == 4
    np.save(folder / "test-1.npy", np.ones((48, 64, 3), np.uint8))  # which is not among the images measured on
    assert measured("probes.glow.max_images=1") == 0
