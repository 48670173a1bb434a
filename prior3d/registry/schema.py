"""Schemas of recipe sections from constructor signatures: strict validation, and a JSON schema for editors."""

import dataclasses
import inspect
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path, PurePath
from typing import Annotated, Any, NotRequired, Protocol, get_args, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError
from typing_extensions import TypedDict

from prior3d.errors import UserError, section
from prior3d.messages import described, join, unknown_key
from prior3d.registry.kinds import KINDS, Kind
from prior3d.registry.members import checked_class
from prior3d.registry.registry import Registry, in_force
from prior3d.registry.schema_errors import explain

_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
_UNUSABLE = (PydanticUserError, PydanticUndefinedAnnotation, TypeError)
_LONGEST_NAME = 255
_REQUIRED = inspect.Parameter.empty
_VARIABLE = re.compile(r"\$(?:(\$)|([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)\})")


class Given(Protocol):
    """Origin of the keys of a section; keys are dotted paths from the root of the recipe."""

    def folder_of(self, key: str) -> Path:
        """Return the folder in which relative paths at a key start."""
        ...

    def removes(self, key: str) -> bool:
        """Whether the key was set to null over an earlier value, which removes that value."""
        ...


@dataclass(frozen=True)
class OptionsOf:
    """Mark of an option that holds another plugin's options: `Annotated[dict, OptionsOf("readers", "format", chosen)]`.

    A recipe is read with the schema of that plugin, too, so that paths in it start where all others of its file do.

    Attributes:
        kind: kind of the other plugin.
        naming: the option that names it.
        chosen: returns its name from the values of all options of the section; None if they do not tell.
    """

    kind: Kind
    naming: str
    chosen: Callable[[Mapping[str, object]], str | None]


@dataclass(frozen=True)
class Options:
    """The options that a constructor takes from its section of a recipe.

    Attributes:
        owner: name of the plugin for messages, such as "prior 'view_invariance' (prior3d 0.1.0)".
        types: name to annotation, in the order of the signature.
        defaults: name to default in recipe form; options without an entry here are required.
        docs: name to its description in the docstring.
    """

    owner: str
    types: Mapping[str, object]
    defaults: Mapping[str, object]
    docs: Mapping[str, str]

    def validate(
        self, given: object, key: str = "", beside: Iterable[str] = (), source: Given | None = None
    ) -> dict[str, object]:
        """Return all options in the constructor's types: the given ones, strictly checked, and the defaults.

        Paths become absolute, with `~` and `$VARIABLES` expanded.

        Args:
            given: the section as parsed from YAML, without the keys in `beside`.
            key: dotted path of the section, for messages and for `source`.
            beside: other keys that the section may have, for suggestions.
            source: where keys were given; None for paths relative to the current folder.

        Raises:
            UserError: a key is unknown, missing or wrong, and the error has that key; or the constructor cannot be a
                schema, and the error has the section's key.
        """
        with section(key):
            if not isinstance(given, Mapping):
                raise UserError(f"expected a section of keys, got {described(given)}")
            for name in given:
                if name not in self.types:
                    raise UserError(unknown_key(name, [*self.types, *beside]), join((name,)))
            _refuse_long_integers(given)
            made = self._make(dict(given), key, source)
            return {name: _absolute(made[name], (name,), key, source) for name in self.types}

    def _make(self, given: dict[str, object], key: str, source: Given | None) -> dict[str, object]:
        """Return a section validated by pydantic, without a null that removes an earlier value."""
        values = {name: self.defaults[name] for name in self.types if name in self.defaults} | given
        try:
            return self._adapter.validate_json(json.dumps(values))
        except _UNUSABLE as error:
            raise UserError(f"{self.owner} {_unusable(error)}") from error
        except ValidationError as error:
            path, message = explain(error, values, self._adapter.json_schema)
            if path and path[0] in self.defaults and path[0] not in given:
                raise UserError(f"{self.owner}: the default of {join(path)} is wrong: {message}") from error
            if source is not None and path and source.removes(f"{key}.{join(path)}" if key else join(path)):
                reduced = _without(given, path)
                if reduced is not None:
                    return self._make(reduced, key, source)
            raise UserError(message, join(path)) from None

    def nested(self) -> Iterator[tuple[str, OptionsOf]]:
        """Yield each option that holds another plugin's options, with its mark."""
        for name, annotation in self.types.items():
            marks = [mark for mark in getattr(annotation, "__metadata__", ()) if isinstance(mark, OptionsOf)]
            yield from ((name, mark) for mark in marks)

    def only(self, names: Iterable[str]) -> "Options":
        """Return the options with the given names."""
        return dataclasses.replace(self, types={name: self.types[name] for name in names})

    def json_schema(self, definitions: str) -> dict[str, object]:
        """Return the JSON schema of the section; references to its `$defs` are `#/$defs/<definitions>.<name>`.

        Raises:
            UserError: the constructor cannot be a schema.
        """
        try:
            schema = self._adapter.json_schema(ref_template=f"#/$defs/{definitions}.{{model}}")
        except _UNUSABLE as error:
            raise UserError(f"{self.owner} {_unusable(error)}") from error
        for inner in (inner for annotation in self.types.values() for inner in dataclasses_in(annotation)):
            described = schema.get("$defs", {}).get(inner.__name__, {}).get("properties", {})
            for name, text in _docs(inner).items():
                described.get(name, {}).setdefault("description", text)
        return schema

    @cached_property
    def _adapter(self) -> TypeAdapter:
        fields = {name: self._field(name) for name in self.types}
        made = TypedDict("Options", fields)  # from typing_extensions: pydantic rejects typing's before Python 3.12
        made.__pydantic_config__ = _STRICT
        return TypeAdapter(made)

    def _field(self, name: str) -> object:
        described = Annotated[self.types[name], Field(description=self.docs.get(name))]
        if name not in self.defaults:
            return described
        return NotRequired[Annotated[described, Field(json_schema_extra={"default": self.defaults[name]})]]


def read_options(
    make: type,
    owner: str,
    *,
    positional: tuple[str, ...] = (),
    reserved: Iterable[str] = (),
) -> Options:
    """Read a constructor's signature as the schema of a recipe's section.

    Args:
        make: the class.
        owner: name of the plugin, for messages.
        positional: arguments passed by position, not from the recipe: ("backbone",) for a prior, ("spec",) for a
            dataset.
        reserved: keys of the section that do not belong to the constructor.

    Raises:
        UserError: the constructor cannot be a schema: it has options without a type, `**kwargs`, annotations that exist
            only for type checkers, or options with the name of a reserved key.
    """
    init = inspect.unwrap(make.__init__)
    parameters = [] if init is object.__init__ else list(inspect.signature(init).parameters.values())[1:]
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    for index, name in enumerate(positional):
        if index >= len(parameters) or parameters[index].kind not in by_position:
            raise UserError(f"{owner}: its constructor must take {name} first")
    options = parameters[len(positional) :]
    for option in options:
        if reason := _unfit(option, frozenset(reserved)):
            raise UserError(f"{owner}: {reason}")
    types = {option.name: _annotation(option, init, owner) for option in options}
    defaults = {option.name: _default(make, option, owner) for option in options if option.default is not _REQUIRED}
    return Options(owner, types, defaults, {**_docs(make), **_docs(init)})


def options_of(plugin: type, owner: str | None = None, reserved: Iterable[str] = ()) -> Options:
    """Read the options of a plugin with `read_options` and the positional arguments of its kind."""
    bases = {f"{base.__module__}:{base.__qualname__}" for base in plugin.__mro__}
    positional = next((contract.positional for contract in KINDS.values() if contract.base in bases), ())
    return read_options(plugin, owner or plugin.__qualname__, positional=positional, reserved=reserved)


def validate_options(plugin: type, given: object, key: str) -> dict[str, object]:
    """Return the keyword arguments for a plugin: the section `given`, strictly checked, and defaults.

    Args:
        plugin: the class.
        given: its own options as parsed from YAML.
        key: dotted path of the section, for messages.

    Raises:
        UserError: a key is unknown, missing or wrong; the error has that key.
    """
    with section(key):
        return options_of(plugin).validate(given)


def construct(
    cls: type, *positional: object, key: str, options: Mapping[str, object], registry: Registry | None = None
) -> Any:
    """Call a plugin's constructor; report an error of the constructor as an error in the recipe.

    Args:
        cls: the plugin.
        positional: the positional arguments of every plugin of its kind.
        key: dotted path of its section.
        options: options of the section.
        registry: the current registry while the constructor runs, used to find engines by name.

    Raises:
        UserError: the class does not fill its contract, or the constructor rejects its options; the key is one within
            the section, or the section's.
    """
    with section(key):
        values = options_of(checked_class(cls)).validate(options)
        try:
            with in_force(registry):
                return cls(*positional, **values)
        except ValueError as error:
            raise UserError(str(error)) from error


def plain(value: object) -> object:
    """Convert a validated option for YAML and JSON: paths to text, tuples to lists, dataclasses to mappings.

    A `$` in a path is doubled so that it names no variable when the text is read again.

    Raises:
        TypeError: a recipe cannot hold the value.
    """
    if isinstance(value, Enum):
        return plain(value.value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, PurePath):
        return str(value).replace("$", "$$")
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(plain(item) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value) if field.init}
    raise TypeError(f"expected something a recipe can hold, got {type(value).__name__}")


def _unusable(error: Exception) -> str:
    return (
        f"has options that no recipe can hold: {str(error).partition(chr(10))[0]}"  # pydantic's second line is a link
    )


def _unfit(option: inspect.Parameter, reserved: frozenset[str]) -> str | None:
    """Return why a parameter cannot be an option of a recipe."""
    if option.kind in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL):
        return f"its constructor takes {option}: every option must be named, because the names are keys of recipes"
    if option.kind is inspect.Parameter.POSITIONAL_ONLY:
        return f"its option {option.name} can only be given by position"
    if option.annotation is _REQUIRED:
        return f"its option {option.name} has no type annotation"
    if option.name in reserved:
        return f"its option {option.name} has the name of a key that every such section has: rename it"
    return None


def _annotation(option: inspect.Parameter, init: Callable, owner: str) -> object:
    """Return an option's annotation with all names in it resolved.

    Only this one is resolved: other names, as in `backbone: "BackboneSpec"`, may be imported for type checkers only.
    """

    def holder() -> None: ...

    holder.__annotations__ = {"option": option.annotation}
    try:
        annotation = get_type_hints(holder, init.__globals__, include_extras=True)["option"]
        _resolve_nested(annotation, set())
        return annotation
    except (NameError, AttributeError, SyntaxError, TypeError) as error:
        raise UserError(
            f"{owner}: the type of its option {option.name} cannot be resolved ({error}): "
            "import what it names at the top of the file, not under TYPE_CHECKING"
        ) from error


def dataclasses_in(annotation: object) -> Iterator[type]:
    """Yield the dataclasses that an annotation names, including nested ones."""
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        yield annotation
        for inner in get_type_hints(annotation, include_extras=True).values():
            yield from dataclasses_in(inner)
    for part in get_args(annotation):
        yield from dataclasses_in(part)


def _resolve_nested(annotation: object, seen: set[type]) -> None:
    """Resolve the annotations of all dataclasses in an annotation; pydantic would not name a missing one."""
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation) and annotation not in seen:
        seen.add(annotation)
        for inner in get_type_hints(annotation, include_extras=True).values():
            _resolve_nested(inner, seen)
    for part in get_args(annotation):
        _resolve_nested(part, seen)


def _default(make: type, option: inspect.Parameter, owner: str) -> object:
    """Return an option's default in recipe form."""
    default = option.default
    if dataclasses.is_dataclass(make):
        field = next((field for field in dataclasses.fields(make) if field.name == option.name), None)
        if field is not None and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
    try:
        return plain(default)
    except TypeError as error:
        raise UserError(f"{owner}: the default of its option {option.name} cannot be used: {error}") from error


def _docs(documented: object) -> dict[str, str]:
    """Return the descriptions in a docstring's Args or Attributes, by name."""
    section = re.search(r"^(?:Args|Attributes):\n((?:(?: {4}.*)?\n?)*)", inspect.getdoc(documented) or "", re.MULTILINE)
    found: dict[str, str] = {}
    for entry in re.finditer(r"^ {4}([\w, ]+): (.*(?:\n {5,}.*)*)", section.group(1) if section else "", re.MULTILINE):
        found |= dict.fromkeys(re.split(r", *", entry.group(1)), " ".join(entry.group(2).split()))
    return found


def expand(text: str) -> Path:
    """Return the path of a text in a recipe: expand `~`, `$NAME` and `${NAME}`, and turn `$$` into a dollar sign.

    Raises:
        UserError: a variable is not set, or a user is unknown.

    >>> expand("data/costs-5$$")
    PosixPath('data/costs-5$')
    """

    def value(found: re.Match) -> str:
        name = found.group(2) or found.group(3)
        if name is None:
            return "$"
        if name not in os.environ:
            raise UserError(f"the variable ${name} is not set (write $$ for a dollar sign)")
        return os.environ[name]

    expanded = _VARIABLE.sub(value, text)
    if "\0" in expanded:
        raise UserError("a path cannot hold a null character")
    if any(len(os.fsencode(part)) > _LONGEST_NAME for part in expanded.split("/")):
        raise UserError(f"a name in this path has more than {_LONGEST_NAME} bytes, which no file can have")
    try:
        return Path(expanded).expanduser() if text.startswith("~") else Path(expanded)
    except RuntimeError as error:
        raise UserError(f"{text}: the home folder of this user is unknown") from error


def _absolute(value: object, path: tuple[str | int, ...], key: str, source: Given | None) -> object:
    """Return a validated value with all paths made absolute, so it is valid from any folder."""
    if isinstance(value, Path):
        within = join(path)
        with section(within):
            expanded = expand(str(value))
        if expanded.is_absolute():
            return expanded
        return (Path.cwd() if source is None else source.folder_of(f"{key}.{within}" if key else within)) / expanded
    if isinstance(value, list | tuple):
        return type(value)(_absolute(item, (*path, index), key, source) for index, item in enumerate(value))
    if isinstance(value, dict):
        return {name: _absolute(item, (*path, name), key, source) for name, item in value.items()}
    if dataclasses.is_dataclass(value):
        old = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        new = {name: _absolute(item, (*path, name), key, source) for name, item in old.items()}
        return value if new == old else dataclasses.replace(value, **new)
    return value


def _refuse_long_integers(value: object, path: tuple[str | int, ...] = ()) -> None:
    """Reject integers that do not fit in 64 bits: code that computes with them would fail with unclear messages."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise UserError(f"expected an integer of 64 bits, got {value}", join(path))
    for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value if type(value) is list else ()):
        _refuse_long_integers(inner, (*path, key))


def _without(given: dict[str, object], path: tuple[str | int, ...]) -> dict[str, object] | None:
    """Return a section without the null at a path; None if there is no null at it."""
    name, *rest = path
    if not isinstance(given, Mapping) or name not in given:
        return None
    if rest:
        inner = _without(given[name], tuple(rest))
        return None if inner is None else {**given, name: inner}
    return {other: value for other, value in given.items() if other != name} if given[name] is None else None
