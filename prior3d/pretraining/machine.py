"""Resources of the machine of a run: cores, processes, device, and memory and disk, which may run out."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from prior3d.errors import UserError, section

_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
"""Environment variables with which launchers number their processes."""


def share_cores(accelerator: str) -> None:
    """Leave half of the cores to the loader's workers when training on a CPU, unless OMP_NUM_THREADS is set.

    Threads that wait for a busy core spin: two threads with two workers on two cores took 4 times as long as one
    thread. The number of threads does not depend on the number of workers. The last bits of sums depend on the number
    of threads, so `thread_facts` goes into the summary of a run and into its checkpoints.

    Args:
        accelerator: auto, cpu or gpu.
    """
    on_cpu = accelerator == "cpu" or not torch.cuda.is_available()
    if on_cpu and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))


def thread_facts() -> dict[str, object]:
    """Return the number of threads that compute sums, and the variable that may have set it."""
    return {"threads": torch.get_num_threads(), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")}


def probe_device(accelerator: str) -> str:
    """Return the device of the probes, cpu or cuda, which is that of the training.

    Args:
        accelerator: auto, cpu or gpu.
    """
    return "cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu"


def check_processes(devices: int) -> None:
    """Reject processes that a launcher started but the recipe does not expect.

    Args:
        devices: `trainer.devices`; prior3d starts that many processes itself.

    Raises:
        UserError: a different number of processes was started, or this process has a rank but is alone.
    """
    started = os.environ.get("WORLD_SIZE")
    if started is not None and started != str(devices):
        raise UserError(
            f"{started} processes were started (the environment has WORLD_SIZE={started}), and this is {devices}: set"
            f" it to {started}, or start one process without torchrun; prior3d starts the others itself",
            "trainer.devices",
        )
    for name in _RANKS:
        rank = os.environ.get(name, "0")
        if started is None and devices == 1 and rank != "0":
            raise UserError(
                f"this is process {rank} of several (the environment has {name}={rank}), and trainer.devices is 1:"
                f" unset {name}, or set this to the number of processes",
                "trainer.devices",
            )
    if devices > 1 and started is None and hasattr(sys, "ps1"):
        raise UserError(
            "several processes cannot be started from an interactive session: run a script, or set this to 1",
            "trainer.devices",
        )


@contextmanager
def enough_memory(batch_size: int) -> Iterator[None]:
    """Turn the out-of-memory error of a training step into one line with advice.

    Args:
        batch_size: batch size of the training, for the advice.

    Raises:
        UserError: memory ran out inside the block.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch's OutOfMemoryError is a RuntimeError
        if not _is_out_of_memory(error):
            raise
        where = "the GPU" if isinstance(error, torch.OutOfMemoryError) else "this machine"
        with section("data"):
            raise UserError(
                f"the memory of {where} does not hold a training step: lower this (it is {batch_size}) and raise"
                " accumulate by the same factor, set precision: bf16, or take a smaller size",
                "batch_size",
            ) from error


def _is_out_of_memory(error: Exception) -> bool:
    text = str(error)
    return (
        isinstance(error, MemoryError | torch.OutOfMemoryError)
        or "DefaultCPUAllocator" in text
        or "CUDA out of memory" in text
        or "not enough memory" in text
    )


@contextmanager
def enough_disk(folder: Path) -> Iterator[None]:
    """Turn a disk-full error into one line with a path.

    Args:
        folder: the output folder, reported if the error does not name a file.

    Raises:
        UserError: the disk was full inside the block.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        path = error.filename or folder
        raise UserError(f"cannot write {path}: {error.strerror}; free some space and start again") from error
