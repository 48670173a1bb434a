"""Offline stages: what priors prepare of every scene before training, once, shared by processes and by runs."""

import secrets
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from rich.console import Console
from torch import Tensor

from prior3d.backbone import Backbone
from prior3d.contracts.dataset import View, table_of
from prior3d.contracts.prior import Batch, Features, Prior, Scene
from prior3d.contracts.runner import Progress
from prior3d.data.posed.dataset import PosedDataset
from prior3d.data.sample.augmentation import assemble
from prior3d.data.sample.loading import to_float
from prior3d.errors import DamagedFile, UserError
from prior3d.jobs.store import Store
from prior3d.pretraining.building import Parts, first_available
from prior3d.pretraining.objective import JointObjective, encode
from prior3d.randomness import generator, reseed

if TYPE_CHECKING:
    from prior3d.recipe import Recipe

Keep = Callable[[int, Callable[[Path], None], bool], Path]
"""(scene, build, wait): the scene's folder, built first where it does not exist, as `prior3d.jobs.store` does."""


def prepare_priors(parts: Parts, recipe: "Recipe", progress: Progress, console: Console) -> None:
    """Run the offline stage of every prior that has one, and hand it what was prepared."""
    for label, prior in stages(parts.objective).items():
        if prior.refresh_steps:
            console.print(f"{label}: {_plan(prior.refresh_steps, recipe.trainer.max_steps)}")
            continue
        device, skip_damaged = _device(recipe), recipe.data.on_damage == "skip"
        preparation = Preparation(label, prior, parts.dataset, lambda d=device: _copy(parts.backbone, d), skip_damaged)
        prior.attach(preparation.run(_keep_in_cache(label, prior, parts, recipe), progress))
        console.print(f"{label}: {len(parts.dataset.scenes)} scenes prepared, {preparation.built} of them now")
        for damage in preparation.damaged:
            console.print(f"skipped: {damage}")


def stages(objective: JointObjective) -> dict[str, Prior]:
    """Return the priors that have an offline stage, by label."""
    return {label: prior for label, prior in objective.priors.items() if prior.prepares}


class Preparation:
    """One prior's offline stage over all scenes of a dataset, with one teacher.

    Args:
        label: of the prior, for messages.
        prior: prepares scenes; handed nothing yet.
        dataset: its scenes.
        teacher: gives it, frozen and on the device that computes; asked for only where a scene is left to prepare.
        skip_damaged: leave out frames that cannot be decoded; they are added to the dataset's `damaged`.

    Attributes:
        built: scenes this process has prepared.
        damaged: frames left out.
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
        self.built = 0
        self.damaged: list[DamagedFile] = []
        self._make_teacher = teacher

    def run(self, keep: Keep, progress: Progress) -> list[Path]:
        """Prepare all scenes, side by side with other processes, and return their folders when all are there.

        Every process begins at another scene and passes over those that others are at; it comes back to them at last,
        to wait, or to take over from one that died.

        Args:
            keep: where scenes are kept.
            progress: shows how far this is.
        """
        count = len(self.dataset.scenes)
        start = secrets.randbelow(count)
        left = deque(((start + step) % count, False) for step in range(count))
        folders = {}
        for _ in progress(range(count), f"{self.label}: preparing scenes", count):
            while True:
                scene, wait = left.popleft()
                try:
                    folders[scene] = keep(scene, lambda folder, scene=scene: self._prepare(scene, folder), wait)
                    break
                except BlockingIOError:
                    left.append((scene, True))
        return [folders[scene] for scene in range(count)]

    def _prepare(self, scene: int, folder: Path) -> None:
        reseed("prepare", self.dataset.scene_fingerprint(scene))  # the same in whatever process and order
        name, frames = self.dataset.scenes[scene], self.dataset.frame_count(scene)
        views = Scene(scene, name, frames, lambda numbers: self._read(scene, numbers))
        try:
            self.prior.prepare(views, self._teach, folder)
        except UserError as error:
            raise UserError(error.message, error.key or f"priors.{self.label}") from error
        self.built += 1

    @cached_property
    def _teacher(self) -> Backbone:
        return self._make_teacher()

    @torch.no_grad()
    def _teach(self, images: Tensor) -> Features:
        reads = self.prior.reads & {"encoder", "dense", "pooled"}
        return encode(self._teacher, {"image": images}, ["image"], reads).features["image"]

    def _read(self, scene: int, frames: Sequence[int]) -> Batch:
        views = list(self._decode(scene, frames))
        if not views:
            raise UserError(f"no frame of scene {self.dataset.scenes[scene]} can be read")
        sample = assemble(views, self.dataset.spec.size, None, self.fields, generator("prepare"), self.table)
        device = next(self._teacher.parameters()).device
        return to_float({name: value[None].to(device) for name, value in sample.items()}, self.table)

    def _decode(self, scene: int, frames: Sequence[int]) -> Iterator[View]:
        for frame in frames:
            try:
                yield self.dataset.load(scene, frame, self.table.declared(self.fields))
            except DamagedFile as damage:
                if not self.skip_damaged:
                    advice = "repair it, or set data.on_damage: skip"
                    raise UserError(f"damaged file {damage.path}: {damage.why}; {advice}", "data.on_damage") from damage
                if damage.path not in {known.path for known in self.dataset.damaged}:
                    self.damaged.append(damage)
                    self.dataset.damaged.append(damage)


def _keep_in_cache(label: str, prior: Prior, parts: Parts, recipe: "Recipe") -> Keep:
    """Keep scenes in the cache, by all that they depend on; runs that agree in that share them."""
    section, backbone = recipe.priors[label], recipe.backbone
    options = section.options if prior.prepared_options is None else prior.prepared_options
    facts = {
        "prior": section.prior,
        "version": prior.prepared_version,
        "options": {name: section.options[name] for name in options},
        "backbone": [backbone.name, dict(backbone.timm_options), backbone.decoder_stride, parts.backbone.digest()],
        "size": list(recipe.data.size),
    }
    store = Store(Path(recipe.data.cache))

    def keep(scene: int, build: Callable[[Path], None], wait: bool) -> Path:
        whole = {**facts, "scene": parts.dataset.scene_fingerprint(scene)}
        return store.build(f"prepared/{section.prior}", whole, build, wait)

    return keep


def _device(recipe: "Recipe") -> torch.device:
    if recipe.trainer.accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", (rank_zero_only.rank or 0) % torch.cuda.device_count())


def _copy(backbone: Backbone, device: torch.device) -> Backbone:
    return deepcopy(backbone).requires_grad_(False).eval().to(device)


def _plan(steps: Sequence[int], max_steps: int) -> str:
    """Say when a prior is prepared within training."""
    ahead = [step for step in sorted(steps) if step < max_steps]
    if not ahead:
        return f"would first be prepared at step {min(steps)}, this run ends at {max_steps}: its loss stays 0"
    return f"prepared from the moving average at step {', '.join(map(str, ahead))}; until then its loss is 0"
