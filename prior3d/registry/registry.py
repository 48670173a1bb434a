"""Which priors, datasets and probes there are, where each is from, and its class once it is used.

Names come from package metadata (entry points) and from files, without importing any of them: listing is quick, and a
plugin that is broken, or that shares its name with another, is an error only for the recipe that names it.
"""

import difflib
import hashlib
import importlib
import importlib.util
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.machinery import PathFinder
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path

from prior3d.errors import UserError
from prior3d.messages import shown
from prior3d.registry import plugin_files
from prior3d.registry.kinds import KINDS, Kind
from prior3d.registry.plugin_files import dropped_files, module_of, named_classes_in


@dataclass(frozen=True)
class Plugin:
    """One name that a recipe can use.

    Attributes:
        kind: priors, datasets or probes.
        name: what recipes call it.
        origin: where it is from: "prior3d 0.1.0" or "file my_prior.py".
        version: of the distribution; for a file the start of its SHA-256, "sha256:1f2e3d4c5b6a".
        target: `module:Class`, imported only when used.
    """

    kind: Kind
    name: str
    origin: str
    version: str
    target: str = field(repr=False)

    def __str__(self) -> str:
        return f"{self.kind[:-1]} '{self.name}' ({self.origin})"


class Registry:
    """All plugins that are installed, dropped into the plugin folder, or given as files.

    Args:
        files: plugin files a recipe or the command line names.

    Raises:
        UserError: for one of `files` that is missing, not Python, or holds no plugin.
    """

    def __init__(self, files: Sequence[Path | str] = ()) -> None:
        self.files = tuple(dict.fromkeys(Path(file).resolve() for file in files))
        self._named = [plugin for file in self.files for plugin in _from_named_file(file)]

    def list(self, kind: Kind) -> tuple[Plugin, ...]:
        """Return the plugins of a kind in the order of their names; clashing ones stand side by side."""
        return tuple(sorted((p for p in self._plugins if p.kind == kind), key=lambda p: (p.name, p.origin)))

    def find(self, kind: Kind, name: str, key: str | None = None) -> Plugin:
        """Return the plugin of a name, importing nothing.

        Args:
            kind: priors, datasets or probes.
            name: as recipes call it.
            key: dotted path of the recipe's key that names it, for messages.

        Raises:
            UserError: for a name nobody has, with the nearest one, or that two origins share, naming both.
        """
        plugins = self.list(kind)
        found = [plugin for plugin in plugins if plugin.name == name]
        if not found:
            raise UserError(self._unknown(kind, name, [plugin.name for plugin in plugins]), key)
        if len(found) > 1:
            origins = " and ".join(_tell_apart(found))
            raise UserError(f"{kind[:-1]} '{name}' is declared by {origins}: rename or remove one of them", key)
        return found[0]

    def get(self, kind: Kind, name: str, key: str | None = None) -> type:
        """Return the class of a name, importing it.

        Raises:
            UserError: as `find`; or for a plugin that fails to import, is of another kind, or speaks another version of
                the contract.
        """
        plugin = self.find(kind, name, key)
        loaded = _load(plugin, key)
        contract = KINDS[kind]
        module, _, base = contract.base.partition(":")
        if not (isinstance(loaded, type) and issubclass(loaded, getattr(importlib.import_module(module), base))):
            what = f"class {loaded.__qualname__}" if isinstance(loaded, type) else type(loaded).__name__
            raise UserError(f"{plugin} must be a subclass of prior3d's {base}, got {what}", key)
        if loaded.contract != contract.version:
            versions = f"version {loaded.contract} of the {base} contract, this prior3d version {contract.version}"
            raise UserError(f"{plugin} speaks {versions}", key)
        return loaded

    def problems(self, kind: Kind) -> dict[Plugin, str]:
        """Return what is known to be wrong with the plugins of a kind without importing them."""
        plugins = self.list(kind)
        names = [plugin.name for plugin in plugins]
        found = {p: f"the name is taken {names.count(p.name)} times" for p in plugins if names.count(p.name) > 1}
        missing = {plugin: _missing_module(plugin.target) for plugin in plugins}
        return {plugin: f"no module {module}" for plugin, module in missing.items() if module} | found

    @property
    def unreadable(self) -> tuple[str, ...]:
        """What is wrong with dropped files that are not Python, so that nobody knows what they offer."""
        return self._dropped[1]

    @cached_property
    def _plugins(self) -> tuple[Plugin, ...]:
        return (*self._installed, *self._dropped[0], *self._named)

    @cached_property
    def _installed(self) -> tuple[Plugin, ...]:
        """Plugins by entry points; the metadata module skips a distribution that an earlier path shadows."""
        points = entry_points()
        found = (_from_entry_point(kind, point) for kind in KINDS for point in points.select(group=f"prior3d.{kind}"))
        return tuple(dict.fromkeys(found))

    @cached_property
    def _dropped(self) -> tuple[tuple[Plugin, ...], tuple[str, ...]]:
        """Plugins of dropped files, and what is wrong with the files that cannot be read."""
        declared = frozenset(plugin.target.partition(":")[0] for plugin in self._installed)
        plugins, problems = [], []
        for module, file in dropped_files(declared).items():
            if file.resolve() not in self.files:
                try:
                    plugins += _from_file(file, module)
                except UserError as error:
                    problems.append(str(error))
        return tuple(plugins), tuple(problems)

    def _unknown(self, kind: Kind, name: str, names: Sequence[str]) -> str:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f", did you mean '{near[0]}'?" if near else ""
        doubt = f"; {'; '.join(self.unreadable)}" if self.unreadable else ""
        return f"unknown {kind[:-1]} '{name}'{hint} (there are: {', '.join(dict.fromkeys(names)) or 'none'}{doubt})"


_IN_FORCE: ContextVar[Registry | None] = ContextVar("registry", default=None)


@contextmanager
def in_force(registry: Registry | None) -> Iterator[None]:
    """Make a registry the one that `current` returns within the block; None leaves it as it is."""
    token = _IN_FORCE.set(registry or _IN_FORCE.get())
    try:
        yield
    finally:
        _IN_FORCE.reset(token)


def current() -> Registry:
    """Return the registry in force: the recipe's while its plugins are constructed, else that of what is installed.

    A prior or probe finds with it, in its constructor, the engines of the recipe's plugin files.

    >>> current().find("priors", "view_invariance").name
    'view_invariance'
    """
    return _IN_FORCE.get() or _installed()


@cache
def _installed() -> Registry:
    return Registry()


def _from_entry_point(kind: Kind, point: EntryPoint) -> Plugin:
    origin, version = _distribution(point.dist)
    return Plugin(kind, point.name, f"{origin} {version}", version, point.value)


@cache  # reading metadata takes a millisecond, and a distribution has many entry points
def _distribution(distribution: Distribution) -> tuple[str, str]:
    return distribution.metadata["Name"], distribution.version


def _from_named_file(file: Path) -> list[Plugin]:
    plugins = _from_file(file, module_of(file))
    if not plugins:
        bases = ", ".join(plugin_files.BASES)
        raise UserError(f"plugin file {shown(file)} holds no class that derives from one of {bases}")
    return plugins


def _from_file(file: Path, module: str) -> list[Plugin]:
    classes = named_classes_in(file)
    version = f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()[:12]}"
    origin = f"file {shown(file)}"
    return [Plugin(kind, name, origin, version, f"{module}:{cls}") for kind, name, cls in classes]


def _load(plugin: Plugin, key: str | None) -> object:
    """Import a plugin's target; whatever its import raises is the plugin's problem, so it is told and not hidden."""
    try:
        return EntryPoint(plugin.name, plugin.target, f"prior3d.{plugin.kind}").load()
    except (Exception, SystemExit) as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
        where = f" ({shown(Path(frames[-1].filename))}, line {frames[-1].lineno})" if len(frames) > 1 else ""
        reason = f"{type(error).__name__}: {error}{where}"
        raise UserError(f"{plugin} cannot be imported: {reason}", key) from error


def _tell_apart(plugins: Sequence[Plugin]) -> list[str]:
    """Return the plugins' origins, with the class where one origin has several of them."""
    origins = [plugin.origin for plugin in plugins]
    if len(set(origins)) == len(origins):
        return origins
    return [f"{plugin.origin} ({plugin.target.rpartition(':')[2]})" for plugin in plugins]


def _missing_module(target: str) -> str | None:
    """Return the first part of a target's module path that cannot be found, looking without importing."""
    if target.startswith(f"{plugin_files.__name__}."):
        return None
    name, *rest = target.partition(":")[0].strip().split(".")
    spec = importlib.util.find_spec(name)
    for part in rest:
        if spec is None:
            break
        name = f"{name}.{part}"
        # by its last part: with the full name a folder without __init__ asks for its parent to be imported
        spec = PathFinder.find_spec(part, spec.submodule_search_locations or [])
    return name if spec is None else None
