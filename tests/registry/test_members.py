"""Tests that a plugin's class is checked against its contract before it is used."""

import logging

import pytest
import torch

from prior3d import Exporter, Prior, Probe, UserError
from prior3d.contracts.prior import BackboneSpec
from prior3d.data.posed import make_reader
from prior3d.registry import Registry, in_force
from prior3d.registry.engines import choose
from prior3d.registry.members import refuse_unusable, unknown_names
from prior3d.registry.schema import construct
from prior3d.testing import check_prior, check_probe

SPEC = BackboneSpec("test", (16, 16), 4, 4, {4: 4}, 4, True)


class Good(Prior):
    """Pulls features to zero."""

    needs = ("image",)

    def forward(self, batch, features):
        return features["image"].dense.square().mean(), {}


class Steady(Probe):
    """Measures nothing."""

    def measure(self, model, data, seed=0): ...

    def summarize(self, total): ...


def with_members(base, **members):
    members.setdefault("__doc__", base.__doc__)
    return type("Mine", (base,), members)


def test_a_class_that_fills_its_contract_passes():
    class More(Good):
        shift = 0.5  # its own names are free, if none is nearly one of the contract

        def plot(self, batch, features, *, shown=3):
            return {}

        def encode(self, images):
            return images

        def _draw(self):
            return None

    refuse_unusable(More)
    assert not list(unknown_names(More))


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (with_members(Prior), "Mine does not define forward"),
        (with_members(Prior, foward=Good.forward), "Mine does not define forward; it has foward"),
        (with_members(Probe, measure=Steady.measure), "Mine does not define summarize"),
        (with_members(Good, needs="depth"), 'Mine: needs is one text, expected several: needs = ("depth",)'),
        (with_members(Good, reads="dense"), 'Mine: reads is one text, expected several: reads = ("dense",)'),
        (
            with_members(Good, forward=lambda self, features: None),
            "Mine.forward is called with (batch, features) and has the signature (self, features)",
        ),
        (
            with_members(Steady, measure=lambda self, model, data: None),
            "Mine.measure is called with (model, data, seed) and has the signature (self, model, data)",
        ),
        (
            with_members(Exporter, export=lambda self, model, target: None),
            "Mine.export is called with (model, description, target) and has the signature (self, model, target)",
        ),
    ],
)
def test_what_its_contract_cannot_use_is_refused_in_one_line(cls, message):
    with pytest.raises(UserError) as refused:
        refuse_unusable(cls)
    assert str(refused.value) == message
    with pytest.raises(UserError) as refused:
        construct(cls, *([SPEC] if issubclass(cls, Prior) else []), key="priors.mine", options={})
    assert str(refused.value) == f"priors.mine: {message}"


@pytest.mark.parametrize(
    ("cls", "name", "meant"),
    [
        (with_members(Good, draw=lambda self, batch, features: {}), "draw", "plot"),
        (with_members(Good, prepare_bach=lambda self, batch: batch), "prepare_bach", "prepare_batch"),
        (type("Mine", (Prior,), {"need": ("image",), "forward": Good.forward}), "need", "needs"),
        (with_members(Steady, draw=lambda self, models, data, shown: {}), "draw", "plot"),
        (with_members(Steady, control=lambda self, data: {}), "control", "controls"),
        (with_members(Steady, lower_is_beter=frozenset({"error"})), "lower_is_beter", "lower_is_better"),
    ],
)
def test_outdated_and_misspelled_names_are_named_once(cls, name, meant, caplog):
    key, positional = ("priors.mine", [SPEC]) if issubclass(cls, Prior) else ("probes.mine", [])
    warning = f"Mine has {name}, which prior3d does not call: if {meant} is meant, rename it; if not, call it _{name}"
    with caplog.at_level(logging.WARNING, "prior3d"):
        for _ in range(2):
            construct(cls, *positional, key=key, options={})
    assert [record.getMessage() for record in caplog.records] == [warning]
    check = check_prior if positional else check_probe
    cls.__doc__ = "Mine."
    with pytest.raises(AssertionError, match=f"^Mine has {name}, which prior3d does not call"):
        check(cls)


def test_an_outdated_name_next_to_the_one_of_today_is_a_helper():
    both = with_members(Good, draw=lambda self, figure: None, plot=lambda self, batch, features: {})
    assert not list(unknown_names(both))


LAME_ENGINE = """
from prior3d import SparseEngine


class Lame(SparseEngine):
    rank = 1000

    def obstacle(self, device, dtype):
        return None

    def convolve(self, features, weight):
        return features
"""

LAME_READER = """
from prior3d import BY_MARKER, Reader


class Lame(Reader):
    @classmethod
    def recognizes(cls, folder):
        return BY_MARKER

    def scenes(self):
        return ["."]

    def opens(self, scene):
        return None
"""


def test_an_engine_in_a_run_is_checked_by_name_and_skipped_by_auto(tmp_path, caplog):
    (tmp_path / "lame.py").write_text(LAME_ENGINE)
    registry, cpu = Registry([tmp_path / "lame.py"]), torch.device("cpu")
    wrong = "Lame.convolve is called with (features, weight, kernel_map) and has the signature (self, features, weight)"
    with pytest.raises(UserError) as refused:
        choose("sparse", "lame", cpu, torch.float32, registry)
    assert str(refused.value) == f"engine: {wrong}"
    assert choose("sparse", "auto", cpu, torch.float32, registry).rank == 0
    assert f"auto skips the sparse engine lame: {wrong}" in caplog.messages


def test_a_reader_in_a_run_is_checked_by_name_and_skipped_by_auto(tmp_path, caplog):
    (tmp_path / "lame.py").write_text(LAME_READER)
    wrong = "Lame does not define open; it has opens"
    with in_force(Registry([tmp_path / "lame.py"])):
        with pytest.raises(UserError) as refused:
            make_reader(tmp_path, "lame", {})
        assert str(refused.value) == f"format: {wrong}"
        with pytest.raises(UserError, match=r"^root: no format .* recognizes .*; these are broken: lame$"):
            make_reader(tmp_path, "auto", {})
    assert f"the reader lame is broken and skipped: {wrong}" in caplog.messages
