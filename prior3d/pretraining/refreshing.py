"""Offline stages that run again within training, with the moving average of the backbone as their teacher."""

import shutil
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import lightning
import torch
from rich.console import Console
from torch import Tensor

from prior3d.backbone import Backbone
from prior3d.contracts.prior import Prior
from prior3d.contracts.runner import SceneJob
from prior3d.data.preparing import refusing_damage
from prior3d.errors import ArgumentError
from prior3d.jobs import Store, damage_in, run_jobs
from prior3d.pretraining.offline import Lift, stages

if TYPE_CHECKING:
    from prior3d.pretraining.task import PretrainingTask


class Refreshes(lightning.Callback):
    """Prepare scenes again before the optimizer steps that a prior lists in `refresh_steps`.

    All ranks divide the scenes among themselves. The prepared data are stored in the run folder, complete or absent: a
    run that resumes after the refresh loads them, and a run that resumes before it computes the same data again. Data
    that no checkpoint needs any more are removed.

    Args:
        folder: folder of the prepared data; None on ranks that get it from rank 0.
        checkpoint_every: optimizer steps between two checkpoints.
        console: where to print messages.
    """

    def __init__(self, folder: Path | None, checkpoint_every: int, console: Console) -> None:
        self.folder = folder
        self.checkpoint_every = checkpoint_every
        self.console = console

    def on_train_start(self, trainer: lightning.Trainer, pl_module: "PretrainingTask") -> None:
        """Agree on the folder; on resume, load the data that were prepared before."""
        self.folder = trainer.strategy.broadcast(self.folder)
        for label, prior in stages(pl_module.objective).items():
            latest = _latest(prior, trainer.global_step)
            if latest is not None and latest < trainer.global_step:
                scenes = range(len(pl_module.samples.dataset.scenes))
                folders = [self.folder / _kind(label, latest) / _name(scene) for scene in scenes]
                lost = next((folder for folder in folders if not folder.is_dir()), None)
                if lost is not None:
                    raise ArgumentError(f"{lost} is missing, and this run cannot be resumed without it", "resume")
                prior.attach(folders)

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: "PretrainingTask", batch: dict[str, Tensor], batch_idx: int
    ) -> None:
        """Prepare the data that are due at this step."""
        if batch_idx % pl_module.options.accumulate:
            return
        step = trainer.global_step
        for label, prior in stages(pl_module.objective).items():
            if step in prior.refresh_steps:
                started = time.perf_counter()
                _align(trainer, pl_module.ema)
                self._refresh(pl_module, label, prior, step)
                self.console.print(f"{label}: prepared at step {step} in {time.perf_counter() - started:.0f} s")
                if trainer.is_global_zero:
                    self._remove_old(label, prior, step)

    def _refresh(self, task: "PretrainingTask", label: str, prior: Prior, step: int) -> None:
        data = task.samples
        lift = Lift(label, prior, data.dataset, lambda: task.ema, data.skip_damaged)
        jobs = [
            SceneJob(_kind(label, step), name, {"step": step, "scene": scene}, partial(lift, scene), _name(scene))
            for scene, name in enumerate(data.dataset.scenes)
        ]
        with refusing_damage():
            folders = run_jobs(jobs, Store(self.folder, key=None))  # run in the ranks, which hold the teacher
        prior.attach(folders)
        new = data.dataset.note_damage(damage for folder in folders for damage in damage_in(folder))
        task.damaged.update({str(damage.path): damage.why for damage in new})

    def _remove_old(self, label: str, prior: Prior, step: int) -> None:
        """Remove data older than the refresh that the last checkpoint needs."""
        needed = _latest(prior, step - step % self.checkpoint_every)
        for old in prior.refresh_steps:
            if needed is not None and old < needed:
                shutil.rmtree(self.folder / _kind(label, old), ignore_errors=True)


def _kind(label: str, step: int) -> str:
    """Return the folder name of a refresh, relative to the folder of all refreshes."""
    return f"{label}/step-{step:08d}"


def _name(scene: int) -> str:
    return f"scene-{scene:06d}"


def _latest(prior: Prior, step: int) -> int | None:
    """Return the last refresh at or before a step."""
    return max((at for at in prior.refresh_steps if at <= step), default=None)


def _align(trainer: lightning.Trainer, average: Backbone) -> None:
    """Give all ranks the same teacher: their running statistics differ because each rank saw its own images."""
    if trainer.world_size > 1:
        for buffer in average.buffers():
            torch.distributed.broadcast(buffer, 0)
