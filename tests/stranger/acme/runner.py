"""A runner: scene jobs shared by several threads, with a list of what was done."""

from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Le

from prior3d import Runner


class Crew(Runner):
    """Runs jobs in threads of this process.

    Args:
        hands: threads.
        done: a file that gets a line for every job.
    """

    def __init__(self, *, hands: Annotated[int, Ge(1), Le(64)] = 2, done: Path | None = None):
        self.hands, self.done = hands, done

    def run(self, jobs, work):
        pool = ThreadPoolExecutor(self.hands)
        try:
            numbers = {pool.submit(work, job): number for number, job in enumerate(jobs)}
            for future in as_completed(numbers):
                future.result()  # raises what the job raised
                if self.done is not None:
                    with open(self.done, "a") as file:
                        file.write(f"{jobs[numbers[future]]}\n")
                yield numbers[future]
        finally:
            pool.shutdown(cancel_futures=True)
