"""Work done once per scene: where its results are kept, and how processes share it."""

from prior3d.jobs.running import damage_in, do_job, local_runner, run_jobs
from prior3d.jobs.store import Store

__all__ = ["Store", "damage_in", "do_job", "local_runner", "run_jobs"]
