"""The contract of a runner: each job once, errors passed on unchanged, shared work, no remains, no hang."""

import inspect
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from prior3d.contracts.runner import Progress, Runner, SceneJob
from prior3d.errors import DamagedFile, UserError, refusal_of
from prior3d.jobs.example import write, write_and_die, write_and_interrupt, write_and_raise, write_slowly
from prior3d.jobs.running import StoreWork, damage_in, do_job, path_of, run_jobs
from prior3d.jobs.store import Store
from prior3d.registry.schema import validate_options
from prior3d.testing.members import check_members

_JOBS = 7


def check_runner(cls: type[Runner], *, seconds: float = 60.0, **options: object) -> Runner:
    """Assert that a runner keeps its contract, on small jobs in a temporary folder.

    It checks that the constructor is a schema; the runner does every job once, and reports it once and not before its
    result exists; an empty list of jobs is no work; existing results are found; errors of jobs arrive unchanged
    (`UserError`, `DamagedFile`, bugs) and nothing is left half-written; jobs that another process works on do not block
    the others; the runner does not repeat the work of a second runner on the same folder; after a process is killed,
    its job is done again or the run ends with one line; closing it and Ctrl-C end everything it started; jobs that
    cannot be sent to another process are done anyway or refused in one line. Call it in the main thread, where Ctrl-C
    arrives.

    Args:
        cls: class of the runner.
        seconds: time after which a single check counts as hanging.
        options: its options, as in a recipe.

    Returns:
        The runner, for further tests.

    Raises:
        AssertionError: names the rule that is broken.
    """
    assert issubclass(cls, Runner), f"{cls.__name__} is not a subclass of prior3d's Runner"
    check_members(cls)
    assert cls.contract == Runner.contract, f"written for contract {cls.contract}, this is {Runner.contract}"
    assert inspect.getdoc(cls) and inspect.getdoc(cls) != inspect.getdoc(Runner), (
        f"{cls.__name__} has no docstring: users read it in the recipe's schema"
    )
    runner = cls(**validate_options(cls, options, cls.__name__))
    for check in (
        _check_nothing,
        _check_each_once,
        _check_found,
        _check_errors,
        _check_shared,
        _check_two_at_once,
        _check_killed,
        _check_closed,
        _check_interrupted,
        _check_not_picklable,
    ):
        with (
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
            _within(seconds, check.__name__.removeprefix("_check_")),
        ):
            check(_Place(Path(folder)), runner)
    return runner


@dataclass(frozen=True)
class _Place:
    """A folder with a store, and with a line for each process that started a job."""

    folder: Path

    @property
    def store(self) -> Store:
        return Store(self.folder / "cache")

    def jobs(self, build: Callable[..., object], count: int = _JOBS) -> list[SceneJob]:
        """Return jobs whose results hold their numbers."""
        return [
            SceneJob("checked", f"scene-{number}", {"number": number}, partial(build, self.folder, number))
            for number in range(count)
        ]

    def begun(self) -> list[tuple[int, int]]:
        """Return (number, process) of all started jobs."""
        log = self.folder / "log"
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        return [tuple(map(int, line.split())) for line in lines]

    def remains(self) -> list[Path]:
        """Return the half-written files."""
        return list((self.folder / "cache").rglob(".*.partial"))

    def processes(self) -> set[int]:
        """Return the processes, other than this one, that have started a job and still exist."""
        return {process for _, process in self.begun() if process != os.getpid() and _is_running(process)}

    def assert_clear(self, after: str) -> None:
        """Assert that no process and nothing half-written is left."""
        end = time.monotonic() + 5
        while (self.processes() or self.remains()) and time.monotonic() < end:
            time.sleep(0.02)
        assert not self.processes(), f"processes still run after {after}"
        assert not self.remains(), f"half-written results stay after {after}"


def _check_nothing(place: _Place, runner: Runner) -> None:
    assert list(runner.run([], StoreWork(place.store))) == [], "yields something where there are no jobs"


def _check_each_once(place: _Place, runner: Runner) -> None:
    jobs, seen = place.jobs(write), []
    for number in _run(place, runner, jobs):
        assert number in range(_JOBS), f"yields {number!r}, which is the number of no job"
        assert path_of(jobs[number], place.store).is_dir(), "yields a job before its result is there"
        seen.append(number)
    assert sorted(seen) == list(range(_JOBS)), f"yields the jobs {sorted(seen)} of {_JOBS}, should yield each once"
    begun = sorted(number for number, _ in place.begun())
    assert begun == list(range(_JOBS)), f"does the jobs {begun} of {_JOBS}, should do each once"
    for number, folder in enumerate(run_jobs(jobs, place.store, runner)):
        assert (folder / "number.txt").read_text() == str(number), "results are not those of the jobs"
        assert [damage.why for damage in damage_in(folder)] == [f"why {number}"], "loses what was damaged"
    place.assert_clear("the last job")


def _check_found(place: _Place, runner: Runner) -> None:
    jobs = place.jobs(write)
    for job in jobs[::2]:
        do_job(job, place.store)
    assert sorted(_run(place, runner, jobs)) == list(range(_JOBS)), "does not yield jobs whose results are there"
    assert len(place.begun()) == _JOBS, "does jobs again whose results are there"


def _check_errors(place: _Place, runner: Runner) -> None:
    for error in (UserError("too few frames", "pairs"), DamagedFile("a.png", "truncated"), ZeroDivisionError("bug")):
        jobs = place.jobs(write)
        jobs[3] = SceneJob("checked", "broken", {"error": repr(error)}, partial(write_and_raise, place.folder, error))
        try:
            list(_run(place, runner, jobs))
        except Exception as caught:
            same = type(caught) is type(error) and str(caught) == str(error)
            assert same, f"a job raised {error!r} and the run {caught!r}"
        else:
            raise AssertionError(f"a job raised {error!r} and the run nothing")
        place.assert_clear("an error")


def _check_shared(place: _Place, runner: Runner) -> None:
    jobs, go, held = place.jobs(write), threading.Event(), threading.Event()

    def hold(folder: Path, progress: Progress) -> list[DamagedFile]:
        held.set()
        go.wait()
        return write(place.folder, 3, folder, progress)

    job = SceneJob(jobs[3].kind, jobs[3].scene, jobs[3].facts, hold)
    holder = threading.Thread(target=do_job, args=(job, place.store), daemon=True)
    holder.start()
    held.wait()
    seen = []
    try:
        with closing(runner.run(jobs, StoreWork(place.store))) as done:
            for number in done:
                seen.append(number)
                if len(seen) == _JOBS - 1:
                    go.set()
    finally:
        go.set()
        holder.join()
    assert sorted(seen) == list(range(_JOBS)), f"yields the jobs {sorted(seen)}, one of them done by another process"
    assert seen[-1] == 3, "yields a job that another process is at before its result is there"
    assert len(place.begun()) == _JOBS, "does a job again that another process is at"


def _check_two_at_once(place: _Place, runner: Runner) -> None:
    jobs, others = place.jobs(write_slowly), []
    other = threading.Thread(target=lambda: others.extend(_run(place, runner, jobs)), daemon=True)
    other.start()
    own = list(_run(place, runner, jobs))
    other.join()
    for seen in (own, others):
        assert sorted(seen) == list(range(_JOBS)), "two at once on one folder do not both see all jobs done"
    assert len(place.begun()) == _JOBS, "two at once on one folder do a job twice"


def _check_killed(place: _Place, runner: Runner) -> None:
    for once in (True, False):
        jobs, seen = place.jobs(partial(write_and_die, os.getpid(), once)), []
        if refusal_of(lambda jobs=jobs, seen=seen: seen.extend(_run(place, runner, jobs))) is None:
            assert sorted(seen) == list(range(_JOBS)), f"yields the jobs {sorted(seen)} after a process was killed"
        place.assert_clear("a process was killed")


def _check_closed(place: _Place, runner: Runner) -> None:
    jobs = place.jobs(write_slowly)
    with closing(runner.run(jobs, StoreWork(place.store))) as done:
        next(done)
    before = len(list((place.folder / "cache" / "checked").glob("[!.]*")))
    time.sleep(0.3)
    after = len(list((place.folder / "cache" / "checked").glob("[!.]*")))
    assert before == after, "does more jobs after it was closed"
    place.assert_clear("it was closed")


def _check_interrupted(place: _Place, runner: Runner) -> None:
    jobs = place.jobs(partial(write_and_interrupt, os.getpid()))
    try:
        list(_run(place, runner, jobs))
    except KeyboardInterrupt:
        place.assert_clear("Ctrl-C")
    else:
        raise AssertionError("Ctrl-C does not end the run")


def _check_not_picklable(place: _Place, runner: Runner) -> None:
    jobs = [
        SceneJob(job.kind, job.scene, job.facts, lambda folder, progress, job=job: job.build(folder, progress))
        for job in place.jobs(write)
    ]
    seen: list[int] = []
    if refusal_of(lambda: seen.extend(_run(place, runner, jobs))) is None:
        assert sorted(seen) == list(range(_JOBS)), "does not do all jobs"
    else:
        place.assert_clear("jobs that cannot be sent")


def _run(place: _Place, runner: Runner, jobs: list[SceneJob]) -> Iterator[int]:
    with closing(runner.run(jobs, StoreWork(place.store))) as done:
        yield from done


def _is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@contextmanager
def _within(seconds: float, what: str) -> Iterator[None]:
    """Raise if the block takes longer."""

    def ring(*_: object) -> None:
        raise AssertionError(f"hangs: not done with '{what}' after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
