"""Terminal output of a run: lines, tables, and progress bars of training and of the stages before it."""

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import lightning
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from prior3d.pretraining.task import PretrainingTask

_QUIET_S = 30.0
"""Seconds between two lines about one stage without a terminal."""

_READINGS = 20
"""Number of times a run reads the loss, which waits for the device; and number of lines in a log file."""


def make_console(quiet: bool = False) -> Console:
    """Return the console that a command prints to; printed [brackets] and :words: are text.

    Args:
        quiet: print nothing.
    """
    return Console(quiet=quiet, highlight=False, soft_wrap=True, markup=False, emoji=False)


class Bars:
    """Progress bars that disappear when done, several at once for nested work; lines without a terminal.

    Instances are callable as `prior3d.contracts.runner.Progress`.

    Args:
        console: where to print.
        prefix: text before every description.
    """

    def __init__(self, console: Console, prefix: str = "") -> None:
        self.console = console
        self.prefix = prefix
        self._shown: Progress | None = None

    def __call__(self, items: Iterable, description: str, total: int) -> Iterable:
        """Yield items with a progress bar, or with occasional lines."""
        if not self.console.is_terminal:
            yield from self._with_lines(items, self.prefix + description, total)
            return
        outermost = self._shown is None
        progress = self._shown = self._shown or _bar(self.console)
        progress.start()
        task = progress.add_task(self.prefix + description, total=total)
        try:
            for item in items:
                yield item
                progress.advance(task)
        finally:
            progress.remove_task(task)
            if outermost:
                progress.stop()
                self._shown = None

    def _with_lines(self, items: Iterable, description: str, total: int) -> Iterable:
        began = said = time.monotonic()
        for done, item in enumerate(items, 1):
            yield item
            now = time.monotonic()
            if now - said >= _QUIET_S and done < total:
                said = now
                left = (now - began) / done * (total - done)
                self.console.print(f"{description}: {done} of {total}, about {_duration(left)} left")


class StepBar(lightning.Callback):
    """Show optimizer steps of the whole run, also of a resumed run, and the losses; lines without a terminal.

    Args:
        console: where to print; a quiet console shows nothing.
        accumulate: number of micro-batches per optimizer step.
    """

    def __init__(self, console: Console, accumulate: int = 1) -> None:
        self.console = console
        self.accumulate = accumulate
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._began, self._first, self._images = 0.0, 0, 0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: "PretrainingTask") -> None:
        """Open the bar at the current step."""
        self._began, self._first = time.perf_counter(), trainer.global_step
        if self.console.is_terminal:
            columns = (TextColumn("{task.fields[speed]}"), TextColumn("loss {task.fields[loss]}", markup=False))
            self._progress = _bar(self.console, *columns)
            done, texts = trainer.global_step, {"loss": "-", "speed": ""}
            self._task = self._progress.add_task("training", total=trainer.max_steps, completed=done, **texts)
            self._progress.start()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: "PretrainingTask",
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Advance the bar; read the losses occasionally."""
        self._images += pl_module.encoded_images * trainer.world_size
        if (batch_idx + 1) % self.accumulate:
            return
        step, steps = trainer.global_step, trainer.max_steps
        is_due = step % max(1, steps // _READINGS) == 0 or step == steps
        if self._progress is not None:
            texts = {"loss": _losses(pl_module), "speed": self._speed()} if is_due else {}
            self._progress.update(self._task, completed=step, **texts)
        elif is_due:
            self.console.print(f"step {step} of {steps}: loss {_losses(pl_module)}, {self._pace(step, steps)}")

    def teardown(self, trainer: lightning.Trainer, pl_module: "PretrainingTask", stage: str) -> None:
        """Close the bar, also after an error."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _pace(self, step: int, steps: int) -> str:
        """Describe the steps and images per second, and the remaining time at that rate."""
        rate = (step - self._first) / max(time.perf_counter() - self._began, 1e-9)
        minutes, seconds = divmod(round((steps - step) / rate), 60)
        hours, minutes = divmod(minutes, 60)
        left = f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
        return f"{rate:.2f} steps/s, {self._speed()}, {left} left"

    def _speed(self) -> str:
        """Return the images that all devices encode per second: the mean since the start of this process."""
        return f"{self._images / max(time.perf_counter() - self._began, 1e-9):.0f} images/s"


def _losses(task: "PretrainingTask") -> str:
    """Return the joint loss, and the loss of each prior if there are several."""
    names = [name for name in task.measured if name == "loss" or name.startswith("loss/")]
    values = torch.stack([task.measured[name].float() for name in names]).tolist()
    by_name = dict(zip(names, values, strict=True))
    total = f"{by_name.pop('loss'):.3f}"
    if len(by_name) < 2:
        return total
    each = [f"{name.removeprefix('loss/')} {value:.3f}" for name, value in by_name.items()]
    return f"{total} ({', '.join(each)})"


def _duration(seconds: float) -> str:
    """Return a duration in a readable form: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _bar(console: Console, *more: TextColumn) -> Progress:
    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), *more)
    return Progress(*columns, console=console, transient=True, disable=console.quiet)
