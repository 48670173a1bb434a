"""A run of the real command whose voxels have colors."""

import json


def test_a_prior_of_colored_voxels_trains_on_rooms_and_is_drawn(train, tmp_path):
    pixel_voxel = "{prior: pixel_voxel, voxels: color, voxel_size: 0.1, points: 32, width: 0.25}"
    priors = ["priors.view_invariance.points=32", f"priors.colored={pixel_voxel}"]
    surface = "data.surface={voxel_size: 0.05, min_frames: 1}"
    folder = train(tmp_path, *priors, surface, "trainer.max_steps=2", "trainer.draw_every=1", "data.workers=1")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["losses, mean of the last batches"]["colored"] > 0
