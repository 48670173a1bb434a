"""Choice of the engine that does a numerical job on tensors of a device and dtype: by name, or by `auto`."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from prior3d.errors import UserError
from prior3d.messages import bug, did_you_mean
from prior3d.registry.members import checked_class
from prior3d.registry.registry import Registry, current

if TYPE_CHECKING:
    import torch

    from prior3d.contracts.engine import Engine

_LOG = logging.getLogger(__name__)


class EngineChoice:
    """An engine by name, or `auto`, which is resolved when the tensors and their device are known.

    A name is looked up at once, in the current registry, so a wrong recipe is rejected before any data is read.

    Args:
        job: sparse, splat or neighbors.
        name: `auto`, or an engine's name, with or without the job as prefix: `gsplat`, `splat/gsplat`.

    Raises:
        UserError: no engine of this job has this name, or the engine cannot run on any device of this machine; the key
            is `engine`.
    """

    def __init__(self, job: str, name: str = "auto") -> None:
        self.job, self.name = job, name.removeprefix(f"{job}/")
        self._registry = current()
        self._settled: dict[tuple[torch.device, torch.dtype], Engine] = {}
        if self.name != "auto":
            _refuse_if_it_runs_nowhere(self.name, _named(job, self.name, self._registry))

    def __repr__(self) -> str:
        return f"EngineChoice({self.job!r}, {self.name!r})"

    def __deepcopy__(self, memo: dict) -> "EngineChoice":
        """Return itself: copies of a module share the choice."""
        return self

    def on(self, device: "torch.device", dtype: "torch.dtype") -> Any:
        """Return the engine for tensors of a device and dtype; see `choose`."""
        key = (device, dtype)
        if key not in self._settled:
            self._settled[key] = choose(self.job, self.name, device, dtype, self._registry)
        return self._settled[key]


def choose(
    job: str,
    name: str,
    device: "torch.device",
    dtype: "torch.dtype",
    registry: Registry | None = None,
) -> Any:
    """Return the engine that does a job on tensors of a device and dtype.

    An engine requested by name is used or rejected, never replaced. `auto` takes the engine of the highest rank without
    an obstacle; it skips a broken engine, with a warning. The choice is logged once per job, kind of
    device and engine.

    Args:
        job: sparse, splat or neighbors.
        name: `auto`, or an engine's name, with or without the job as prefix.
        device: of the tensors.
        dtype: of the tensors.
        registry: where to look; by default the current registry.

    Returns:
        An engine of the job: an instance of `SparseEngine`, `SplatEngine` or `NeighborEngine`.

    Raises:
        UserError: the name is unknown (the message has the nearest name and all others), or the engine cannot run here
            (the message has the reason and what to install); the key is `engine`.

    >>> import torch
    >>> choose("sparse", "torch", torch.device("cpu"), torch.float32).job
    'sparse'
    """
    registry = registry or current()
    name = name.removeprefix(f"{job}/")
    if name == "auto":
        return _best(job, device, dtype, registry)
    engine = _named(job, name, registry)
    if obstacle := engine.obstacle(device, dtype):
        raise UserError(f"{job} engine '{name}' cannot run here: {obstacle}", "engine")
    _log_once(job, device.type, name, "")
    return engine


def names(job: str, registry: Registry | None = None) -> tuple[str, ...]:
    """Return the names of a job's engines, importing none of them.

    >>> "torch" in names("sparse")
    True
    """
    found = (plugin.name.partition("/") for plugin in (registry or current()).list("engines"))
    return tuple(dict.fromkeys(name for prefix, _, name in found if prefix == job))


def _best(job: str, device: "torch.device", dtype: "torch.dtype", registry: Registry) -> "Engine":
    candidates, obstacles = [], {}
    for name in names(job, registry):
        with _skipping_broken(job, name, obstacles):
            engine = _named(job, name, registry)
            candidates.append((-engine.rank, name, engine))
    for _, name, engine in sorted(candidates, key=lambda candidate: candidate[:2]):
        with _skipping_broken(job, name, obstacles):
            obstacle = engine.obstacle(device, dtype)
            if obstacle is None:
                passed = "; ".join(f"not {other}: {reason}" for other, reason in obstacles.items())
                _log_once(job, device.type, name, f" (auto{'; ' if passed else ''}{passed})")
                return engine
            obstacles[name] = obstacle
    why = "; ".join(f"{name}: {reason}" for name, reason in obstacles.items()) or "none is installed"
    raise UserError(f"no {job} engine can run on {device.type} with {dtype}: {why}", "engine")


@contextmanager
def _skipping_broken(job: str, name: str, obstacles: dict[str, str]) -> Iterator[None]:
    """Record an error of an engine as its obstacle, with a warning: a bug ends only the runs that name the engine."""
    try:
        yield
    except Exception as error:
        obstacles[name] = error.message if isinstance(error, UserError) else f"it is broken: {bug(error)}"
        _warn_once(job, name, obstacles[name])


def _named(job: str, name: str, registry: Registry) -> "Engine":
    known = names(job, registry)
    if name not in known:
        hint = did_you_mean(name, known)
        raise UserError(f"unknown {job} engine '{name}'{hint} (there are: {', '.join(('auto', *known))})", "engine")
    made = _instance(checked_class(registry.get("engines", f"{job}/{name}", "engine"), "engine"))
    if getattr(made, "job", None) != job:
        raise UserError(f"engine '{job}/{name}' does the job {getattr(made, 'job', None)}, not {job}", "engine")
    return made


@cache
def _instance(cls: type) -> "Engine":
    """Return the single instance of an engine's class, which may hold expensive resources."""
    return cls()


def _refuse_if_it_runs_nowhere(name: str, engine: "Engine") -> None:
    """Reject an engine requested by name that has an obstacle on every device of this machine."""
    import torch

    types = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    obstacles = [engine.obstacle(torch.device(kind), torch.float32) for kind in types]
    if all(obstacles):  # report the last one: that of the most likely device
        raise UserError(f"{engine.job} engine '{name}' cannot run here: {obstacles[-1]}", "engine")


@cache
def _log_once(job: str, device_type: str, name: str, why: str) -> None:
    _LOG.info("%s engine on %s: %s%s", job, device_type, name, why)


@cache
def _warn_once(job: str, name: str, problem: str) -> None:
    _LOG.warning("auto skips the %s engine %s: %s", job, name, problem)
