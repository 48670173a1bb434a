"""What a run finds on its machine: cores, processes, the device, memory and disk that may run out."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from prior3d.errors import UserError, section

_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
"""Variables by which launchers number their processes."""


@contextmanager
def sharing_cores(accelerator: str) -> Iterator[None]:
    """Leave half of the cores to the loader's workers while working on a CPU, unless OMP_NUM_THREADS says otherwise.

    Threads that wait for a busy core spin: two threads next to two workers on two cores took 4 times as long as one.
    The number does not depend on that of the workers. Sums depend on the number of threads in their last bits:
    `thread_facts` goes into the summary of a run and into its checkpoints.

    Args:
        accelerator: auto, cpu or gpu.
    """
    on_cpu = accelerator == "cpu" or not torch.cuda.is_available()
    before = torch.get_num_threads()
    if on_cpu and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def thread_facts() -> dict[str, object]:
    """Return the number of threads that sums are shared among, and the variable that may have set it."""
    return {"threads": torch.get_num_threads(), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")}


def probe_device(accelerator: str) -> str:
    """Return the device probes run on, cpu or cuda: the training's.

    Args:
        accelerator: auto, cpu or gpu.
    """
    return "cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu"


def check_processes(devices: int) -> None:
    """Refuse processes that a launcher started and the recipe does not know of.

    Args:
        devices: `trainer.devices`; prior3d starts that many processes itself.

    Raises:
        UserError: another number of processes was started, or this one has a number of its own and is alone.
    """
    started = os.environ.get("WORLD_SIZE")
    if started is not None and started != str(devices):
        raise UserError(
            f"{started} processes were started (the environment has WORLD_SIZE={started}), but this is {devices}: set"
            f" it to {started}, or start one process without torchrun; prior3d starts the others itself",
            "trainer.devices",
        )
    for name in _RANKS:
        rank = os.environ.get(name, "0")
        if started is None and devices == 1 and rank != "0":
            raise UserError(
                f"this is process {rank} of several (the environment has {name}={rank}), but trainer.devices is 1:"
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
    """Turn the error of a training step that does not fit into memory into one line with advice.

    Args:
        batch_size: of the training, for the advice.

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
                f"a training step does not fit into the memory of {where}: lower this (it is {batch_size}) and raise"
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
