"""Block sizes per class of shapes: a few candidates, timed once at first use, kept on disk."""

import json
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
import triton

from prior3d.errors import UserError
from prior3d.files import write_json

_LOG = logging.getLogger(__name__)
_REPEATS = 5

_MANY_ROWS = 65536
"""Rows from which tiles of 256 fill a GPU."""

_TILE_LOADS = 3
"""Loads of `multiply_tiles` that follow from each other: an offset, a row's number, the row."""

_PAIR_LOADS = 2
"""Loads of `multiply_pairs` that follow from each other: a row's number, the row."""

_SHARED_MEMORY = 220 * 1024
"""Bytes of shared memory that the programs of one multiprocessor use; a GPU with less passes over what needs more."""


class Config(NamedTuple):
    """Block sizes of one kernel, and how Triton runs it.

    No field changes a result: blocks only group sums that run in one order. Whatever does change it (parts of a sum,
    pieces of pairs) follows from the sizes and the GPU's number of multiprocessors, never from a timing.
    """

    rows: int
    columns: int
    depth: int  # of the axis that is summed over
    warps: int
    stages: int


class Table:
    """The fastest configuration of each class of shapes on one device.

    Args:
        folder: where the choices are kept between processes; None keeps them in memory.
        device: whose table this is; None for no timing (Triton's interpreter).
    """

    def __init__(self, folder: Path | None, device: torch.device | None) -> None:
        self._device = device
        self._chosen: dict[tuple, Config] = {}
        name = "" if device is None else torch.cuda.get_device_name(device).replace(" ", "_").replace("/", "_")
        self._file = None if folder is None or device is None else folder / f"{name}-triton-{triton.__version__}.json"
        self._kept = self._read()

    def choose(
        self, key: tuple, candidates: Callable[[], list[Config]], launch: Callable[[Config, bool], object]
    ) -> Config:
        """Return the configuration of a class of shapes, timed if it is not known.

        Args:
            key: class of shapes.
            candidates: makes the configurations to compare, a guess first.
            launch: runs the kernel with a configuration; only compiles it if the second argument is true.
        """
        if key in self._chosen:
            return self._chosen[key]
        options = candidates()
        name = " ".join(map(str, key))
        kept = self._kept.get(name)
        if kept in options:
            self._chosen[key] = kept
        elif self._device is None or len(options) == 1:
            self._chosen[key] = options[0]
        elif torch.cuda.is_current_stream_capturing():
            return options[0]  # a graph cannot be timed while it is captured: the next call outside of one decides
        else:
            self._chosen[key] = self._kept[name] = _fastest(options, launch, name)
            self._write()
        return self._chosen[key]

    def _read(self) -> dict[str, Config]:
        if self._file is None or not self._file.is_file():
            return {}
        # A damaged or foreign file costs a new timing, never a run.
        with suppress(OSError, ValueError, TypeError, AttributeError):
            return {name: Config(*sizes) for name, sizes in json.loads(self._file.read_text()).items()}
        return {}

    def _write(self) -> None:
        if self._file is None:
            return
        self._kept = self._read() | self._kept  # other processes write the same file
        with suppress(OSError, UserError):  # a read-only home costs a timing per process
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._file, {name: list(config) for name, config in sorted(self._kept.items())})


def _fastest(options: list[Config], launch: Callable[[Config, bool], object], name: str) -> Config:
    """Compile all candidates, side by side where Triton can, then time them."""
    mode = getattr(triton, "AsyncCompileMode", None)
    if mode is not None:
        with ThreadPoolExecutor(min(len(options), os.cpu_count() or 1)) as pool, mode(pool):
            for config in options:
                launch(config, True)
    times = {config: _time(config, launch) for config in options}
    best = min(options, key=times.__getitem__)
    if times[best] == float("inf"):
        raise RuntimeError(f"sparse/triton: no configuration of {name} runs on this GPU; take engine sparse/torch")
    _LOG.debug("%s: %s of %s", name, best, {tuple(config): round(time, 4) for config, time in times.items()})
    return best


def _time(config: Config, launch: Callable[[Config, bool], object]) -> float:
    """Return the median time in ms, infinite if the blocks need more of the GPU than it has."""
    try:
        launch(config, False)
    except triton.runtime.errors.OutOfResources:
        return float("inf")
    events = [torch.cuda.Event(enable_timing=True) for _ in range(_REPEATS + 1)]
    events[0].record()
    for event in events[1:]:
        launch(config, False)
        event.record()
    events[-1].synchronize()
    return median(first.elapsed_time(second) for first, second in pairwise(events))


def tile_candidates(rows: int, summed: int, columns: int, itemsize: int, exact: bool) -> list[Config]:
    """Return block sizes of `multiply_tiles`: rows of a tile, output channels, channels that are summed over.

    Args:
        rows: rows of the result.
        summed: channels that are summed over, a multiple of 16.
        columns: channels of the weight, a multiple of 16.
        itemsize: bytes of a number.
        exact: whether products are float32 without matrix units.
    """
    wide = min(max(16, triton.next_power_of_2(columns)), 256)
    depth = 128 // itemsize
    while summed % depth:
        depth //= 2  # whole blocks alone: there is no mask
    if exact:
        return [Config(64, min(wide, 64), 16, 4, 2), Config(128, min(wide, 64), 16, 8, 2)]
    shapes = [(128, min(wide, 128)), (64, min(wide, 128))]
    if rows >= _MANY_ROWS:  # large tiles read the weight less often, but skip fewer offsets
        shapes.append((256, min(wide, 128)))
    if wide == 256:
        shapes += [(128, 256), (64, 256)]
    elif wide >= 64:
        shapes.append((128, wide // 2))
    if wide > columns and columns % 32 == 0 and wide > 64:
        shapes.append((128, 32))  # 96 channels: three whole blocks
    found = [_deepest(tile, width, depth, itemsize, _TILE_LOADS) for tile, width in shapes]
    # Tiles have few steps, so filling deep buffers may take longer than it saves; more warps have fewer sums each.
    return [*found, found[0]._replace(stages=_TILE_LOADS + 1), found[0]._replace(warps=8)]


def pair_candidates(inputs: int, outputs: int, itemsize: int, exact: bool) -> list[Config]:
    """Return block sizes of `multiply_pairs`: input channels, output channels, pairs that are summed over."""
    rows, columns = (max(16, triton.next_power_of_2(channels)) for channels in (inputs, outputs))
    if exact:
        return [Config(min(rows, 64), min(columns, 64), 16, 4, 2)]
    depth = 128 // itemsize
    # Below 64 rows other matrix instructions run, which round otherwise: never mixed with those of larger blocks.
    shapes = [
        (min(rows, 128), min(columns, 128)),
        (min(rows, 64), min(columns, 128)),
        (min(rows, 128), min(columns, 64)),
    ]
    if rows >= 256:
        shapes.append((256, min(columns, 128)))
    if columns >= 256:
        shapes.append((min(rows, 128), 256))
    first, *others = dict.fromkeys(shapes)
    found = [_deepest(*shape, depth, itemsize, _PAIR_LOADS) for shape in (first, *others)]
    return [*found, _deepest(*first, depth // 2, itemsize, _PAIR_LOADS), found[0]._replace(warps=8)]


def _deepest(rows: int, columns: int, depth: int, itemsize: int, loads: int) -> Config:
    """Return a configuration with as many loads in flight as shared memory holds, for two programs at a time if small.

    Where one load needs the result of another, Triton spends a stage on each of them: that many for every buffer.
    """
    big = rows * columns > 128 * 128
    room = _SHARED_MEMORY if big else _SHARED_MEMORY // 2
    buffers = min(max(2, room // ((rows + columns) * depth * itemsize)), 4 if loads == _PAIR_LOADS else 3)
    return Config(rows, columns, depth, 8 if big else 4, loads * (buffers - 1) + 1)
