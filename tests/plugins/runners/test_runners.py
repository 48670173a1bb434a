"""Runners keep to their contract, and what does not is caught."""

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path

import pytest

from prior3d.contracts.runner import Runner, SceneJob
from prior3d.errors import DamagedFile, UserError
from prior3d.jobs import Store, damage_in, run_jobs
from prior3d.jobs.example import write, write_and_die
from prior3d.testing import check_runner
from prior3d_plugins.runners.local import Local
from prior3d_plugins.runners.processes import Processes


class Threads(Runner):
    """Runs jobs in threads of this process: the runner of the contract's docstring."""

    def run(self, jobs, work):
        with ThreadPoolExecutor() as pool:
            numbers = {pool.submit(work, job): number for number, job in enumerate(jobs)}
            try:
                for done in as_completed(numbers):
                    done.result()
                    yield numbers[done]
            finally:
                pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("make", [Local, Threads, partial(Processes, workers=2)], ids=["local", "threads", "processes"])
def test_runners_keep_to_the_contract(make):
    options = make.keywords if isinstance(make, partial) else {}
    check_runner(getattr(make, "func", make), **options)


class YieldsTwice(Local):
    """Broken."""

    def run(self, jobs, work):
        for number in super().run(jobs, work):
            yield from (number, number)


class LeavesOneOut(Local):
    """Broken."""

    def run(self, jobs, work):
        yield from super().run(jobs[:-1], work)


class YieldsTooSoon(Local):
    """Broken."""

    def run(self, jobs, work):
        yield from range(len(jobs))
        list(super().run(jobs, work))


class GoesPastTheStore(Local):
    """Broken."""

    def run(self, jobs, work):
        for number, job in enumerate(jobs):
            folder = work.store.path(job.kind, job.facts)
            folder.mkdir(parents=True, exist_ok=True)
            job.build(folder, work.progress)
            yield number


class SwallowsErrors(Local):
    """Broken."""

    def run(self, jobs, work):
        for number, job in enumerate(jobs):
            try:
                work(job)
            except Exception:
                (work.store.path(job.kind, job.facts)).mkdir(parents=True)
            yield number


class WrapsErrors(Local):
    """Broken."""

    def run(self, jobs, work):
        try:
            yield from super().run(jobs, work)
        except Exception as error:
            raise RuntimeError(f"a job failed: {error}") from error


class WaitsInOrder(Local):
    """Broken."""

    def run(self, jobs, work):
        for number, job in enumerate(jobs):
            work(job, wait=True)
            yield number


class IgnoresBusy(Local):
    """Broken."""

    def run(self, jobs, work):
        for number, job in enumerate(jobs):
            work(job, wait=False)
            yield number


class IgnoresCtrlC(Local):
    """Broken."""

    def run(self, jobs, work):
        def stubborn(job, wait=True):
            try:
                return work(job, wait)
            except KeyboardInterrupt:
                return True

        yield from super().run(jobs, stubborn)


class GoesOnAfterTheEnd(Runner):
    """Broken."""

    def run(self, jobs, work):
        pool = ThreadPoolExecutor(2)
        numbers = {pool.submit(work, job): number for number, job in enumerate(jobs)}
        for done in as_completed(numbers):
            done.result()
            yield numbers[done]


class WaitsForTheKilled(Runner):
    """Broken."""

    def run(self, jobs, work):
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            asked = [pool.apply_async(work, (job,)) for job in jobs]
            for number in sorted(range(len(jobs)), key=lambda number: number == 3):
                asked[number].get()
                yield number


class LeavesProcesses(Runner):
    """Broken."""

    def run(self, jobs, work):
        self.pool = multiprocessing.get_context("spawn").Pool(2)
        for number, job in enumerate(jobs):
            self.pool.apply(work, (job,))
            yield number


class NoDocstring(Runner):
    def run(self, jobs, work):
        yield from ()


class Untyped(Local):
    """Broken."""

    def __init__(self, *, workers=2):
        self.workers = workers


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (YieldsTwice, "should yield each once"),
        (LeavesOneOut, "should yield each once"),
        (YieldsTooSoon, "yields a job before its result is there"),
        (GoesPastTheStore, "loses what was damaged|does jobs again"),
        (SwallowsErrors, "a job raised .* and the run nothing"),
        (WrapsErrors, "a job raised .* and the run RuntimeError"),
        (WaitsInOrder, "hangs: not done with 'shared'"),
        (IgnoresBusy, "yields a job that another process is at before its result is there"),
        (IgnoresCtrlC, "Ctrl-C does not end the run"),
        (GoesOnAfterTheEnd, "does more jobs after it was closed"),
        (NoDocstring, "has no docstring"),
    ],
)
def test_broken_runners_are_caught(broken, message):
    with pytest.raises(AssertionError, match=message):
        check_runner(broken, seconds=3)


def test_a_runner_whose_constructor_is_no_schema_is_caught():
    with pytest.raises(UserError, match="workers has no type annotation"):
        check_runner(Untyped)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (WaitsForTheKilled, "hangs: not done with 'killed'"),
        (LeavesProcesses, "processes still run after the last job"),
    ],
)
def test_broken_runners_of_processes_are_caught(broken, message):
    with pytest.raises(AssertionError, match=message):
        check_runner(broken, seconds=15)


def jobs(folder, build, count=4):
    return [
        SceneJob("checked", f"room-{number}", {"number": number}, partial(build, folder, number))
        for number in range(count)
    ]


def test_results_are_in_the_order_of_the_jobs_and_damage_is_found_with_them(tmp_path):
    shown = []

    def progress(items, description, total):
        shown.append((description, total))
        return items

    store, made = Store(tmp_path / "cache"), jobs(tmp_path, write)
    first = run_jobs(made, store, progress=progress, description="rooms")
    assert [(folder / "number.txt").read_text() for folder in first] == ["0", "1", "2", "3"]
    assert [str(damage) for damage in damage_in(first[2])] == ["2.png: why 2"]
    assert shown[0] == ("rooms", 4) and ("writing", 2) in shown  # within the scene, too
    shown.clear()
    assert run_jobs(made, store, progress=progress) == first and shown == []
    assert run_jobs([], store) == []


def test_a_runner_that_ends_without_doing_its_jobs_is_a_bug(tmp_path):
    with pytest.raises(RuntimeError, match="LeavesOneOut ended without doing 1 jobs, the first: checked of room-3"):
        run_jobs(jobs(tmp_path, write), Store(tmp_path), LeavesOneOut())


def test_a_killed_process_is_replaced_and_its_job_done_again(tmp_path):
    made = jobs(tmp_path, partial(write_and_die, os.getpid(), True))
    folders = run_jobs(made, Store(tmp_path / "cache"), Processes(workers=2))
    assert [(folder / "number.txt").read_text() for folder in folders] == ["0", "1", "2", "3"]
    begun = [int(line.split()[0]) for line in (tmp_path / "log").read_text().splitlines()]
    assert sorted(begun) == [0, 1, 2, 3, 3]


def test_a_job_that_kills_every_process_ends_the_run_in_one_line(tmp_path):
    made = jobs(tmp_path, partial(write_and_die, os.getpid(), False))
    with pytest.raises(UserError) as caught:
        run_jobs(made, Store(tmp_path / "cache"), Processes(workers=2))
    expected = "the process at checked of room-3 was killed by SIGKILL (is there enough memory?"
    assert str(caught.value).startswith(expected) and str(caught.value).endswith("2 times")
    assert not list(tmp_path.rglob(".*.partial"))


def test_jobs_that_cannot_be_sent_to_processes_are_refused_in_one_line(tmp_path):
    made = [SceneJob("checked", "room", {}, lambda folder, progress: None)]
    with pytest.raises(UserError, match=r"checked of room cannot be sent to another process .*; use runner: local"):
        run_jobs(made, Store(tmp_path), Processes(workers=1))


def test_a_bug_in_another_process_shows_its_traceback(tmp_path):
    made = [SceneJob("checked", "room", {}, partial(write, tmp_path, "x", number=1))]
    with pytest.raises(TypeError, match="multiple values for argument 'number'") as caught:
        run_jobs(made, Store(tmp_path), Processes(workers=1))
    assert any("do_job" in note for note in caught.value.__notes__)


PARENT = """
    import sys
    from functools import partial
    from pathlib import Path
    from prior3d.contracts.runner import SceneJob
    from prior3d.jobs import Store, run_jobs
    from prior3d.jobs.example import write_slowly
    from prior3d_plugins.runners.processes import Processes
    if __name__ == "__main__":
        place = Path(sys.argv[1])
        made = [SceneJob("c", str(n), {"n": n}, partial(write_slowly, place, n)) for n in range(400)]
        run_jobs(made, Store(place / "cache"), Processes(workers=2))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_the_command_and_leave_nothing(tmp_path, number):
    program = tmp_path / "parent.py"
    program.write_text(textwrap.dedent(PARENT))
    parent = subprocess.Popen([sys.executable, program, tmp_path], stderr=subprocess.PIPE, start_new_session=True)
    log = tmp_path / "log"
    _wait_for(lambda: log.exists() and len({line.split()[1] for line in log.read_text().splitlines()}) == 2)
    workers = {int(line.split()[1]) for line in log.read_text().splitlines()}
    if number == signal.SIGINT:
        os.killpg(parent.pid, number)  # as a terminal does
    else:
        parent.kill()
    story = parent.communicate(timeout=30)[1].decode()
    assert story.count("KeyboardInterrupt") <= 1  # of the command itself, none of its workers
    _wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
    _wait_for(lambda: not list(tmp_path.rglob(".*.partial")))
    for folder in (tmp_path / "cache" / "c").glob("[!.]*"):
        assert sorted(path.name for path in folder.iterdir()) == ["damaged.json", "facts.json", "number.txt"]


def test_two_commands_with_processes_share_the_jobs(tmp_path):
    program = tmp_path / "parent.py"
    program.write_text(textwrap.dedent(PARENT).replace("range(400)", "range(24)"))
    both = [subprocess.Popen([sys.executable, program, tmp_path]) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    begun = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert sorted(int(number) for number, _ in begun) == list(range(24))


def test_errors_of_jobs_cross_processes_with_key_and_file(tmp_path):
    for error in (UserError("too few frames", "pairs"), DamagedFile("a.png", "truncated")):
        with pytest.raises(type(error)) as caught:
            run_jobs([SceneJob("c", "s", {}, partial(_raise, error))], Store(tmp_path), Local())
        assert str(caught.value) == str(error)


def _raise(error, folder, progress):
    raise error


def _wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)
