"""One training step: batch to device, one backbone pass, all priors, the weighted sum."""

from collections import deque
from collections.abc import Callable
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from prior3d.backbone import Backbone
from prior3d.data.sample.loading import DrawnSamples, DrawStream, make_loader, raise_errors, to_float
from prior3d.pretraining.collapse import feature_health
from prior3d.pretraining.divergence import Divergence
from prior3d.pretraining.gradients import compare_gradients
from prior3d.pretraining.objective import JointObjective, Pass, encode
from prior3d.pretraining.optimization import learning_rate_factor, make_optimizer
from prior3d.randomness import reseed

if TYPE_CHECKING:
    from prior3d.recipe import Recipe

CHECKPOINT_FORMAT = 1
"""Raised when older checkpoints can no longer be read."""

RECENT = 20
"""Batches over which the summary averages the last losses."""


class PretrainingTask(lightning.LightningModule):
    """Joint training of a backbone and its priors' heads.

    Args:
        backbone: what trains.
        objective: the priors and their weights.
        recipe: optimiser, trainer and seed.
        samples: the training data.
        reference: the frozen initial backbone, where some prior reads it.
    """

    def __init__(
        self,
        backbone: Backbone,
        objective: JointObjective,
        recipe: "Recipe",
        samples: DrawnSamples,
        reference: Backbone | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.objective = objective
        self.recipe = recipe
        self.samples = samples
        self.ema = None
        if recipe.backbone.ema is not None:
            self.ema = deepcopy(backbone).requires_grad_(False).eval()
        # In a tuple, so that it is no submodule: it is never trained and never enters a checkpoint.
        self._reference = (reference.requires_grad_(False).eval(),) if reference is not None else ()
        self.damaged: dict[str, str] = {}
        self.recent: deque[dict[str, Tensor]] = deque(maxlen=RECENT)
        self._divergence = Divergence()

    @property
    def reference(self) -> Backbone | None:
        """The frozen initial backbone."""
        return self._reference[0] if self._reference else None

    def configure_optimizers(self) -> dict[str, Any]:
        """Return optimiser and schedule, stepped once per optimiser step."""
        options = self.recipe.optim
        others = [module for module in (self.backbone.decoder, self.objective) if module is not None]
        optimizer = make_optimizer(self.backbone.encoder, others, options)
        factor = learning_rate_factor(options, self.recipe.trainer.max_steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def train_dataloader(self) -> DataLoader:
        """Return the loader from the step that was reached; built anew on resume."""
        trainer, data = self.recipe.trainer, self.recipe.data
        stream = DrawStream(
            start=self.global_step * trainer.accumulate,
            stop=trainer.max_steps * trainer.accumulate,
            batch_size=data.batch_size,
            rank=self.global_rank,
            world_size=self.trainer.world_size,
        )
        return make_loader(self.samples, stream, data.workers, pin_memory=self.on_gpu)

    @property
    def on_gpu(self) -> bool:
        """Whether the run is on a CUDA device."""
        return self.trainer.strategy.root_device.type == "cuda"

    def on_fit_start(self) -> None:
        """Bring the reference to the run's device; what trains is in training mode, teachers are not."""
        self.backbone.train()
        self.objective.train()
        if self.reference is not None:
            self.reference.to(self.device)

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Raise a worker's error in the main process, and count damage."""
        raise_errors(batch)
        self.damaged.update(batch.pop("damaged"))
        return batch

    def on_after_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> dict[str, Tensor]:
        """Turn bytes into 0..1 where they are cheap to turn."""
        return to_float(batch, self.samples.table)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the joint loss of one (micro-)batch."""
        seed = self.seeder(batch_idx)
        batch = self.objective.prepare_batch(batch, seed)
        result = self.encode(batch, seed)
        losses = self.objective(batch, result.features, self.global_step, seed)
        self._report(losses, result, batch_idx)
        return losses.total

    def encode(self, batch: dict[str, Tensor], seed: Callable[[str], None]) -> Pass:
        """Run the backbone once, and the teachers that are read."""
        seed("backbone")
        reads = self.objective.reads
        return encode(
            self.backbone,
            batch,
            self.objective.encodes,
            reads,
            reference=self.reference if "reference" in reads else None,
            ema=self.ema if "ema" in reads else None,
        )

    def seeder(self, batch_idx: int) -> Callable[[str], None]:
        """Return the function that reseeds the global generators for one use within this step."""
        micro = batch_idx % self.recipe.trainer.accumulate
        step, rank, seed = self.global_step, self.global_rank, self.recipe.seed
        return lambda use: reseed("step", seed, step, micro, rank, use)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: torch.optim.Optimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Move the average with the weights: the checkpoint of a step is written before the module hears of its end."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.ema is not None:
            update_average(self.ema, self.backbone, self.recipe.backbone.ema)

    def recent_losses(self) -> dict[str, float]:
        """Return each prior's own loss (unweighted), averaged over the last batches."""
        labels = self.recent[-1] if self.recent else {}
        return {label: torch.stack([losses[label].float() for losses in self.recent]).mean().item() for label in labels}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the format number and the plain recipe."""
        checkpoint["prior3d"] = {"format": CHECKPOINT_FORMAT, "recipe": self.recipe.to_yaml()}

    def _report(self, losses: object, result: Pass, batch_idx: int) -> None:
        self.recent.append({label: loss.detach() for label, loss in losses.by_label.items()})
        self._divergence.see(self.global_step, losses.by_label)
        self.log("loss", losses.total.detach(), prog_bar=True)
        self.log_dict({f"loss/{label}": loss.detach() for label, loss in losses.by_label.items()})
        self.log_dict(losses.scalars)
        options, first = self.recipe.trainer, batch_idx % self.recipe.trainer.accumulate == 0
        if first and options.gradients_every and self.global_step % options.gradients_every == 0:
            compared = compare_gradients(losses, result.maps.encoder, self.objective)
            self.log_dict({f"gradients/{name}": value for name, value in compared.items()})
        if first and self.global_step % options.log_every == 0:
            self._end_if_diverged()
            self.log_dict({f"features/{name}": value for name, value in feature_health(result.maps).items()})

    def _end_if_diverged(self) -> None:
        # All ranks end at the same step: one alone would leave the others waiting for its gradients.
        if self.trainer.strategy.reduce_boolean_decision(self._divergence.has_lasted(self.global_step), all=False):
            raise self._divergence.error(self.global_step)


@torch.no_grad()
def update_average(average: Backbone, backbone: Backbone, momentum: float) -> None:
    """Move `average` towards `backbone`: parameters by 1 - momentum, buffers (running statistics) by copy."""
    ours, theirs = list(average.parameters()), [parameter.detach() for parameter in backbone.parameters()]
    torch._foreach_lerp_(ours, theirs, 1 - momentum)
    for ours_buffer, buffer in zip(average.buffers(), backbone.buffers(), strict=True):
        ours_buffer.copy_(buffer)
