"""Run a recipe and its variants over seeds and print one table, as evidence for claims in the documentation.

    python tools/seeds.py recipes/joint.yaml --seeds 0 1 2 --out runs/seeds \
        --variant joint --variant "frozen encoder" backbone.train=frozen

Complete runs are not repeated. A table row is a metric of a variant: the mean over seeds before and after training, the
smallest and largest change, and the controls.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--variant", nargs="+", action="append", metavar=("NAME", "key=value"), required=True)
    options = parser.parse_args()
    jobs = [
        (options.recipe, name, overrides, seed, options.out)
        for name, *overrides in options.variant
        for seed in options.seeds
    ]
    with ThreadPoolExecutor(options.jobs) as pool:
        folders = dict(zip([(job[1], job[3]) for job in jobs], pool.map(lambda job: run(*job), jobs), strict=True))
    for name, *_ in options.variant:
        print(describe(name, [folders[name, seed] for seed in options.seeds]), flush=True)


def run(recipe: str, name: str, overrides: list[str], seed: int, out: Path) -> Path:
    """Return the folder of a complete run, after running it if needed."""
    parent = out / name.replace(" ", "-") / f"seed-{seed}"
    for folder in parent.glob("*/"):
        if (folder / "backbone.safetensors").exists() and (folder / "summary.json").exists():
            return folder
    program = shutil.which("prior3d-train", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    command = [program, recipe, f"seed={seed}", *overrides, "--out", str(parent)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return max(parent.glob("*/"), key=lambda folder: folder.stat().st_mtime)


def describe(name: str, folders: list[Path]) -> str:
    """Return the rows of one variant, as a Markdown table."""
    probes = [json.loads((folder / "probes.json").read_text()) for folder in folders]
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    lines = [f"### {name}, {len(folders)} seeds", "", "| metric | before | after | change, least to most | controls |"]
    lines.append("|---|---|---|---|---|")
    for probe, columns in probes[0].items():
        for metric in columns["after"]:
            before, after = ([seed[probe][column][metric] for seed in probes] for column in ("before", "after"))
            changes = [b - a for a, b in zip(before, after, strict=True)]
            controls = ", ".join(
                f"{column} {mean(seed[probe][column][metric] for seed in probes):.3f}"
                for column in columns
                if column not in ("before", "after")
            )
            spread = f"{min(changes):+.3f} to {max(changes):+.3f}"
            lines.append(f"| {metric} | {mean(before):.3f} | {mean(after):.3f} | {spread} | {controls} |")
    key = "losses, mean of the last batches"
    for label in summaries[0][key]:
        values = ", ".join(f"{summary[key][label]:.3f}" for summary in summaries)
        lines.append(f"| loss {label} at the end, by seed | | {values} | | |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
