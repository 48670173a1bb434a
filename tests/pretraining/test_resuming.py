"""Runs that go on: longer than planned, with an edited recipe, without their plugin file, after damage."""

import json
import math
import os
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import prior3d
from prior3d import UserError, cli
from prior3d.files import writing_from_threads
from prior3d.pretraining.checkpoints import read_checkpoint, write_checkpoint
from prior3d.pretraining.machine import check_processes, enough_memory
from prior3d.pretraining.resuming import _is_free
from prior3d.pretraining.tracking import read_curves

PLUGIN = '''
"""Two priors that need nothing but images."""
import torch
from prior3d import Prior

class Pull(Prior):
    """Pull features to one."""

    def __init__(self, backbone, fails_at: int | None = None):
        super().__init__(backbone)
        self.head = torch.nn.Conv2d(backbone.dense_channels, 1, 1)
        self.fails_at, self.calls = fails_at, 0

    def forward(self, batch, features):
        self.calls += 1
        if self.calls == self.fails_at:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        noise = torch.rand(1, device=features["image"].dense.device)
        return (self.head(features["image"].dense.flatten(0, 1)) - noise).square().mean(), {}


class Idle(Prior):
    """Find nothing."""

    needs = ("image_clean",)

    def forward(self, batch, features):
        return self.zero(features), {}
'''
FIVE = {"trainer.max_steps": 5}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with images and a plugin file, and the recipe of a run of 4 steps, a fraction of a second each."""
    folder = tmp_path_factory.mktemp("going-on")
    (folder / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 40, 40, 3), dtype=np.uint8)
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(folder / "images" / f"{index}.png")
    (folder / "mine.py").write_text(PLUGIN)
    data = {"name": "image_folder", "root": str(folder / "images"), "size": [32, 32], "views": 1, "batch_size": 2}
    return folder, {
        "backbone": {"name": "test_resnet"},
        "data": {**data, "workers": 0, "cache": str(folder / "cache")},
        "priors": {"pull": {}},
        "optim": {"lr": 0.01},
        "trainer": {"max_steps": 4, "accelerator": "cpu", "draw_every": 0, "log_every": 1, "loggers": ["csv"]},
        "plugins": [str(folder / "mine.py")],
    }


@pytest.fixture
def train(base, tmp_path):
    """Train with some values changed, from Python."""

    def run(overrides=(), **more):
        return prior3d.train(base[1], dict(overrides), out=tmp_path / "out", quiet=True, **more)

    return run


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory):
    """A run of 4 steps that is done; tests work on copies."""
    return prior3d.train(base[1], out=tmp_path_factory.mktemp("finished"), quiet=True).folder


@pytest.fixture
def copy(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def weights(folder):
    return load_file(folder / "backbone.safetensors")


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_that_is_extended_is_the_longer_run(train):
    constant = {"optim.schedule": "constant"}
    whole = train({**constant, "trainer.max_steps": 7})
    short = train({**constant, "trainer.max_steps": 4})
    longer = prior3d.train(resume=short.folder, overrides={"trainer.max_steps": 7}, quiet=True)
    assert longer.steps == 7 and equal(weights(longer.folder), weights(whole.folder))


def test_the_schedule_of_an_extended_run_is_that_of_its_new_length_and_it_is_recorded(copy):
    assert cli.train(["--resume", str(copy), "trainer.max_steps=8"]) == 0
    rates = {step: value for step, name, value in read_curves(copy / "metrics.csv") if name == "optim/lr"}
    assert list(rates) == list(range(1, 9))
    for step in (5, 6, 7):  # the rate of the step to come
        assert rates[step] == pytest.approx(0.01 * 0.5 * (1 + math.cos(math.pi * step / 8)))
    summary = json.loads((copy / "summary.json").read_text())
    assert (summary["steps"], summary["of"]) == (8, 8)
    assert summary["changes"] == [{"step": 4, "trainer.max_steps": [4, 8]}]
    text = (copy / "recipe.yaml").read_text()
    assert "# since step 4: trainer.max_steps is 8, it was 4" in text and "max_steps: 8" in text
    assert read_checkpoint(copy / "checkpoints" / "last.ckpt")["prior3d"]["history"] == summary["changes"]


def test_an_edited_recipe_is_refused_where_steps_depend_on_it(copy, capsys):
    file = copy / "recipe.yaml"
    text = file.read_text()
    file.write_text(text.replace("lr: 0.01", "lr: 0.02"))
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert cli.train(["--resume", str(copy)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "recipe.yaml:" in line and "optim.lr: a resumed run must not change: optim.lr was 0.01 and is 0.02" in line
    assert f"backbone.weights={copy}" in line
    assert before == {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    file.write_text(text)
    with pytest.raises(UserError, match=r"data\.batch_size was 2 and is 3"):
        prior3d.train(resume=copy, overrides={"data.batch_size": 3})
    with pytest.raises(UserError, match=r"trainer\.max_steps: the run is already at step 4"):
        prior3d.train(resume=copy, overrides={"trainer.max_steps": 3})


def test_what_no_step_depends_on_may_change_and_is_recorded(copy, base):
    moved = copy.parent / "moved"
    shutil.copytree(base[0] / "images", moved)
    changed = {"data.root": moved, "trainer.max_steps": 5, "trainer.log_every": 2, "data.workers": 1}
    run = prior3d.train(resume=copy, overrides=changed, quiet=True)
    (entry,) = run.history
    assert entry["data.root"] == [str(base[0] / "images"), str(moved)] and entry["data.workers"] == [0, 1]
    assert prior3d.load_recipe(copy / "recipe.yaml").data.options["root"] == str(moved)


def other_images(folder, count, seed):
    """Make a folder with images that a run did not begin with."""
    folder.mkdir()
    pixels = np.random.default_rng(seed).integers(0, 256 - 20 * seed, (count, 40, 40, 3), dtype=np.uint8)
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{index}.png")
    return folder


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (5, "the run began with 6 frames in 1 scenes, and these are 5 frames in 1 scenes"),
        (6, "6 of 6 compared frames differ from those the run began with, the first is frame 0 of scene 0"),
    ],
)
def test_other_data_of_the_same_kind_are_refused(copy, tmp_path, count, words, capsys):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    root = other_images(tmp_path / "office", count, seed=1)
    assert cli.train(["--resume", str(copy), f"data.root={root}", "trainer.max_steps=5"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"data: a resumed run must keep its data, which may only be moved: {words}")
    assert before == {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}


def test_a_checkpoint_without_a_record_of_its_data_still_resumes(copy):
    last = copy / "checkpoints" / "last.ckpt"
    checkpoint = read_checkpoint(last)
    assert checkpoint["prior3d"].pop("data")["frames"] == [6]
    torch.save(checkpoint, last)
    assert prior3d.train(resume=copy, overrides=FIVE, quiet=True).steps == 5


def test_another_file_of_another_section_is_no_move():
    free = {"old": "/a/start.safetensors", "moved": "/b/start.safetensors", "other": "/a/else.safetensors"}
    assert _is_free("backbone.weights", (free["old"], free["moved"]))
    assert not _is_free("backbone.weights", (free["old"], free["other"]))
    assert not _is_free("backbone.weights", (free["old"], None))


@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_how_scenes_are_prepared_and_loaded_may_change_with_and_without_a_checkpoint(copy, has_checkpoint):
    if not has_checkpoint:
        (copy / "checkpoints" / "last.ckpt").unlink()
    changes = {"prepare.runner": "processes", "prepare.workers": 2, "data.workers": 1}
    run = prior3d.train(resume=copy, overrides=changes, quiet=True)
    assert (run.steps, run.recipe.prepare.runner) == (4, "processes")
    assert prior3d.load_recipe(copy / "recipe.yaml").data.workers == 1
    with pytest.raises(UserError, match=r"optim\.lr: a resumed run must not change"):
        prior3d.train(resume=copy, overrides={"optim.lr": 1}, quiet=True)


def test_a_complete_run_without_its_checkpoint_cannot_be_extended(copy):
    (copy / "checkpoints" / "last.ckpt").unlink()
    with pytest.raises(UserError, match=r"a resumed run must not change: trainer\.max_steps was 4 and is 5"):
        prior3d.train(resume=copy, overrides=FIVE, quiet=True)


def test_a_complete_run_is_left_as_it_is(copy):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()}
    assert prior3d.train(resume=copy, quiet=True).steps == 4
    after = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()}
    assert before == after


def test_a_run_brings_its_plugin_files_along(copy, base, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    copy.rename(elsewhere)
    assert "plugins: [plugins/mine.py]" in (elsewhere / "recipe.yaml").read_text()
    (base[0] / "mine.py").rename(base[0] / "away.py")
    try:
        assert prior3d.load(elsewhere).spec.name == "test_resnet"
        assert prior3d.train(resume=elsewhere, overrides=FIVE, quiet=True).steps == 5
    finally:
        (base[0] / "away.py").rename(base[0] / "mine.py")


def test_a_plugin_file_given_by_hand_stands_in_for_one_that_is_gone(copy, base, capsys):
    text = (copy / "recipe.yaml").read_text()
    (copy / "recipe.yaml").write_text(text.replace("plugins/mine.py", "/nowhere/mine.py"))
    shutil.rmtree(copy / "plugins")
    assert cli.train(["--resume", str(copy), "trainer.max_steps=5"]) == 2
    assert "/nowhere/mine.py cannot be read" in capsys.readouterr().err
    assert cli.train(["--resume", str(copy), "trainer.max_steps=5", "--plugin", str(base[0] / "mine.py")]) == 0
    assert (
        "plugins: [plugins/mine.py]" in (copy / "recipe.yaml").read_text() and (copy / "plugins" / "mine.py").is_file()
    )


def test_curves_have_points_where_something_was_measured_and_say_how_fast_it_goes(train):
    run = train({"trainer.max_steps": 6, "trainer.gradients_every": 3, "trainer.loggers": ["csv", "tensorboard"]})
    points = read_curves(run.folder / "metrics.csv")
    steps = {name: [step for step, other, _ in points if other == name] for _, name, _ in points}
    assert steps["gradients/norm/pull"] == [1, 3, 6]
    every = ("loss", "loss/pull", "optim/lr", "optim/gradient_norm", "images_per_second", "time/step", "time/data")
    assert all(steps[name] == [1, 2, 3, 4, 5, 6] for name in (*every, "memory/process_gib", "features/spread"))
    values = {name: value for _, name, value in points}
    assert values["images_per_second"] > 0 and 0 <= values["time/data"] <= values["time/step"]
    assert values["optim/gradient_norm"] > 0 and 0.05 < values["memory/process_gib"] < 64
    events = EventAccumulator(str(run.folder))
    events.Reload()
    for name, wanted in steps.items():
        assert [point.step for point in events.Scalars(name)] == wanted


def test_losses_are_logged_at_their_own_step_not_a_later_one(train):
    often, seldom = train({"trainer.max_steps": 6}), train({"trainer.max_steps": 6, "trainer.log_every": 3})
    every = {step: value for step, name, value in read_curves(often.folder / "metrics.csv") if name == "loss"}
    some = {step: value for step, name, value in read_curves(seldom.folder / "metrics.csv") if name == "loss"}
    assert some == {step: every[step] for step in (3, 6)}


def test_lines_of_a_log_file_name_losses_rate_and_time_left(base, tmp_path, capsys):
    prior3d.train(base[1], {"priors.idle": {}}, out=tmp_path)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step 2 of 4: ")]
    (line,) = lines
    assert "(pull 0." in line or "(pull 1." in line
    assert ", idle 0.000), " in line and " steps/s, " in line and " images/s, 0:0" in line and line.endswith(" left")


def test_milestones_are_kept_and_a_run_goes_on_from_one(train):
    run = train({"trainer.max_steps": 6, "trainer.keep_every": 2})
    folder = run.folder / "checkpoints"
    assert sorted(file.name for file in folder.iterdir()) == ["last.ckpt", "step-2.ckpt", "step-4.ckpt", "step-6.ckpt"]
    before = weights(run.folder)
    shutil.copy(folder / "step-2.ckpt", folder / "last.ckpt")
    (run.folder / "backbone.safetensors").unlink()
    assert prior3d.train(resume=run.folder, quiet=True).steps == 6
    assert equal(weights(run.folder), before)


@pytest.mark.parametrize("size", [0, 20_000, -1])
def test_a_checkpoint_that_is_cut_off_is_one_line_that_says_what_to_do(copy, size, capsys):
    (copy / "backbone.safetensors").unlink()
    last = copy / "checkpoints" / "last.ckpt"
    content = last.read_bytes()
    last.write_bytes(content[:size])
    assert cli.train(["--resume", str(copy)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{last} is damaged or cut off" in line and "begin at its first step again: remove it" in line
    (copy / "checkpoints" / "step-2.ckpt").write_bytes(content)
    assert cli.train(["--resume", str(copy)]) == 2
    assert "to resume from step 2, copy step-2.ckpt over it" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["initial.safetensors", "backbone.safetensors", "recipe.yaml"])
def test_any_other_file_that_is_cut_off_is_one_line(copy, name, capsys):
    file = copy / name
    file.write_bytes(file.read_bytes()[:200])
    assert cli.train(["--resume", str(copy)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert name in line


def test_without_a_checkpoint_a_run_begins_again_with_what_its_recipe_says_now(copy, base):
    for file in (copy / "checkpoints" / "last.ckpt", copy / "backbone.safetensors"):
        file.unlink()
    (copy / ".initial.safetensors.99.tmp").write_text("of a process that was killed")
    text = (copy / "recipe.yaml").read_text()
    (copy / "recipe.yaml").write_text(text.replace("seed: 0", "seed: 7"))
    assert prior3d.train(resume=copy, quiet=True).steps == 4
    fresh = prior3d.train({**base[1], "seed": 7}, out=copy.parent / "fresh", quiet=True)
    assert equal(weights(copy), weights(fresh.folder))
    assert equal(load_file(copy / "initial.safetensors"), load_file(fresh.folder / "initial.safetensors"))
    assert not list(copy.glob(".*"))


def test_a_run_with_nothing_to_learn_from_is_an_error(train, tmp_path):
    with pytest.raises(UserError) as refused:
        train({"priors": {"idle": {}}})
    assert "priors.idle: its loss was exactly 0 in each of 4 steps: there is nothing to learn" in str(refused.value)
    assert "image_clean" in str(refused.value)
    assert not list(tmp_path.rglob("backbone.safetensors"))


def test_a_long_run_with_nothing_to_learn_from_ends_early(train, monkeypatch):
    monkeypatch.setattr("prior3d.pretraining.task.IDLE_PATIENCE", 2)
    with pytest.raises(UserError, match="in each of 3 steps"):
        train({"priors": {"idle": {}}, "trainer.max_steps": 1000})


def test_a_prior_that_never_acted_is_not_credited(train):
    run = train({"priors.idle": {}})
    assert run.idle == ["idle"]
    assert json.loads((run.folder / "summary.json").read_text())["priors whose loss stayed 0"] == ["idle"]
    again = prior3d.train(resume=run.folder, overrides=FIVE, quiet=True)
    assert again.idle == ["idle"], "known from the checkpoint"
    from prior3d.pretraining.probing import _credit

    assert _credit(["pull", "idle"], run.idle) == "pull (idle: the loss stayed 0)"


def test_memory_that_runs_out_is_one_line_with_advice(train, tmp_path):
    with pytest.raises(UserError) as refused:
        train({"priors.pull.fails_at": 2})
    text = str(refused.value)
    assert "data.batch_size: a training step does not fit into the memory of the GPU: lower this (it is 2)" in text
    assert "accumulate" in text and "bf16" in text
    assert not list((tmp_path / "out").rglob("*")), "nothing is left behind"


def test_memory_of_the_machine_that_runs_out_is_said_as_well():
    def allocate():
        with enough_memory(8):
            torch.empty(2**60, dtype=torch.uint8)

    with pytest.raises(UserError, match=r"data\.batch_size: a training step .* the memory of this machine"):
        allocate()


def test_a_full_disk_at_a_checkpoint_leaves_the_one_before_and_nothing_else(tmp_path):
    file = tmp_path / "last.ckpt"
    content = {"prior3d": {"format": 1}, "weights": torch.rand(1000)}
    write_checkpoint(content, file)
    before = file.read_bytes()
    temporary = tmp_path / f".last.ckpt.{socket.gethostname()}-{os.getpid()}.tmp"
    temporary.symlink_to("/dev/full")  # every byte written there says that the disk is full
    with pytest.raises(UserError) as refused:
        write_checkpoint({**content, "weights": torch.rand(10**6)}, file)
    advice = "free some, or use another folder; the checkpoint before it is intact"
    assert str(refused.value) == f"cannot write {file}: No space left on device; {advice}"
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"] and file.read_bytes() == before


def test_a_full_disk_elsewhere_is_one_line_with_a_path(tmp_path):
    def fill():
        with writing_from_threads(tmp_path), open("/dev/full", "w") as file:
            file.write("x" * 100_000)

    with pytest.raises(UserError, match=f"cannot write {tmp_path}: No space left on device"):
        fill()


@pytest.mark.parametrize(
    ("environment", "devices", "words"),
    [
        ({"WORLD_SIZE": "2", "RANK": "1"}, 1, "2 processes were started (the environment has WORLD_SIZE=2), but this"),
        ({"WORLD_SIZE": "4", "RANK": "0"}, 2, "4 processes were started"),
        ({"RANK": "1"}, 1, "this is process 1 of several (the environment has RANK=1), but trainer.devices is 1"),
        ({"SLURM_PROCID": "3"}, 1, "SLURM_PROCID=3"),
    ],
)
def test_processes_that_the_recipe_does_not_know_of_are_refused(monkeypatch, environment, devices, words):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    check_processes(1)
    check_processes(2)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as refused:
        check_processes(devices)
    assert words in str(refused.value) and refused.value.key == "trainer.devices"


def test_processes_of_several_nodes_are_counted_and_have_a_launcher(monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="started by a launcher: use torchrun or srun"):
        check_processes(4, 2)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UserError, match=r"but 2 nodes of 4 devices \(trainer\.devices\) are 8"):
        check_processes(4, 2)
    monkeypatch.setenv("WORLD_SIZE", "8")
    check_processes(4, 2)
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv("SLURM_PROCID", "5")
    monkeypatch.setenv("SLURM_NTASKS", "8")
    check_processes(4, 2)


def test_processes_that_the_recipe_knows_of_are_not(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    check_processes(2)


def test_a_logger_that_is_not_installed_is_one_line_with_its_pip_line(train, monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    with pytest.raises(UserError, match=r"trainer\.loggers: wandb needs .* pip install 'prior3d\[wandb\]'"):
        train({"trainer.loggers": ["wandb"]})
    assert not (tmp_path / "out").exists()


def test_nothing_left_to_train_is_refused(base, tmp_path):
    recipe = {**base[1], "priors": {"idle": {}}}
    with pytest.raises(UserError, match=r"backbone\.train: nothing is left to train"):
        prior3d.train(recipe, {"backbone.train": "frozen"}, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_brackets_in_paths_are_printed_as_they_are(base, tmp_path, capsys):
    run = prior3d.train(base[1], {"trainer.max_steps": 1}, out=tmp_path / "out [v2]")
    assert f"run folder {run.folder}" in capsys.readouterr().out and "[v2]" in str(run.folder)


def test_threads_are_recorded(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["threads"] == torch.get_num_threads()
    assert summary["OMP_NUM_THREADS"] == os.environ.get("OMP_NUM_THREADS")


def test_plugin_files_of_one_name_are_told_apart(base, tmp_path):
    other = tmp_path / "mine.py"
    other.write_text(PLUGIN.replace("class Pull", "class Push").replace("class Idle", "class Lazy"))
    run = prior3d.train(base[1], {"priors.push": {}}, out=tmp_path / "out", plugins=[other], quiet=True)
    assert sorted(path.name for path in (run.folder / "plugins").iterdir()) == ["mine.py", "mine_2.py"]
    again = prior3d.load_recipe(run.folder / "recipe.yaml")
    assert replace(again, plugins=()) == replace(run.recipe, plugins=())
