"""A run from recipe to table: build, prepare, measure, train, export, measure again."""

import logging
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import lightning
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console

from prior3d.backbone import Backbone
from prior3d.contracts.runner import Runner
from prior3d.data.preparing import DatasetUse, prepare_datasets
from prior3d.errors import UserError
from prior3d.jobs.running import make_runner
from prior3d.pretraining.building import Parts, build, build_backbone, fields_to_decode, training_samples
from prior3d.pretraining.checkpoints import LAST, AtomicCheckpointIO, Checkpoints
from prior3d.pretraining.cores import share_cores
from prior3d.pretraining.divergence import check_finite
from prior3d.pretraining.folder import RunFolder
from prior3d.pretraining.offline import prepare_priors
from prior3d.pretraining.pictures import Pictures
from prior3d.pretraining.probing import Probing
from prior3d.pretraining.progress import Bars, StepBar
from prior3d.pretraining.refreshing import Refreshes
from prior3d.pretraining.task import PretrainingTask

if TYPE_CHECKING:
    from prior3d.recipe import Recipe
    from prior3d.registry import Registry


_RESUMED = "You're resuming from a checkpoint that ended before the epoch ended.*"
"""What Lightning says of loaders with a state; ours has none and starts at the step."""


def run(recipe: "Recipe", registry: "Registry", out: Path | None = None, resume: Path | None = None) -> int:
    """Train a backbone as a recipe says; everything is checked before a run folder is made.

    Args:
        recipe: what to do.
        registry: finds the plugins it names.
        out: folder in which the run folder is made, `runs` by default.
        resume: the run folder of an earlier run to go on with, instead.

    Returns:
        The exit status: 0 when training is complete, 130 or 143 when a signal stopped it at a resumable step.

    Raises:
        UserError: recipe, data or weights do not work; nothing is left behind.
    """
    _quieten()
    share_cores(recipe.trainer.accelerator)
    first_rank = not rank_zero_only.rank
    console = Console(quiet=not first_rank, highlight=False, soft_wrap=True)
    parts = build(recipe, registry)
    runner = make_runner(recipe.prepare.runner, recipe.prepare.options, registry)
    folder = RunFolder.open(resume) if resume else None
    if folder is not None and folder.initial.exists():
        folder.load_initial(parts.backbone)  # what is prepared, and was, is from these weights
    for note in parts.backbone.notes:
        console.print(note)
    prepare(parts, recipe, console, runner)
    if folder is None and first_rank:
        folder = _create_folder(recipe, registry, out)
    try:
        return _run_in(folder, parts, recipe, registry, console)
    except UserError:
        if folder is not None and resume is None:
            folder.remove_if_nothing_is_lost()
        raise


def prepare_only(recipe: "Recipe", registry: "Registry") -> int:
    """Compute what runs of a recipe would compute before they train; any number of processes may share the work.

    Args:
        recipe: of the runs; with its seed or weights the backbone is initialised as theirs.
        registry: finds the plugins it names.

    Returns:
        The exit status 0.

    Raises:
        UserError: recipe, data or weights do not work.
    """
    _quieten()
    share_cores(recipe.trainer.accelerator)
    runner = make_runner(recipe.prepare.runner, recipe.prepare.options, registry)
    prepare(build(recipe, registry), recipe, Console(highlight=False, soft_wrap=True), runner)
    return 0


def _run_in(folder: RunFolder | None, parts: Parts, recipe: "Recipe", registry: "Registry", console: Console) -> int:
    first_rank = not rank_zero_only.rank
    if first_rank:
        folder.save_initial(parts.backbone)
        console.print(f"run folder {folder.path}")
    if folder is not None:
        folder.load_initial(parts.backbone)
    probing = Probing(folder, parts, recipe, registry, console) if first_rank else None
    if probing is not None and recipe.trainer.probe_before:
        probing.before()
    status = train(recipe, parts, folder, console)
    if probing is not None and status == 0:
        if recipe.trainer.probe_after:
            probing.after()
        console.print(f"weights for timm: {folder.backbone}")
    return status


def prepare(parts: Parts, recipe: "Recipe", console: Console, runner: Runner | None = None) -> None:
    """Verify the data and compute what is computed once; say what there is, and what is damaged.

    Args:
        parts: what the recipe names.
        recipe: what to do.
        console: shows progress.
        runner: does the work per scene; `local` by default.
    """
    progress = Bars(console)
    for label, why in parts.left_out.items():
        console.print(f"left out: {label}: {why}")
    prepare_datasets(_datasets(parts), recipe.data.on_damage, progress, console.print, runner)
    prepare_priors(parts, recipe, progress, console, runner)


def _datasets(parts: Parts) -> list[DatasetUse]:
    """Return the training data and that of the probes, each once, with names to tell them apart."""
    fields = fields_to_decode(parts.objective, parts.dataset)
    found = {id(parts.dataset): DatasetUse("train", parts.dataset, fields)}
    for task in parts.probes:
        for dataset in task.parts.values():
            what = dataset.spec.split if type(dataset) is type(parts.dataset) else f"{task.label}, {dataset.spec.split}"
            found.setdefault(id(dataset), DatasetUse(what, dataset, key=task.data_key))
    return list(found.values())


def train(recipe: "Recipe", parts: Parts, folder: RunFolder | None, console: Console) -> int:
    """Fit from the last checkpoint, if any, and export; returns the exit status."""
    if folder is not None and folder.backbone.exists():
        console.print(f"training in {folder.path} is complete")
        folder.load_trained(parts.backbone)
        return 0
    task = PretrainingTask(
        parts.backbone, parts.objective, recipe, training_samples(recipe, parts), _reference(recipe, parts)
    )
    checkpoints = Checkpoints(folder and folder.checkpoints, recipe.trainer.checkpoint_every, recipe.trainer.accumulate)
    refreshes = Refreshes(folder and folder.prepared, recipe.trainer.checkpoint_every, console)
    trainer = make_trainer(recipe, folder, [checkpoints, refreshes, StepBar(console)])
    last = folder and folder.checkpoints / LAST
    started = time.perf_counter()
    trainer.fit(task, ckpt_path=last if last and last.exists() else None)
    seconds = time.perf_counter() - started
    console.print(f"trained to step {trainer.global_step} of {recipe.trainer.max_steps} in {seconds:.0f} s")
    if checkpoints.stopped_by is None:
        check_finite(parts.backbone.state_dict())
    if trainer.is_global_zero:
        damaged = task.damaged | {str(damage.path): damage.why for damage in parts.dataset.damaged}
        for path in sorted(task.damaged):
            console.print(f"skipped: {path}: {damaged[path]}")
        if checkpoints.stopped_by is None:
            folder.export(parts.backbone, dict(recipe.backbone.timm_options))
        folder.write_summary(_facts(recipe, trainer, task, seconds) | _damage(damaged))
    if checkpoints.stopped_by is not None:
        console.print(f"stopped by {checkpoints.stopped_by} at step {trainer.global_step}, ", end="")
        console.print(f"go on with: prior3d-train --resume {folder.path}")
        return 143 if checkpoints.stopped_by == "SIGTERM" else 130
    return 0


def make_trainer(recipe: "Recipe", folder: RunFolder | None, callbacks: list[lightning.Callback]) -> lightning.Trainer:
    """Return the Lightning trainer for a recipe's `trainer` section."""
    options = recipe.trainer
    logger = _Events(folder.path, name="", version="") if folder is not None else False
    return lightning.Trainer(
        accelerator=options.accelerator,
        devices=options.devices,
        strategy="ddp" if options.devices > 1 else "auto",
        precision="bf16-mixed" if options.precision == "bf16" else "32-true",
        max_steps=options.max_steps,
        max_epochs=-1,
        accumulate_grad_batches=options.accumulate,
        gradient_clip_val=recipe.optim.clip,
        logger=logger,
        log_every_n_steps=options.log_every,
        callbacks=[*callbacks, Pictures(options.draw_every, options.accumulate)],
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,  # ours counts the steps of the whole run
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # our stream already knows its rank
    )


class _Events(TensorBoardLogger):
    """TensorBoard events and nothing else: the recipe is already in the run folder."""

    def save(self) -> None:
        self.experiment.flush()


def _quieten() -> None:
    """Silence what Lightning says about choices that are ours: frozen parts in evaluation mode, short runs, workers."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*in eval mode.*",
        ".*is smaller than the logging interval.*",
        ".*does not have many workers.*",
        _RESUMED,
    ):
        warnings.filterwarnings("ignore", message, module="lightning.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*", module="lightning.*")


def _create_folder(recipe: "Recipe", registry: "Registry", out: Path | None) -> RunFolder:
    comments = "".join(f"# {line}\n" for line in origins(recipe, registry))
    return RunFolder.create(out or Path("runs"), recipe.name, comments + recipe.to_yaml())


def origins(recipe: "Recipe", registry: "Registry") -> list[str]:
    """Return a line for every plugin a recipe uses: what it is, where it is from, which version."""
    used = dict.fromkeys(registry.find(kind, name, key) for kind, name, key in recipe.uses())
    return [f"{plugin}" if plugin.version in plugin.origin else f"{plugin}, {plugin.version}" for plugin in used]


def _reference(recipe: "Recipe", parts: Parts) -> Backbone | None:
    if "reference" not in parts.objective.reads:
        return None
    reference = build_backbone(recipe)
    reference.load_state_dict(parts.backbone.state_dict())  # the initial weights: no checkpoint is loaded yet
    return reference


def _facts(recipe: "Recipe", trainer: lightning.Trainer, task: PretrainingTask, seconds: float) -> dict[str, object]:
    return {
        "steps": trainer.global_step,
        "of": recipe.trainer.max_steps,
        "seconds of this process": round(seconds, 1),
        "device": str(trainer.strategy.root_device),
        "losses, mean of the last batches": task.recent_losses(),
    }


def _damage(damaged: dict[str, str]) -> dict[str, object]:
    return {"damaged": {"count": len(damaged), "files": dict(sorted(damaged.items()))}}
