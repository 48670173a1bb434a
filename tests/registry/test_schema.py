import json
import math
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
import torch
from annotated_types import Ge, Gt, Le

from prior3d import Dataset, Prior
from prior3d.contracts.probe import Probe
from prior3d.errors import UserError
from prior3d.registry.schema import options_of, plain, read_options, validate_options

if TYPE_CHECKING:
    from somewhere import Unknown


@dataclass(frozen=True)
class Crop:
    """Where it is cut.

    Attributes:
        jitter: pixels by which it moves.
    """

    share: tuple[float, float] = (0.6, 1.0)
    jitter: int = 3
    folder: Path | None = None

    def __post_init__(self):
        if self.jitter < 0:
            raise ValueError(f"expected jitter from 0, got {self.jitter}")


@dataclass(frozen=True)
class Zoom:
    factor: float
    depth: int = 1


class Mode(Enum):
    FAST = "fast"
    SLOW = "slow"


class Everything:
    """Takes one option of each type.

    Args:
        backbone: what it is told.
        number: a real number,
            told in two lines.
        low, high: bounds.

    Reference: none.
    """

    def __init__(
        self,
        backbone: "Unknown",
        *,
        integer: int = 1,
        number: float = 1.0,
        flag: bool = False,
        text: str = "x",
        word: Literal["alpha", "beta"] = "alpha",
        precision: Literal[32, "bf16"] = 32,
        either: int | Literal["auto"] = "auto",
        bounded: Annotated[int, Gt(0)] | Literal["auto"] = 1,
        size: tuple[int, int] = (1, 2),
        many: tuple[int, ...] = (),
        items: list[int] = [],  # noqa: B006
        low: Annotated[float, Gt(0), Le(1)] = 0.5,
        high: Annotated[int, Ge(2)] = 2,
        crop: Crop | None = None,
        view: Crop | Zoom = Crop(),
        crops: dict[str, Crop] = {},  # noqa: B006
        path: Path = Path("~/data"),
        paths: Path | list[Path] = Path("a"),
        ratio: float | list[float] = 1.0,
        mode: Mode = Mode.FAST,
        names: frozenset[str] = frozenset({"b", "a"}),
    ) -> None: ...


OPTIONS = read_options(Everything, "prior 'everything' (acme 1)", positional=("backbone",))


def validate(**given):
    return {name: value for name, value in OPTIONS.validate(given, "priors.p").items() if name in given}


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ({"number": 1}, {"number": 1.0}),
        ({"size": [3, 4]}, {"size": (3, 4)}),
        ({"many": [1, 2, 3]}, {"many": (1, 2, 3)}),
        ({"either": 3, "bounded": "auto"}, {"either": 3, "bounded": "auto"}),
        ({"precision": "bf16"}, {"precision": "bf16"}),
        ({"crop": {"share": [0, 1]}}, {"crop": Crop(share=(0.0, 1.0))}),
        ({"crop": None}, {"crop": None}),
        ({"view": {"factor": 2}}, {"view": Zoom(2.0)}),
        ({"crops": {"a": {"jitter": 0}}}, {"crops": {"a": Crop(jitter=0)}}),
        ({"ratio": [1, 2.5]}, {"ratio": [1.0, 2.5]}),
        ({"mode": "slow"}, {"mode": Mode.SLOW}),
        ({"names": ["x"]}, {"names": frozenset({"x"})}),
    ],
)
def test_values_arrive_as_the_constructor_wants_them(given, made):
    found = validate(**given)
    assert found == made
    assert [type(value) for value in found.values()] == [type(value) for value in made.values()]


def test_defaults_are_filled_in_and_paths_are_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    found = OPTIONS.validate({"paths": ["a", "~/b", "/c"], "crop": {"folder": "d"}}, "priors.p")
    assert found["path"] == Path("/home/me/data")
    assert found["paths"] == [tmp_path / "a", Path("/home/me/b"), Path("/c")]
    assert found["crop"] == Crop(folder=tmp_path / "d")
    assert (found["integer"], found["size"], found["view"], found["mode"]) == (1, (1, 2), Crop(), Mode.FAST)
    assert list(found) == list(OPTIONS.types)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"integer": True}, "integer: expected an integer, got true"),
        ({"integer": "12"}, "integer: expected an integer, got the text '12'"),
        ({"integer": 2.0}, "integer: expected an integer, got 2.0"),
        ({"integer": None}, "integer: expected an integer, got null"),
        ({"number": "1e-3"}, "number: expected a number, got the text '1e-3'"),
        ({"number": True}, "number: expected a number, got true"),
        ({"number": math.nan}, "number: expected a finite number, got nan"),
        ({"number": -math.inf}, "number: expected a finite number, got -infinity"),
        ({"crop": {"share": [0, math.inf]}}, "crop.share[1]: expected a finite number, got infinity"),
        ({"ratio": math.nan}, "ratio: expected a finite number or a list, got nan"),
        ({"flag": 1}, "flag: expected true or false, got 1"),
        ({"flag": "on"}, "flag: expected true or false, got the text 'on'"),
        ({"text": 3}, "text: expected text, got 3"),
        ({"path": 3}, "path: expected text, got 3"),
        ({"word": "alfa"}, "word: expected 'alpha' or 'beta', got the text 'alfa', did you mean 'alpha'?"),
        ({"word": 3}, "word: expected 'alpha' or 'beta', got 3"),
        ({"precision": "32"}, "precision: expected 32 or 'bf16', got the text '32'"),
        ({"mode": "slo"}, "mode: expected 'fast' or 'slow', got the text 'slo', did you mean 'slow'?"),
        ({"either": 1.5}, "either: expected an integer or 'auto', got 1.5"),
        ({"bounded": -1}, "bounded: expected a number above 0 or 'auto', got -1"),
        ({"low": 0}, "low: expected a number above 0, got 0"),
        ({"low": 1.5}, "low: expected a number of at most 1, got 1.5"),
        ({"high": 1}, "high: expected a number of at least 2, got 1"),
        ({"size": [1]}, "size: expected 2 items, got 1"),
        ({"size": []}, "size: expected 2 items, got 0"),
        ({"size": [1, 2, 3]}, "size: expected 2 items, got 3"),
        ({"size": [1, 2.5]}, "size[1]: expected an integer, got 2.5"),
        ({"size": 3}, "size: expected a list, got 3"),
        ({"items": {"a": 1}}, "items: expected a list, got a section of keys"),
        ({"many": [1, "x"]}, "many[1]: expected an integer, got the text 'x'"),
        ({"crop": 3}, "crop: expected a section of keys, got 3"),
        ({"crop": [1]}, "crop: expected a section of keys, got a list"),
        ({"crop": {"shar": 3}}, "crop.shar: unknown key, did you mean 'share'?"),
        ({"crop": {"x": 3}}, "crop.x: unknown key; there are share, jitter, folder"),
        ({"crop": {"jitter": -1}}, "crop: expected jitter from 0, got -1"),
        ({"crops": {"a": {"shar": 3}}}, "crops.a.shar: unknown key, did you mean 'share'?"),
        ({"view": {"factor": "x"}}, "view.factor: expected a number, got the text 'x'"),
        ({"view": {"depth": 2}}, "view.factor: required, but not given"),
        ({"view": 1}, "view: expected a section of keys, got 1"),
        ({"paths": [1]}, "paths[0]: expected text, got 1"),
        ({"paths": 1}, "paths: expected text or a list, got 1"),
        ({"path": "a/" + "x" * 256}, "path: a name in this path has more than 255 bytes, which no file can have"),
        ({"path": "a\0b"}, "path: a path cannot hold a null character"),
        ({"integer": 2**63}, "integer: expected an integer of 64 bits, got 9223372036854775808"),
        ({"crop": {"jitter": -(10**30)}}, f"crop.jitter: expected an integer of 64 bits, got -{10**30}"),
        ({"integr": 1}, "integr: unknown key, did you mean 'integer'?"),
    ],
)
def test_wrong_values_are_told_in_one_line(given, message):
    with pytest.raises(UserError) as caught:
        validate(**given)
    assert str(caught.value) == f"priors.p.{message}"


class Pair:
    def __init__(self, *, first: int, second: int = 2) -> None: ...


@pytest.mark.parametrize(
    ("given", "beside", "message"),
    [
        ({}, (), "k.first: required, but not given"),
        ({"frist": 1}, (), "k.frist: unknown key, did you mean 'first'?"),
        ({"wieght": 1}, ("weight",), "k.wieght: unknown key, did you mean 'weight'?"),
        ({"xyz": 1}, ("weight",), "k.xyz: unknown key; there are first, second, weight"),
        ([1], (), "k: expected a section of keys, got a list"),
        (None, (), "k: expected a section of keys, got null"),
        ("a" * 99, (), f"k: expected a section of keys, got the text '{'a' * 57}...'"),
    ],
)
def test_missing_and_unknown_keys(given, beside, message):
    with pytest.raises(UserError) as caught:
        read_options(Pair, "pair").validate(given, "k", beside)
    assert str(caught.value) == message


class NoBackbone:
    def __init__(self, *, x: int = 1) -> None: ...


class Starred:
    def __init__(self, backbone, **kwargs: int) -> None: ...


class Listed:
    def __init__(self, backbone, *args: int) -> None: ...


class Untyped:
    def __init__(self, backbone, *, x=1) -> None: ...


class OnlyForCheckers:
    def __init__(self, backbone, *, x: "Unknown | None" = None) -> None: ...


@dataclass
class OfUnknown:
    x: "Unknown | None" = None


class TakesUnknown:
    def __init__(self, backbone, *, inner: list[OfUnknown] | None = None) -> None: ...


class ByPosition:
    def __init__(self, backbone, x: int = 1, /) -> None: ...


class Weighted:
    def __init__(self, backbone, *, weight: float = 1.0) -> None: ...


class TensorDefault:
    def __init__(self, backbone, *, x: int = torch.zeros(1)) -> None: ...


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (NoBackbone, "its constructor must take backbone first"),
        (
            Starred,
            "its constructor takes **kwargs: int: every option must be named, because the names are keys of recipes",
        ),
        (Listed, "its constructor takes *args: int: every option must be named, because the names are keys of recipes"),
        (Untyped, "its option x has no type annotation"),
        (
            OnlyForCheckers,
            "the type of its option x cannot be resolved (name 'Unknown' is not defined): "
            "import what it names at the top of the file, not under TYPE_CHECKING",
        ),
        (
            TakesUnknown,
            "the type of its option inner cannot be resolved (name 'Unknown' is not defined): "
            "import what it names at the top of the file, not under TYPE_CHECKING",
        ),
        (ByPosition, "its option x can only be given by position"),
        (Weighted, "its option weight has the name of a key that every such section has: rename it"),
        (
            TensorDefault,
            "the default of its option x cannot be used: expected something a recipe can hold, got Tensor",
        ),
    ],
)
def test_constructors_that_cannot_be_a_schema(make, message):
    with pytest.raises(UserError) as caught:
        read_options(make, "prior 'p' (acme 1)", positional=("backbone",), reserved=["weight"])
    assert str(caught.value) == f"prior 'p' (acme 1): {message}"


class WrongDefault:
    def __init__(self, *, x: int = None) -> None: ...  # noqa: RUF013


class InfiniteDefault:
    def __init__(self, *, x: float = math.inf) -> None: ...


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (WrongDefault, "the default of x is wrong: expected an integer, got null"),
        (InfiniteDefault, "the default of x is wrong: expected a finite number, got infinity"),
    ],
)
def test_defaults_must_be_values_a_recipe_could_give(make, message):
    with pytest.raises(UserError) as caught:
        read_options(make, "probe 'p' (acme 1)").validate({}, "probes.p")
    assert str(caught.value) == f"probes.p: probe 'p' (acme 1): {message}"


class TakesTensor:
    def __init__(self, *, x: torch.Tensor | None = None) -> None: ...


@pytest.mark.parametrize("use", [lambda options: options.validate({}, "k"), lambda options: options.json_schema("k")])
def test_types_no_recipe_can_hold(use):
    with pytest.raises(
        UserError, match=r"probe 'p' \(acme 1\) has options that no recipe can hold: .*Tensor"
    ) as caught:
        use(read_options(TakesTensor, "probe 'p' (acme 1)"))
    assert "errors.pydantic.dev" not in str(caught.value)


def test_priors_datasets_and_probes_are_told_different_things():
    class MyPrior(Prior):
        def __init__(self, backbone: "Unknown", *, temperature: float = 0.1) -> None: ...

    class MyData(Dataset):
        def __init__(self, spec, root: Path | None = None) -> None: ...

    class MyProbe(Probe):
        def __init__(self, *, pixels: int = 6) -> None: ...

    class NoOptions(Prior): ...

    class NoConstructor(Probe): ...

    assert validate_options(MyPrior, {}, "priors.p") == {"temperature": 0.1}
    assert validate_options(MyData, {}, "data") == {"root": None}
    assert validate_options(MyProbe, {"pixels": 7}, "probes.p") == {"pixels": 7}
    assert validate_options(NoOptions, {}, "priors.p") == {}
    assert validate_options(NoConstructor, {}, "probes.p") == {}
    with pytest.raises(UserError) as caught:
        validate_options(MyPrior, {"temperatur": 1}, "priors.p")
    assert str(caught.value) == "priors.p.temperatur: unknown key, did you mean 'temperature'?"


def test_docstrings_describe_options_in_the_json_schema():
    schema = OPTIONS.json_schema("k")
    described = {name: entry["description"] for name, entry in schema["properties"].items() if "description" in entry}
    assert described == {"number": "a real number, told in two lines.", "low": "bounds.", "high": "bounds."}


def test_json_schema_says_types_bounds_and_defaults():
    schema = OPTIONS.json_schema("k")
    assert (schema["type"], schema["additionalProperties"], schema.get("required", [])) == ("object", False, [])
    entries = schema["properties"]
    assert entries["low"] | {"title": ""} == {
        "type": "number", "exclusiveMinimum": 0, "maximum": 1, "default": 0.5, "description": "bounds.", "title": ""
    }  # fmt: skip
    assert entries["word"]["enum"] == ["alpha", "beta"]
    assert entries["size"]["default"] == [1, 2]
    assert entries["path"]["default"] == "~/data"
    assert {"$ref": "#/$defs/k.Crop"} in entries["crop"]["anyOf"]
    crop = OPTIONS.json_schema("k")["$defs"]["Crop"]["properties"]
    assert crop["jitter"]["description"] == "pixels by which it moves."
    assert options_of(type("P", (Probe,), {"__init__": Pair.__init__})).json_schema("k")["required"] == ["first"]
    json.dumps(schema)


def test_validated_values_are_written_as_they_can_be_read_again():
    made = OPTIONS.validate({"crop": {"folder": "/d"}, "mode": "slow"}, "priors.p")
    written = plain(made)
    assert written["crop"] == {"share": [0.6, 1.0], "jitter": 3, "folder": "/d"}
    assert (written["mode"], written["names"], written["size"]) == ("slow", ["a", "b"], [1, 2])
    assert OPTIONS.validate(json.loads(json.dumps(written)), "priors.p") == made


def test_a_dataclass_is_a_schema_too_with_its_default_factories():
    @dataclass
    class Section:
        """A section.

        Attributes:
            name: what it is called.
        """

        name: str
        extra: dict[str, Any] = field(default_factory=dict)
        crop: Crop | None = field(default_factory=Crop)

    options = read_options(Section, "section")
    assert options.validate({"name": "x"}, "s") == {"name": "x", "extra": {}, "crop": Crop()}
    assert options.only(["name"]).validate({"name": "x"}, "s") == {"name": "x"}
    assert options.docs == {"name": "what it is called."}
