import json

import pytest

from prior3d.recipe.json_schema import recipe_json_schema
from prior3d.registry import Registry

FILES = {
    "mine.py": '''
from dataclasses import dataclass
from prior3d import Prior

@dataclass(frozen=True)
class Band:
    low: float = 0.0

class MyPrior(Prior):
    """Pulls towards mine.

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
        "seed", "backbone", "data", "priors", "optim", "trainer", "probes", "plugins"
    }  # fmt: skip
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["backbone", "data", "priors", "trainer"]


def test_a_prior_is_described_with_fixed_and_own_keys(schema):
    section = schema["$defs"]["priors.my_prior"]
    assert section["description"] == "Pulls towards mine."
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
