"""Robust checkpoints: written atomically, at step boundaries, also when a signal stops the run."""

import pickle
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

import lightning
import torch
from lightning.fabric.plugins import TorchCheckpointIO

from prior3d.errors import UserError
from prior3d.files import replacing
from prior3d.pretraining.task import CHECKPOINT_FORMAT

LAST = "last.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoint files written under a temporary name, synced and renamed; only tensors and plain values are read."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:
        """Write a checkpoint that is complete or absent.

        Raises:
            UserError: it cannot be written; the previous file is unchanged.
        """
        write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(self, path: str | Path, map_location: object = None, weights_only: object = True) -> dict:
        """Read a checkpoint; see `read_checkpoint`."""
        return read_checkpoint(Path(path), map_location)


class _Writer:
    """A file that stores why writing failed: torch raises its own error, which lacks the reason."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        """Write some bytes."""
        try:
            return self._file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        """Pass the buffered bytes to the system."""
        try:
            self._file.flush()
        except OSError as error:
            self.error = error
            raise


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint that is complete or absent, and leave no temporary files.

    Raises:
        UserError: it cannot be written; the previous file is unchanged.
    """
    kept = "; the checkpoint before it is intact" if path.exists() else ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, kept) as temporary, open(temporary, "wb") as file:
            _save(checkpoint, _Writer(file))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}{kept}") from error


def _save(checkpoint: dict[str, Any], writer: _Writer) -> None:
    try:
        torch.save(checkpoint, writer)
        writer.flush()
    except Exception as error:
        if writer.error is None:
            raise
        raise OSError(writer.error.errno, writer.error.strerror) from error


def read_checkpoint(path: Path, map_location: object = None) -> dict[str, Any]:
    """Read a checkpoint.

    Args:
        path: the file.
        map_location: device of the tensors; the CPU by default.

    Raises:
        UserError: the file is truncated, is not a checkpoint, or has another version.
    """
    try:
        checkpoint = torch.load(path, map_location=map_location or "cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, OSError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} is damaged or cut off and cannot be read; {_what_is_left(path)}") from error
    about = checkpoint.get("prior3d", {}) if isinstance(checkpoint, dict) else {}
    if about.get("format") != CHECKPOINT_FORMAT:
        found = about.get("format")
        raise UserError(f"{path} has checkpoint format {found}, this version reads {CHECKPOINT_FORMAT}")
    return checkpoint


def _what_is_left(path: Path) -> str:
    """Describe how to continue a run without its last checkpoint."""
    others = sorted(path.parent.glob("step-*.ckpt"), key=step_of)
    if others:
        return f"to resume from step {step_of(others[-1])}, copy {others[-1].name} over it"
    return "without it, the run would begin at its first step again: remove it to do so"


def step_of(path: Path) -> int:
    """Return the step of a permanent checkpoint from its file name."""
    return int(path.stem.removeprefix("step-"))


class Checkpoints(lightning.Callback):
    """Save checkpoints every n optimizer steps, at the end, and when SIGINT or SIGTERM stops the run.

    A signal ends the run at the next step boundary, with a checkpoint that resumes exactly; a second SIGINT ends it at
    once. All ranks agree on the step at which to stop.

    Args:
        folder: folder of the checkpoints; None on ranks that get it from rank 0.
        every: optimizer steps between two checkpoints, each of which replaces `last.ckpt`.
        accumulate: number of micro-batches per optimizer step.
        keep_every: optimizer steps between two checkpoints that are kept permanently, as `step-N.ckpt`; 0 for none.
    """

    def __init__(self, folder: Path | None, every: int, accumulate: int, keep_every: int = 0) -> None:
        self.folder = folder
        self.every = every
        self.accumulate = accumulate
        self.keep_every = keep_every
        self.stopped_by: str | None = None
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Agree on the folder, and replace the signal handlers: Lightning's own handlers stop within a step."""
        self.folder = trainer.strategy.broadcast(self.folder)
        if threading.current_thread() is not threading.main_thread():
            return  # signals only reach the main thread
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
        """Save if a checkpoint is due; stop if a signal requested it."""
        if (batch_idx + 1) % self.accumulate:
            return
        stop = self.stopped_by is not None
        if trainer.world_size > 1:
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        if stop:
            trainer.should_stop = True
            self.stopped_by = self.stopped_by or "another rank"
        step = trainer.global_step
        if self.keep_every and step % self.keep_every == 0:
            trainer.save_checkpoint(self.folder / f"step-{step}.ckpt")
        if stop or step % self.every == 0 or step == trainer.max_steps:
            trainer.save_checkpoint(self.folder / LAST)

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Restore the signal handlers, also after an error."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.stopped_by is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stopped_by = signal.Signals(number).name
