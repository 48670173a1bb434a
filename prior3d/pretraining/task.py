"""The training step: batch to device, one backbone pass, all priors, the weighted sum of losses."""

from collections import deque
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from prior3d.backbone import Backbone
from prior3d.data.sample.loading import DrawnSamples, DrawStream, make_loader, raise_errors, to_device, to_float
from prior3d.pretraining.graphs import Graphs
from prior3d.pretraining.health import (
    IDLE_PATIENCE,
    Activity,
    Divergence,
    compare_gradients,
    feature_health,
    nothing_to_learn,
)
from prior3d.pretraining.objective import Encode, JointObjective, Losses, Pass, encode
from prior3d.pretraining.optimization import keep_kernels, learning_rate_factor, make_optimizer
from prior3d.pretraining.recording import copy_all
from prior3d.randomness import reseed

if TYPE_CHECKING:
    from prior3d.recipe.sections import OptimSection, TrainerSection

CHECKPOINT_FORMAT = 1
"""Format version of checkpoints; increase it when older checkpoints can no longer be read."""

RECENT = 20
"""Number of batches over which the summary averages the last losses."""


class PretrainingTask(lightning.LightningModule):
    """Joint training of a backbone and its priors' heads.

    Args:
        backbone: the trained backbone.
        objective: the priors and their weights.
        samples: the training data.
        optim: optimizer and learning rate.
        options: length of the training, and what is measured during it.
        batch_size: samples per rank and micro-batch.
        workers: processes that load data, per rank.
        seed: seed of everything random in a step.
        ema: decay per step of the moving average of the backbone; None for none.
        reference: the frozen initial backbone, if some prior reads it.
        record: plain values that every checkpoint stores.

    Attributes:
        measured: curve to value at the last step.
        encoded_images: number of images that the backbone encoded in the last micro-batch.
        activity: which priors have acted.
        idle: labels of the priors that have not acted, once the training has ended; None before.
    """

    def __init__(
        self,
        backbone: Backbone,
        objective: JointObjective,
        samples: DrawnSamples,
        *,
        optim: "OptimSection",
        options: "TrainerSection",
        batch_size: int,
        workers: int = 0,
        seed: int = 0,
        ema: float | None = None,
        reference: Backbone | None = None,
        record: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.objective = objective
        self.samples = samples
        self.optim = optim
        self.options = options
        self.batch_size = batch_size
        self.workers = workers
        self.seed = seed
        self.decay = ema
        self.record = dict(record or {})
        self.ema = None if ema is None else deepcopy(backbone).requires_grad_(False).eval()
        # In a tuple, so it is not a submodule: it is never trained and never saved in a checkpoint.
        self._reference = (reference.requires_grad_(False).eval(),) if reference is not None else ()
        self.damaged: dict[str, str] = {}
        self.recent: deque[Tensor] = deque(maxlen=RECENT)
        self.measured: dict[str, Tensor] = {}
        self.encoded_images = 0
        self.activity = Activity(objective.priors)
        self.idle: list[str] | None = None
        self._divergence = Divergence(objective.priors)
        self._average: Average | None = None
        self._draws: int | None = None  # of the checkpoint that this run continues
        self._ahead = 0
        self._graphs: Graphs | None = None

    @property
    def reference(self) -> Backbone | None:
        """The frozen initial backbone."""
        return self._reference[0] if self._reference else None

    def configure_optimizers(self) -> dict[str, Any]:
        """Return optimizer and schedule, stepped once per optimizer step."""
        others = [module for module in (self.backbone.decoder, self.objective) if module is not None]
        optimizer = make_optimizer(self.backbone.encoder, others, self.optim)
        factor = learning_rate_factor(self.optim, self.options.max_steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def train_dataloader(self) -> DataLoader:
        """Return the loader, starting at the current step; it is created again on resume."""
        start = self.global_step * self.options.accumulate
        if self._draws is not None:
            self._ahead = self._draws - start * self._draws_per_batch
        stream = DrawStream(
            start=start,
            stop=self.options.max_steps * self.options.accumulate,
            batch_size=self.batch_size,
            rank=self.global_rank,
            world_size=self.trainer.world_size,
            ahead=self._ahead,
        )
        return make_loader(self.samples, stream, self.workers, pin_memory=self.on_gpu)

    @property
    def _draws_per_batch(self) -> int:
        return self.trainer.world_size * self.batch_size

    @property
    def on_gpu(self) -> bool:
        """Whether the run is on a CUDA device."""
        return self.trainer.strategy.root_device.type == "cuda"

    def on_fit_start(self) -> None:
        """Move the reference to the run's device; set trained parts to training mode, but not the teachers."""
        self.backbone.train()
        self.objective.train()
        if self.reference is not None:
            self.reference.to(self.device)
        self._graphs = self._make_graphs()

    def _make_graphs(self) -> Graphs | None:
        """Return the recordings to use, if any.

        None with several GPUs: the gradients of a replay all come at its end, when no computation is left during which
        they could be exchanged.
        """
        if not (self.options.cuda_graphs and self.on_gpu and self.trainer.world_size == 1):
            return None
        return Graphs(owns_gradients=self.options.accumulate > 1)

    def on_train_start(self) -> None:
        """Set the learning rate of the next step from this run's schedule, which differs if the run is extended."""
        optimizer, schedule = self.optimizers(use_pl_optimizer=False), self.lr_schedulers()
        for group, base, factor in zip(optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
            group["lr"] = base * factor(schedule.last_epoch)

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Raise a worker's error in the main process, and count damaged files."""
        raise_errors(batch)
        self.damaged.update(batch.pop("damaged"))
        return batch

    def transfer_batch_to_device(
        self, batch: dict[str, Tensor], device: torch.device, dataloader_idx: int
    ) -> dict[str, Tensor]:
        """Move the batch, except the fields that stay on the host."""
        return to_device(batch, device, self.samples.table)

    def on_after_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> dict[str, Tensor]:
        """Convert bytes to 0..1 on the device, where this is cheap."""
        return to_float(batch, self.samples.table)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the joint loss of one (micro-)batch."""
        seed = self.seeder(batch_idx)
        batch = self.objective.prepare_batch(batch, seed)
        # Not in `encode`: pictures encode a few samples again, and do not count.
        self.encoded_images = sum(batch[field].shape[:2].numel() for field in self.objective.encodes)
        if self._graphs is not None:
            self._graphs.heads = not self._compares_gradients(batch_idx)
        result = self.encode(batch, seed)
        evaluate = {} if self._graphs is None else {"evaluate": self._graphs.prior}
        losses = self.objective(batch, result.features, self.global_step, seed, **evaluate)
        self._measure(losses, result, batch_idx)
        return losses.total

    def encode(self, batch: dict[str, Tensor], seed: Callable[[str], None]) -> Pass:
        """Run the backbone once, and the teachers that are read."""
        seed("backbone")
        backbone: Encode = self.backbone
        teachers = self.objective.teachers(reference=self.reference, ema=self.ema)
        if self._graphs is not None:
            backbone = self._graphs.backbone("backbone", self.backbone, trains=True)
            for name, teacher in teachers.items():
                replayed = self._graphs.backbone(name, teacher.backbone, trains=False)
                teachers[name] = replace(teacher, backbone=replayed)
        return encode(backbone, batch, self.objective.encodes, self.objective.reads, teachers)

    def seeder(self, batch_idx: int) -> Callable[[str], None]:
        """Return a function that reseeds the global generators for one purpose within this step."""
        micro = batch_idx % self.options.accumulate
        step, rank, seed = self.global_step, self.global_rank, self.seed
        return lambda use: reseed("step", seed, step, micro, rank, use)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: torch.optim.Optimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Update the average with the weights: the step's checkpoint is written before the module's end hook runs."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.ema is not None:
            self._average = self._average or Average(self.ema, self.backbone)
            self._average.update(self.decay)

    def recent_losses(self) -> dict[str, float]:
        """Return each prior's unweighted loss, averaged over the last batches."""
        if not self.recent:
            return {}
        columns = torch.stack(list(self.recent)).T
        return {label: column.mean().item() for label, column in zip(self.objective.priors, columns, strict=True)}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient, and record its norm before clipping."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if gradient_clip_val is None:
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
        else:
            norm = torch.nn.utils.clip_grad_norm_(parameters, gradient_clip_val)
        self.measured["optim/gradient_norm"] = norm.detach()

    def on_train_end(self) -> None:
        """Record which priors have not acted, while all ranks can exchange this; free the memory of recordings."""
        self._graphs = None
        self.idle = self.idle_priors()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the format number, the plain recipe, which priors have not acted yet, and the number of draws so far."""
        draws = self._ahead + self.global_step * self.options.accumulate * self._draws_per_batch
        about = {"format": CHECKPOINT_FORMAT, **self.record, "idle": self.idle_priors(), "draws": draws}
        checkpoint["prior3d"] = about

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore which priors have not acted yet; without this entry, assume that all have acted."""
        self.activity.restore(checkpoint["prior3d"].get("idle", ()))
        self._draws = checkpoint["prior3d"].get("draws")
        for state in checkpoint.get("optimizer_states", ()):
            keep_kernels(state, self.on_gpu)

    def idle_priors(self) -> list[str]:
        """Return the labels of the priors whose loss has been 0 at every step, on all ranks."""
        acted = self.activity.acted.to(self.device, torch.int64)
        acted = self.trainer.strategy.reduce(acted, reduce_op="sum")
        return [label for label, count in zip(self.activity.labels, acted.tolist(), strict=True) if not count]

    def _compares_gradients(self, batch_idx: int) -> bool:
        """Whether the gradients of single priors are compared in this micro-batch."""
        every, step = self.options.gradients_every, self.global_step + 1
        return batch_idx % self.options.accumulate == 0 and bool(every) and (step == 1 or step % every == 0)

    def _measure(self, losses: Losses, result: Pass, batch_idx: int) -> None:
        values = torch.stack([loss.detach().float() for loss in losses.by_label.values()])
        self.recent.append(values)
        self._divergence.see(self.global_step, values)
        self.activity.see(values)
        options, step = self.options, self.global_step + 1
        is_first = batch_idx % options.accumulate == 0
        kept = {} if is_first else self.measured
        self.measured = {**kept, "loss": losses.total.detach()}
        self.measured |= {f"loss/{label}": value for label, value in zip(losses.by_label, values.unbind(), strict=True)}
        self.measured |= {name: value.detach().reshape(()) for name, value in losses.scalars.items()}
        if self._compares_gradients(batch_idx):
            compared = compare_gradients(losses, result.maps.encoder, self.objective)
            self.measured |= {f"gradients/{name}": value for name, value in compared.items()}
        if is_first and (step % options.log_every == 0 or step == options.max_steps):
            self._end_if_diverged()
            self._end_if_idle()
            self.measured |= {f"features/{name}": value for name, value in feature_health(result.maps).items()}

    def _end_if_diverged(self) -> None:
        # All ranks end at the same step: otherwise some would wait forever for another's gradients.
        if self.trainer.strategy.reduce_boolean_decision(self._divergence.has_lasted(self.global_step), all=False):
            raise self._divergence.error(self.global_step)

    def _end_if_idle(self) -> None:
        # A prior cannot act before it is prepared within training.
        first = max(min(prior.refresh_steps, default=0) for prior in self.objective.priors.values())
        if self.global_step >= first + IDLE_PATIENCE and len(self.idle_priors()) == len(self.activity.labels):
            raise nothing_to_learn(self.objective.priors, self.global_step + 1)


class Average:
    """The moving average of a backbone; it finds the tensors of both once, when they are where they stay.

    Args:
        average: the average, updated in place.
        backbone: the backbone that it follows.
    """

    def __init__(self, average: Backbone, backbone: Backbone) -> None:
        self._ours = list(average.parameters())
        self._theirs = [parameter.detach() for parameter in backbone.parameters()]
        self._buffers = list(zip(average.buffers(), backbone.buffers(), strict=True))

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """Move the average toward the backbone: parameters by 1 - momentum, buffers (running statistics) by copy."""
        torch._foreach_lerp_(self._ours, self._theirs, 1 - momentum)
        copy_all(self._buffers)


def update_average(average: Backbone, backbone: Backbone, momentum: float) -> None:
    """Move `average` toward `backbone` once; see `Average`."""
    Average(average, backbone).update(momentum)
