"""The runner `local`: jobs run in this process and are shared with other processes."""

import secrets
from collections import deque
from collections.abc import Iterator, Sequence

from prior3d import Runner, SceneJob, Work


class Local(Runner):
    """Run one job after another in this process.

    Each process starts at a different job and skips those that other processes are doing. It returns to them last, to
    wait for the result or to take over from a process that died. Any number of commands, on machines that see the same
    cache folder, therefore share the work without coordination.
    """

    def run(self, jobs: Sequence[SceneJob], work: Work) -> Iterator[int]:
        """Do the jobs; see `Runner.run`."""
        if not jobs:
            return
        start = secrets.randbelow(len(jobs))
        left = deque(((start + step) % len(jobs), False) for step in range(len(jobs)))
        while left:
            number, wait = left.popleft()
            if work(jobs[number], wait):
                yield number
            else:
                left.append((number, True))
