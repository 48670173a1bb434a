"""Measure what a sample costs the loader: decoding, augmentation, and the surface of its views.

    python tools/bench loader --recording /tmp/room --frames 300

The scene is rendered first (a second a frame) unless the folder has one; any 7-Scenes recording will do. The yardstick
tests every point of the scene for every view. Both must find the same points. Everything runs in this process, without
workers, and reads files that the system has in memory.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from recording import write_recording
from table import format_table

from prior3d.contracts.dataset import DataSpec
from prior3d.data.posed import Choice, RecordedScenes, Surface
from prior3d.data.sample import DrawnSamples
from prior3d.recipe.sections import AugmentOptions
from prior3d_plugins.readers.sevenscenes import SevenScenes

DECODED = frozenset({"image", "depth", "intrinsics", "world_from_camera"})
SURFACE = frozenset({"surface", "surface_color"})

Row = dict[str, float | str]


class EveryPoint:
    """A surface of which every point is tested for every box.

    Args:
        surface: Surface to take the points from.
    """

    def __init__(self, surface: Surface) -> None:
        self.points, self.colors = np.array(surface.points), np.array(surface.colors)
        self.boxes: list[tuple[np.ndarray, np.ndarray]] = []

    def within(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Return the rows of the points in a box, and keep the box."""
        low, high = np.asarray(low, np.float32), np.asarray(high, np.float32)
        self.boxes.append((low, high))
        return np.flatnonzero(((self.points >= low) & (self.points <= high)).all(1))


class Loaded(RecordedScenes):
    """A recording whose surface can be replaced."""

    replaced: EveryPoint | None = None

    def surface(self, scene: int) -> Surface | EveryPoint:
        """Return the surface of the scene, or what replaces it."""
        return self.replaced or super().surface(scene)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("tools/bench loader", description=__doc__.splitlines()[0])
    parser.add_argument("--recording", type=Path, help="folder of one scene, rendered there if it does not exist")
    parser.add_argument("--frames", type=int, default=300, help="frames to render, or to read at most")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), help="height and width to render")
    parser.add_argument("--output", type=int, nargs=2, default=(240, 320), help="height and width of samples")
    parser.add_argument("--views", type=int, default=1, help="views per sample")
    parser.add_argument("--samples", type=int, default=50, help="samples to time in each row")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.recording or Path(scratch) / "room"
        if not folder.is_dir():
            write_recording(folder, options.frames, tuple(options.size))
        spec = DataSpec(tuple(options.output), options.views, "train", Path(scratch) / "cache")
        dataset = Loaded(spec, [SevenScenes(folder)], Choice(max_frames=options.frames, check_poses="off"))
        print(report(dataset, options.samples))


def report(dataset: Loaded, count: int) -> str:
    """Return the table of one scene."""
    frames = dataset.frame_count(0)
    dataset.prepare()
    wall, cpu = time.perf_counter(), time.process_time()
    surface = dataset.surface(0)
    fused = f"{time.perf_counter() - wall:.1f} s, {time.process_time() - cpu:.1f} CPU s"
    rows = {
        "decoded and augmented": timed(dataset, DECODED, count),
        "with the surface": timed(dataset, DECODED | SURFACE, count),
    }
    dataset.replaced = EveryPoint(surface)
    rows["every point tested"] = timed(dataset, DECODED | SURFACE, count)
    boxes = dataset.replaced.boxes
    same = all(np.array_equal(np.sort(surface.within(*box)), dataset.replaced.within(*box)) for box in boxes[:count])
    height, width = dataset.scene(0).camera(0).size
    about = (
        f"samples of {dataset.spec.views} x {dataset.spec.size[0]} x {dataset.spec.size[1]} from {frames} frames of"
        f" {height} x {width}; a surface of {len(surface)} points, fused in {fused}; NumPy {np.__version__};"
        f" {'the same points' if same else 'OTHER POINTS'} in the boxes of {min(count, len(boxes))} views"
    )
    return f"{about}\n\n{format_table(rows, 'CPU ms', 'every point tested')}"


def timed(dataset: Loaded, fields: frozenset[str], count: int) -> Row:
    """Return how long samples with these fields take, after one that warms up."""
    samples = DrawnSamples(dataset, fields, AugmentOptions(), 0, skip_damaged=False)
    first = samples[0]
    if "error" in first:
        sys.exit(str(first["error"]))
    wall, cpu = time.perf_counter(), time.process_time()
    for draw in range(1, count + 1):
        samples[draw]
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"samples/s": count / wall, "CPU ms": 1e3 * cpu / count}
