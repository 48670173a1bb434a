"""A run that was killed or interrupted goes on as if nothing had happened, to the last bit."""

import json
import os
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from prior3d import cli


def weights(folder):
    return load_file(folder / "backbone.safetensors") | load_file(folder / "decoder.safetensors")


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def first_checkpoint(out):
    return next(iter(out.glob("*/checkpoints/last.ckpt")), None)


def wait_for(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.005)
    raise AssertionError(f"nothing after {seconds:g} s")


def interrupt(start, recipe, out, number, *overrides, delay=0.0):
    """Start a run, send it a signal some time after its first checkpoint, and return its folder."""
    process = start(recipe, *overrides, "--out", out, pause=0.25)
    checkpoint = wait_for(lambda: first_checkpoint(out))
    time.sleep(delay)
    os.kill(process.pid, number)
    process.join(120)
    assert process.exitcode is not None
    return checkpoint.parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_and_resumed_is_bit_identical(start, recipe, uninterrupted, tmp_path, workers):
    folder = interrupt(start, recipe, tmp_path, signal.SIGKILL, f"data.workers={workers}", delay=0.1 * workers)
    assert not (folder / "backbone.safetensors").exists(), "it was complete before it was killed"
    assert cli.train(["--resume", str(folder)]) == 0
    assert equal(weights(folder), weights(uninterrupted))


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_leaves_a_checkpoint_at_a_step_boundary(start, recipe, uninterrupted, tmp_path, number):
    folder = interrupt(start, recipe, tmp_path, number)
    summary = json.loads((folder / "summary.json").read_text())
    assert 0 < summary["steps"] < summary["of"] == 24
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == summary["steps"]
    assert cli.train(["--resume", str(folder)]) == 0
    assert equal(weights(folder), weights(uninterrupted))


def test_resuming_a_complete_run_changes_nothing(uninterrupted, capsys):
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*.safetensors")}
    assert cli.train(["--resume", str(uninterrupted)]) == 0
    assert "is complete" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*.safetensors")}


@pytest.mark.slow
def test_accumulation_stops_at_whole_steps_and_resumes_exactly(start, recipe, train, tmp_path):
    overrides = ("trainer.accumulate=2", "trainer.max_steps=12", "trainer.checkpoint_every=2")
    whole = train(tmp_path / "whole", *overrides)
    folder = interrupt(start, recipe, tmp_path / "cut", signal.SIGTERM, *overrides)
    assert cli.train(["--resume", str(folder)]) == 0
    assert equal(weights(folder), weights(whole))


def test_a_checkpoint_of_another_format_is_refused(uninterrupted, tmp_path, capsys):
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(uninterrupted, folder)
    (folder / "backbone.safetensors").unlink()
    path = folder / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["prior3d"]["format"] = 99
    torch.save(checkpoint, path)
    assert cli.train(["--resume", str(folder)]) == 2
    assert "has checkpoint format 99, this version reads 1" in capsys.readouterr().err
