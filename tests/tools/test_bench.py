"""The benchmark's subcommands, small."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "tools" / "bench"


def test_pairs_are_compared_with_the_plain_definition(tmp_path):
    given = ["--recording", tmp_path / "room", "--frames", "6", "--size", "48", "64", "--sample", "5"]
    printed = subprocess.run(
        [sys.executable, BENCH, "pairs", *given], capture_output=True, text=True, check=True
    ).stdout
    assert "6 frames of 48 x 64" in printed
    assert "; equal to the plain definition on 2 x 5 pairs" in printed
    names = {re.split("  +", line)[0] for line in printed.splitlines()}
    assert names >= {"decode", "mine, CPU", "mine, plain"}
    assert len(list((tmp_path / "room").glob("*.depth.png"))) == 6


@pytest.mark.slow
def test_losses_of_many_rows_are_measured_in_every_way():
    given = ["--rows", "64", "--channels", "8", "--repeats", "1"]
    printed = subprocess.run([sys.executable, BENCH, "contrastive", *given], capture_output=True, text=True, check=True)
    ways = {" ".join(line.split()[1:-5]) for line in printed.stdout.splitlines()}
    assert {"plain logits", "kept", "tiles"} <= ways, printed.stdout


@pytest.mark.parametrize("views", ["1", "2"])
def test_samples_with_their_surface_are_compared_with_a_test_of_every_point(tmp_path, views):
    sizes = ["--frames", "6", "--size", "48", "64", "--output", "24", "32", "--samples", "2", "--views", views]
    given = ["--recording", tmp_path / "room", *sizes]
    printed = subprocess.run([sys.executable, BENCH, "loader", *given], capture_output=True, text=True, check=True)
    assert f"samples of {views} x 24 x 32 from 6 frames of 48 x 64; a surface of " in printed.stdout
    assert "; the same points in the boxes of 2 views" in printed.stdout
    names = {re.split("  +", line)[0] for line in printed.stdout.splitlines()}
    assert names >= {"decoded and augmented", "with the surface", "every point tested"}


def test_splatting_targets_and_lifting_are_measured():
    given = ["--repeats", "1", "--engines", "torch"]
    printed = subprocess.run([sys.executable, BENCH, "splat", *given], capture_output=True, text=True, check=True)
    names = {re.split("  +", line)[0] for line in printed.stdout.splitlines()}
    assert names >= {"torch", "torch, one by one", "torch, together", "depth alone"}, printed.stdout
    for title in ("rasterize ", "targets of ", "lifting "):
        assert f"\n{title}" in printed.stdout
