"""The runner `processes`: jobs in several processes of this machine, one a GPU for jobs that use one."""

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
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Annotated

from annotated_types import Ge

from prior3d import Runner, SceneJob, UserError, Work

_ATTEMPTS = 2
"""How many processes may die at one job before it counts as the job's fault."""

_SLOW_TO_IMPORT = ("numpy", "torch", "timm", "lightning")
"""What processes without a GPU take over from a server that has imported it once."""

_GRACE_S = 10.0
"""Seconds a process has to clean up before it is killed."""


class Processes(Runner):
    """Does jobs in several processes of this machine.

    A process that dies (killed for its memory, say) is replaced, and its job is done again, once. Ctrl-C and errors
    end all processes; what was half-written is removed. Results do not depend on who does a job, but for the last
    bits of sums where processes have fewer threads than this one.

    Args:
        workers: processes; by default one for every GPU where jobs use one, else one for every core.
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
        start = secrets.randbelow(len(jobs))  # another one than a runner of another machine
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
    """One process, and the job it is at: its number, and whether to wait for others that are at it as well."""

    def __init__(self, payload: bytes, threads: int, gpu: int | None) -> None:
        context = multiprocessing.get_context("forkserver" if gpu is None else "spawn")  # CUDA may not survive a fork
        context.set_forkserver_preload([name for name in _SLOW_TO_IMPORT if name in sys.modules])
        self.threads = threads
        self.gpu = gpu
        self.at: tuple[int, bool] | None = None
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, threads, gpu), daemon=True)
        resource_tracker.ensure_running()  # or it would unblock the signal
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # Ctrl-C is ours: we end the processes
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()  # so that the end of the process is the end of the pipe
        with suppress(OSError):  # dead already: its job will show it
            self.pipe.send_bytes(payload)

    def begin(self, job: tuple[int, bool]) -> None:
        """Hand it a job."""
        self.at = job
        with suppress(OSError):
            self.pipe.send(job)

    def finish(self) -> bool:
        """Return whether its job was done, or left to another process.

        Raises:
            EOFError: the process has died.
            Exception: what the job raised.
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
        """End the process, at the latest after its time to clean up."""
        self.pipe.close()
        self.process.join(_GRACE_S)
        self.process.kill()
        self.process.join()


def _pickled(jobs: Sequence[SceneJob], work: Work) -> bytes:
    """Return jobs and work as one text: what they share, such as their dataset, travels once."""
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
    """Do the jobs whose numbers come through the pipe, until it is closed: the body of a process."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves through `finally`: nothing stays half-written
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
            torch.set_num_threads(threads)  # where it was loaded before
        while True:
            number, waits = pipe.recv()
            try:
                answer = (work(jobs[number], waits), None, "")
            except Exception as error:
                answer = _told(error)
            pipe.send(answer)


def _told(error: Exception) -> tuple[bool, Exception, str]:
    """Return an error as it travels: where it cannot, what it says; with its traceback unless it is the user's."""
    story = "" if isinstance(error, UserError) else "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    return False, error, story


def _end_with_parent() -> None:
    """End this process as Ctrl-C would where the one that started it was killed."""
    wait([multiprocessing.parent_process().sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
