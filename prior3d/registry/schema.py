"""A constructor's signature is the schema of its section in a recipe: strict validation, JSON schema for editors."""

import dataclasses
import inspect
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path, PurePath
from typing import Annotated, Any, NotRequired, get_args, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError
from typing_extensions import TypedDict

from prior3d.errors import UserError
from prior3d.messages import described, join, unknown_key
from prior3d.registry.kinds import KINDS
from prior3d.registry.registry import Registry, in_force
from prior3d.registry.schema_errors import explain

_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
_UNUSABLE = (PydanticUserError, PydanticUndefinedAnnotation, TypeError)
_REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True)
class Options:
    """What a constructor takes from its section of a recipe.

    Attributes:
        owner: whose constructor it is, for messages, such as "prior 'view_invariance' (prior3d 0.1.0)".
        types: name to annotation, in the order of the signature.
        defaults: name to default, as a recipe would write it; what is not here must be given.
        docs: name to what the docstring says about it.
    """

    owner: str
    types: Mapping[str, object]
    defaults: Mapping[str, object]
    docs: Mapping[str, str]

    def validate(self, given: object, key: str, beside: Iterable[str] = ()) -> dict[str, object]:
        """Return all options as the constructor wants them: those given, strictly checked, and the defaults.

        Paths come out absolute, `~` expanded, relative ones taken from the current folder.

        Args:
            given: the section as YAML gave it, without the keys in `beside`.
            key: dotted path of the section, for messages.
            beside: further keys that the section may have, for suggestions.

        Raises:
            UserError: with the key that is unknown, missing or wrong; with the section's key where the constructor
                itself cannot be a schema.
        """
        if not isinstance(given, Mapping):
            raise UserError(f"expected a section of keys, got {described(given)}", key)
        for name in given:
            if name not in self.types:
                raise UserError(unknown_key(name, [*self.types, *beside]), join((key, name)))
        section = {**{name: self.defaults[name] for name in self.types if name in self.defaults}, **given}
        try:
            made = self._adapter.validate_json(json.dumps(section))
        except _UNUSABLE as error:
            raise UserError(f"{self.owner} {_unusable(error)}", key) from error
        except ValidationError as error:
            path, message = explain(error, section, self._adapter.json_schema)
            if path and path[0] in self.defaults and path[0] not in given:
                raise UserError(f"{self.owner}: the default of {join(path)} is wrong: {message}", key) from error
            raise UserError(message, join((key, *path))) from None
        return {name: _absolute(made[name]) for name in self.types}

    def only(self, names: Iterable[str]) -> "Options":
        """Return those of these options that have the given names."""
        return dataclasses.replace(self, types={name: self.types[name] for name in names})

    def json_schema(self, definitions: str) -> dict[str, object]:
        """Return the JSON schema of the section; its `$defs` are referred to as `#/$defs/<definitions>.<name>`.

        Raises:
            UserError: where the constructor cannot be a schema.
        """
        try:
            return self._adapter.json_schema(ref_template=f"#/$defs/{definitions}.{{model}}")
        except _UNUSABLE as error:
            raise UserError(f"{self.owner} {_unusable(error)}") from error

    @cached_property
    def _adapter(self) -> TypeAdapter:
        fields = {name: self._field(name) for name in self.types}
        made = TypedDict("Options", fields)  # typing_extensions' own: pydantic refuses typing's before Python 3.12
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
    told: tuple[str, ...] = (),
    reserved: Iterable[str] = (),
    names: Mapping[str, object] | None = None,
    key: str | None = None,
) -> Options:
    """Read a constructor's signature as the schema of a recipe's section.

    Args:
        make: the class.
        owner: whose constructor it is, for messages.
        told: what it is told by position, not by the recipe: ("backbone",) of a prior, ("spec",) of a dataset.
        reserved: keys of the section that are not the constructor's.
        names: what annotations may name beside the names of the constructor's module.
        key: dotted path of the recipe's key, for messages.

    Raises:
        UserError: for a constructor that cannot be a schema: options without a type, `**kwargs`, annotations that exist
            only for type checkers, options that have the name of a reserved key.
    """
    init = inspect.unwrap(make.__init__)
    parameters = [] if init is object.__init__ else list(inspect.signature(init).parameters.values())[1:]
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    for index, name in enumerate(told):
        if index >= len(parameters) or parameters[index].kind not in positional:
            raise UserError(f"{owner}: its constructor must take {name} first", key)
    options = parameters[len(told) :]
    for option in options:
        if reason := _unfit(option, frozenset(reserved)):
            raise UserError(f"{owner}: {reason}", key)
    types = {option.name: _annotation(option, init, owner, names, key) for option in options}
    defaults = {
        option.name: _default(make, option, owner, key) for option in options if option.default is not _REQUIRED
    }
    return Options(owner, types, defaults, {**_docs(make), **_docs(init)})


def options_of(plugin: type, owner: str | None = None, reserved: Iterable[str] = (), key: str | None = None) -> Options:
    """Read the options of a prior, dataset or probe: `read_options`, with what such a class is told by position."""
    bases = {f"{base.__module__}:{base.__qualname__}" for base in plugin.__mro__}
    told = next((contract.positional for contract in KINDS.values() if contract.base in bases), ())
    return read_options(plugin, owner or plugin.__qualname__, told=told, reserved=reserved, key=key)


def validate_options(plugin: type, given: object, key: str) -> dict[str, object]:
    """Return the keyword arguments for a prior, dataset or probe: the section `given`, strictly checked, and defaults.

    Args:
        plugin: the class.
        given: its own options as YAML gave them.
        key: dotted path of the section, for messages.

    Raises:
        UserError: with the key that is unknown, missing or wrong.
    """
    return options_of(plugin, key=key).validate(given, key)


def construct(
    cls: type, *told: object, key: str, options: Mapping[str, object], registry: Registry | None = None
) -> Any:
    """Call a plugin's constructor; what it refuses is the recipe's error.

    Args:
        cls: the plugin.
        told: what every plugin of its kind is told.
        key: dotted path of its section.
        options: of the section.
        registry: in force while the constructor runs, for what it chooses by name, such as engines.

    Raises:
        UserError: with a key, whatever the constructor called it.
    """
    try:
        with in_force(registry):
            return cls(*told, **validate_options(cls, options, key))
    except UserError as error:
        raise UserError(error.message, error.key or key) from error
    except ValueError as error:
        raise UserError(str(error), key) from error


def plain(value: object) -> object:
    """Return a validated option as YAML and JSON write it: paths as text, tuples as lists, dataclasses as mappings.

    Raises:
        TypeError: for what a recipe cannot hold.
    """
    if isinstance(value, Enum):
        return plain(value.value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, PurePath):
        return str(value)
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
        return f"its constructor takes {option}: every option must be named, they are the recipe's schema"
    if option.kind is inspect.Parameter.POSITIONAL_ONLY:
        return f"its option {option.name} can only be given by position"
    if option.annotation is _REQUIRED:
        return f"its option {option.name} has no type annotation"
    if option.name in reserved:
        return f"its option {option.name} has the name of a key that every such section has: rename it"
    return None


def _annotation(
    option: inspect.Parameter, init: Callable, owner: str, names: Mapping[str, object] | None, key: str | None
) -> object:
    """Return an option's annotation with all names in it resolved.

    One by one: `backbone: "BackboneSpec"` may well be imported for type checkers only.
    """

    def holder() -> None: ...

    holder.__annotations__ = {"option": option.annotation}
    try:
        annotation = get_type_hints(holder, init.__globals__, dict(names or {}), include_extras=True)["option"]
        _resolve_nested(annotation, set())
        return annotation
    except (NameError, AttributeError, SyntaxError, TypeError) as error:
        raise UserError(
            f"{owner}: the type of its option {option.name} cannot be resolved ({error}): "
            "import what it names at the top of the file, not under TYPE_CHECKING",
            key,
        ) from error


def _resolve_nested(annotation: object, seen: set[type]) -> None:
    """Resolve the annotations of all dataclasses in an annotation, since pydantic does not name the one it misses."""
    if dataclasses.is_dataclass(annotation) and annotation not in seen:
        seen.add(annotation)
        for inner in get_type_hints(annotation, include_extras=True).values():
            _resolve_nested(inner, seen)
    for part in get_args(annotation):
        _resolve_nested(part, seen)


def _default(make: type, option: inspect.Parameter, owner: str, key: str | None) -> object:
    """Return an option's default as a recipe would write it."""
    default = option.default
    if dataclasses.is_dataclass(make):
        field = next((field for field in dataclasses.fields(make) if field.name == option.name), None)
        if field is not None and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
    try:
        return plain(default)
    except TypeError as error:
        raise UserError(f"{owner}: the default of its option {option.name} cannot be used: {error}", key) from error


def _docs(documented: object) -> dict[str, str]:
    """Return what a docstring's Args or Attributes say, by name."""
    section = re.search(r"^(?:Args|Attributes):\n((?:(?: {4}.*)?\n?)*)", inspect.getdoc(documented) or "", re.MULTILINE)
    found: dict[str, str] = {}
    for entry in re.finditer(r"^ {4}([\w, ]+): (.*(?:\n {5,}.*)*)", section.group(1) if section else "", re.MULTILINE):
        found |= dict.fromkeys(re.split(r", *", entry.group(1)), " ".join(entry.group(2).split()))
    return found


def _absolute(value: object) -> object:
    """Return a validated value with every path in it absolute, so that it means the same from any folder."""
    if isinstance(value, Path):
        return Path(os.path.expanduser(value)).absolute()
    if isinstance(value, list | tuple):
        return type(value)(_absolute(item) for item in value)
    if isinstance(value, dict):
        return {name: _absolute(item) for name, item in value.items()}
    if dataclasses.is_dataclass(value):
        old = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        new = {name: _absolute(item) for name, item in old.items()}
        return value if new == old else dataclasses.replace(value, **new)
    return value
