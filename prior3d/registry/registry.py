"""The available plugins, the origin of each, and its class once it is used.

Names come from package metadata (entry points) and from files, without importing any of them: listing is quick, and a
broken plugin, or one that shares its name with another, is an error only for a recipe that names it.
"""

import hashlib
import importlib
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.metadata import Distribution, EntryPoint, entry_points
from itertools import chain
from pathlib import Path

from prior3d.errors import UserError, several
from prior3d.messages import did_you_mean, shown
from prior3d.registry import plugin_files
from prior3d.registry.kinds import KINDS, Kind
from prior3d.registry.plugin_files import dropped_files, module_of, snake_case
from prior3d.registry.source_text import BASES, Texts, Unreadable, read_text


@dataclass(frozen=True)
class Plugin:
    """One name that a recipe can use.

    Attributes:
        kind: kind of plugin.
        name: name in recipes.
        origin: origin of the plugin: "prior3d 0.1.0" or "file my_prior.py".
        version: version of the distribution; for a file the start of its SHA-256, "sha256:1f2e3d4c5b6a".
        target: `module:Class`, which is imported only when used.
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
        files: plugin files that a recipe or the command line names.

    Raises:
        UserError: one of `files` is missing, is not Python, or has no plugin.
    """

    def __init__(self, files: Sequence[Path | str] = ()) -> None:
        self._named: dict[Path, list[Plugin]] = {}
        for file in several(files, "plugins"):
            self.add(file)

    @property
    def files(self) -> tuple[Path, ...]:
        """The given plugin files, as absolute paths."""
        return tuple(self._named)

    def add(self, file: Path | str) -> None:
        """Add the plugins of a file.

        Raises:
            UserError: the file is missing, is not Python, or has no plugin.
        """
        file = Path(file).resolve()
        try:
            plugins = self._of_file(file, module_of(file))
        except Unreadable as error:
            raise UserError(str(error)) from error
        if not plugins:
            bases = ", ".join(BASES)
            raise UserError(f"plugin file {shown(file)} holds no class that derives from one of {bases}")
        self._named[file] = plugins

    def list(self, kind: Kind) -> tuple[Plugin, ...]:
        """Return the plugins of a kind sorted by name, including all plugins that share a name."""
        return tuple(sorted((p for p in self._plugins if p.kind == kind), key=lambda p: (p.name, p.origin)))

    def find(self, kind: Kind, name: str, key: str | None = None) -> Plugin:
        """Return the plugin of a name without importing it.

        Args:
            kind: kind of plugin.
            name: name in recipes.
            key: dotted path of the recipe key that names it, for messages.

        Raises:
            UserError: no plugin has this name (the message has the nearest name), or two origins share it (the message
                names both).
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
        """Import and return the class of a name.

        Raises:
            UserError: as for `find`; or the plugin fails to import, is of another kind, or uses another version of the
                contract.
        """
        plugin = self.find(kind, name, key)
        loaded = _load(plugin, key)
        contract = KINDS[kind]
        module, _, base = contract.base.partition(":")
        if not (isinstance(loaded, type) and issubclass(loaded, getattr(importlib.import_module(module), base))):
            what = f"class {loaded.__qualname__}" if isinstance(loaded, type) else type(loaded).__name__
            raise UserError(f"{plugin} must be a subclass of prior3d's {base}, got {what}", key)
        if loaded.contract != contract.version:
            versions = (
                f"version {loaded.contract} of the {base} contract, but this prior3d has version {contract.version}"
            )
            raise UserError(f"{plugin} is made for {versions}", key)
        return loaded

    def problems(self, kind: Kind) -> dict[Plugin, str]:
        """Return the problems with the plugins of a kind that can be found without importing them."""
        plugins = self.list(kind)
        names = [plugin.name for plugin in plugins]
        taken = {p: f"the name is taken {names.count(p.name)} times" for p in plugins if names.count(p.name) > 1}
        found = {plugin: self._texts.problem(*_parts(plugin)) for plugin in plugins}
        return {plugin: problem for plugin, problem in found.items() if problem} | taken

    def summary(self, plugin: Plugin) -> str:
        """Return the first line of a plugin's documentation without importing it; empty if it cannot be read."""
        return "" if self._texts.problem(*_parts(plugin)) else self._texts.summary(*_parts(plugin))

    @property
    def unreadable(self) -> tuple[str, ...]:
        """Problems of dropped files that are not Python, whose plugins are therefore unknown."""
        return self._dropped[1]

    @property
    def _plugins(self) -> tuple[Plugin, ...]:
        dropped = (plugins for file, plugins in self._dropped[0].items() if file not in self._named)
        return (*self._installed, *chain(*dropped), *chain(*self._named.values()))

    @cached_property
    def _installed(self) -> tuple[Plugin, ...]:
        """Plugins from entry points; the metadata module skips a distribution that an earlier path shadows."""
        points = entry_points()
        found = (_from_entry_point(kind, point) for kind in KINDS for point in points.select(group=f"prior3d.{kind}"))
        return tuple(dict.fromkeys(found))

    @cached_property
    def _texts(self) -> Texts:
        targets = (plugin.target.partition(".")[0].partition(":")[0] for plugin in self._installed)
        return Texts(["prior3d", plugin_files.FOLDER_PACKAGE, *targets])

    @cached_property
    def _dropped(self) -> tuple[dict[Path, Sequence[Plugin]], tuple[str, ...]]:
        """Plugins of dropped files, and the problems of files that cannot be read."""
        declared = frozenset(plugin.target.partition(":")[0] for plugin in self._installed)
        plugins, problems = {}, []
        for module, file in dropped_files(declared).items():
            try:
                plugins[file.resolve()] = self._of_file(file, module)
            except Unreadable as error:
                problems.append(str(error))
        return plugins, tuple(problems)

    def _of_file(self, file: Path, module: str) -> Sequence[Plugin]:
        package = module if file.name == "__init__.py" else module.rpartition(".")[0]
        text = read_text(file, "plugin file", package)
        self._texts.put(module, text)
        version = f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()[:12]}"
        origin = f"file {shown(file)}"
        return [
            Plugin(role.kind, role.prefix + snake_case(name), origin, version, f"{module}:{name}")
            for role, name in self._texts.classes_of(text)
        ]

    def _unknown(self, kind: Kind, name: str, names: Sequence[str]) -> str:
        hint = did_you_mean(name, names)
        doubt = f"; {'; '.join(self.unreadable)}" if self.unreadable else ""
        return f"unknown {kind[:-1]} '{name}'{hint} (there are: {', '.join(dict.fromkeys(names)) or 'none'}{doubt})"


_IN_FORCE: ContextVar[Registry | None] = ContextVar("registry", default=None)


@contextmanager
def in_force(registry: Registry | None) -> Iterator[None]:
    """Make `current` return this registry within the block; None changes nothing."""
    token = _IN_FORCE.set(registry or _IN_FORCE.get())
    try:
        yield
    finally:
        _IN_FORCE.reset(token)


def current() -> Registry:
    """Return the current registry: the recipe's while its plugins are constructed, else that of installed plugins.

    The constructor of a prior or probe uses it to find engines in the recipe's plugin files.

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


def _parts(plugin: Plugin) -> tuple[str, str]:
    """Return module and name of a plugin's class."""
    module, _, name = plugin.target.partition(":")
    return module.strip(), name.partition("[")[0].strip()


def _load(plugin: Plugin, key: str | None) -> object:
    """Import a plugin's target; report every error of the import as a problem of the plugin."""
    try:
        return EntryPoint(plugin.name, plugin.target, f"prior3d.{plugin.kind}").load()
    except (Exception, SystemExit) as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
        where = f" ({shown(Path(frames[-1].filename))}, line {frames[-1].lineno})" if len(frames) > 1 else ""
        reason = f"{type(error).__name__}: {error}{where}"
        raise UserError(f"{plugin} cannot be imported: {reason}", key) from error


def _tell_apart(plugins: Sequence[Plugin]) -> list[str]:
    """Return the plugins' origins, with the class if one origin has several of the plugins."""
    origins = [plugin.origin for plugin in plugins]
    if len(set(origins)) == len(origins):
        return origins
    return [f"{plugin.origin} ({plugin.target.rpartition(':')[2]})" for plugin in plugins]
