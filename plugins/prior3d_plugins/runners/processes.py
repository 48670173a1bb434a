"""The runner `processes`: jobs in several processes of this machine, one per GPU for jobs that use a GPU."""

import multiprocessing
import os
import pickle
import secrets
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Annotated

from annotated_types import Ge

from prior3d import Runner, SceneJob, UserError, Work

_ATTEMPTS = 2
"""Number of processes that may die while doing one job before the job is blamed."""

_SLOW_TO_IMPORT = ("numpy", "torch", "timm", "lightning")
"""Modules that a fork server imports once for all processes without a GPU."""

_GRACE_S = 10.0
"""Seconds that a process gets to clean up before it is killed."""


class Processes(Runner):
    """Run jobs in several processes of this machine.

    A process that dies (for example, killed for its memory use) is replaced, and its job is repeated once. Ctrl-C and
    errors end all processes and remove partly written results. Results do not depend on the process that does a job,
    except for the last bits of sums if processes have fewer threads than this one.

    Args:
        workers: number of processes; by default one per GPU if the jobs use a GPU, else one per core.
    """

    def __init__(self, *, workers: Annotated[int, Ge(1)] | None = None) -> None:
        self.workers = workers

    def run(self, jobs: Sequence[SceneJob], work: Work) -> Iterator[int]:
        """Do the jobs; see `Runner.run`."""
        if not jobs:
            return
        payload = _pickled(jobs, work)
        gpus = _gpus() if any(job.on_device for job in jobs) else 0
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        count = min(self.workers or gpus or cores, len(jobs))
        start = secrets.randbelow(len(jobs))  # differs from the start of runners on other machines
        left = deque(((start + step) % len(jobs), False) for step in range(len(jobs)))
        died = [0] * len(jobs)
        workers: list[_Worker] = []
        try:
            for place in range(count):
                gpu = place % gpus if gpus else None
                workers.append(_Worker(payload, max(1, cores // count), gpu))
                workers[-1].begin(left.popleft())
            while busy := {worker.pipe: worker for worker in workers if worker.at is not None}:
                for pipe in wait(list(busy)):
                    worker = busy[pipe]
                    number, waited = worker.at
                    try:
                        done = worker.finish()
                    except EOFError:
                        died[number] += 1
                        if died[number] == _ATTEMPTS:
                            raise UserError(_why_it_died(jobs[number], worker)) from None
                        workers[workers.index(worker)] = worker = _Worker(payload, worker.threads, worker.gpu)
                        left.appendleft((number, waited))
                        done = None
                    if done is False:
                        left.append((number, True))
                    if left:
                        worker.begin(left.popleft())
                    if done:
                        yield number
        finally:
            for worker in workers:
                worker.process.terminate()
            for worker in workers:
                worker.end()


class _Worker:
    """One process and its current job: the job's number, and whether to wait if another process is doing it."""

    def __init__(self, payload: bytes, threads: int, gpu: int | None) -> None:
        context = multiprocessing.get_context("forkserver" if gpu is None else "spawn")  # CUDA may not survive a fork
        context.set_forkserver_preload([*(name for name in _SLOW_TO_IMPORT if name in sys.modules), __name__])
        self.threads = threads
        self.gpu = gpu
        self.at: tuple[int, bool] | None = None
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, threads, gpu), daemon=True)
        resource_tracker.ensure_running()  # or it would unblock the signal
        if gpu is None:
            forkserver.ensure_running()  # or all processes that others fork from it would never see Ctrl-C
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # Ctrl-C is ours: we end the processes
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()  # the pipe then ends with the process
        with suppress(OSError):  # already dead: `finish` reports it
            self.pipe.send_bytes(payload)

    def begin(self, job: tuple[int, bool]) -> None:
        """Send a job to the process."""
        self.at = job
        with suppress(OSError):
            self.pipe.send(job)

    def finish(self) -> bool:
        """Return True if its job was done, False if it was left to another process.

        Raises:
            EOFError: the process has died.
            Exception: the job raised it.
        """
        self.at = None
        try:
            done, error, story = self.pipe.recv()
        except OSError:
            raise EOFError from None
        if error is not None:
            if story:
                error.add_note(story)
            raise error
        return done

    def end(self) -> None:
        """End the process, at the latest when its time to clean up is over."""
        self.pipe.close()
        self.process.join(_GRACE_S)
        self.process.kill()
        self.process.join()


def _pickled(jobs: Sequence[SceneJob], work: Work) -> bytes:
    """Pickle jobs and work together, so that objects they share, such as their dataset, are sent once."""
    try:
        return pickle.dumps((list(jobs), work))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{jobs[0]} cannot be sent to another process ({reason}); use runner: local") from error


def _gpus() -> int:
    torch = sys.modules.get("torch")  # loaded with any job that uses one
    return torch.cuda.device_count() if torch is not None else 0


def _why_it_died(job: SceneJob, worker: _Worker) -> str:
    worker.process.join(_GRACE_S)
    code = worker.process.exitcode
    if code is not None and code < 0:
        how = f"was killed by {signal.Signals(-code).name}"
        how += " (is there enough memory? fewer workers need less)" if -code == signal.SIGKILL else ""
    else:
        how = f"ended with exit status {code}"
    return f"the process at {job} {how}, {_ATTEMPTS} times"


def _serve(pipe: Connection, threads: int, gpu: int | None) -> None:
    """Do the jobs whose numbers arrive through the pipe until it closes: the main function of a process."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # runs `finally`: no partly written result remains
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = str(threads)  # before numpy and torch are loaded
    if gpu is not None:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = seen.split(",")[gpu] if seen else str(gpu)
    with suppress(EOFError, BrokenPipeError):
        try:
            jobs, work = pickle.loads(pipe.recv_bytes())
        except EOFError:
            raise
        except Exception as error:
            pipe.recv()
            pipe.send(_told(error))
            return
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(threads)  # if it was loaded before
        while True:
            number, waits = pipe.recv()
            try:
                answer = (work(jobs[number], waits), None, "")
            except Exception as error:
                answer = _told(error)
            pipe.send(answer)


def _told(error: Exception) -> tuple[bool, Exception, str]:
    """Return an error that can be pickled, with its text if it cannot, and its traceback unless it is a `UserError`."""
    story = "" if isinstance(error, UserError) else "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    return False, error, story


def _end_with_parent() -> None:
    """End this process as Ctrl-C would if its parent process was killed."""
    wait([multiprocessing.parent_process().sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
