"""Commands that are killed at random moments and run again end as if nothing had happened, and leave nothing behind."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prior3d import cli
from prior3d.pretraining.tracking import read_curves

pytestmark = pytest.mark.slow

KILLS = {"train": 12, "prepare": 4, "evaluate": 4}
LEFTOVERS = (".tmp", ".partial", ".events-", ".prior3d-", "prior3d-probe-")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A process that has imported everything and starts the commands; their temporary files lie in a folder of ours."""
    temporary = tmp_path_factory.mktemp("temporary")
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(temporary)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "prior3d.api",
            "prior3d.pretraining.training",
            "prior3d.evaluation.run",
            "prior3d_plugins.datasets.synthetic_rooms",
            "prior3d_plugins.priors.gaussian_distillation",
            "prior3d_plugins.probes.depth",
        ]
    )
    yield context, temporary
    os.environ.pop("TMPDIR") if before is None else os.environ.update(TMPDIR=before)


def work(command, arguments, temporary):
    """Run a command in a session of its own, as a user's terminal does."""
    import tempfile

    os.setsid()
    tempfile.tempdir = str(temporary)
    torch.set_num_threads(1)
    multiprocessing.set_start_method(None, force=True)
    raise SystemExit(getattr(cli, command)([str(argument) for argument in arguments]))


def processes_of(session):
    """Numbers of the processes of a session that still run."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(status.parent.name))
    return found


def run_with_kills(server, command, arguments_of, kills, longest, stream):
    """Start a command again and again, kill it so often, and let it end; return how many kills met it at work.

    Args:
        arguments_of: gives the arguments of the next start.
        longest: seconds after its start at which it is killed at the latest.
        stream: of the random moments.
    """
    context, temporary = server
    met = 0
    for _ in range(kills + 1):
        process = context.Process(target=work, args=(command, arguments_of(), temporary))
        process.start()
        process.join(stream.uniform(0.05, longest) if met < kills else 600)
        ended = process.exitcode is not None
        if not ended:
            os.kill(process.pid, signal.SIGKILL)
            process.join(60)
            met += 1
        end = time.monotonic() + 20
        while processes_of(process.pid) and time.monotonic() < end:
            time.sleep(0.05)
        assert processes_of(process.pid) == [], "a process outlives the command"
        if ended:
            assert process.exitcode == 0
            return met
    raise AssertionError(f"not done after {kills + 1} starts")


def leftovers(*folders):
    return [path for folder in folders for path in folder.rglob("*") if any(one in path.name for one in LEFTOVERS)]


def timeless(plain):
    """Return plain values without the seconds that something took."""
    if isinstance(plain, dict):
        return {name: timeless(value) for name, value in plain.items() if name != "seconds"}
    return [timeless(value) for value in plain] if isinstance(plain, list) else plain


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


@pytest.fixture(scope="module")
def undisturbed(server, recipe, tmp_path_factory):
    """The run that nobody disturbs, from an empty cache, and how long it took, with prepared data and without."""
    out, seconds = tmp_path_factory.mktemp("undisturbed"), {}
    context, temporary = server
    for command, arguments in (("prepare", [recipe]), ("train", [recipe, "--out", out])):
        started = time.monotonic()
        process = context.Process(target=work, args=(command, arguments, temporary))
        process.start()
        process.join(600)
        assert process.exitcode == 0
        seconds[command] = time.monotonic() - started
    (run,) = out.iterdir()
    return run, seconds


def test_training(server, recipe, undisturbed, tmp_path):
    whole, seconds = undisturbed
    stream, met, round_ = random.Random("train"), 0, 0
    while met < KILLS["train"]:
        out = tmp_path / f"out{round_}"

        def arguments(out=out):
            begun = [path.parent for path in out.glob("*/recipe.yaml")]
            return ["--resume", begun[-1]] if begun else [recipe, "--out", out]

        met += run_with_kills(server, "train", arguments, KILLS["train"] - met, 0.6 * seconds["train"], stream)
        round_ += 1
        (run,) = (path.parent for path in out.glob("*/recipe.yaml"))
        for name in ("initial", "backbone", "decoder"):
            ours, theirs = load_file(run / f"{name}.safetensors"), load_file(whole / f"{name}.safetensors")
            assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)
        assert (run / "probes.json").read_bytes() == (whole / "probes.json").read_bytes()
        assert contents(run / "prepared") == contents(whole / "prepared")
        names = ("loss", "loss/gaussian_distillation", "optim/lr")
        ours, theirs = (
            [row for row in read_curves(folder / "metrics.csv") if row[1] in names] for folder in (run, whole)
        )
        assert ours == theirs
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
        for file in run.glob("*.json"):
            json.loads(file.read_text())
        assert {path.name for path in whole.rglob("*.[jp]*")} == {path.name for path in run.rglob("*.[jp]*")}
        assert leftovers(out, recipe.parent, server[1]) == []


def test_preparing(server, recipe, undisturbed, tmp_path):
    stream, met, round_ = random.Random("prepare"), 0, 0
    while met < KILLS["prepare"]:
        cache = tmp_path / f"cache{round_}"

        def arguments(cache=cache):
            return [recipe, f"data.cache={cache}"]

        longest = 0.6 * undisturbed[1]["prepare"]
        met += run_with_kills(server, "prepare", arguments, KILLS["prepare"] - met, longest, stream)
        round_ += 1
        assert contents(cache) == contents(recipe.parent / "cache")
        assert leftovers(cache, server[1]) == []


def test_evaluating(server, undisturbed, tmp_path):
    run, whole = Path(shutil.copytree(undisturbed[0], tmp_path / "run")), tmp_path / "whole"
    stream, met, round_ = random.Random("evaluate"), 0, 0
    started = time.monotonic()
    run_with_kills(server, "evaluate", lambda: [run, "--out", whole], 0, 0, stream)
    longest = 0.6 * (time.monotonic() - started)
    while met < KILLS["evaluate"]:
        out = tmp_path / f"eval{round_}"

        def arguments(out=out):
            return [run, "--out", out]

        met += run_with_kills(server, "evaluate", arguments, KILLS["evaluate"] - met, longest, stream)
        round_ += 1
        for name in ("scores.json", "report.json"):
            ours, theirs = (timeless(json.loads((folder / name).read_text())) for folder in (out, whole))
            assert ours == theirs
        assert {file.name for file in out.rglob("*.png")} == {file.name for file in whole.rglob("*.png")}
        assert len(list(out.glob("events.*"))) == 1
        assert leftovers(tmp_path, server[1]) == []
