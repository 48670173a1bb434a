"""The digest of a plugin's source follows its own files, wherever they are."""

import importlib
import shutil
import sys

import pytest

from prior3d.registry import Registry
from prior3d.registry.source_digest import source_digest

PROBE = """
from prior3d import Probe


class Glow(Probe):
    factor = 1

    def measure(self, model, data, seed=0):
        return {}

    def summarize(self, total):
        return {}
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with a probe and what it imports."""
    folder = tmp_path / "glowing"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "probe.py").write_text(PROBE)
    (folder / "helper.py").write_text("ONE = 1")
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "glowing"]:
        del sys.modules[name]


def test_every_file_of_a_package_counts(package):
    probe = importlib.import_module("glowing.probe").Glow
    found = [source_digest(probe)]
    assert source_digest(probe) == found[0]
    (package / "helper.py").write_text("ONE = 2")
    found.append(source_digest(probe))
    (package / "more.py").write_text("")
    found.append(source_digest(probe))
    assert len(set(found)) == 3


def test_a_plugin_file_counts_alone_and_has_the_digest_of_its_copy(package, tmp_path):
    copy = shutil.copy(package / "probe.py", tmp_path / "copy.py")
    original, copied = (Registry([file]).get("probes", "glow") for file in (package / "probe.py", copy))
    before = source_digest(original)
    assert source_digest(copied) == before
    (package / "helper.py").write_text("ONE = 2")
    assert source_digest(original) == before
    (package / "probe.py").write_text(PROBE.replace("factor = 1", "factor = 2"))
    assert source_digest(original) != before


def test_built_in_probes_do_not_share_a_digest():
    names = [plugin.name for plugin in Registry().list("probes")]
    assert len({source_digest(Registry().get("probes", name)) for name in names}) == len(names)
