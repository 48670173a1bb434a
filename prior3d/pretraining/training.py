"""A complete run from recipe to results table: build, prepare, measure, train, export, measure again."""

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import lightning
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.strategies import DDPStrategy

from prior3d.contracts.dataset import Dataset
from prior3d.data.preparing import DatasetUse, each_once, prepare_datasets
from prior3d.errors import UserError, section
from prior3d.files import writing_from_threads
from prior3d.jobs.running import make_runner
from prior3d.pretraining.building import Parts, build, fields_to_decode, training_samples
from prior3d.pretraining.checkpoints import LAST, AtomicCheckpointIO, Checkpoints
from prior3d.pretraining.data_record import check_data
from prior3d.pretraining.folder import RunFolder
from prior3d.pretraining.health import check_finite, nothing_to_learn
from prior3d.pretraining.machine import check_processes, enough_memory, sharing_cores, thread_facts
from prior3d.pretraining.offline import prepare_priors
from prior3d.pretraining.pictures import Pictures
from prior3d.pretraining.probing import Probing
from prior3d.pretraining.progress import Bars, StepBar, make_console
from prior3d.pretraining.refreshing import Refreshes
from prior3d.pretraining.resuming import Begun
from prior3d.pretraining.run import Run, start_key
from prior3d.pretraining.task import PretrainingTask
from prior3d.pretraining.tracking import Curves, check_loggers, make_loggers
from prior3d.probes.tasks import ProbeTask, uses_of

if TYPE_CHECKING:
    from prior3d.recipe import Recipe
    from prior3d.recipe.sections import TrainerSection
    from prior3d.registry import Registry


_RESUMED = "You're resuming from a checkpoint that ended before the epoch ended.*"
"""Lightning's warning about loaders with a state; ours has no state and starts at the given step."""


def train(
    recipe: "Recipe", registry: "Registry", out: Path | None = None, begun: Begun | None = None, quiet: bool = False
) -> Run:
    """Train a backbone with a recipe; everything is checked before a run folder is created.

    Args:
        recipe: recipe of the run.
        registry: where to find the plugins it names.
        out: folder in which the run folder is created, `runs` by default.
        begun: a run to continue instead; `recipe` is then its recipe.
        quiet: print nothing.

    Returns:
        The run; `stopped_by` is the signal that stopped it at a resumable step, if any.

    Raises:
        UserError: recipe, data or weights do not work; no files remain.
    """
    with _quieting(), sharing_cores(recipe.trainer.accelerator):
        return _train(recipe, registry, out, begun, quiet)


def _train(recipe: "Recipe", registry: "Registry", out: Path | None, begun: Begun | None, quiet: bool) -> Run:
    check_processes(recipe.trainer.devices, recipe.trainer.num_nodes)
    check_loggers(recipe.trainer.loggers)
    is_first = _is_first_rank()
    goes_on = begun is not None
    parts = build(recipe, registry, begun.files if goes_on and begun.keeps_start else None)
    run = Run(recipe, registry, parts, make_console(quiet or not is_first))
    if goes_on:
        run.files, run.steps = begun.files, begun.step
    prepare(run)
    if goes_on and begun.data is not None and not begun.is_complete:
        with section("data"):
            check_data(begun.data, run.data)
    try:
        if is_first:
            _begin(run, begun, out or Path("runs"))
        with writing_from_threads(run.folder or Path("runs")):
            _carry_out(run)
    except UserError:
        if run.files is not None and not goes_on:
            run.files.remove_if_nothing_is_lost()
        raise
    return run


def prepare_only(recipe: "Recipe", registry: "Registry") -> None:
    """Compute what runs of a recipe need before training; any number of processes may share the work.

    Args:
        recipe: recipe of the runs; its seed or weights initialize the backbone as in these runs.
        registry: where to find the plugins it names.

    Raises:
        UserError: recipe, data or weights do not work.
    """
    with _quieting(), sharing_cores(recipe.trainer.accelerator):
        prepare(Run(recipe, registry, build(recipe, registry)))


def prepare(run: Run) -> None:
    """Verify the data and compute everything that is computed once; print what was found and what is damaged."""
    parts, recipe, say, progress = run.parts, run.recipe, run.console.print, Bars(run.console)
    runner = make_runner(recipe.prepare.runner, recipe.prepare.options, run.registry)
    for note in parts.backbone.notes:
        say(note)
    for label, why in parts.left_out.items():
        say(f"left out: {label}: {why}")
    prepare_datasets(_datasets(parts), recipe.data.on_damage, progress, say, runner)
    prepare_priors(parts, recipe, progress, run.console, runner)


def _datasets(parts: Parts) -> list[DatasetUse]:
    """Return the datasets of training and probes, each once, with distinct names."""

    def name(task: ProbeTask, dataset: Dataset) -> str:
        return f"{task.label}, {dataset.spec.split}" if task.has_own_data else dataset.spec.split

    training = DatasetUse("train", parts.dataset, fields_to_decode(parts.objective, parts.dataset))
    return each_once([training, *uses_of(parts.probes, name)])


def _begin(run: Run, begun: Begun | None, out: Path) -> None:
    """Create the run folder, or update that of a run that continues."""
    if begun is None:
        run.begin_folder(out)
    else:
        run.files.remove_leftovers()
        run.history = begun.record()
        if begun.threads not in (None, thread_facts()["threads"]):
            run.console.print(
                f"the run began with {begun.threads} threads, this process has {thread_facts()['threads']}: the last"
                " bits of its sums may differ"
            )
    if begun is None or not begun.keeps_start:
        run.files.save_initial(run.backbone, start_key(run.recipe.backbone, run.recipe.seed))
    run.console.print(f"run folder {run.folder}")


def _carry_out(run: Run) -> None:
    probing = Probing(run) if _is_first_rank() else None
    options = run.recipe.trainer
    if probing is not None and options.probe_before:
        probing.before()
    fit(run)
    if probing is not None and run.stopped_by is None:
        if options.probe_after:
            probing.after()
        run.console.print(f"weights for timm: {run.files.backbone}")


def _is_first_rank() -> bool:
    """Whether this process is the first one of a run, which writes its files; a run alone is."""
    return not rank_zero_only.rank  # 0, or None where Lightning found no rank


def fit(run: Run) -> None:
    """Train from the last checkpoint, if any, and export; the run records the steps done."""
    files, options, say = run.files, run.recipe.trainer, run.console.print
    if files is not None and files.backbone.exists():
        say(f"training in {files.path} is complete")
        files.load_trained(run.backbone)
        summary = files.read_summary()
        run.steps, run.idle = summary.get("steps", run.max_steps), summary.get("priors whose loss stayed 0", [])
        return
    task = _make_task(run)
    checkpoints = Checkpoints(
        files and files.checkpoints, options.checkpoint_every, options.accumulate, options.keep_every
    )
    refreshes = Refreshes(files and files.prepared, options.checkpoint_every, run.console)
    callbacks = [
        refreshes,
        StepBar(run.console, options.accumulate),
        Pictures(options.draw_every, options.accumulate),
        Curves(options.log_every, options.accumulate),
        checkpoints,  # last: what a step writes is there when a checkpoint leads back to it
    ]
    trainer = _make_trainer(options, run.recipe.optim.clip, files, run.steps, callbacks)
    last = files and files.checkpoints / LAST
    started = time.perf_counter()
    with enough_memory(run.recipe.data.batch_size):
        trainer.fit(task, ckpt_path=last if last and last.exists() else None)
    seconds = time.perf_counter() - started
    run.steps, run.stopped_by, run.files = trainer.global_step, checkpoints.stopped_by, _files(checkpoints)
    say(f"trained to step {run.steps} of {run.max_steps} in {seconds:.0f} s")
    run.idle = task.activity.idle() if task.idle is None else task.idle
    if run.stopped_by is None:
        check_finite(run.backbone.state_dict())
        if len(run.idle) == len(run.parts.objective.priors):
            raise nothing_to_learn(run.parts.objective.priors, run.steps)
    if trainer.is_global_zero:
        _conclude(run, task, str(trainer.strategy.root_device), seconds)
    if run.stopped_by is not None:
        say(f"stopped by {run.stopped_by} at step {run.steps}; resume it with: prior3d-train --resume {run.folder}")


def _files(checkpoints: Checkpoints) -> RunFolder:
    """Return the run folder, also on ranks that got it from the first rank."""
    return RunFolder(checkpoints.folder.parent)


def _make_task(run: Run) -> PretrainingTask:
    recipe, parts = run.recipe, run.parts
    data = recipe.data
    return PretrainingTask(
        parts.backbone,
        parts.objective,
        training_samples(parts, data, recipe.seed),
        optim=recipe.optim,
        options=recipe.trainer,
        batch_size=data.batch_size,
        workers=data.workers,
        seed=recipe.seed,
        ema=recipe.backbone.ema,
        reference=run.initial if "reference" in parts.objective.reads else None,
        record={
            "recipe": recipe.to_yaml(),
            "history": run.history,
            "threads": thread_facts()["threads"],
            "data": run.data,
        },
    )


def _make_trainer(
    options: "TrainerSection",
    clip: float | None,
    files: RunFolder | None,
    start: int,
    callbacks: list[lightning.Callback],
) -> lightning.Trainer:
    """Return the Lightning trainer for a section `trainer:`.

    Args:
        options: the section `trainer:`.
        clip: largest norm of the gradient.
        files: folder of the run; None on ranks that write nothing.
        start: number of optimizer steps done.
        callbacks: Lightning callbacks, in order.
    """
    return lightning.Trainer(
        accelerator=options.accelerator,
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=_make_strategy(options),
        precision="bf16-mixed" if options.precision == "bf16" else "32-true",
        max_steps=options.max_steps,
        max_epochs=-1,
        accumulate_grad_batches=options.accumulate,
        gradient_clip_val=clip,
        logger=make_loggers(options.loggers, files.path, start) if files is not None else False,
        log_every_n_steps=options.log_every,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,  # ours counts the steps of the whole run
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # our stream already knows its rank
    )


def _make_strategy(options: "TrainerSection") -> DDPStrategy | str:
    """Return how processes work together.

    Every prior connects its loss to all features and to its own parameters, so no step searches for parameters without
    a gradient. The graph is not declared static: what a prior computes may differ from step to step.
    """
    if options.devices * options.num_nodes == 1:
        return "auto"
    return DDPStrategy(find_unused_parameters=False, gradient_as_bucket_view=True)


def _conclude(run: Run, task: PretrainingTask, device: str, seconds: float) -> None:
    """Report skipped files and priors that learned nothing; export unless the run was stopped; write the summary."""
    damaged = task.damaged | {str(damage.path): damage.why for damage in run.parts.dataset.damaged}
    for path in sorted(task.damaged):
        run.console.print(f"skipped: {path}: {damaged[path]}")
    if run.stopped_by is None:
        for label in run.idle:
            run.console.print(f"{label}: its loss was 0 at every step: nothing was learned from it")
    run.files.write_summary(
        {
            "steps": run.steps,
            "of": run.max_steps,
            "seconds of this process": round(seconds, 1),
            "device": device,
            **thread_facts(),
            "losses, mean of the last batches": task.recent_losses(),
            "priors whose loss stayed 0": run.idle,
            "changes": run.history,
            "damaged": {"count": len(damaged), "files": dict(sorted(damaged.items()))},
        }
    )
    if run.stopped_by is None:  # last: with these files a run is complete
        run.files.export(run.backbone)


@contextmanager
def _quieting() -> Iterator[None]:
    """Silence Lightning's warnings about deliberate choices: frozen parts in evaluation mode, short runs, workers."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in (
                ".*in eval mode.*",
                ".*is smaller than the logging interval.*",
                ".*does not have many workers.*",
                _RESUMED,
            ):
                warnings.filterwarnings("ignore", message, module="lightning.*")
            warnings.filterwarnings("ignore", ".*LeafSpec.*", module="lightning.*")
            yield
    finally:
        logger.setLevel(level)
