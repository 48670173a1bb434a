"""How many cores torch uses where the loader's workers need some, too."""

import os

import torch


def share_cores(accelerator: str) -> None:
    """Leave half of the cores to the loader's workers when working on a CPU, unless OMP_NUM_THREADS says otherwise.

    Threads that wait for a busy core spin: two threads beside two workers on two cores took 4 times as long as one.
    The number does not depend on that of the workers, since sums depend on the number of threads in their last bits.

    Args:
        accelerator: auto, cpu or gpu.
    """
    on_cpu = accelerator == "cpu" or not torch.cuda.is_available()
    if on_cpu and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))
