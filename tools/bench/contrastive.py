"""Measure time and memory of PointInfoNCE, forward and backward, in every way that this machine has.

    python tools/bench contrastive --rows 1024 4096 16384

The yardstick is "plain logits": normalize, one matrix product, two cross-entropies. "kept" is the loss of few rows,
"tiles" that of many in plain torch, "kernels" that of many on CUDA. Times are medians after a warm-up, with the device
synchronized. Memory is what forward and backward add to the inputs: the allocator's peak on CUDA, the rise of the
peak of a process of its own on a CPU.
"""

import argparse
import contextlib
import math
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from prior3d.losses import contrastive as losses
from prior3d.losses.infonce_tiled import tiled_row_losses, unit_rows

TEMPERATURE = 0.1


def main(arguments: Sequence[str]) -> None:
    """Measure, and print a line per measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    for number, row in enumerate(contrastive(parser.parse_args(arguments))):
        if number == 0:
            print("  ".join(f"{name:>12}" for name in row))
        cells = (f"{value:>12.4g}" if isinstance(value, float) else f"{value:>12}" for value in row.values())
        print("  ".join(cells), flush=True)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, nargs="+", default=[1024, 4096, 16384])
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)


def contrastive(args: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Yield one row of figures per size, way and precision; `ratio` is the time over that of plain logits.

    Args:
        args: `rows` (list of sizes), `channels` and `repeats`.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for rows in args.rows:
        for precision in ("float32", "bf16") if device == "cuda" else ("float32",):
            yardstick = math.nan
            for way in WAYS:
                if way == "kernels" and device == "cpu":
                    continue
                case = (way, rows, args.channels, precision, device, args.repeats)
                forward, both, memory = _alone(case) if device == "cpu" else _measure(*case)
                yardstick = both if way == "plain logits" else yardstick
                row = {"rows": rows, "way": way, "precision": precision, "forward ms": forward, "ms": both}
                yield row | {"GiB": memory, "ratio": both / yardstick}


def _plain_logits(queries: Tensor, keys: Tensor, valid: Tensor) -> Tensor:
    queries, keys = F.normalize(queries[0], dim=-1), F.normalize(keys[0], dim=-1)
    logits, own = queries @ keys.T / TEMPERATURE, torch.arange(len(keys), device=keys.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def _kept(queries: Tensor, keys: Tensor, valid: Tensor) -> Tensor:
    losses.PLAIN_PAIRS = valid.numel() ** 2
    return losses.masked_point_info_nce(queries, keys, valid, TEMPERATURE)


def _tiles(queries: Tensor, keys: Tensor, valid: Tensor) -> Tensor:
    rows = unit_rows(queries), unit_rows(keys)
    return tiled_row_losses(*rows, valid, TEMPERATURE, True, None, _products(queries)).mean()


def _kernels(queries: Tensor, keys: Tensor, valid: Tensor) -> Tensor:
    from prior3d.losses.infonce_triton import fused_row_losses

    return fused_row_losses(queries, keys, valid, TEMPERATURE, True, None, _products(queries)).mean()


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "plain logits": _plain_logits,
    "kept": _kept,
    "tiles": _tiles,
    "kernels": _kernels,
}


def _products(rows: Tensor) -> torch.dtype | None:
    return torch.bfloat16 if torch.is_autocast_enabled(rows.device.type) else None


def _alone(case: tuple) -> tuple[float, float, float]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, *case).result()


def _measure(
    way: str, rows: int, channels: int, precision: str, device: str, repeats: int
) -> tuple[float, float, float]:
    """Return milliseconds of the forward pass and of both, and GiB; NaN where the memory does not suffice."""
    queries, keys = (torch.randn(1, rows, channels, device=device, requires_grad=True) for _ in range(2))
    valid = torch.ones(1, rows, dtype=torch.bool, device=device)
    autocast = torch.autocast(device, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
    before = _peak(device, reset=True)
    times = []
    try:
        for _ in range(repeats + 1):
            queries.grad = keys.grad = None
            start = _now(device)
            with autocast:
                loss = WAYS[way](queries, keys, valid)
            middle = _now(device)
            loss.backward()
            times.append((middle - start, _now(device) - start))
    except torch.OutOfMemoryError:
        return math.nan, math.nan, math.nan
    forward, both = (median(values) * 1000 for values in zip(*times[1:], strict=True))
    return forward, both, (_peak(device) - before) / 2**30


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _peak(device: str, reset: bool = False) -> float:
    """Return the peak of memory in bytes."""
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if reset:
        torch.cuda.reset_peak_memory_stats()
    return torch.cuda.max_memory_allocated()
