"""Offline stages: priors prepare data for every scene once before training, shared by processes and runs."""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from rich.console import Console
from torch import Tensor

from prior3d.backbone import Backbone
from prior3d.contracts.dataset import View, table_of
from prior3d.contracts.prior import FEATURE_KINDS, Batch, Features, Prior, Scene
from prior3d.contracts.runner import Progress, Runner, SceneJob
from prior3d.data.posed.dataset import PosedDataset
from prior3d.data.preparing import judge_damage, refusing_damage
from prior3d.data.sample.augmentation import assemble
from prior3d.data.sample.loading import to_float
from prior3d.errors import DamagedFile, UserError, dotted, section
from prior3d.jobs import Store, damage_in, run_jobs
from prior3d.pretraining.building import Parts, first_available
from prior3d.pretraining.machine import choose_device
from prior3d.pretraining.objective import JointObjective, encode
from prior3d.randomness import generator, reseed

if TYPE_CHECKING:
    from prior3d.recipe import Recipe


def prepare_priors(
    parts: Parts, recipe: "Recipe", progress: Progress, console: Console, runner: Runner | None = None
) -> None:
    """Run the offline stage of every prior that has one, and attach the prepared data."""
    store = Store(Path(recipe.data.cache), key=dotted("data", "cache"))
    for label, prior in stages(parts.objective).items():
        if prior.refresh_steps:
            console.print(f"{label}: {_plan(prior.refresh_steps, recipe.trainer.max_steps)}")
            continue
        teacher = partial(_copy, parts.backbone, recipe.trainer.accelerator)
        skip_damaged = recipe.data.on_damage == "skip"
        lift = Lift(label, prior, parts.dataset, teacher, skip_damaged)
        facts = _facts(label, prior, parts, recipe)
        jobs = [
            SceneJob(
                f"prepared/{recipe.priors[label].prior}",
                name,
                {**facts, "scene": parts.dataset.scene_fingerprint(scene)},
                partial(lift, scene),
                on_device=recipe.trainer.accelerator != "cpu",
            )
            for scene, name in enumerate(parts.dataset.scenes)
        ]
        new = sum(not store.path(job.kind, job.facts).is_dir() for job in jobs)
        with refusing_damage():
            folders = run_jobs(jobs, store, runner, progress, f"{label}: preparing scenes")
        prior.attach(folders)
        console.print(f"{label}: {len(jobs)} scenes prepared, {new} of them now")
        damaged = parts.dataset.note_damage(damage for folder in folders for damage in damage_in(folder))
        judge_damage(damaged, recipe.data.on_damage, console.print)


def stages(objective: JointObjective) -> dict[str, Prior]:
    """Return the priors that have an offline stage, by label."""
    return {label: prior for label, prior in objective.priors.items() if prior.prepares}


class Lift:
    """One prior's offline stage with one teacher, callable with a scene and a folder like `SceneJob.build`.

    Args:
        label: label of the prior, for messages.
        prior: the prior that prepares scenes; nothing is attached to it yet.
        dataset: dataset of the scenes.
        teacher: function that returns the frozen teacher on the device that computes; called only if a scene is left to
            prepare.
        skip_damaged: leave out frames that cannot be decoded.

    Raises:
        DamagedFile: a frame cannot be decoded, and `skip_damaged` is false.
        UserError: the prior or the dataset raised it.
    """

    def __init__(
        self,
        label: str,
        prior: Prior,
        dataset: PosedDataset,
        teacher: Callable[[], Backbone],
        skip_damaged: bool,
    ) -> None:
        self.label = label
        self.prior = prior
        self.dataset = dataset
        self.skip_damaged = skip_damaged
        self.fields = frozenset(first_available(field, dataset) for field in prior.prepares)
        self.table = table_of(dataset)
        self._make_teacher = teacher

    def __call__(self, scene: int, folder: Path, progress: Progress) -> list[DamagedFile]:
        """Prepare a scene; return the files of frames that were left out."""
        damaged: dict[Path, DamagedFile] = {}
        reseed("prepare", self.dataset.scene_fingerprint(scene))  # the same in every process and order
        name, frames = self.dataset.scenes[scene], self.dataset.frame_count(scene)
        views = Scene(scene, name, frames, lambda numbers: self._read(scene, numbers, damaged))
        with section(f"priors.{self.label}", elsewhere={"data": "data"}):
            self.prior.prepare(views, self._teach, folder)
        return list(damaged.values())

    def __getstate__(self) -> dict[str, object]:
        """Pickle without the teacher: another process creates its own, on its own device."""
        return {name: value for name, value in self.__dict__.items() if name != "_teacher"}

    @cached_property
    def _teacher(self) -> Backbone:
        return self._make_teacher()

    @torch.no_grad()
    def _teach(self, images: Tensor) -> Features:
        reads = self.prior.reads & FEATURE_KINDS
        return encode(self._teacher, {"image": images}, ["image"], reads).features["image"]

    def _read(self, scene: int, frames: Sequence[int], damaged: dict[Path, DamagedFile]) -> Batch:
        with section("data"):
            views = list(self._decode(scene, frames, damaged))
            if not views:
                raise UserError(f"no frame of scene {self.dataset.scenes[scene]} can be read")
        sample = assemble(views, self.dataset.spec.size, None, self.fields, generator("prepare"), self.table)
        device = next(self._teacher.parameters()).device
        return to_float({name: value[None].to(device) for name, value in sample.items()}, self.table)

    def _decode(self, scene: int, frames: Sequence[int], damaged: dict[Path, DamagedFile]) -> Iterator[View]:
        for frame in frames:
            try:
                yield self.dataset.load(scene, frame, self.table.declared(self.fields))
            except DamagedFile as damage:
                if not self.skip_damaged:
                    raise
                damaged.setdefault(damage.path, damage)


def _facts(label: str, prior: Prior, parts: Parts, recipe: "Recipe") -> dict[str, object]:
    """Return everything that prepared scenes depend on except the scene; runs with equal facts share the results."""
    named, backbone = recipe.priors[label], recipe.backbone
    options = named.options if prior.prepared_options is None else prior.prepared_options
    return {
        "prior": named.prior,
        "version": prior.prepared_version,
        "options": {name: named.options[name] for name in options},
        "backbone": [backbone.name, dict(backbone.timm_options), backbone.decoder_stride, parts.backbone.digest()],
        "size": list(recipe.data.size),
    }


def _copy(backbone: Backbone, accelerator: str) -> Backbone:
    device = torch.device(choose_device(accelerator))
    if device.type == "cuda":
        device = torch.device("cuda", (rank_zero_only.rank or 0) % torch.cuda.device_count())
    return deepcopy(backbone).requires_grad_(False).eval().to(device)


def _plan(steps: Sequence[int], max_steps: int) -> str:
    """Describe when a prior is prepared within training."""
    ahead = [step for step in sorted(steps) if step < max_steps]
    if not ahead:
        return f"would first be prepared at step {min(steps)}, this run ends at {max_steps}: its loss stays 0"
    return f"prepared from the moving average at step {', '.join(map(str, ahead))}; until then its loss is 0"
