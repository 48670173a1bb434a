import os
import pickle
import subprocess
import sys
import textwrap

import pytest

import prior3d.registry.plugin_files
from prior3d.errors import UserError
from prior3d.registry import KINDS, Registry
from prior3d.registry.plugin_files import dropped_files, module_of, snake_case

MINE = "from prior3d import Prior\n\nclass MyPrior(Prior):\n    pass\n"


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a file in a fresh current folder, so that messages name it relatively."""
    monkeypatch.chdir(tmp_path)

    def write(name, text=MINE):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    return write


@pytest.fixture
def install(write, tmp_path, monkeypatch):
    """Install a distribution: its metadata and one module, in a folder of its own on sys.path."""

    def install(points, module="", name="acme", version="2.3", folder="site"):
        info = f"{folder}/{name}-{version}.dist-info"
        write(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        write(f"{info}/entry_points.txt", points)
        write(f"{folder}/{name}_plugins.py", module)
        monkeypatch.syspath_prepend(str(tmp_path / folder))
        monkeypatch.delitem(sys.modules, f"{name}_plugins", raising=False)

    return install


def found_in(path):
    """Kind and name of the plugins of a file, in its order."""
    registry = Registry([path])
    found = [p for kind in KINDS for p in registry.list(kind) if p.origin == f"file {path.name}"]
    text = path.read_text()
    return [(p.kind, p.name) for p in sorted(found, key=lambda p: text.index(f"class {p.target.partition(':')[2]}"))]


def error_of(kind, name, files=()):
    with pytest.raises(UserError) as caught:
        Registry(files).get(kind, name, "priors.mine")
    assert caught.value.key == "priors.mine"
    return caught.value.message


def test_the_package_declares_its_own_plugins_like_anyone_else():
    registry = Registry()
    names = {kind: {plugin.name for plugin in registry.list(kind)} for kind in KINDS}
    assert names["priors"] >= {"view_invariance", "augmentation_invariance", "depth_regression"}
    assert names["datasets"] >= {"synthetic_rooms", "posed_rgbd", "image_folder"}
    assert registry.find("probes", "correspondence").origin.startswith("prior3d ")


def test_an_installed_distribution_is_found_and_imported_only_when_used(install):
    install("[prior3d.priors]\nmine = acme_plugins:Mine\n", MINE.replace("MyPrior", "Mine"))
    registry = Registry()
    plugin = registry.find("priors", "mine")
    assert (plugin.origin, plugin.version, plugin.target) == ("acme 2.3", "2.3", "acme_plugins:Mine")
    assert str(plugin) == "prior 'mine' (acme 2.3)"
    assert "acme_plugins" not in sys.modules
    assert registry.get("priors", "mine") is sys.modules["acme_plugins"].Mine


def test_a_file_is_read_without_being_run(write):
    write("mine.py", MINE + "raise SystemExit('ran')\n")
    plugin = Registry(["mine.py"]).find("priors", "my_prior")
    assert plugin.origin == "file mine.py"
    assert plugin.version.startswith("sha256:") and len(plugin.version) == 19


def test_a_files_version_is_that_of_its_text(write):
    write("mine.py")
    before = Registry(["mine.py"]).find("priors", "my_prior").version
    write("mine.py", MINE + "# changed\n")
    assert Registry(["mine.py"]).find("priors", "my_prior").version != before


def test_classes_of_a_file_are_told_by_their_bases(write):
    path = write(
        "many.py",
        """
        import prior3d
        from prior3d import Prior as Objective
        from prior3d.data.posed.dataset import PosedDataset

        class Plain(prior3d.Prior): ...
        class Renamed(Objective): ...
        class _Hidden(Objective): ...
        class OfHidden(_Hidden): ...
        class Rooms(PosedDataset): ...
        class Generic(Dataset[int]): ...
        class Sight(Probe): ...
        class Unrelated(dict): ...
        """,
    )
    assert found_in(path) == [
        ("priors", "plain"), ("priors", "renamed"), ("priors", "of_hidden"),
        ("datasets", "rooms"), ("datasets", "generic"), ("probes", "sight"),
    ]  # fmt: skip


def test_every_base_that_the_table_names_is_recognized(write):
    for kind, contract in KINDS.items():
        for base, prefix in contract.bases.items():
            path = write(f"{base.lower()}s.py", f"class Quick{base}({base}): ...\n")
            assert found_in(path) == [(kind, f"{prefix}quick_{snake_case(base)}")]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("from prior3d.data.images.single_images import SingleImages\nclass MyImages(SingleImages): ...\n",
         [("datasets", "my_images")]),
        ("from prior3d_plugins.datasets.synthetic_rooms import SyntheticRooms\nclass MyScans(SyntheticRooms): ...\n",
         [("datasets", "my_scans")]),
        ("from prior3d_plugins.datasets import image_folder as p\nclass MyScans(p.ImageFolder): ...\n",
         [("datasets", "my_scans")]),
        ("import prior3d_plugins.probes.depth\nclass Far(prior3d_plugins.probes.depth.Depth): ...\n",
         [("probes", "far")]),
        ("from prior3d_plugins.priors.gaussian_distillation import GaussianDistillation as G\nclass Mine(G): ...\n",
         [("priors", "mine")]),
        ("try:\n    from prior3d import Prior\nexcept ImportError: ...\nif True:\n    class Mine(Prior): ...\n",
         [("priors", "mine")]),
        ("from prior3d import Prior\nfrom torch.utils.data import Dataset\n"
         "class Images(Dataset): ...\nclass Mine(Prior): ...\n", [("priors", "mine")]),
        ("class A(B): ...\nclass B(A): ...\nclass Mine(Prior): ...\n", [("priors", "mine")]),
    ],
    ids=["single images", "built-in", "module", "path", "re-exported", "guarded", "another Dataset", "circle"],
)  # fmt: skip
def test_a_class_is_followed_to_its_base_through_what_is_installed(write, text, found):
    before = set(sys.modules)
    assert found_in(write("mine.py", text)) == found
    assert not {name for name in set(sys.modules) - before if name.startswith("prior3d_plugins.")}


def test_a_class_is_followed_into_an_installed_distribution(write, install):
    install("[prior3d.datasets]\nscans = acme_plugins:Scans\n", "from acme_base import Scans\n")
    write("site/acme_base.py", "from prior3d import Dataset\nclass Scans(Dataset): ...\n")
    path = write("mine.py", "from acme_plugins import Scans\nclass MyScans(Scans): ...\n")
    assert "acme_base" not in sys.modules
    with pytest.raises(UserError, match="holds no class"):  # acme_base has no plugin of its own: it is not looked at
        Registry([path])
    write("site/acme_plugins.py", "from prior3d import Dataset\nclass Scans(Dataset): ...\n")
    assert found_in(path) == [("datasets", "my_scans")]


def test_summaries_are_the_first_lines_of_docstrings_and_import_nothing(install, write):
    mine = 'class Mine(Prior):\n    """Pulls.\n\n    Hard.\n    """\n'
    text = f'"""The module."""\nfrom prior3d import Prior\n{mine}class B(Prior): ...\n'
    install("[prior3d.priors]\nmine = acme_plugins:Mine\nbare = acme_plugins:B\ngone = acme_gone:G\n", text)
    write("own.py", text.replace("Mine", "Own"))
    registry = Registry(["own.py"])
    found = {plugin.name: registry.summary(plugin) for plugin in registry.list("priors")}
    assert (found["mine"], found["bare"], found["gone"], found["own"]) == ("Pulls.", "The module.", "", "Pulls.")
    assert "acme_plugins" not in sys.modules
    summaries = [
        registry.summary(plugin) for kind in KINDS for plugin in registry.list(kind) if "prior3d " in plugin.origin
    ]
    assert summaries and all(summaries)


@pytest.mark.parametrize(
    ("name", "snake"),
    [
        ("ViewInvariance", "view_invariance"), ("PosedRGBD", "posed_rgbd"), ("Mine", "mine"),
        ("RGBDFolder", "rgbd_folder"), ("Pri3DLoss", "pri3d_loss"), ("Sun3D", "sun3d"), ("KNNProbe2", "knn_probe2"),
    ],
)  # fmt: skip
def test_names_of_classes_in_files(name, snake):
    assert snake_case(name) == snake


def test_unknown_name_with_a_suggestion_and_the_list(write, monkeypatch):
    monkeypatch.setattr("prior3d.registry.registry.entry_points", lambda: _Points([]))
    monkeypatch.setattr(prior3d.registry.plugin_files, "FOLDER_PACKAGE", "no_such_package")
    write("mine.py")
    assert error_of("priors", "my_pior", ["mine.py"]) == (
        "unknown prior 'my_pior', did you mean 'my_prior'? (there are: my_prior)"
    )
    assert error_of("datasets", "rooms", ["mine.py"]) == "unknown dataset 'rooms' (there are: none)"


def test_a_clash_is_an_error_only_when_the_name_is_used(install, write):
    install(
        "[prior3d.priors]\nview_invariance = acme_plugins:Mine\nfine = acme_plugins:Mine\n",
        MINE.replace("MyPrior", "Mine"),
    )
    write("view.py", "class ViewInvariance(Prior): ...\n")
    registry = Registry(["view.py"])
    assert [p.origin for p in registry.list("priors") if p.name == "view_invariance"] == [
        "acme 2.3", "file view.py", f"prior3d {prior3d.__version__}"
    ]  # fmt: skip
    assert list(registry.problems("priors").values()) == ["the name is taken 3 times"] * 3
    assert registry.find("priors", "fine").origin == "acme 2.3"
    assert error_of("priors", "view_invariance", ["view.py"]) == (
        "prior 'view_invariance' is declared by acme 2.3 and file view.py and"
        f" prior3d {prior3d.__version__}: rename or remove one of them"
    )


def test_a_clash_within_one_file_names_both_classes(write):
    write("two.py", "class KNN3D(Prior): ...\nclass Knn3D(Prior): ...\n")
    assert error_of("priors", "knn3d", ["two.py"]) == (
        "prior 'knn3d' is declared by file two.py (KNN3D) and file two.py (Knn3D): rename or remove one of them"
    )


def test_the_same_name_in_two_kinds_is_no_clash(install):
    install("[prior3d.priors]\nsame = acme_plugins:A\n[prior3d.probes]\nsame = acme_plugins:B\n")
    registry = Registry()
    assert registry.find("priors", "same").target == "acme_plugins:A"
    assert registry.find("probes", "same").target == "acme_plugins:B"


def test_metadata_of_one_distribution_found_twice_is_no_clash(install):
    install("[prior3d.priors]\nmine = acme_plugins:Mine\n", MINE, version="1.0", folder="wheel")
    install("[prior3d.priors]\nmine = acme_plugins:Mine\n", MINE, version="1.1", folder="editable")
    assert [p.origin for p in Registry().list("priors") if p.name == "mine"] == ["acme 1.1"]


def test_a_file_given_twice_is_no_clash(write):
    path = write("mine.py")
    assert Registry(["mine.py", path, "./mine.py"]).find("priors", "my_prior").origin == "file mine.py"


def test_a_plugin_that_fails_to_import_breaks_only_its_own_use(install, write):
    points = "[prior3d.priors]\nbad = acme_plugins:Bad\ngone = acme_gone:Gone\nnot_there = prior3d.errors:NotThere\n"
    install(points, "import math\nraise RuntimeError('two\\nlines')\n")
    write("mine.py")
    assert Registry(["mine.py"]).get("priors", "my_prior").__name__ == "MyPrior"
    assert error_of("priors", "bad") == (
        "prior 'bad' (acme 2.3) cannot be imported: RuntimeError: two lines (site/acme_plugins.py, line 2)"
    )
    assert error_of("priors", "gone") == (
        "prior 'gone' (acme 2.3) cannot be imported: ModuleNotFoundError: No module named 'acme_gone'"
    )
    assert error_of("priors", "not_there") == (
        "prior 'not_there' (acme 2.3) cannot be imported:"
        " AttributeError: module 'prior3d.errors' has no attribute 'NotThere'"
    )
    found = {plugin.name: problem for plugin, problem in Registry().problems("priors").items()}
    assert found == {
        "gone": "no module acme_gone",
        "bad": "no Bad in acme_plugins",
        "not_there": "no NotThere in prior3d.errors",
    }


def test_a_file_that_fails_to_import_names_file_and_line(write):
    write("mine.py", "import no_such_engine\n" + MINE)
    assert error_of("priors", "my_prior", ["mine.py"]) == (
        "prior 'my_prior' (file mine.py) cannot be imported:"
        " ModuleNotFoundError: No module named 'no_such_engine' (mine.py, line 1)"
    )


def test_a_plugin_that_exits_at_import_is_its_own_fault(write):
    write("mine.py", MINE + "raise SystemExit(3)\n")
    assert error_of("priors", "my_prior", ["mine.py"]) == (
        "prior 'my_prior' (file mine.py) cannot be imported: SystemExit: 3 (mine.py, line 5)"
    )


def test_wrong_kind_and_wrong_contract(install):
    points = "[prior3d.priors]\ndata = prior3d.contracts.dataset:Dataset\nf = acme_plugins:f\nold = acme_plugins:Old\n"
    install(points, "from prior3d import Prior\ndef f(): ...\nclass Old(Prior):\n    contract = 0\n")
    derive = "must be a subclass of prior3d's Prior"
    assert error_of("priors", "data") == f"prior 'data' (acme 2.3) {derive}, got class Dataset"
    assert error_of("priors", "f") == f"prior 'f' (acme 2.3) {derive}, got function"
    assert error_of("priors", "old") == (
        "prior 'old' (acme 2.3) is made for version 0 of the Prior contract, but this prior3d has version 1"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "plugin file mine.py cannot be read: No such file or directory"),
        ("x = 1\nclass\n", "plugin file mine.py is not Python: line 2: invalid syntax"),
        ("x = '\0'\n", "plugin file mine.py is not Python: source code string cannot contain null bytes"),
        (
            "x = 1\n",
            "plugin file mine.py holds no class that derives from one of Prior, Dataset, PosedDataset, SingleImages,"
            " Reader, Probe, SparseEngine, SplatEngine, NeighborEngine, Exporter, Runner",
        ),
    ],
)
def test_a_named_file_must_hold_a_plugin(write, text, message):
    if text is not None:
        write("mine.py", text)
    with pytest.raises(UserError) as caught:
        Registry(["mine.py"])
    assert str(caught.value).replace("line 1: ", "") == message  # some versions of Python count null bytes' lines


@pytest.fixture
def folder(write, monkeypatch):
    """A plugin package of our own in place of the installed one."""
    write("site/dropping/__init__.py", "raise SystemExit('listing must not import this')\n")
    monkeypatch.setattr(prior3d.registry.plugin_files, "FOLDER_PACKAGE", "dropping")
    monkeypatch.syspath_prepend("site")


def test_files_dropped_into_the_plugin_folder_are_found_unless_declared(folder, write, install):
    for name in ("dropped.py", "declared.py", "small/__init__.py", "large/part.py", "large/__init__.py", "_private.py"):
        write(f"site/dropping/{name}", MINE.replace("MyPrior", name.split("/")[0].removesuffix(".py").title()))
    points = "[prior3d.priors]\ndeclared = dropping.declared:Declared\nlarge = dropping.large.part:Large\n"
    install(points, folder="other")
    found = {p.name: (p.origin, p.target) for p in Registry().list("priors") if "dropping" in p.target}
    assert found == {
        "declared": ("acme 2.3", "dropping.declared:Declared"),
        "large": ("acme 2.3", "dropping.large.part:Large"),
        "dropped": ("file site/dropping/dropped.py", "dropping.dropped:Dropped"),
        "small": ("file site/dropping/small/__init__.py", "dropping.small:Small"),
    }


def test_a_dropped_file_that_is_not_python_is_told_where_it_may_matter(folder, write):
    write("site/dropping/broken.py", "class\n")
    registry = Registry()
    problem = "plugin file site/dropping/broken.py is not Python: line 1: invalid syntax"
    assert registry.unreadable == (problem,)
    assert registry.find("priors", "view_invariance")
    assert error_of("priors", "broken").endswith(f"; {problem})")


def test_no_plugin_folder_no_dropped_files(monkeypatch):
    monkeypatch.setattr(prior3d.registry.plugin_files, "FOLDER_PACKAGE", "no_such_package")
    assert dropped_files(frozenset()) == {}


def test_objects_of_a_plugin_file_travel_to_a_spawned_process(write):
    path = write("my-data.py", "class Thing:\n    def __init__(self, x):\n        self.x = x\n")
    module = prior3d.registry.plugin_files.importlib.import_module(module_of(path))
    assert module_of(path).startswith("prior3d.registry.plugin_files.my_data_")
    load = "import pickle, sys; thing = pickle.load(sys.stdin.buffer); print(type(thing).__name__, thing.x)"
    # as a spawned worker does it: a fresh interpreter, elsewhere, that knows nothing of the file
    done = subprocess.run(
        [sys.executable, "-c", load], input=pickle.dumps(module.Thing(3)), capture_output=True, cwd=os.sep, check=True
    )
    assert done.stdout == b"Thing 3\n"


def test_modules_that_name_no_file_are_not_found():
    with pytest.raises(ModuleNotFoundError):
        prior3d.registry.plugin_files.importlib.import_module("prior3d.registry.plugin_files.not-encoded_1")


def test_two_files_of_one_name_do_not_mix(write):
    write("a/mine.py")
    write("b/mine.py", MINE.replace("MyPrior", "Other"))
    registry = Registry(["a/mine.py", "b/mine.py"])
    assert registry.get("priors", "my_prior").__module__ != registry.get("priors", "other").__module__


def test_every_kind_has_a_base_that_exists():
    for kind, contract in KINDS.items():
        module, _, name = contract.base.partition(":")
        base = getattr(prior3d.registry.plugin_files.importlib.import_module(module), name)
        assert base.contract == contract.version, kind


class _Points(list):
    def select(self, group):
        return [point for point in self if point.group == group]
