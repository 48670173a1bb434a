"""Progress bars: of the stages before training, and of training itself."""

import time
from collections.abc import Iterable

import lightning
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_QUIET_S = 30.0
"""Seconds between two lines about one stage where no terminal is."""

_READINGS = 20
"""How often in a run the loss is read, which waits for the device; and how many lines a log file gets."""


class Bars:
    """Progress bars that disappear when done, several at a time where work is nested; lines where no terminal is.

    Called as `prior3d.contracts.runner.Progress`.

    Args:
        console: where to.
        prefix: what every description begins with.
    """

    def __init__(self, console: Console, prefix: str = "") -> None:
        self.console = console
        self.prefix = prefix
        self._shown: Progress | None = None

    def __call__(self, items: Iterable, description: str, total: int) -> Iterable:
        """Yield items under a bar, or with a line now and then."""
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
    """Shows optimiser steps of the whole run, also of a resumed one, and the joint loss; lines where no terminal is.

    Args:
        console: where to; a quiet one shows nothing.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Open the bar at the step that was reached."""
        if self.console.is_terminal:
            self._progress = _bar(self.console, TextColumn("loss {task.fields[loss]}"))
            done = trainer.global_step
            self._task = self._progress.add_task("training", total=trainer.max_steps, completed=done, loss="-")
            self._progress.start()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Move the bar; read the loss now and then."""
        step, steps = trainer.global_step, trainer.max_steps
        due = step % max(1, steps // _READINGS) == 0
        loss = f"{trainer.callback_metrics['loss']:.3f}" if due else None
        if self._progress is not None:
            self._progress.update(self._task, completed=step, **({"loss": loss} if loss else {}))
        elif loss:
            self.console.print(f"step {step} of {steps}: loss {loss}")

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Close the bar, also after an error."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _duration(seconds: float) -> str:
    """Return a duration as people say it: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _bar(console: Console, *more: TextColumn) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), *more)
    return Progress(*columns, console=console, transient=True, disable=console.quiet)
