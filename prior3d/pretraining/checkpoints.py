"""Checkpoints that survive anything: written atomically, at step boundaries, also when the run is asked to stop."""

import os
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
import torch
from lightning.fabric.plugins import TorchCheckpointIO

from prior3d.errors import UserError
from prior3d.pretraining.task import CHECKPOINT_FORMAT

LAST = "last.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary name in the same folder, syncs, renames; reads tensors and plain values only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:
        """Write a checkpoint that is whole or not there."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        with open(temporary, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)

    def load_checkpoint(self, path: str | Path, map_location: object = None, weights_only: object = True) -> dict:
        """Read a checkpoint, refusing formats of other versions."""
        checkpoint = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        found = checkpoint.get("prior3d", {}).get("format")
        if found != CHECKPOINT_FORMAT:
            raise UserError(f"{path} has checkpoint format {found}, this version reads {CHECKPOINT_FORMAT}")
        return checkpoint


class Checkpoints(lightning.Callback):
    """Saves every n optimiser steps, at the end, and when SIGINT or SIGTERM asks the run to stop.

    A signal ends the run at the next step boundary, with a checkpoint that resumes exactly; a second SIGINT ends it at
    once. All ranks agree on the step at which they stop.

    Args:
        folder: where checkpoints go, None on ranks that are told by rank 0; only `last.ckpt` is kept.
        every: optimiser steps between two checkpoints.
        accumulate: micro-batches per optimiser step.
    """

    def __init__(self, folder: Path | None, every: int, accumulate: int) -> None:
        self.folder = folder
        self.every = every
        self.accumulate = accumulate
        self.stopped_by: str | None = None
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Agree on the folder, and take over the signals: Lightning's own handlers stop within a step."""
        self.folder = trainer.strategy.broadcast(self.folder)
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, self._request)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Save where it is due; stop where it was asked for."""
        if (batch_idx + 1) % self.accumulate:
            return
        stop = self.stopped_by is not None
        if trainer.world_size > 1:
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        if stop:
            trainer.should_stop = True
            self.stopped_by = self.stopped_by or "another rank"
        if stop or trainer.global_step % self.every == 0 or trainer.global_step == trainer.max_steps:
            trainer.save_checkpoint(self.folder / LAST)

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Give the signals back, also after an error."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.stopped_by is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stopped_by = signal.Signals(number).name
