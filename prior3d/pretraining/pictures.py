"""Pictures for TensorBoard: features in color, and the pictures of each prior."""

from typing import TYPE_CHECKING, Any

import lightning
import torch
from matplotlib.figure import Figure
from torch import Tensor

from prior3d.contracts.fields import FIELDS, FieldTable
from prior3d.errors import section
from prior3d.figures import named_figures, plot_features, render
from prior3d.pretraining.tracking import log_image

if TYPE_CHECKING:
    from prior3d.pretraining.task import PretrainingTask

_SAMPLES = 4
"""Number of samples of a batch that are encoded for pictures."""


class Pictures(lightning.Callback):
    """Plot pictures every n optimizer steps, on rank 0, from the first samples of the current training batch.

    Plotting runs in evaluation mode and without gradients. Each training step reseeds the global generators, so
    pictures do not change the samples of a run.

    Args:
        every: optimizer steps between two sets of pictures; 0 for none.
        accumulate: number of micro-batches per optimizer step.
    """

    def __init__(self, every: int, accumulate: int) -> None:
        self.every = every
        self.accumulate = accumulate

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: "PretrainingTask",
        outputs: object,
        batch: dict[str, Tensor],
        batch_idx: int,
    ) -> None:
        """Plot at the first step and every n steps after it."""
        at_boundary = (batch_idx + 1) % self.accumulate == 0
        due = self.every and (trainer.global_step == 1 or trainer.global_step % self.every == 0)
        if at_boundary and due and trainer.is_global_zero:
            for name, figure in plot(pl_module, batch).items():
                log_image(trainer.loggers, name, render(figure), trainer.global_step)


@torch.no_grad()
def plot(task: "PretrainingTask", batch: dict[str, Tensor]) -> dict[str, Figure]:
    """Return the pictures of a run at its current weights, by name."""
    seed = task.seeder(0)
    table = task.samples.table
    batch = head(batch, _SAMPLES, table)
    trained = (task.backbone, task.objective)
    for module in trained:
        module.eval()
    try:
        with task.trainer.precision_plugin.forward_context():
            batch = task.objective.prepare_batch(batch, seed)
            features = task.encode(batch, seed).features
            figures: dict[str, Any] = {}
            for label, prior in task.objective.priors.items():
                seed(f"{label}/draw")
                with section(f"priors.{label}"):
                    figures |= named_figures(prior.plot(batch, features), label)
    finally:
        for module in trained:
            module.train()
    for field, feature in features.items():
        if feature.dense is not None and field in table and table[field].is_picture:
            images, dense = batch[field][:2].flatten(0, 1), feature.dense[:2].flatten(0, 1)
            figures[f"features/{field}"] = plot_features(images, dense)
    return figures


def head(batch: dict[str, Tensor], count: int, table: FieldTable = FIELDS) -> dict[str, Tensor]:
    """Return the first samples of a batch; packed fields are cut to the remaining views."""
    views = batch["frame"].shape[1] if "frame" in batch else 1
    view_of = {name: table[name].view_index for name in batch if name in table and table[name].batches == "pack"}
    return {
        name: value[batch[view_of[name]] < count * views] if name in view_of else value[:count]
        for name, value in batch.items()
    }
