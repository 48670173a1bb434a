"""What a training writes as it goes: curves, to the loggers that the recipe names."""

import csv
import importlib.util
import io
import resource
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import numpy as np
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from torch import Tensor

from prior3d.errors import UserError
from prior3d.files import write_atomically

if TYPE_CHECKING:
    from prior3d.pretraining.task import PretrainingTask

METRICS = "metrics.csv"
"""The file of the logger `csv`, in the run folder."""

_PACKAGES = {"wandb": "wandb", "mlflow": "mlflow"}


def check_loggers(names: Sequence[str]) -> None:
    """Refuse loggers whose package is not installed.

    Args:
        names: `trainer.loggers`.

    Raises:
        UserError: with the line that installs it.
    """
    for name in names:
        package = _PACKAGES.get(name)
        if package is not None and importlib.util.find_spec(package) is None:
            raise UserError(
                f"{name} needs the package {package}, which is not installed: pip install 'prior3d[{name}]'",
                "trainer.loggers",
            )


def make_loggers(names: Sequence[str], folder: Path, start: int) -> list[Logger]:
    """Return the loggers of a run.

    Args:
        names: any of tensorboard, csv, wandb, mlflow.
        folder: of the run.
        start: steps done so far; points of later steps, which an interrupted run left behind, no longer count.
    """
    made: list[Logger] = []
    for name in names:
        if name == "tensorboard":
            made.append(_Events(folder, name="", version="", purge_step=start + 1 if start else None))
        elif name == "csv":
            made.append(CsvLogger(folder / METRICS, start))
        elif name == "wandb":
            made.append(WandbLogger(name=folder.name, project="prior3d", save_dir=folder, id=folder.name))
        elif name == "mlflow":
            made.append(MLFlowLogger("prior3d", run_name=folder.name, tracking_uri=f"file:{folder / 'mlruns'}"))
        else:
            raise ValueError(f"expected tensorboard, csv, wandb or mlflow, got {name}")
    return made


class _Events(TensorBoardLogger):
    """TensorBoard events and nothing else: the recipe is already in the run folder."""

    def save(self) -> None:
        self.experiment.flush()


def log_image(loggers: Sequence[Logger], name: str, image: np.ndarray, step: int) -> None:
    """Give a picture to the loggers that show pictures.

    Args:
        loggers: of the trainer.
        name: of the picture.
        image: [H, W, 3] uint8.
        step: optimizer steps done.
    """
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, image, step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(name, [image], step)


class CsvLogger(Logger):
    """Curves as lines `step,name,value` of one file; a resumed run appends to it.

    Args:
        file: the file.
        start: steps done so far; lines of later steps are removed.
    """

    def __init__(self, file: Path, start: int = 0) -> None:
        super().__init__()
        self.file = file
        kept = [row for row in read_curves(file) if row[0] <= start] if file.exists() else []
        text = io.StringIO(newline="")
        csv.writer(text).writerows([("step", "name", "value"), *kept])
        write_atomically(file, text.getvalue().encode())

    @property
    def name(self) -> str:
        """What Lightning calls it."""
        return "csv"

    @property
    def version(self) -> str:
        """There is one."""
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add one line per value."""
        with open(self.file, "a", newline="", encoding="utf-8") as opened:
            csv.writer(opened).writerows((step, name, value) for name, value in metrics.items())

    def log_hyperparams(self, params: object, *more: object) -> None:
        """Write nothing: the recipe is already in the run folder."""


def read_curves(file: Path) -> list[tuple[int, str, float]]:
    """Return step, name and value of every point in a `metrics.csv`; a last line that is not whole is left out."""
    with open(file, newline="", encoding="utf-8") as opened:
        rows = list(csv.reader(line for line in opened if line.endswith("\n")))[1:]
    return [(int(row[0]), row[1], float(row[2])) for row in rows if len(row) == 3]


class Curves(lightning.Callback):
    """Writes what the steps measured to the loggers, with the learning rate, times and memory.

    `time/step` and `time/data` are seconds per optimizer step, the latter spent waiting for the loader, and
    `images_per_second` counts the images that the backbone encodes on all devices: means since the last point.
    A value that is measured at some steps only (`gradients/...`) has points at those steps and at no other.

    Args:
        every: optimizer steps between two points.
        accumulate: micro-batches per optimizer step.
    """

    def __init__(self, every: int, accumulate: int) -> None:
        self.every = every
        self.accumulate = accumulate
        self._ended = self._began = 0.0
        self._waited = 0.0
        self._steps = self._images = 0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: "PretrainingTask") -> None:
        """Start the clock."""
        self._begin()

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: "PretrainingTask", batch: dict[str, Tensor], batch_idx: int
    ) -> None:
        """Add the time that the loader took."""
        self._waited += time.perf_counter() - self._ended

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: "PretrainingTask",
        outputs: object,
        batch: dict[str, Tensor],
        batch_idx: int,
    ) -> None:
        """Write a point of every curve where one is due."""
        self._ended = time.perf_counter()
        self._images += pl_module.encoded_images
        if (batch_idx + 1) % self.accumulate:
            return
        self._steps += 1
        step = trainer.global_step
        is_due = step % self.every == 0 or step == trainer.max_steps
        measured = pl_module.measured
        if is_due:
            measured = {**measured, **_rates(trainer.optimizers[0]), **self._times(trainer), **_memory(pl_module)}
            self._begin()
        else:
            measured = {name: value for name, value in measured.items() if name.startswith("gradients/")}
        if measured and trainer.is_global_zero:
            values = _plain(measured)
            for logger in trainer.loggers:
                logger.log_metrics(values, step)
                logger.save()
        self._ended = time.perf_counter()

    def _begin(self) -> None:
        self._began = self._ended = time.perf_counter()
        self._waited = 0.0
        self._steps = self._images = 0

    def _times(self, trainer: lightning.Trainer) -> dict[str, float]:
        seconds = max(time.perf_counter() - self._began, 1e-9)
        return {
            "time/step": seconds / self._steps,
            "time/data": self._waited / self._steps,
            "images_per_second": self._images * trainer.world_size / seconds,
        }


def _rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Return the learning rates of the step to come; that of the encoder apart where it differs."""
    rates = [group["lr"] for group in optimizer.param_groups]
    return {"optim/lr": max(rates)} | ({"optim/lr_lowest": min(rates)} if min(rates) != max(rates) else {})


def _memory(task: "PretrainingTask") -> dict[str, float]:
    if task.on_gpu:
        return {"memory/gpu_gib": torch.cuda.max_memory_allocated(task.device) / 2**30}
    return {"memory/process_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}  # Linux counts KiB


def _plain(measured: Mapping[str, Any]) -> dict[str, float]:
    """Return all values as numbers, waiting for each device once: a prior may report a constant from the CPU."""
    by_device: dict[torch.device, dict[str, Tensor]] = {}
    for name, value in measured.items():
        if isinstance(value, Tensor):
            by_device.setdefault(value.device, {})[name] = value.detach().float()
    numbers = dict(measured)
    for tensors in by_device.values():
        numbers |= dict(zip(tensors, torch.stack(list(tensors.values())).tolist(), strict=True))
    return numbers
