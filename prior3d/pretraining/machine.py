"""What a run finds on its machine: cores, processes, the device, memory and disk that may run out."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from prior3d.backbone.memory import is_out_of_memory
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
    before = torch.get_num_threads()
    if choose_device(accelerator) == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def thread_facts() -> dict[str, object]:
    """Return the number of threads that sums are shared among, and the variable that may have set it."""
    return {"threads": torch.get_num_threads(), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")}


def choose_device(accelerator: str) -> str:
    """Return the kind of device to compute on, cpu or cuda: a GPU, if there is one, unless a CPU is requested.

    Args:
        accelerator: auto, cpu, gpu or cuda.
    """
    return "cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu"


def check_processes(devices: int, nodes: int = 1) -> None:
    """Refuse processes that a launcher started and the recipe does not know of.

    Args:
        devices: `trainer.devices`; prior3d starts that many processes itself.
        nodes: `trainer.num_nodes`; with more than one, a launcher starts the processes.

    Raises:
        UserError: another number of processes was started, or this one has a number of its own and is alone.
    """
    started, total = os.environ.get("WORLD_SIZE"), devices * nodes
    if started is not None and started != str(total):
        if nodes > 1:
            raise UserError(
                f"{started} processes were started (the environment has WORLD_SIZE={started}), but {nodes} nodes of"
                f" {devices} devices (trainer.devices) are {total}",
                "trainer.num_nodes",
            )
        raise UserError(
            f"{started} processes were started (the environment has WORLD_SIZE={started}), but this is {devices}: set"
            f" it to {started}, or start one process without torchrun; prior3d starts the others itself",
            "trainer.devices",
        )
    if nodes > 1 and started is None and not {"SLURM_PROCID", "SLURM_NTASKS"} <= set(os.environ):
        raise UserError(
            "processes on other nodes are started by a launcher: use torchrun or srun (docs/scaling.md)",
            "trainer.num_nodes",
        )
    for name in _RANKS:
        rank = os.environ.get(name, "0")
        if started is None and total == 1 and rank != "0":
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
        if not is_out_of_memory(error):
            raise
        where = "the GPU" if isinstance(error, torch.OutOfMemoryError) else "this machine"
        with section("data"):
            raise UserError(
                f"a training step does not fit into the memory of {where}: lower this (it is {batch_size}) and raise"
                " accumulate by the same factor, set precision: bf16, or take a smaller size",
                "batch_size",
            ) from error
