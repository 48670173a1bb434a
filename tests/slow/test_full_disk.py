"""A disk that fills up at any stage of a command: one line with the path, nothing half-written, nothing lost.

The disk is a tmpfs that is filled at the moment a stage begins. `tests/jobs/test_disk_full.py` holds the store and the
runners to the same.
"""

import importlib
import subprocess
import tempfile

import pytest
import torch
from safetensors.torch import load_file

import prior3d
from prior3d import UserError, cli

pytestmark = pytest.mark.slow

FULL = "No space left on device"


class Disk:
    """A file system of its own that can be filled."""

    def __init__(self, folder):
        self.folder, self.ballast = folder, folder / "ballast"

    def fill(self):
        if not self.ballast.exists():
            with open(self.ballast, "wb", buffering=0) as file, pytest.raises(OSError, match=FULL):
                while True:
                    file.write(bytes(4096))

    def free(self):
        self.ballast.unlink(missing_ok=True)

    def files(self):
        return {path for path in self.folder.rglob("*") if path.is_file()} - {self.ballast}


@pytest.fixture
def disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], check=False).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    yield Disk(folder)
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def fill_at(disk, monkeypatch):
    """Fill the disk when a function is called for the n-th time."""

    def fill(path, time=1):
        holder, name = path.rsplit(".", 1)
        module, _, cls = holder.partition(":")
        holder = importlib.import_module(module)
        holder = getattr(holder, cls) if cls else holder
        real, calls = getattr(holder, name), []

        def called(*arguments, **options):
            calls.append(name)
            if len(calls) == time:
                disk.fill()
            return real(*arguments, **options)

        monkeypatch.setattr(holder, name, called)

    return fill


@pytest.fixture
def fails(capfd):
    """Run a command that must fail for want of space; return its one line."""

    def run(command, *arguments):
        capfd.readouterr()
        assert command([str(argument) for argument in arguments]) == 2
        error = capfd.readouterr().err
        assert error.count("\n") == 1 and FULL in error, error
        return error

    return run


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    assert cli.train([str(recipe), "--out", str(out)]) == 0
    (run,) = out.iterdir()
    return run


def half_written(disk):
    return [path for path in disk.folder.rglob(".*") if path.suffix != ".lock"]


RUN = "prior3d.pretraining.folder:RunFolder"
PROBING = "prior3d.pretraining.probing"
CHECKPOINT = "prior3d.pretraining.checkpoints.write_checkpoint"
STAGES = {
    "the folder": ("prior3d.pretraining.run:Run.begin_folder", 1, "recipe.yaml", False),
    "initial weights": (f"{RUN}.save_initial", 1, "initial.safetensors", False),
    "first scores": (f"{PROBING}:Probing.before", 1, "scores.json", False),
    "first checkpoint": (CHECKPOINT, 1, "last.ckpt", True),
    "later checkpoint": (CHECKPOINT, 2, "last.ckpt", True),
    "a refresh": ("prior3d.pretraining.refreshing.run_jobs", 2, "step-00000005", True),
    "curves": ("prior3d.pretraining.tracking:Curves.on_train_batch_end", 3, "", True),
    "the summary": (f"{RUN}.write_summary", 1, "summary.json", True),
    "the trained weights": (f"{RUN}.export", 1, ".safetensors", True),
    "last scores": (f"{PROBING}:Probing.after", 1, "scores.json", True),
    "events": (f"{PROBING}.write_events", 1, "", True),
    "figures": (f"{PROBING}.write_report", 1, ".png", True),
    "the report": ("prior3d.reporting.writing.to_markdown", 1, "report.md", True),
}


@pytest.mark.parametrize("stage", STAGES)
def test_training(recipe, whole, disk, fill_at, fails, stage):
    place, time, file, goes_on = STAGES[stage]
    fill_at(place, time)
    line = fails(cli.train, recipe, "--out", disk.folder / "out")
    assert f"cannot write {disk.folder}/out/tiny-" in line and file in line
    assert half_written(disk) == []
    disk.free()
    if not goes_on:
        assert not (disk.folder / "out").exists()
        return
    (run,) = (disk.folder / "out").iterdir()
    last = run / "checkpoints" / "last.ckpt"
    if last.exists():
        torch.load(last, weights_only=True)
    assert cli.train(["--resume", str(run)]) == 0
    for name in ("backbone", "decoder"):
        ours, theirs = load_file(run / f"{name}.safetensors"), load_file(whole / f"{name}.safetensors")
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert (run / "probes.json").read_bytes() == (whole / "probes.json").read_bytes()
    assert {path.name for path in whole.rglob("*.[jpmy]*")} == {path.name for path in run.rglob("*.[jpmy]*")}


@pytest.mark.parametrize("logger", ["tensorboard", "csv"])
def test_curves_before_the_first_checkpoint(recipe, disk, fill_at, fails, logger):
    fill_at("prior3d.pretraining.tracking:Curves.on_train_batch_end", 1)
    longer = ["trainer.checkpoint_every=500", "trainer.max_steps=200", "priors.gaussian_distillation=null"]
    line = fails(cli.train, recipe, *longer, f"trainer.loggers=[{logger}]", "--out", disk.folder / "out")
    assert f"cannot write {disk.folder}/out/tiny-" in line
    assert disk.files() == set()


@pytest.mark.parametrize("command", ["prepare", "train", "evaluate"])
def test_the_cache(recipe, whole, disk, fails, tmp_path, command):
    disk.fill()
    out = tmp_path / "out"
    what = {"prepare": [recipe], "train": [recipe, "--out", out], "evaluate": [whole, "--out", out]}[command]
    line = fails(getattr(cli, command), *what, f"data.cache={disk.folder}/cache")
    assert "data.cache: cannot" in line and f"{disk.folder}/cache" in line
    assert not out.exists() and half_written(disk) == []


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_the_folder_for_temporary_files(recipe, whole, disk, fails, monkeypatch, tmp_path, command):
    monkeypatch.setattr(tempfile, "tempdir", str(disk.folder))
    disk.fill()
    out = tmp_path / "out"
    line = fails(getattr(cli, command), recipe if command == "train" else whole, "--out", out)
    assert f"cannot write {disk.folder}" in line
    assert not out.exists() and disk.files() == set()


EVALUATION = "prior3d.evaluation.run"


@pytest.mark.parametrize(
    ("place", "file"),
    [
        (f"{EVALUATION}._open_results", "scores.json"),
        (f"{EVALUATION}:Measuring.run", "scores.json"),
        (f"{EVALUATION}.write_events", ""),
        (f"{EVALUATION}.write_report", ".png"),
        ("prior3d.reporting.writing.to_markdown", "report.md"),
    ],
)
def test_evaluating(whole, disk, fill_at, fails, capfd, place, file):
    out = disk.folder / "eval"
    fill_at(place)
    line = fails(cli.evaluate, whole, "--out", out)
    assert f"cannot write {out}" in line and file in line
    assert half_written(disk) == [] and (not out.exists() or any(out.iterdir()))
    disk.free()
    assert cli.evaluate([str(whole), "--out", str(out)]) == 0
    assert "report: " in capfd.readouterr().out and len(list(out.glob("events.*"))) == 1
    assert {"report.json", "report.md", "scores.json"} <= {path.name for path in out.iterdir()}


def test_exporting(whole, disk):
    disk.fill()
    with pytest.raises(UserError, match=f"cannot write {disk.folder}/.*: {FULL}"):
        prior3d.export(str(whole), "timm", disk.folder / "model.safetensors")
    assert disk.files() == set()
