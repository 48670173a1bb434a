"""The JSON schema of whole recipes, with the options of all installed plugins, for completion in editors."""

import inspect
from dataclasses import fields
from typing import Any

from prior3d.errors import UserError
from prior3d.recipe.reading import own_options
from prior3d.recipe.sections import PLAIN, PLUGGED, DataSection, TopLevel
from prior3d.registry import Kind, Registry
from prior3d.registry.schema import Options, options_of

Schema = dict[str, Any]


def recipe_json_schema(registry: Registry) -> Schema:
    """Return the JSON schema of recipes.

    The section of a plugin that cannot be used accepts any keys and has a note with the reason.

    Args:
        registry: the plugins whose options the schema describes; it imports all of them.
    """
    definitions: Schema = {}
    top = _described(own_options(TopLevel), "recipe", definitions)["properties"]
    fixed = {key: _described(own_options(cls), key, definitions) for key, cls in PLAIN.items()}
    datasets = _references(registry, "datasets", definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "prior3d recipe",
        "type": "object",
        "properties": {
            **top,
            **fixed,
            "data": {"anyOf": [{"allOf": [schema, {"required": ["name"]}]} for schema in datasets.values()]},
            "priors": {"minProperties": 1, **_labeled(_references(registry, "priors", definitions), "prior")},
            "prepare": _or_null({"anyOf": list(_references(registry, "runners", definitions).values())}),
            "probes": _labeled(_probes(registry, datasets, definitions), "probe"),
        },
        "required": ["backbone", "data", "priors", "trainer"],
        "additionalProperties": False,
        "$defs": definitions,
    }


def _references(registry: Registry, kind: Kind, definitions: Schema) -> dict[str, Schema]:
    """Define the section of every plugin of a kind; return the references to these sections, by name."""
    names = dict.fromkeys(plugin.name for plugin in registry.list(kind))
    for name in names:
        definitions[f"{kind}.{name}"] = _section(registry, kind, name, definitions)
    return {name: {"$ref": f"#/$defs/{kind}.{name}"} for name in names}


def _section(registry: Registry, kind: Kind, name: str, definitions: Schema) -> Schema:
    """Return the schema of a section that uses one plugin: fixed keys and the plugin's own."""
    cls, naming = PLUGGED[kind]
    fixed = _described(own_options(cls), kind, definitions)
    fixed["properties"][naming] = {"const": name, "description": fixed["properties"][naming]["description"]}
    try:
        plugin = registry.get(kind, name)
        options = options_of(plugin, name, reserved=fixed["properties"])
        own = _described(options, f"{kind}.{name}", definitions)
    except UserError as error:
        return {"type": "object", "properties": fixed["properties"], "description": f"Not checked here: {error}"}
    required = {*fixed.get("required", ()), *own.get("required", ())} - {naming}
    return {
        "type": "object",
        "description": (inspect.getdoc(plugin) or name).partition("\n\n")[0],
        "properties": fixed["properties"] | own.get("properties", {}),
        "required": sorted(required),
        "additionalProperties": False,
    }


def _probes(registry: Registry, datasets: dict[str, Schema], definitions: Schema) -> dict[str, Schema]:
    """Return the references to the probes' sections, each with its own `data:`."""
    references = _references(registry, "probes", definitions)
    of_dataset = {name: f"datasets.{name}" for name in datasets}
    for name, definition in of_dataset.items():
        whole = definitions[definition]
        fixed = set(whole["properties"]) & {item.name for item in fields(DataSection)} - {"name", "size"}
        definitions[f"probes.data.{name}"] = {
            **whole,
            "properties": {key: value for key, value in whole["properties"].items() if key not in fixed},
            "required": [key for key in whole.get("required", ()) if key not in fixed | {"size"}],
        }
    own = [_or_null({"$ref": f"#/$defs/probes.data.{name}"}) for name in of_dataset]
    for name in references:
        definitions[f"probes.{name}"]["properties"]["data"] = {"anyOf": own}
    return references


def _labeled(references: dict[str, Schema], naming: str) -> Schema:
    """Return the schema of sections by label; a label that is a plugin's name makes the naming key optional."""
    named = [{"allOf": [schema, {"required": [naming]}]} for schema in references.values()]
    return {
        "type": "object",
        "properties": {name: {"anyOf": [_or_null(schema), *named]} for name, schema in references.items()},
        "additionalProperties": {"anyOf": named},
    }


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _described(options: Options, prefix: str, definitions: Schema) -> Schema:
    """Return the schema of options, with its definitions moved to those of the recipe."""
    schema = options.json_schema(prefix)
    definitions |= {f"{prefix}.{name}": inner for name, inner in schema.pop("$defs", {}).items()}
    return schema
