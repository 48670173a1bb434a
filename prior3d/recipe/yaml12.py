"""The YAML of recipes: text stays text, nothing is executed, shared or merged, and lines are recorded.

Scalars follow YAML 1.2 (`1e-3` is a number, `on` and `1:30` are text), with one restriction: a scalar that is not a
JSON number, such as `0010`, `0x1F` or `1_000`, is text, so names of scenes are preserved.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import yaml
from yaml.composer import Composer
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.resolver import BaseResolver, Resolver
from yaml.scanner import Scanner

from prior3d.errors import UserError
from prior3d.messages import join

_DEEPEST = 50
"""Maximum nesting depth: far more than any recipe has, far less than Python's stack allows."""

_ONE_LINE = 4
"""Maximum number of keys of a mapping that is written on one line."""

_SCALARS = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9]{0,99})", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
)


@dataclass(frozen=True)
class Document:
    """A parsed YAML text.

    Attributes:
        value: None, text, number, bool, list or dict with text keys.
        lines: dotted path of each key or item (see `join`) to its line, counted from 1.
    """

    value: object
    lines: dict[str, int]


def load(text: str, name: str) -> Document:
    """Read one YAML document.

    Args:
        text: the document.
        name: name of the origin, for messages.

    Raises:
        UserError: `name:line: what is wrong`, for broken YAML, duplicate or non-text keys, anchors, aliases, tags,
            merge keys and too deep nesting.
    """
    try:
        return _read(text)
    except _Refused as refused:
        line = "" if refused.line is None else f":{refused.line}"
        key = f" {join(refused.path)}:" if refused.path else ""
        raise UserError(f"{name}{line}:{key} {refused}") from refused


def parse_value(text: str, origin: str = "command line") -> object:
    """Return the value of a text in a recipe: `0.1` is a number, `[96, 128]` a list, `on` text.

    Raises:
        UserError: `load` rejects the text; the message names the origin.
    """
    try:
        return _read(text).value
    except _Refused as refused:
        key = f" {join(refused.path)}:" if refused.path else ""
        raise UserError(f"{origin}: {text}:{key} {refused}") from refused


def dump(value: object) -> str:
    """Return YAML that `load` reads as the same value, with small mappings and lists on one line."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=120)


class _Refused(Exception):
    """Broken YAML, or a YAML feature that recipes do not allow."""

    def __init__(self, message: str, line: int | None = None, path: Sequence[str | int] = ()) -> None:
        super().__init__(message)
        self.line = line
        self.path = path


def _read(text: str) -> Document:
    lines: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if "\t" in line[: len(line) - len(line.lstrip(" \t"))] and line.strip():
            raise _Refused("indent with spaces, this line begins with a tab", number)
    try:
        node = _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or error.context
        if problem.startswith("but "):
            problem = f"{error.context}, {problem}"
        raise _Refused(problem, mark.line + 1) from error
    except yaml.YAMLError as error:
        raise _Refused(str(error)) from error
    return Document(None if node is None else _value(node, (), lines), lines)


class _Scalars(BaseResolver):
    """Rules that decide which plain scalars are numbers, bools and null."""


for _tag, _pattern, _first in _SCALARS:
    _Scalars.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


class _Loader(Reader, Scanner, Parser, Composer, _Scalars):
    """Builder of the node tree; rejects features that make values depend on anything but their own text."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        _Scalars.__init__(self)
        self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node:
        event = self.peek_event()
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise _Refused(f"aliases (*{event.anchor}) are not allowed in recipes: write the value again", line)
        if event.anchor is not None:
            raise _Refused(f"anchors (&{event.anchor}) are not allowed in recipes", line)
        if event.tag is not None:
            raise _Refused(f"tags ({event.tag}) are not allowed in recipes", line)
        if isinstance(event, yaml.ScalarEvent) and any("\ud800" <= letter <= "\udfff" for letter in event.value):
            raise _Refused("the text holds half a character (a lone surrogate)", line)
        if self.depth >= _DEEPEST:
            raise _Refused(f"nested deeper than {_DEEPEST} levels", line)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _value(node: yaml.Node, path: tuple[str | int, ...], lines: dict[str, int]) -> object:
    """Return a node's value and record the line of everything in it."""
    lines.setdefault(join(path), node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*path, index), lines) for index, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return _scalar(node)
    mapping: dict[str, object] = {}
    for key, line, child in _entries(node, path):
        if key in mapping:
            first = lines[join((*path, key))]
            raise _Refused(f"given twice, first in line {first}", line, (*path, key))
        lines[join((*path, key))] = line
        mapping[key] = _value(child, (*path, key), lines)
    return mapping


def _entries(node: yaml.MappingNode, path: tuple[str | int, ...]) -> Iterator[tuple[str, int, yaml.Node]]:
    """Yield key, line and value node of a mapping's entries; keys must be text."""
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise _Refused("keys must be text, got a list or a mapping", line, path)
        if key.value == "<<" and key.style is None:
            raise _Refused("merge keys (<<) are not allowed in recipes", line, path)
        if key.tag != BaseResolver.DEFAULT_SCALAR_TAG:
            raise _Refused(f'keys must be text, got {key.value or "nothing"}; write "{key.value}"', line, path)
        yield key.value, line, value


def _scalar(node: yaml.ScalarNode) -> object:
    """Return a scalar's value."""
    kind = node.tag.rsplit(":", 1)[1]
    if kind == "bool":
        return node.value.lower() == "true"
    if kind == "int":
        return int(node.value)
    if kind == "float":
        return float(re.sub(r"\.(?=inf|nan)", "", node.value.lower()))
    return None if kind == "null" else node.value


class _Dumper(yaml.SafeDumper):
    """Writer of scalars that read back equal here and in YAML 1.1 readers such as editors."""

    yaml_implicit_resolvers: ClassVar = {
        first: _Scalars.yaml_implicit_resolvers.get(first, []) + Resolver.yaml_implicit_resolvers.get(first, [])
        for first in {*_Scalars.yaml_implicit_resolvers, *Resolver.yaml_implicit_resolvers}
    }

    def represent_mapping(self, tag: str, mapping: object, flow_style: bool | None = None) -> yaml.Node:
        """Write short mappings on one line."""
        node = super().represent_mapping(tag, mapping, flow_style)
        node.flow_style = node.flow_style and len(node.value) <= _ONE_LINE
        return node

    def ignore_aliases(self, data: object) -> bool:
        """Write repeated objects in full each time: recipes have no anchors."""
        return True
