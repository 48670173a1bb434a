"""Worker processes that run unit after unit, each importing torch and opening the device once."""

import multiprocessing
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

from prior3d.errors import UserError
from prior3d.study.matrix import Matrix, Unit
from prior3d.study.records import FAILED

WhenDone = Callable[[Unit, dict[str, object], float], None]
"""Function that receives a unit, its record and its seconds."""


@dataclass(frozen=True)
class Setting:
    """Settings of every worker.

    Attributes:
        matrix: The study.
        out: Its output folder.
        keep_weights: Whether to keep the trained encoders.
    """

    matrix: Matrix
    out: Path
    keep_weights: bool = False


class Worker:
    """One process and its current unit."""

    def __init__(self, setting: Setting, number: int) -> None:
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        self.number = number
        self.unit: Unit | None = None
        self.started = 0.0
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(setting, number, theirs), name=f"worker-{number}")
        self.process.start()
        theirs.close()  # so the end of the process is the end of the pipe

    def begin(self, unit: Unit) -> None:
        """Give it a unit."""
        self.unit, self.started = unit, time.perf_counter()
        self.pipe.send(unit)

    def finish(self) -> dict[str, object]:
        """Return the record of its unit; a failure if the process has died."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):  # its end of the pipe is closed
            self.process.join()
            code = self.process.exitcode
            return {FAILED: f"the worker process ended with exit code {code}; see logs/{self.process.name}.txt"}

    def end(self, grace_s: float = 20.0) -> None:
        """End the process and all processes that it has started."""
        with suppress(OSError):
            self.pipe.close()
        if self.unit is None:
            self.process.join(grace_s)
        with suppress(ProcessLookupError, PermissionError):  # its session, including loader workers
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()


def run_units(setting: Setting, units: Iterable[Unit], jobs: int, done: WhenDone, until: float | None = None) -> None:
    """Run units in the given order, `jobs` at a time; always end all workers on exit.

    Args:
        setting: Settings of the workers.
        units: Units, the longest first.
        jobs: Number of processes.
        done: Called for every unit, including failed ones.
        until: No unit begins after this value of `time.monotonic`.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers inherit it; threads that wait for busy cores spin
    queue = list(units)
    workers = [Worker(setting, number) for number in range(min(jobs, len(queue)))]
    try:
        for worker in workers:
            worker.begin(queue.pop(0))
        while busy := [worker for worker in workers if worker.unit is not None]:
            ready = wait([worker.pipe for worker in busy])
            for worker in [worker for worker in busy if worker.pipe in ready]:
                record = worker.finish()
                unit, worker.unit = worker.unit, None
                spoilt = FAILED in record and record.pop("spoilt", True)
                done(unit, record, time.perf_counter() - worker.started)
                more = queue and (until is None or time.monotonic() < until)
                if spoilt and more:
                    worker.end(grace_s=1.0)
                    workers[workers.index(worker)] = worker = Worker(setting, worker.number)
                if more:
                    worker.begin(queue.pop(0))
    finally:
        for worker in workers:
            worker.end()
        shutil.rmtree(setting.out / "scratch", ignore_errors=True)


def work(setting: Setting, number: int, pipe: Connection) -> None:
    """Run the units that come through the pipe until it is closed: the body of a worker process."""
    os.setsid()  # Ctrl-C reaches only the parent, which then ends this whole session
    _log_to(setting.out / "logs" / f"worker-{number}.txt")
    import torch

    from prior3d.study.unit import Bench

    torch.set_num_threads(1)
    keep = setting.out / "weights" if setting.keep_weights else None
    bench = Bench(setting.out / "scratch" / f"worker-{number}-{os.getpid()}", keep)
    with suppress(EOFError):
        while True:
            unit = pipe.recv()
            print(f"\n{unit}", flush=True)
            pipe.send(attempt(setting.matrix, unit, bench))
    bench.close()


def attempt(matrix: Matrix, unit: Unit, bench: object) -> dict[str, object]:
    """Return the record of a unit, including a failed one: one failure must not end a study of hours."""
    import torch

    try:
        name = unit.path.removeprefix("units/").replace("/", "-").removesuffix(".json")
        return bench.run(matrix.recipe(unit), name, matrix.start(unit))
    except Exception as error:  # do not propagate: the failure is recorded
        print(traceback.format_exc(), flush=True)
        message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        # After an error a CUDA device is unreliable: another process continues.
        spoilt = torch.cuda.is_initialized()
        return {FAILED: " ".join(message.split()), "traceback": traceback.format_exc(), "spoilt": spoilt}


def _log_to(file: Path) -> None:
    """Redirect all output of this process and its children to a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    with open(file, "a", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
