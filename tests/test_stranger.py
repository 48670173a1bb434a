"""A stranger's distribution brings a field and a plugin of every kind; one recipe uses all, and the core knows none.

`tests/stranger` holds the distribution. It is installed away from the checkout, and the commands run in processes that
find it on their path; the same files are then given to the commands one by one, as plugin files.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

import prior3d
from prior3d import cli, testing
from prior3d.pretraining.tracking import read_curves
from prior3d.registry import KINDS, Registry
from prior3d.registry.engines import choose
from prior3d.registry.registry import in_force

SOURCE = Path(__file__).parent / "stranger"
FILES = {file.stem: file for file in sorted((SOURCE / "acme").glob("[!_]*.py"))}
SIZE, FOCAL = (32, 48), 30.0
ROOM = np.array([4.0, 3.0, 2.5])
RECIPE = """
seed: 3
backbone: {{name: test_convnext, decoder_stride: 4, channels: 8}}
data: {{name: walk, root: {root}, size: [32, 48], batch_size: 2, workers: 0, augment: null, cache: {cache}}}
priors:
  follow: {{}}
  pixel_voxel: {{engine: loops, voxel_size: 0.2, width: 0.25, points: 64, max_voxels: 2000, weight: 0.1}}
trainer: {{max_steps: 2, accelerator: cpu, log_every: 1, gradients_every: 0, draw_every: 0, loggers: [csv]}}
prepare: {{runner: crew, hands: 2, done: {done}}}
probes:
  flow_error: {{}}
  elsewhere: {{probe: flow_error, data: {{name: posed, format: trip, root: {root}, test_scenes: [test-*]}}}}
"""
NAMES = {
    "priors": "follow",
    "datasets": "walk",
    "readers": "trip",
    "probes": "flow_error",
    "engines": "sparse/loops",
    "exporters": "arrays",
    "runners": "crew",
}
DRIVER = '''
"""Runs commands one after the other, each in a process of its own that finds torch imported."""
import json, os, sys
import torch, prior3d, prior3d.api, prior3d.pretraining.training, prior3d.evaluation.run
from prior3d import cli

def train(argv):
    from prior3d.registry.engines import choose
    status = cli.train(argv)
    print("loops has run", choose("sparse", "loops", torch.device("cpu"), torch.float32).calls, "times")
    (run,) = os.listdir("runs")
    os.symlink(run, "runs/walk")
    return status

def export(argv):
    print(prior3d.export(argv[0], *argv[1:]))

torch.set_num_threads(1)
assert not [name for name in sys.modules if name.partition(".")[0] == "acme"]
def change(argv):
    with open(argv[0], "r+b") as file:
        file.write(bytes(100))

commands = {"change": change, "prepare": cli.prepare, "train": train, "evaluate": cli.evaluate, "export": export}
for name, *argv in json.loads(sys.argv[1]):
    sys.stdout.flush()
    child = os.fork()
    if not child:
        status = 1
        try:
            status = commands[name](argv) or 0
        finally:
            sys.stdout.flush()
            os._exit(status)
    if os.waitpid(child, 0)[1]:
        sys.exit(f"{name} failed")
    print("---", flush=True)
'''


def write_trip(folder, start, stops=6):
    """Write a walk through a box with patterned walls, turning 10 degrees at each stop."""
    folder.mkdir(parents=True)
    about = {"size": SIZE, "focal": FOCAL, "stops": []}
    (height, width), rows, columns = SIZE, *np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    rays = np.stack([(columns - width / 2) / FOCAL, (rows - height / 2) / FOCAL, np.ones(SIZE)], -1)
    for stop in range(stops):
        angle = np.radians(start + 10 * stop)
        forward, right = np.array([np.cos(angle), np.sin(angle), 0]), np.array([np.sin(angle), -np.cos(angle), 0])
        pose = np.eye(4)
        pose[:3, :3] = np.stack([right, [0, 0, -1], forward], 1)
        pose[:3, 3] = ROOM * [0.5, 0.5, 0.6] + 0.05 * stop * forward
        toward = rays @ pose[:3, :3].T
        with np.errstate(divide="ignore"):
            depth = np.where(toward > 0, ROOM - pose[:3, 3], -pose[:3, 3]) / toward
        depth = np.where(toward == 0, np.inf, depth).min(-1)
        points = pose[:3, 3] + toward * depth[..., None]
        image = 127 + 100 * np.sin(points * [7.0, 5.0, 9.0]) * np.cos(points[..., ::-1] * 3)
        name = f"stop{stop}"
        image.astype(np.uint8).tofile(folder / f"{name}.rgb")
        depth.astype(np.float32).tofile(folder / f"{name}.range")
        np.stack([depth / 10, depth * 0 + 0.25], -1).astype(np.float32).tofile(folder / f"{name}.flow")
        about["stops"].append({"name": name, "pose": pose.tolist()})
    (folder / "trip.json").write_text(json.dumps(about))


@pytest.fixture(scope="module")
def make_folder(tmp_path_factory):
    """Make a folder with four trips and the recipe."""

    def make(name, more=""):
        folder = tmp_path_factory.mktemp(name)
        for number, trip in enumerate(("a", "b", "test-c", "test-d")):
            write_trip(folder / "trips" / trip, 90 * number)
        places = {"root": folder / "trips", "cache": folder / "cache", "done": folder / "done"}
        (folder / "walk.yaml").write_text(RECIPE.format(**places) + more)
        return folder

    return make


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder that the distribution is installed in."""
    project, site = tmp_path_factory.mktemp("acme") / "project", tmp_path_factory.mktemp("site")
    shutil.copytree(SOURCE, project, ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--target", site]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, project], check=True, capture_output=True)
    return site


@pytest.fixture(scope="module")
def installed(site, make_folder):
    """A folder in which all commands ran, the run folder, and what each command printed."""
    folder = make_folder("installed")
    commands = {
        "prepared": ["prepare", "walk.yaml"],
        "trained": ["train", "walk.yaml", "--out", "runs"],
        "exported": ["export", "runs/walk", "arrays", "exported.npz"],
        "evaluated": ["evaluate", "runs/walk"],
        "evaluated again": ["evaluate", "runs/walk"],
        "changed": ["change", "trips/test-c/stop1.rgb"],
        "evaluated after a change": ["evaluate", "runs/walk"],
    }
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(list(commands.values()))],
        env=os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder, (folder / "runs" / "walk").resolve(), dict(zip(commands, done.stdout.split("---\n"), strict=False))


@pytest.fixture(scope="module")
def dropped(make_folder):
    """The same from plugin files alone, in this process: a folder and the run."""
    folder = make_folder("dropped", f"plugins: [{', '.join(str(FILES[name]) for name in FILES if name != 'prior')}]\n")
    more = [str(folder / "walk.yaml"), "--plugin", str(FILES["prior"])]
    assert cli.prepare(more) == 0
    assert cli.train([*more, "--out", str(folder / "runs")]) == 0
    (run,) = (folder / "runs").iterdir()
    return folder, run


def weights(run):
    return {name: load_file(run / f"{name}.safetensors") for name in ("backbone", "decoder", "initial")}


def test_the_distribution_has_every_kind_and_the_core_knows_nothing_of_it():
    assert set(NAMES) == set(KINDS)
    lines = {name: len(file.read_text().splitlines()) for name, file in FILES.items()}
    assert lines["reader"] < 60 and lines["runner"] < 80
    root = Path(prior3d.__file__).parent
    for file in [*root.rglob("*.py"), *(root.parent / "plugins").rglob("*.py")]:
        text = file.read_text()
        assert not [name for name in NAMES.values() if f'"{name}"' in text], file


def test_list_names_all_of_it_with_its_origin(site):
    command = Path(sys.executable).with_name("prior3d-train")
    environment = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run([command, "--list"], env=environment, capture_output=True, text=True, check=True)
    kind, found = None, {}
    for line in done.stdout.splitlines():
        if not line.startswith(" "):
            kind = line.removesuffix(":")
        elif " acme 1.0 " in line:
            name, _, rest = line.strip().partition(" ")
            found[kind] = name, " ".join(rest.split())
    assert {kind: name for kind, (name, _) in found.items()} == NAMES
    assert found["readers"][1].startswith("acme 1.0 Trips: `trip.json` (size, focal length, poses)")


def test_the_prior_trained_on_the_field_and_the_engine_convolved(installed):
    folder, run, printed = installed
    curves = {}
    for _, name, value in read_curves(run / "metrics.csv"):
        curves.setdefault(name, []).append(value)
    flow = [np.fromfile(file, np.float32).mean() for file in folder.glob("trips/[ab]/*.flow")]
    assert len(curves["follow/flow"]) == 2 and len(flow) == 12
    assert all(min(flow) <= value <= max(flow) for value in curves["follow/flow"])
    assert curves["loss/follow"][1] < curves["loss/follow"][0] and curves["pixel_voxel/matches"][0] > 0
    assert "loops has run 50 times" in printed["trained"]
    before, after = weights(run)["initial"], weights(run)["backbone"]
    assert any(not torch.equal(value, before[f"encoder.model.{name}"]) for name, value in after.items())
    origins = [line for line in (run / "recipe.yaml").read_text().splitlines() if line.startswith("# ")]
    assert {f"# {kind[:-1]} '{NAMES[kind]}' (acme 1.0)" for kind in ("priors", "datasets", "probes", "runners")} <= set(
        origins
    )


def test_the_runner_did_the_work_of_all_commands(installed):
    folder, _, _ = installed
    scenes = "a", "b"
    prepared = [f"{kind} of {scene}" for kind in ("pairs", "surfaces") for scene in scenes]
    checked = [f"checks of {scene}" for scene in (*scenes, "test-c", "test-d")]
    done = (folder / "done").read_text().splitlines()
    assert sorted(done) == sorted([*prepared, *checked, "checks of test-c"])
    assert done[-1] == "checks of test-c"  # by the evaluation, after the change


def test_the_probe_measured_both_datasets_and_the_reader_gave_the_second(installed):
    folder, run, printed = installed
    metrics = json.loads((run / "probes.json").read_text())
    assert set(metrics) == {"flow_error", "elsewhere"}
    of_frames = [np.fromfile(file, np.float32).reshape(32, 48, 2) for file in folder.glob("trips/[ab]/*.flow")]
    mean = np.mean(of_frames, (0, 1, 2))
    for found in metrics.values():
        assert found["before"]["flow RMSE"] != found["after"]["flow RMSE"]
        assert 0 < found["after"]["flow RMSE"] < np.linalg.norm(mean)
    assert metrics["flow_error"] == metrics["elsewhere"]  # the same trips, once through each dataset
    assert "elsewhere, test: depth from 1.16 to 2.17 m" in printed["trained"]
    assert {"flow_error-flow.png", "elsewhere-flow.png"} <= {file.name for file in (run / "figures").iterdir()}


def test_changed_data_are_measured_again_and_unchanged_ones_are_not(installed):
    _, _, printed = installed
    assert "nothing is new" not in printed["evaluated"] and "nothing is new" in printed["evaluated again"]
    assert "nothing is new" not in printed["evaluated after a change"]
    tables = [printed[f"evaluated{when}"].partition("flow_error")[2] for when in ("", " again", " after a change")]
    rows = [table.split("features side by side")[0] for table in tables]
    assert rows[0] == rows[1] != rows[2]


def test_the_exporter_wrote_the_trained_weights(installed):
    folder, run, printed = installed
    assert printed["exported"] == "exported.npz\n"
    with np.load(folder / "exported.npz") as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files if name != "about"}
        assert json.loads(str(file["about"]))["model"] == "test_convnext"
    trained = weights(run)["backbone"]
    assert arrays.keys() == trained.keys() and all(torch.equal(arrays[name], trained[name]) for name in trained)
    timm.create_model("test_convnext", num_classes=0).load_state_dict(arrays, strict=True)


def test_dropped_files_give_what_the_installed_distribution_gives(installed, dropped):
    folder, run = dropped
    for name, tensors in weights(run).items():
        theirs = weights(installed[1])[name]
        assert tensors.keys() == theirs.keys() and all(torch.equal(tensors[key], theirs[key]) for key in tensors)
    assert json.loads((run / "probes.json").read_text()) == json.loads((installed[1] / "probes.json").read_text())
    assert set((folder / "done").read_text().splitlines()) == set((installed[0] / "done").read_text().splitlines())
    assert choose("sparse", "loops", torch.device("cpu"), torch.float32, Registry(FILES.values())).calls == 50
    file = prior3d.export(run, "arrays", folder / "exported.npz", plugins=[FILES["exporter"]])
    with np.load(file) as ours, np.load(installed[0] / "exported.npz") as theirs:
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs.files)
    assert sorted(file.stem for file in (run / "plugins").iterdir()) == sorted(FILES)


@pytest.mark.slow
def test_each_of_them_keeps_to_its_contract(make_folder):
    registry, folder = Registry(FILES.values()), make_folder("contracts")
    made = {kind: registry.get(kind, name) for kind, name in NAMES.items()}

    def read(file, images):
        model = timm.create_model("test_resnet", num_classes=0)
        with np.load(file) as arrays:
            model.load_state_dict({name: torch.from_numpy(arrays[name]) for name in arrays.files if name != "about"})
        return model.eval().forward_features(images)

    with in_force(registry):
        testing.check_reader(made["readers"], folder / "trips")
        testing.check_dataset(made["datasets"], {"root": str(folder / "trips")})
        testing.check_engine(made["engines"])
        testing.check_runner(made["runners"])
        testing.check_exporter(made["exporters"], "model.npz", read)
