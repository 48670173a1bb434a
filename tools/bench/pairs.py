"""Measure the mining of the pairs of one scene: decoding, comparing on the CPU and on a GPU if there is one.

    python tools/bench pairs --recording /tmp/room --frames 300

The scene is rendered first (a second a frame) unless the folder has one; any 7-Scenes recording will do. The yardstick
is the plain definition of overlap that the tests keep, run on a sample of the pairs and extrapolated to all. Both must
agree on the sample bit by bit.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from recording import write_recording
from table import format_table
from torch import Tensor

from prior3d.data.posed import PairOptions, mine_pairs
from prior3d.data.posed.depth_maps import DepthMaps
from prior3d.geometry import pairwise_overlap
from prior3d_plugins.readers.sevenscenes import SevenScenes

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "fixtures"))

from plain_overlap import PlainOverlap

Result = TypeVar("Result")
Recorded = tuple[DepthMaps, Tensor, Tensor]


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("tools/bench pairs", description=__doc__.splitlines()[0])
    parser.add_argument("--recording", type=Path, help="folder of one scene, rendered there if it does not exist")
    parser.add_argument("--frames", type=int, default=300, help="frames to render, or to read at most")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), help="height and width to render")
    parser.add_argument("--sample", type=int, default=256, help="pairs that the plain definition is run on")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.recording or Path(scratch) / "room"
        if not folder.is_dir():
            write_recording(folder, options.frames, tuple(options.size))
        print(report(folder, options.frames, options.sample))


def report(folder: Path, frames: int, sample: int) -> str:
    """Return the table of one scene."""
    rows = {}
    views, rows["decode"] = timed(lambda: read_views(folder, frames))
    depth = views[0]
    table, rows["mine, CPU"] = timed(lambda: mine_pairs(*views))
    if torch.cuda.is_available():
        mine_pairs(*views, device="cuda")  # the first call loads kernels
        on_gpu, rows["mine, GPU"] = timed(lambda: mine_pairs(*views, device="cuda"))
        rows["mine, GPU"]["note"] = "same pairs" if torch.equal(on_gpu.overlap, table.overlap) else "OTHER PAIRS"
    plain, agrees = plain_seconds(views, sample)
    rows["mine, plain"] = plain
    height, width = depth[0].shape
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    about = (
        f"{len(depth)} frames of {height} x {width}: {len(table)} pairs of {len(depth) * (len(depth) - 1) // 2};"
        f" {torch.get_num_threads()} threads, torch {torch.__version__}; {agrees}\n"
        f"the depth maps take {depth.bytes / 2**20:.0f} MiB, the whole process {memory:.1f} GiB, mostly the plain run"
    )
    return f"{about}\n\n{format_table(rows, 'CPU s', 'mine, plain')}"


def read_views(folder: Path, frames: int) -> Recorded:
    """Read depth, intrinsics and poses of a 7-Scenes recording."""
    recording = SevenScenes(folder).open(SevenScenes(folder).scenes()[0])
    depth = DepthMaps()
    chosen = [n for n, frame in enumerate(recording.frames) if frame.problem is None][:frames]
    for number in chosen:
        depth.append(recording.read(number, frozenset({"depth"}))["depth"])
    intrinsics = torch.stack([torch.from_numpy(recording.frames[n].camera.intrinsics).float() for n in chosen])
    return depth, intrinsics, torch.stack([torch.from_numpy(recording.frames[n].world_from_camera) for n in chosen])


def plain_seconds(views: Recorded, sample: int) -> tuple[dict[str, float | str], str]:
    """Time the plain definition on a sample of the pairs of both looks; extrapolate to all, and compare results."""
    options = PairOptions()
    first, second = torch.triu_indices(len(views[0]), len(views[0]), offset=1)
    stacked = torch.stack(list(views[0])), *views[1:]
    total = {"s": 0.0, "CPU s": 0.0}
    equal = True
    for samples, least in ((64, options.min_overlap - 0.15), (options.samples, None)):
        chosen = torch.randperm(len(first), generator=torch.Generator().manual_seed(0))[:sample]
        a, b = first[chosen], second[chosen]
        plain = PlainOverlap(*stacked, samples)
        found, took = timed(lambda plain=plain, a=a, b=b: on_one_thread(plain, a, b))
        equal &= torch.equal(found, pairwise_overlap(*views, a, b, samples=samples))
        total = {name: total[name] + took[name] * len(first) / len(chosen) for name in total}
        if least is not None:
            near = pairwise_overlap(*views, first, second, samples=samples) >= least
            first, second = first[near], second[near]
    agrees = f"{'equal' if equal else 'NOT EQUAL'} to the plain definition on 2 x {sample} pairs"
    return {**total, "note": f"one thread, extrapolated from {sample} pairs of each look"}, agrees


def on_one_thread(function: Callable[[Tensor, Tensor], Tensor], *arguments: Tensor) -> Tensor:
    """Call a function with one thread of torch: several wait for each other busily, which counts as CPU time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return function(*arguments)
    finally:
        torch.set_num_threads(threads)


def timed(function: Callable[[], Result]) -> tuple[Result, dict[str, float | str]]:
    """Return a function's result, and its seconds and those of all threads of this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    return result, {"s": time.perf_counter() - wall, "CPU s": time.process_time() - cpu}
