"""What priors prepare: computed once by any number of processes, kept whole, and again within training."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from prior3d import cli

ROOMS = 4
DISTILLATION = "gaussian_distillation: {anchor: 0.1, min_views: 2}"
MOVING = "gaussian_distillation: {teacher: ema, start_step: 4, refresh_every: 6, refreshes: 2, anchor: 0.0}"

SLOW = '''
"""The prior as it is, slow enough to be killed in the middle of a scene; a log tells who has done what."""
import os
import time
from pathlib import Path
from prior3d import Prior
from prior3d_plugins.priors.gaussian_distillation import GaussianDistillation

class Slow(GaussianDistillation, Prior):
    """Take your time."""

    def prepare(self, scene, teacher, folder):
        super().prepare(scene, teacher, folder)
        time.sleep(0.4)
        with open(Path(__file__).with_name("log"), "a") as log:
            log.write(f"{os.getpid()} {scene.name}\\n")
'''


@pytest.fixture
def write(recipe, tmp_path):
    """Write the small recipe with other priors and more rooms."""

    def make(priors, plugins=""):
        text = recipe.read_text()
        start, end = text.index("priors:"), text.index("optim:")
        text = f"{text[:start]}priors: {{{priors}}}\n{plugins}\n{text[end:]}".replace("rooms: 2", f"rooms: {ROOMS}", 1)
        path = tmp_path / "offline.yaml"
        path.write_text(text)
        return path

    return make


def preparing(*arguments):
    """Start the command in a process of its own, from the server that `start` has set up."""
    process = multiprocessing.get_context("forkserver").Process(target=cli.prepare, args=([*map(str, arguments)],))
    process.start()
    return process


def entries(cache, prior="gaussian_distillation"):
    return sorted(path for path in Path(cache, "prepared", prior).glob("[!.]*"))


def contents(folders):
    return [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders]


def wait_for(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.002)
    raise AssertionError(f"nothing after {seconds:g} s")


def weights(folder):
    return load_file(folder / "backbone.safetensors") | load_file(folder / "decoder.safetensors")


def run_folder(out):
    (found,) = (path.parent for path in Path(out).glob("*/recipe.yaml"))
    return found


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_what_prepare_computed_training_finds_and_says_so(write, tmp_path, capsys):
    recipe, cache = write(DISTILLATION), tmp_path / "cache"
    assert cli.prepare([str(recipe), f"data.cache={cache}"]) == 0
    assert f"gaussian_distillation: {ROOMS} scenes prepared, {ROOMS} of them now" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for entry in entries(cache) for path in (entry, *entry.iterdir())}
    assert len(entries(cache)) == ROOMS
    arguments = [str(recipe), f"data.cache={cache}", "trainer.max_steps=2", "--out", str(tmp_path / "out")]
    assert cli.train(arguments) == 0
    assert f"gaussian_distillation: {ROOMS} scenes prepared, 0 of them now" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for entry in entries(cache) for path in (entry, *entry.iterdir())}
    # a run that prepares for itself gets the same, from its weights before training
    other = tmp_path / "other"
    assert cli.train([*arguments[:1], f"data.cache={other}", *arguments[2:-1], str(tmp_path / "out-2")]) == 0
    assert contents(entries(other)) == contents(entries(cache))
    first, second = (weights(run_folder(tmp_path / out)) for out in ("out", "out-2"))
    assert equal(first, second)
    # and a resumed one takes the weights that are in its folder
    folder = run_folder(tmp_path / "out")
    (folder / "backbone.safetensors").unlink()
    assert cli.train(["--resume", str(folder)]) == 0
    assert "0 of them now" in capsys.readouterr().out


def test_the_key_holds_what_a_lifted_scene_depends_on_and_nothing_else(write, tmp_path):
    recipe, cache = write(DISTILLATION), tmp_path / "cache"

    def prepare(*overrides, rooms=1):
        before = len(entries(cache))
        assert cli.prepare([str(recipe), f"data.cache={cache}", f"data.rooms={rooms}", "data.views=1", *overrides]) == 0
        return len(entries(cache)) - before

    mine = "priors.gaussian_distillation."
    assert prepare() == 1
    same = (f"{mine}weight=2.0", f"{mine}anchor=0.0", f"{mine}distance=cosine", "optim.lr=0.1", "data.augment=null")
    assert [prepare(override) for override in same] == [0] * len(same)
    assert prepare(rooms=2) == 1  # the room that was there stays
    other = (f"{mine}lift=cg", f"{mine}frames=4", f"{mine}spacing=0.3", "seed=4", "data.frames=7", "data.size=[48,48]")
    assert [prepare(override) for override in other] == [1] * len(other)


@pytest.mark.slow
def test_killed_and_restarted_by_two_at_once_nothing_is_lost_or_half_written(write, start, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    recipe = write("slow: {anchor: 0.0, min_views: 2}", "plugins: [slow.py]")
    whole, cache, log = tmp_path / "whole", tmp_path / "cache", tmp_path / "log"
    assert cli.prepare([str(recipe), f"data.cache={whole}"]) == 0
    expected, count = contents(entries(whole, "slow")), len(log.read_text().splitlines())
    assert count == ROOMS == len(expected)

    killed = preparing(recipe, f"data.cache={cache}")
    partial = wait_for(
        lambda: entries(cache, "slow") and next(Path(cache, "prepared", "slow").glob(".*.partial/lifted*"), None)
    )
    os.kill(killed.pid, signal.SIGKILL)
    killed.join(120)
    done = entries(cache, "slow")
    assert 0 < len(done) < ROOMS and partial.exists(), "killed too late"
    assert all(content in expected for content in contents(done))
    before = {path: path.stat().st_mtime_ns for path in done}

    log.unlink()
    both = [preparing(recipe, f"data.cache={cache}") for _ in range(2)]
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    assert contents(entries(cache, "slow")) == expected
    assert before == {path: path.stat().st_mtime_ns for path in done}
    assert not list(Path(cache, "prepared", "slow").glob(".*.partial"))
    rooms = [line.split()[1] for line in log.read_text().splitlines()]
    assert sorted(rooms) == sorted(set(rooms)) and len(rooms) == ROOMS - len(done)  # each once, by one of the two


@pytest.fixture(scope="module")
def moving(recipe, tmp_path_factory):
    """The small recipe with a teacher that moves: lifted at steps 4, 10 and 16 of 24; and its run, uninterrupted."""
    folder = tmp_path_factory.mktemp("moving")
    text = recipe.read_text().replace("channels: 16}", "channels: 16, ema: 0.8}")
    start, end = text.index("priors:"), text.index("optim:")
    path = folder / "moving.yaml"
    path.write_text(f"{text[:start]}priors: {{view_invariance: {{points: 64}}, {MOVING}}}\n{text[end:]}")
    assert cli.train([str(path), "--out", str(folder / "out")]) == 0
    return path, run_folder(folder / "out")


def test_the_loss_is_zero_until_the_first_refresh_and_old_ones_go(moving):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, folder = moving
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    losses = [point.value for point in events.Scalars("loss/gaussian_distillation")]
    active = [point.value for point in events.Scalars("gaussian_distillation/active")]
    assert active == [0.0] * 4 + [1.0] * 20
    assert losses[:4] == [0.0] * 4 and all(loss > 0 for loss in losses[4:])
    # the checkpoint of step 16 was there before its refresh: nothing leads back to the earlier ones
    assert [path.name for path in (folder / "prepared" / "gaussian_distillation").iterdir()] == ["step-00000016"]


@pytest.mark.parametrize(
    "sign",
    [
        pytest.param("*/checkpoints/last.ckpt", id="after a checkpoint", marks=pytest.mark.slow),
        pytest.param("*/prepared/*/step-00000010/scene-000000", id="within a refresh"),
        pytest.param("*/prepared/*/step-00000010/scene-00000*", id="after a refresh", marks=pytest.mark.slow),
    ],
)
def test_killed_about_a_refresh_and_resumed_is_bit_identical(start, moving, tmp_path, sign):
    path, whole = moving
    process = start(path, "--out", tmp_path)
    enough = 2 if sign.endswith("*") else 1
    wait_for(lambda: len(list(tmp_path.glob(sign))) >= enough)
    time.sleep(0.1 * (enough - 1))
    os.kill(process.pid, signal.SIGKILL)
    process.join(120)
    folder = run_folder(tmp_path)
    assert not (folder / "backbone.safetensors").exists(), "it was complete before it was killed"
    assert cli.train(["--resume", str(folder)]) == 0
    assert equal(weights(folder), weights(whole))
    last = "prepared/gaussian_distillation/step-00000016"
    assert contents(sorted((folder / last).glob("scene-*"))) == contents(sorted((whole / last).glob("scene-*")))


@pytest.mark.slow
def test_a_run_whose_lifted_scenes_are_gone_is_not_resumed_with_others(start, moving, tmp_path, capsys):
    path, _ = moving
    process = start(path, "--out", tmp_path)
    wait_for(lambda: list(tmp_path.glob("*/prepared/*/step-00000010/scene-000001")))
    os.kill(process.pid, signal.SIGTERM)
    process.join(120)
    folder = run_folder(tmp_path)
    shutil.rmtree(folder / "prepared")
    assert cli.train(["--resume", str(folder)]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "is missing, and this run cannot be resumed without it" in line


@pytest.mark.slow
def test_two_ranks_share_the_scenes_and_finish(moving, tmp_path):
    path, _ = moving
    arguments = ["trainer.devices=2", "trainer.max_steps=7", "priors.gaussian_distillation.start_step=2"]
    program = Path(sys.executable).parent / "prior3d-train"
    done = subprocess.run(
        [program, path, *arguments, "--out", tmp_path], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("prepared at step 2") == 1
    scenes = list(run_folder(tmp_path).glob("prepared/gaussian_distillation/step-00000002/scene-*/lifted.safetensors"))
    assert len(scenes) == 2


@pytest.mark.parametrize(
    ("priors", "overrides", "words"),
    [
        (
            MOVING,
            [],
            "priors.gaussian_distillation: its teacher is the moving average of the backbone; set backbone.ema",
        ),
        (
            DISTILLATION,
            ["data.views=1", "data.frames=1"],
            "priors.gaussian_distillation: scene train-000: 1 frames, but a point must be seen by 2 (min_views)",
        ),
        (
            DISTILLATION,
            ["priors.gaussian_distillation.stride=3"],
            "priors.gaussian_distillation.stride: convnext_atto has no map of stride 3; its strides are 4, 8, 16, 32",
        ),
        (
            DISTILLATION,
            ["priors.gaussian_distillation.start_step=3"],
            "priors.gaussian_distillation.start_step: needs teacher: ema; the reference never changes",
        ),
    ],
)
@pytest.mark.parametrize("entry", ["train", "prepare"])
def test_what_cannot_be_prepared_is_one_line_and_leaves_no_run(
    write, tmp_path, capsys, entry, priors, overrides, words
):
    arguments = [str(write(priors)), f"data.cache={tmp_path / 'cache'}", "data.rooms=1", *overrides]
    out = ["--out", str(tmp_path / "out")] if entry == "train" else []
    assert getattr(cli, entry)([*arguments, *out]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"prior3d-{entry}: ") and line.count("\n") == 1
    assert words in line
    assert not (tmp_path / "out").exists()


def test_datasets_without_posed_depth_are_refused(tmp_path, capsys):
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    path = tmp_path / "images.yaml"
    path.write_text(f"""
backbone: {{name: convnext_atto, decoder_stride: 4}}
data: {{name: image_folder, root: {tmp_path}, size: [48, 64], views: 1, batch_size: 2}}
priors: {{{DISTILLATION}}}
trainer: {{max_steps: 1}}
""")
    assert cli.prepare([str(path)]) == 2
    line = capsys.readouterr().err
    assert (
        "gaussian_distillation needs intrinsics, world_from_camera, depth, which image_folder does not provide" in line
    )


def test_single_views_will_do(write, tmp_path):
    path = write(DISTILLATION)
    overrides = ["data.views=1", "trainer.max_steps=2", "data.rooms=1", f"data.cache={tmp_path / 'cache'}"]
    assert cli.train([str(path), *overrides, "--out", str(tmp_path / "out")]) == 0


def test_a_run_too_short_for_its_first_refresh_says_so(moving, tmp_path, capsys):
    path, _ = moving
    assert cli.train([str(path), "trainer.max_steps=2", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "would first be prepared at step 4, this run ends at 2: its loss stays 0" in out
    assert "gaussian_distillation: its loss was 0 at every step: nothing was learned from it" in out


def test_the_command_prepare_is_quick_to_say_what_it_does_not_understand(capsys, tmp_path):
    assert cli.prepare([]) == 2
    assert capsys.readouterr().err.startswith("prior3d-prepare: which recipe?")
    assert cli.prepare([str(tmp_path / "none.yaml")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert cli.prepare(["--resume", "x"]) == 2
    program = (
        "import sys; from prior3d.cli import prepare\n"
        "try: prepare(['--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'numpy', 'lightning', 'yaml'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)
