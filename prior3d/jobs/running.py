"""Execution of scene jobs: a runner does the jobs whose results are not in the store yet."""

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from prior3d.contracts.runner import Progress, Runner, SceneJob, silent
from prior3d.errors import DamagedFile
from prior3d.jobs.store import Busy, Store
from prior3d.registry import Registry

_DAMAGED = "damaged.json"


def run_jobs(
    jobs: Sequence[SceneJob],
    store: Store,
    runner: Runner | None = None,
    progress: Progress = silent,
    description: str = "scenes",
) -> list[Path]:
    """Do the jobs whose results are not in the store; return the folders of all results, in the order of the jobs.

    Args:
        jobs: jobs that are independent of each other.
        store: where results are stored.
        runner: does the jobs; `local` by default.
        progress: shows the progress.
        description: description of the jobs, for the progress.

    Raises:
        UserError: a job raised it, or the store cannot be written.

    >>> import tempfile
    >>> def build(folder, progress):
    ...     _ = (folder / "two.txt").write_text("2")
    >>> with tempfile.TemporaryDirectory() as cache:
    ...     (folder,) = run_jobs([SceneJob("numbers", "office", {"of": "office"}, build)], Store(Path(cache)))
    ...     sorted(path.name for path in folder.iterdir())
    ['facts.json', 'two.txt']
    """
    folders = [path_of(job, store) for job in jobs]
    left = [job for job, folder in zip(jobs, folders, strict=True) if not folder.is_dir()]
    if not left:
        return folders
    runner = runner or local_runner()
    try:
        with closing(runner.run(left, StoreWork(store, progress))) as done:
            for _ in progress(done, description, len(left)):
                pass
    except BaseException:
        for kind in {job.kind for job in left}:
            store.clear(kind)
        raise
    missing = [str(job) for job in left if not path_of(job, store).is_dir()]
    if missing:
        raise RuntimeError(f"{type(runner).__name__} ended without doing {len(missing)} jobs, the first: {missing[0]}")
    return folders


def path_of(job: SceneJob, store: Store) -> Path:
    """Return the path of a job's result, whether or not it exists."""
    return store.path(job.kind, job.facts, job.name)


def do_job(job: SceneJob, store: Store, wait: bool = True, progress: Progress = silent) -> Path:
    """Return the folder of a job's result; do the job if the result does not exist.

    Args:
        job: the job to do.
        store: where results are stored.
        wait: whether to wait for another process that is doing the job.
        progress: shows the progress within the scene.

    Raises:
        Busy: another process is doing the job, and `wait` is false.
        UserError: the job raised it, or the store cannot be written.
    """

    def build(folder: Path) -> None:
        damaged = job.build(folder, progress)
        if damaged is not None:
            named = [(str(damage.path), damage.why) for damage in damaged]
            (folder / _DAMAGED).write_text(json.dumps(named), encoding="utf-8")

    return store.build(job.kind, job.facts, build, wait, job.name)


def damage_in(folder: Path) -> list[DamagedFile]:
    """Return the files that a job left out of its result because they are damaged."""
    recorded = folder / _DAMAGED
    if not recorded.exists():
        return []
    return [DamagedFile(path, why) for path, why in json.loads(recorded.read_text(encoding="utf-8"))]


@dataclass(frozen=True)
class StoreWork:
    """The `Work` that runners get: it does jobs and puts their results into a store.

    Attributes:
        store: where results are stored.
        progress: shows the progress within a scene; it stays in this process.
    """

    store: Store
    progress: Progress = silent

    def __call__(self, job: SceneJob, wait: bool = True) -> bool:
        """Do a job; see `Work`."""
        try:
            do_job(job, self.store, wait, self.progress)
        except Busy:
            return False
        return True

    def __reduce__(self) -> tuple:
        """Pickle without the progress, which writes to the terminal of this process."""
        return type(self), (self.store,)


def local_runner() -> Runner:
    """Return the runner that uses only this process: `prepare: {runner: local}`."""
    return make_runner("local", {}, Registry())


def make_runner(name: str, options: Mapping[str, object], registry: Registry) -> Runner:
    """Return the runner that the section `prepare:` names.

    Args:
        name: name of the runner.
        options: options of the runner.
        registry: where to find the runner.

    Raises:
        UserError: the runner does not exist, or its options are wrong; the error has the key.
    """
    from prior3d.registry.schema import construct  # pydantic is slow to import

    cls = registry.get("runners", name, "prepare.runner")
    return construct(cls, key="prepare", options=options, registry=registry)
