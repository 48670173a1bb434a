import json
import random

import pytest

from prior3d.errors import UserError
from prior3d.messages import join
from prior3d.recipe.yaml12 import dump, load, parse_value

NUMBERS = {
    "0": 0, "1": 1, "-3": -3, "+4": 4, "-0": 0, "1.": 1.0, ".5": 0.5, "-.5": -0.5, "1e-3": 0.001, "1E5": 1e5,
    "12e03": 12e3, "2.0e-3": 0.002, ".inf": float("inf"), "-.Inf": float("-inf"),
}  # fmt: skip
TEXTS = [
    "0010", "-00", "012.5", "00.1", "0o14", "0x1F", "1_000", "1:30", "2020-01-01", "1.5.2", "1e", "e5", "on", "off",
    "Yes", "no", "tRue", "y", "n", "nan", "inf", "=", "<<", "~/data", "+.nan", ".e3", "a-b", "1,2", "1-2", "v1.0",
]  # fmt: skip
WORDS = {"true": True, "False": False, "TRUE": True, "null": None, "~": None, "Null": None, "": None}


@pytest.mark.parametrize(("text", "value"), [*NUMBERS.items(), *WORDS.items(), *((t, t) for t in TEXTS)])
def test_scalars_follow_yaml_1_2(text, value):
    found = parse_value(text)
    assert (type(found), found) == (type(value), value)


def test_nan_is_a_float_that_validation_can_refuse():
    assert parse_value(".nan") != parse_value(".nan")


def test_quoted_scalars_are_text():
    assert load("a: '12'\nb: \"true\"\nc: '<<'\n", "x").value == {"a": "12", "b": "true", "c": "<<"}


def test_json_documents_read_as_json_reads_them():
    rng = random.Random(0)
    for _ in range(200):
        value = _random_value(rng, 3)
        assert load(json.dumps(value, ensure_ascii=False), "x").value == json.loads(json.dumps(value))


def test_what_is_dumped_loads_as_the_same_value():
    rng = random.Random(1)
    awkward = [
        *NUMBERS,
        *TEXTS,
        *WORDS,
        "*a",
        "&b",
        " lead",
        "trail ",
        "a: b",
        "x #y",
        "é\n",
        "\t",
        "'",
        '"',
        "\a",
        "?",
        "-",
    ]
    assert load(dump({"texts": awkward}), "x").value == {"texts": awkward}
    for _ in range(200):
        value = {"root": _random_value(rng, 3)}
        again = load(dump(value), "x").value
        assert again == value
        assert json.dumps(again) == json.dumps(value)  # 1 and 1.0 and true are equal, and not the same


def test_every_key_and_item_has_its_line():
    document = load("seed: 0\n\ndata:\n  size: [96,\n         128]\n  name: x\n", "x")
    assert document.lines == {
        "": 1, "seed": 1, "data": 3, "data.size": 4, "data.size[0]": 4, "data.size[1]": 5, "data.name": 6
    }  # fmt: skip


def test_paths_are_joined():
    assert join(("data", "size", 0)) == "data.size[0]"
    assert join(()) == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: {c: 1, c: 2}\n", "r.yaml:2: b.c: given twice, first in line 2"),
        ("a: 1\n\na: 2\n", "r.yaml:3: a: given twice, first in line 1"),
        ("x: &shared {b: 1}\n", "r.yaml:1: anchors (&shared) are not allowed in recipes"),
        ("x: 1\ny: *shared\n", "r.yaml:2: aliases (*shared) are not allowed in recipes: write the value again"),
        ("x: !!int 3\n", "r.yaml:1: tags (tag:yaml.org,2002:int) are not allowed in recipes"),
        (
            "x:\n- !!python/object/apply:os.system [ls]\n",
            "r.yaml:2: tags (tag:yaml.org,2002:python/object/apply:os.system) are not allowed in recipes",
        ),
        ("x:\n  <<: {a: 1}\n", "r.yaml:2: x: merge keys (<<) are not allowed in recipes"),
        ("x:\n  12: 1\n", 'r.yaml:2: x: keys must be text, got 12; write "12"'),
        ("true: 1\n", 'r.yaml:1: keys must be text, got true; write "true"'),
        ("? [1, 2]\n: 3\n", "r.yaml:1: keys must be text, got a list or a mapping"),
        ("a: [1\nb: 2\n", "r.yaml:2: expected ',' or ']', but got ':'"),
        ("a: 1\n  b: 2\n", "r.yaml:2: mapping values are not allowed here"),
        ("a:\n\t- b\n", "r.yaml:2: indent with spaces, this line begins with a tab"),
        ("a:\n  b: 1\n \tc: 2\n", "r.yaml:3: indent with spaces, this line begins with a tab"),
        ("{\n\t'a': 1}\n", "r.yaml:2: indent with spaces, this line begins with a tab"),
        ("a: 1\n---\nb: 1\n", "r.yaml:2: expected a single document in the stream, but found another document"),
        ('a: "\\ud800"\n', "r.yaml:1: the text holds half a character (a lone surrogate)"),
        ("[" * 3000, "r.yaml:1: nested deeper than 50 levels"),
    ],
)
def test_refused_with_line_and_key(text, message):
    with pytest.raises(UserError) as caught:
        load(text, "r.yaml")
    assert str(caught.value) == message


def test_control_characters_are_refused():
    with pytest.raises(UserError, match=r"^r.yaml: unacceptable character #x0000"):
        load("a: \0", "r.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1", "command line: [1: expected ',' or ']', but got '<stream end>'"),
        ("*a", "command line: *a: aliases (*a) are not allowed in recipes: write the value again"),
        ("a: b: c", "command line: a: b: c: mapping values are not allowed here"),
    ],
)
def test_values_of_the_command_line_are_refused_without_a_line(text, message):
    with pytest.raises(UserError) as caught:
        parse_value(text)
    assert str(caught.value) == message


def _random_value(rng, depth):
    kind = rng.choice("ifbnsssld" if depth else "ifbns")
    if kind == "l":
        return [_random_value(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind == "d":
        return {_random_text(rng): _random_value(rng, depth - 1) for _ in range(rng.randrange(7))}
    return {
        "i": rng.randrange(-(10**6), 10**6),
        "f": rng.choice([1.0, -0.5, 1e-5, 1e22, rng.uniform(-1, 1), rng.uniform(-1, 1) * 1e-9]),
        "b": rng.random() < 0.5,
        "n": None,
        "s": _random_text(rng),
    }[kind]


def _random_text(rng):
    letters = "0123456789eE+-._:~xonTrue #'\"\\,[]{}&*!|>%@`=?<\n\té—"
    return "".join(rng.choice(letters) for _ in range(rng.randrange(6)))
