import json

import pytest

from prior3d.recipe.json_schema import recipe_json_schema
from prior3d.recipe.source import shipped_recipes
from prior3d.recipe.yaml12 import load
from prior3d.registry import Registry

FILES = {
    "mine.py": '''
from dataclasses import dataclass
from prior3d import Prior

@dataclass(frozen=True)
class Band:
    low: float = 0.0

class MyPrior(Prior):
    """Pulls toward mine.

    More about it.

    Args:
        bands: where it pulls.
    """

    def __init__(self, backbone, *, bands: list[Band], strength: int = 3): ...
''',
    "broken.py": "from prior3d import Prior\nimport no_such_thing\nclass Broken(Prior): ...\n",
    "twice.py": "from prior3d import Prior\nclass MyPrior(Prior): ...\nclass Other(Prior): ...\n",
}


@pytest.fixture(scope="module")
def schema(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugins")
    for name in ("mine.py", "broken.py"):
        (folder / name).write_text(FILES[name])
    return recipe_json_schema(Registry([folder / "mine.py", folder / "broken.py"]))


def test_every_section_is_there_and_no_other(schema):
    assert set(schema["properties"]) == {
        "seed", "backbone", "data", "priors", "optim", "trainer", "prepare", "probes", "plugins"
    }  # fmt: skip
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["backbone", "data", "priors", "trainer"]


def test_a_prior_is_described_with_fixed_and_own_keys(schema):
    section = schema["$defs"]["priors.my_prior"]
    assert section["description"] == "Pulls toward mine."
    assert list(section["properties"]) == ["prior", "weight", "warmup", "bands", "strength"]
    assert section["required"] == ["bands"]
    assert section["additionalProperties"] is False
    assert section["properties"]["prior"]["const"] == "my_prior"
    assert section["properties"]["bands"]["description"] == "where it pulls."
    assert section["properties"]["bands"]["items"] == {"$ref": "#/$defs/priors.my_prior.Band"}
    assert section["properties"]["weight"]["minimum"] == 0
    assert section["properties"]["strength"]["default"] == 3


def test_a_plugin_that_cannot_be_used_leaves_its_section_open_with_a_note(schema):
    section = schema["$defs"]["priors.broken"]
    assert "additionalProperties" not in section
    assert section["description"].startswith("Not checked here: prior 'broken' (file ")
    assert "No module named 'no_such_thing'" in section["description"]


def test_a_clash_leaves_its_section_open_too(tmp_path):
    for name in ("mine.py", "twice.py"):
        (tmp_path / name).write_text(FILES[name])
    schema = recipe_json_schema(Registry([tmp_path / "mine.py", tmp_path / "twice.py"]))
    assert "is declared by" in schema["$defs"]["priors.my_prior"]["description"]
    assert schema["$defs"]["priors.other"]["additionalProperties"] is False


def test_a_label_of_its_own_must_say_which_prior(schema):
    priors = schema["properties"]["priors"]
    own, null = priors["properties"]["my_prior"]["anyOf"][0]["anyOf"]
    assert (own, null) == ({"$ref": "#/$defs/priors.my_prior"}, {"type": "null"})
    assert all({"required": ["prior"]} in choice["allOf"] for choice in priors["additionalProperties"]["anyOf"])


def test_every_reference_has_its_definition_and_the_sections_have_docs(schema):
    references = [text.partition('"')[0] for text in json.dumps(schema).split('"$ref": "')[1:]]
    assert references
    assert all(name.removeprefix("#/$defs/") in schema["$defs"] for name in references)
    for key in ("backbone", "optim", "trainer"):
        assert all(entry["description"] for entry in schema["properties"][key]["properties"].values()), key


def admits(node, value, root):
    """Whether a JSON schema admits a value, for the words of schemas that recipes' use."""
    kinds = {
        "integer": int, "number": int | float, "string": str, "boolean": bool, "array": list, "object": dict,
        "null": type(None),
    }  # fmt: skip
    unknown = set(node) - {
        "$ref", "anyOf", "allOf", "const", "enum", "type", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
        "multipleOf", "minItems", "maxItems", "prefixItems", "items", "properties", "required", "minProperties",
        "additionalProperties", "default", "description", "title", "format", "$defs", "$schema", "uniqueItems",
    }  # fmt: skip
    assert not unknown, unknown
    if "$ref" in node and not admits(root["$defs"][node["$ref"].removeprefix("#/$defs/")], value, root):
        return False
    if "anyOf" in node and not any(admits(arm, value, root) for arm in node["anyOf"]):
        return False
    if not all(admits(arm, value, root) for arm in node.get("allOf", ())):
        return False
    if value not in node.get("enum", [value]) or value != node.get("const", value):
        return False
    if "type" in node and (
        not isinstance(value, kinds[node["type"]]) or isinstance(value, bool) != (node["type"] == "boolean")
    ):
        return False
    if isinstance(value, int | float) and not (
        node.get("minimum", value) <= value <= node.get("maximum", value)
        and node.get("exclusiveMinimum", value - 1) < value < node.get("exclusiveMaximum", value + 1)
    ):
        return False
    if isinstance(value, list):
        first = node.get("prefixItems", [])
        if not node.get("minItems", 0) <= len(value) <= node.get("maxItems", len(value)):
            return False
        rest = [node.get("items", {})] * (len(value) - len(first))
        return all(admits(item, one, root) for item, one in zip([*first, *rest], value, strict=True))
    if isinstance(value, dict):
        if len(value) < node.get("minProperties", 0) or not set(node.get("required", ())) <= set(value):
            return False
        others = node.get("additionalProperties", True)
        for key, one in value.items():
            inner = node.get("properties", {}).get(key, others)
            if inner is False or (inner is not True and not admits(inner, one, root)):
                return False
    return True


@pytest.fixture(scope="module")
def built_in():
    return recipe_json_schema(Registry())


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_the_schema_admits_every_recipe_that_ships(built_in, name):
    content = load(shipped_recipes()[name].read_text(), name).value
    assert admits(built_in, content, built_in)


@pytest.mark.parametrize(
    ("path", "value", "admitted"),
    [
        (("priors", "triplane"), None, True),
        (("priors", "mine"), {"prior": "triplane", "weight": 2}, True),
        (("priors", "mine"), {"weight": 2}, False),
        (("priors", "triplane"), {"wdth": 8}, False),
        (("probes",), {}, True),
        (("probes", "other"), {"probe": "depth", "seeds": 2, "data": {"name": "image_folder", "root": "x"}}, True),
        (
            ("probes", "other"),
            {"probe": "depth", "data": {"name": "image_folder", "root": "x", "batch_size": 2}},
            False,
        ),
        (("data", "augment"), None, True),
        (("data", "augment"), {"flip": 0.5}, True),
        (("data", "augment"), {"flop": 0.5}, False),
        (("data", "size"), [64], False),
        (("data", "size"), [64, 10**9], False),
        (("trainer", "precision"), "bf16", True),
        (("trainer", "precision"), 16, False),
        (("priors",), {}, False),
        (("plugins",), ["a.py"], True),
        (("else",), 1, False),
    ],
)
def test_the_schema_admits_what_recipes_can_hold_and_nothing_else(built_in, path, value, admitted):
    content = load(shipped_recipes()["joint"].read_text(), "joint").value
    section = content
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    assert admits(built_in, content, built_in) == admitted
