"""Work done once per scene: storage of its results, and sharing among processes."""

from prior3d.jobs.running import damage_in, do_job, local_runner, run_jobs
from prior3d.jobs.store import Store

__all__ = ["Store", "damage_in", "do_job", "local_runner", "run_jobs"]
