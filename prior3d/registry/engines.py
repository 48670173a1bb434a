"""Which engine does a numerical job on tensors of a device and type: by name, or by `auto`."""

import difflib
import logging
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from prior3d.errors import UserError, refusal_of
from prior3d.registry.registry import Registry, current

if TYPE_CHECKING:
    import torch

    from prior3d.contracts.engine import Engine

_LOG = logging.getLogger(__name__)


class EngineChoice:
    """An engine by name, or `auto`, to be settled when the tensors and their device are known.

    A name is looked up at once, in the registry that is in force where the choice is made, so that a recipe is refused
    before any data is read.

    Args:
        job: sparse, splat or neighbours.
        name: `auto`, or an engine's name, with or without the job before it: `gsplat`, `splat/gsplat`.

    Raises:
        UserError: with the key `engine`, for a name that no engine of this job has, or an engine that can run on no
            device of this machine.
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
        """Return the engine for tensors of a device and type; see `choose`."""
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
    """Return the engine that does a job on tensors of a device and type.

    What is asked for by name is given or refused, never replaced. `auto` takes the engine of the highest rank that has
    no obstacle; one that cannot even be imported is passed over with a warning. The choice is logged once for each job,
    kind of device and engine.

    Args:
        job: sparse, splat or neighbours.
        name: `auto`, or an engine's name, with or without the job before it.
        device: of the tensors.
        dtype: of the tensors.
        registry: where to look; by default the one in force.

    Returns:
        An engine of the job: an instance of `SparseEngine`, `SplatEngine` or `NeighbourEngine`.

    Raises:
        UserError: with the key `engine`: an unknown name, with the nearest one and all others, or why the engine cannot
            run here and what to install.

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
        broken = refusal_of(partial(_named, job, name, registry))
        if broken is None:
            candidates.append((name, _named(job, name, registry)))
        else:
            obstacles[name] = broken.message
            _warn_once(job, name, broken.message)
    for name, engine in sorted(candidates, key=lambda candidate: (-candidate[1].rank, candidate[0])):
        obstacle = engine.obstacle(device, dtype)
        if obstacle is None:
            passed = "; ".join(f"not {other}: {reason}" for other, reason in obstacles.items())
            _log_once(job, device.type, name, f" (auto{'; ' if passed else ''}{passed})")
            return engine
        obstacles[name] = obstacle
    why = "; ".join(f"{name}: {reason}" for name, reason in obstacles.items()) or "none is installed"
    raise UserError(f"no {job} engine can run on {device.type} with {dtype}: {why}", "engine")


def _named(job: str, name: str, registry: Registry) -> "Engine":
    known = names(job, registry)
    if name not in known:
        near = next(iter(difflib.get_close_matches(name, known, n=1)), None)
        hint = f", did you mean '{near}'?" if near else ""
        raise UserError(f"unknown {job} engine '{name}'{hint} (there are: {', '.join(('auto', *known))})", "engine")
    made = _instance(registry.get("engines", f"{job}/{name}", "engine"))
    if getattr(made, "job", None) != job:
        raise UserError(f"engine '{job}/{name}' does the job {getattr(made, 'job', None)}, not {job}", "engine")
    return made


@cache
def _instance(cls: type) -> "Engine":
    """Return the one instance of an engine's class: it may hold what is costly to make."""
    return cls()


def _refuse_if_it_runs_nowhere(name: str, engine: "Engine") -> None:
    """Refuse an engine asked for by name that has an obstacle on every device of this machine."""
    import torch

    types = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    obstacles = [engine.obstacle(torch.device(kind), torch.float32) for kind in types]
    if all(obstacles):  # the last: of the device one would want it for
        raise UserError(f"{engine.job} engine '{name}' cannot run here: {obstacles[-1]}", "engine")


@cache
def _log_once(job: str, device_type: str, name: str, why: str) -> None:
    _LOG.info("%s engine on %s: %s%s", job, device_type, name, why)


@cache
def _warn_once(job: str, name: str, problem: str) -> None:
    _LOG.warning("%s engine %s is passed over by auto: %s", job, name, problem)
