"""Turn pydantic errors into one-line messages about one key."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic.errors import PydanticInvalidForJsonSchema

from prior3d.messages import described, did_you_mean, unknown_key

KeyPath = tuple[str | int, ...]
"""The keys and indices on the path to a value of the section."""

_EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "a section of keys",
    "mapping_type": "a section of keys",
    "dataclass_type": "a section of keys",
    "model_type": "a section of keys",
    "none_required": "null",
    "finite_number": "a finite number",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "too_short": "at least {min_length} items",
    "too_long": "at most {max_length} items",
}
_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")


class _Problem:
    """One of pydantic's errors, with its place in the section and the union arms that led to it.

    pydantic's locations mix keys with the names of union arms; a part that is no key or index of the section is an arm.
    """

    def __init__(self, error: Mapping[str, Any], section: object) -> None:
        self.type, self.input, self.message = error["type"], error["input"], error["msg"]
        self.context: Mapping[str, Any] = error.get("ctx", {})
        self.path: KeyPath = ()
        self.arms: list[tuple[KeyPath, str]] = []
        value = section
        for index, part in enumerate(error["loc"]):
            inside = (
                part in value if isinstance(value, Mapping) else isinstance(value, list) and part in range(len(value))
            )
            if inside:
                self.path, value = (*self.path, part), value[part]
            elif self.type == "missing" and index == len(error["loc"]) - 1:
                self.path = (*self.path, part)
            else:
                self.arms.append((self.path, str(part)))

    @property
    def expected(self) -> str:
        """Description of the expected value."""
        if self.type in _EXPECTED:
            numbers = {name: f"{v:g}" if isinstance(v, float) else v for name, v in self.context.items()}
            return _EXPECTED[self.type].format(**numbers)
        return self.message.removeprefix("Input should be ")


def explain(error: ValidationError, section: object, schema: Callable[[], dict[str, Any]]) -> tuple[KeyPath, str]:
    """Return the place and the message of the most informative error in a section.

    Args:
        error: the error that pydantic raised.
        section: the validated section, as plain values.
        schema: function that returns the JSON schema, used to suggest keys of nested sections.
    """
    problems = [_Problem(entry, section) for entry in error.errors(include_url=False)]
    return _choose(problems, 0, schema)


def _choose(problems: Sequence[_Problem], level: int, schema: Callable[[], dict[str, Any]]) -> tuple[KeyPath, str]:
    """Return place and message of the most informative problem; `level` counts unions with a chosen arm."""
    # a misspelled key is also a missing key: the former is more informative
    first = min(problems, key=lambda problem: (problem.type not in _UNKNOWN, problem.type == "missing"))
    if len(first.arms) > level:
        at = first.arms[level][0]
        arms: dict[str, list[_Problem]] = {}
        for problem in problems:
            if len(problem.arms) > level and problem.arms[level][0] == at:
                arms.setdefault(problem.arms[level][1], []).append(problem)
        inside = [arm for arm in arms.values() if all(len(problem.path) > len(at) for problem in arm)]
        if inside:  # the value has the outer type of these arms, so its author meant one of them
            arm = min(inside, key=lambda arm: (any(problem.type in _UNKNOWN for problem in arm), len(arm)))
            return _choose(arm, level + 1, schema)
        return at, _wrong(list(dict.fromkeys(p.expected for arm in arms.values() for p in arm)), first)
    if first.type in _UNKNOWN:
        return first.path, unknown_key(str(first.path[-1]), _keys(schema, first.path[:-1]))
    if first.type == "missing" and isinstance(first.path[-1], int):
        items = 1 + max(p.path[-1] for p in problems if p.type == "missing" and p.path[:-1] == first.path[:-1])
        return first.path[:-1], f"expected {items} items, got {len(first.input)}"
    if first.type == "missing":
        return first.path, "required, but not given"
    if first.type == "too_long":
        return first.path, f"expected {_items(first)}, got {len(first.input)}"
    if first.type in ("value_error", "assertion_error"):
        return first.path, first.message.partition(", ")[2]
    return first.path, _wrong([first.expected], first)


def _items(problem: _Problem) -> str:
    exact = problem.context.get("field_type") == "Tuple"
    return f"{problem.context['max_length']} items" if exact else problem.expected


def _wrong(expected: Sequence[str], problem: _Problem) -> str:
    """Return "expected a, b or c, got x", with the nearest of the allowed words."""
    choices = ", ".join(expected[:-1]) + (" or " if len(expected) > 1 else "") + expected[-1]
    words = [word for text in expected for word in text.split("'")[1::2]]
    return f"expected {choices}, got {described(problem.input)}{did_you_mean(problem.input, words)}"


def _keys(schema: Callable[[], dict[str, Any]], path: KeyPath) -> list[str]:
    """Return the keys that a nested section may have, from all union arms on the path."""
    try:
        root = schema()
    except PydanticInvalidForJsonSchema:  # no JSON schema describes the type: nothing to suggest
        return []
    nodes = _arms(root, root)
    for part in path:
        inner = [_inner(node, part) for node in nodes]
        nodes = [arm for node in inner if isinstance(node, dict) for arm in _arms(node, root)]
    return [name for node in nodes for name in node.get("properties", {})]


def _inner(node: Mapping[str, Any], part: str | int) -> object:
    if isinstance(part, str):
        return node.get("properties", {}).get(part) or node.get("additionalProperties")
    fixed = node.get("prefixItems", [])
    return fixed[part] if part < len(fixed) else node.get("items")


def _arms(node: Mapping[str, Any], root: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the schemas of a node, with references and unions resolved."""
    if "$ref" in node:
        node = root["$defs"][node["$ref"].rpartition("/")[2]]
    arms = [arm for choice in ("anyOf", "oneOf", "allOf") for arm in node.get(choice, [])]
    return [found for arm in arms for found in _arms(arm, root)] if arms else [node]
