"""Help pages of plugins and recipe sections: options with types, defaults and meaning, as text for a terminal."""

import inspect
import json
import textwrap
from collections.abc import Mapping
from typing import Any, NamedTuple

from prior3d.errors import UserError
from prior3d.messages import did_you_mean
from prior3d.recipe.reading import own_options
from prior3d.recipe.sections import PLAIN, PLUGGED, AugmentOptions, DataSection
from prior3d.registry import KINDS, Kind, Plugin, Registry
from prior3d.registry.schema import Options, dataclasses_in, options_of, read_options

SECTIONS: dict[str, type] = {**PLAIN, "data": DataSection, "augment": AugmentOptions}
"""Sections that have their own page."""

_HEADS = ("option", "type", "default", "meaning")
_UNBOUNDED = 10**9
_WIDEST = (32, 26, 18)  # widths of all columns but the last, in characters


class OptionRow(NamedTuple):
    """One option: its name (`pairs.min_overlap` inside another option), type, default and meaning, in words."""

    name: str
    type: str
    default: str
    meaning: str


def describe(registry: Registry, name: str, width: int = 120) -> str:
    """Return the help page of a plugin or a section.

    Args:
        registry: finds the plugin; it is imported.
        name: name of a plugin, prefixed with its kind (`probes/depth`) if several kinds share the name; or name of a
            section.
        width: width of the text, in characters.

    Raises:
        UserError: no plugin or section has this name, or the plugin cannot be used.
    """
    if name in SECTIONS:
        return _page(f"{name}: a section of recipes", SECTIONS[name], rows(own_options(SECTIONS[name])), width)
    plugins = _find(registry, name)
    pages = [
        _page(f"{plugin.name}: {_article(plugin.kind[:-1])}, {plugin.origin}", cls, plugin_rows(plugin, cls), width)
        for plugin, cls in ((plugin, registry.get(plugin.kind, plugin.name)) for plugin in plugins)
    ]
    return "\n\n\n".join(pages)


def plugin_rows(plugin: Plugin, cls: type) -> list[OptionRow]:
    """Return the keys that every section of a plugin's kind has, followed by the plugin's options.

    Args:
        plugin: the plugin.
        cls: its class.
    """
    own = rows(options_of(cls, str(plugin)))
    if plugin.kind not in PLUGGED or plugin.kind == "datasets":  # the section `data` has its own page
        return own
    section, naming = PLUGGED[plugin.kind]
    return [*own, *(row for row in rows(own_options(section)) if row.name != naming)]


def rows(options: Options, within: str = "") -> list[OptionRow]:
    """Return a row for every option, and for every key of options that are sections themselves."""
    schema = options.json_schema("")
    found = []
    for name, annotation in options.types.items():
        default = _shown(options.defaults[name]) if name in options.defaults else "required"
        inner = next(dataclasses_in(annotation), None)
        if inner is not None and default.startswith("{"):
            default = "as below"
        kind = type_in_words(schema["properties"][name], schema.get("$defs", {}))
        found.append(OptionRow(f"{within}{name}", kind, default, options.docs.get(name, "")))
        if inner is not None:
            found += rows(read_options(inner, inner.__name__), f"{within}{name}.")
    return found


def type_in_words(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """Describe the values that a JSON schema accepts, with the wording of the messages about wrong values.

    >>> type_in_words({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]}, {})
    'integer of at least 1, or null'
    """
    if "$ref" in node:
        return type_in_words(definitions[node["$ref"].rpartition("/")[2].rpartition(".")[2]], definitions)
    if "const" in node or "enum" in node:
        return _either([_shown(value) for value in node.get("enum", [node.get("const")])])
    for choice in ("anyOf", "oneOf"):
        if choice in node:
            return _either(list(dict.fromkeys(type_in_words(arm, definitions) for arm in node[choice])))
    if len(node.get("allOf", ())) == 1:
        return type_in_words(node["allOf"][0], definitions)
    kind = node.get("type", "anything")
    if kind == "array":
        return _list_in_words(node, definitions)
    if kind in ("integer", "number"):
        return f"{kind}{_bounds(node)}"
    if kind == "string":
        return "path" if node.get("format") == "path" else "text"
    return {"boolean": "true or false", "object": "section of keys"}.get(kind, kind)


def _list_in_words(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if fixed := node.get("prefixItems"):
        words = [type_in_words(item, definitions) for item in fixed]
        return f"[{', '.join(words)}]"
    return f"list of: {type_in_words(node.get('items', {}), definitions)}"


def _bounds(node: Mapping[str, Any]) -> str:
    least, above = node.get("minimum"), node.get("exclusiveMinimum")
    most, below = node.get("maximum"), node.get("exclusiveMaximum")
    if most is not None and most >= _UNBOUNDED:  # a bound against typing errors, not a limit in practice
        most = None
    if least is not None and most is not None:
        return f" from {least:g} to {most:g}"
    bounds = {"of at least": least, "above": above, "of at most": most, "below": below}
    words = [f"{text} {number:g}" for text, number in bounds.items() if number is not None]
    return f" {' and '.join(words)}" if words else ""


def _either(choices: list[str]) -> str:
    last = choices[-1]
    if len(choices) == 1:
        return last
    return f"{', '.join(choices[:-1])}{',' if last == 'null' else ''} or {last}"


def _shown(value: object) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


def _find(registry: Registry, name: str) -> list[Plugin]:
    kind, _, rest = name.partition("/")
    if kind in KINDS and rest:
        return [registry.find(kind, rest)]
    names = {other: {plugin.name for plugin in registry.list(other)} for other in KINDS}
    found: list[Kind] = [other for other, known in names.items() if name in known]
    if not found:
        hint = did_you_mean(name, [*(one for known in names.values() for one in known), *SECTIONS])
        sections = ", ".join(SECTIONS)
        raise UserError(f"no plugin '{name}'{hint} (`--list` names all plugins; the sections are {sections})")
    return [registry.find(other, name) for other in found]


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _page(title: str, documented: type, options: list[OptionRow], width: int) -> str:
    text = inspect.getdoc(documented) or ""
    about = text
    for heading in ("\nArgs:\n", "\nAttributes:\n", "\nRaises:\n"):
        before, _, after = about.partition(heading)
        kept = "\n\n".join(part for part in after.split("\n\n") if part and not part.startswith(" "))
        about = f"{before.rstrip()}\n\n{kept}" if kept else before.rstrip()
    table = _table(options, width) if options else "no options"
    return "\n\n".join(part for part in (title, about.strip(), table) if part)


def _table(options: list[OptionRow], width: int) -> str:
    """Format rows as a table, with cells wrapped within their columns."""
    lines = [_HEADS, *options]
    widths = [min(most, max(len(row[i]) for row in lines)) for i, most in enumerate(_WIDEST)]
    widths.append(max(24, width - sum(widths) - 2 * len(widths)))
    text = []
    for row in lines:
        cells = [textwrap.wrap(cell, columns) or [""] for cell, columns in zip(row, widths, strict=True)]
        for index in range(max(map(len, cells))):
            parts = (cell[index] if index < len(cell) else "" for cell in cells)
            text.append("  ".join(part.ljust(columns) for part, columns in zip(parts, widths, strict=True)).rstrip())
    return "\n".join(text)
