"""How a plugin's class fills its contract: what it must define, how it is called, and names that nothing calls."""

import difflib
import inspect
import logging
from collections.abc import Iterator, Mapping
from functools import cache

from prior3d.errors import UserError, section
from prior3d.registry.kinds import KINDS

_LOG = logging.getLogger(__name__)
_NEAR = 0.85
"""Likeness, 0..1, from which on a name counts as a misspelled one: `controls` and `control` have 0.93."""


def refuse_unusable(cls: type) -> None:
    """Refuse a plugin's class that its contract cannot use.

    Args:
        cls: a class that derives from the base class of a kind of plugins.

    Raises:
        UserError: it lacks a method that it must define; a method does not take what the contract passes; or a
            declaration that holds names is one text: `needs = "depth"` would be five names.
    """
    lacking = sorted(getattr(cls, "__abstractmethods__", ()))
    unknown = dict(unknown_names(cls))
    if lacking:
        hint = next((f"; it has {name}" for name, meant in unknown.items() if meant == lacking[0]), "")
        raise UserError(f"{cls.__name__} does not define {', '.join(lacking)}{hint}")
    contract = _contract(cls)
    for name, member in _own(cls).items():
        if name not in contract:
            continue
        if isinstance(contract[name], tuple | frozenset) and isinstance(member, str):
            raise UserError(f'{cls.__name__}: {name} is one text, expected several: {name} = ("{member}",)')
        if (taken := _arguments(contract[name])) is not None and not _takes(member, taken):
            raise UserError(
                f"{cls.__name__}.{name} is called with ({', '.join(taken)}) and has the signature {_shown(member)}"
            )


def checked_class(cls: type, key: str = "") -> type:
    """Return a plugin's class that its contract can use; warn of names that are probably misspelled.

    Args:
        cls: as for `refuse_unusable`.
        key: the option that names it, relative to the current section.

    Raises:
        UserError: as `refuse_unusable`, with this key.
    """
    with section(key):
        refuse_unusable(cls)
    warn_of_unknown_names(cls)
    return cls


def unknown_names(cls: type) -> Iterator[tuple[str, str]]:
    """Yield public names of a plugin's class that nothing calls, each with the optional name probably meant.

    A name counts if it is a former name of the contract, or nearly one of the same sort, method or value, and the class
    does not define that one.
    """
    contract, own = _contract(cls), _own(cls)
    former = {old: new for kind in _kinds(cls) for old, new in kind.former.items()}
    for name, member in own.items():
        if name in contract:
            continue
        sort = callable(member)
        free = [other for other, value in contract.items() if other not in own and callable(value) == sort]
        near = difflib.get_close_matches(name, free, n=1, cutoff=_NEAR)
        meant = former.get(name) or (near[0] if near else None)
        if meant in free:
            yield name, meant


@cache
def warn_of_unknown_names(cls: type) -> None:
    """Log a warning for each public name of a plugin's class that is probably misspelled; once for each class."""
    for name, meant in unknown_names(cls):
        _LOG.warning(
            "%s has %s, which prior3d does not call: if %s is meant, rename it; if not, call it _%s",
            *(cls.__name__, name, meant, name),
        )


def _kinds(cls: type) -> list:
    bases = {f"{base.__module__}:{base.__qualname__}" for base in cls.__mro__}
    return [contract for contract in KINDS.values() if contract.base in bases]


def _is_ours(base: type) -> bool:
    return base.__module__.partition(".")[0] == "prior3d" and not base.__module__.startswith(_FILES)


_FILES = "prior3d.registry.plugin_files."
"""Package under which plugin files are imported."""


def _contract(cls: type) -> Mapping[str, object]:
    """Return the public members that prior3d's own base classes define, by name; the nearest class first."""
    found: dict[str, object] = {}
    for base in filter(_is_ours, cls.__mro__):
        found = {name: value for name, value in vars(base).items() if not name.startswith("_")} | found
    return found


def _own(cls: type) -> Mapping[str, object]:
    """Return the public members that the plugin's own classes define, down to the first of prior3d's."""
    found: dict[str, object] = {}
    for base in cls.__mro__:
        if _is_ours(base):
            break
        found = {name: value for name, value in vars(base).items() if not name.startswith("_")} | found
    return found


def _function(member: object) -> object:
    return member.__func__ if isinstance(member, classmethod | staticmethod) else member


def _arguments(member: object) -> tuple[str, ...] | None:
    """Return the names of the positional arguments of a method, without self or cls; None for other members."""
    if not inspect.isfunction(_function(member)):
        return None
    parameters = inspect.signature(_function(member)).parameters.values()
    names = [one.name for one in parameters if one.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    return tuple(names[0 if isinstance(member, staticmethod) else 1 :])


def _takes(member: object, arguments: tuple[str, ...]) -> bool:
    """Whether a member can be called with these arguments by position; True if its signature cannot be read."""
    if not inspect.isfunction(_function(member)):
        return True
    first = () if isinstance(member, staticmethod) else ("self",)
    try:
        inspect.signature(_function(member)).bind(*first, *arguments)
    except TypeError:
        return False
    return True


def _shown(member: object) -> str:
    names = list(inspect.signature(_function(member)).parameters)
    return f"({', '.join(names)})"
