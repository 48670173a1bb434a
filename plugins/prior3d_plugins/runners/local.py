"""The runner `local`: jobs in this process, shared with others that are at the same ones."""

import secrets
from collections import deque
from collections.abc import Iterator, Sequence

from prior3d import Runner, SceneJob, Work


class Local(Runner):
    """Does one job after another in this process.

    Every process begins at another job and passes over those that others are at; it comes back to them last, to wait,
    or to take over from a process that died. So any number of commands, on machines that see one cache folder, share
    the work without knowing of each other.
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
