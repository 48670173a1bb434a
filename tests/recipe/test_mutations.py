"""Recipes with slips of the hand: each is refused in one line, or builds; none takes the machine's memory.

`python tests/recipe/test_mutations.py SEED COUNT` tries some and prints those that do neither, as a test of it does.
"""

import random
import resource
import subprocess
import sys
import traceback
from copy import deepcopy
from pathlib import Path

import pytest

GIB = 2**30
MIB = 2**20
RECIPE = """\
seed: 3
backbone: {name: test_convnext, decoder_stride: 8, channels: 8, ema: 0.9, train: last_n, last_n: 1}
data:
  name: synthetic_rooms
  size: [48, 64]
  batch_size: 2
  workers: 0
  cache: cache
  rooms: 2
  test_rooms: 1
  frames: 6
  surface: {voxel_size: 0.05, min_frames: 1}
  pairs: {min_overlap: 0.2, max_distance: 0.05}
  augment: {crop: [0.5, 1.0], blur_sigma: [0.1, 1.0], flip: 0}
priors:
  view_invariance: {weight: 0.5, points: 32, temperature: 0.2, negatives: batch}
  second: {prior: augmentation_invariance, warmup: 3}
  pixel_voxel: {voxel_size: 0.1, chunks: first, points: 16, width: 0.25, max_turn: 30}
  triplane: {images: 1, rays: 16, samples: 4, blocks: 1, width: 16, plane_size: 4, stride: 16}
  gaussian_distillation:
    teacher: ema
    start_step: 2
    refresh_every: 2
    frames: 3
  depth_regression:
optim: {name: sgd, lr: 1.0e-3, momentum: 0.8, schedule: poly, poly_power: 0.9, clip: null}
trainer: {max_steps: 3, precision: bf16, accumulate: 2, checkpoint_every: 2, log_every: 1, draw_every: 0}
probes:
  correspondence: {pixels: 6}
  depth: {bins: 8, steps: 2, seeds: 2, max_images: 4}
  lines: {probe: segmentation, split: test, data: {name: synthetic_rooms, rooms: 2, test_rooms: 1, frames: 6}}
"""
WEIRD = (
    None, True, False, -1, 0, 1, 3, 10**4, 10**6, 2**31, 2**63, 10**30, -(10**12), 0.5, -0.5, 1e-300, 1e300,
    float("nan"), float("inf"), "", " ", "x", "auto", "a: b", "~", "~nobody/x", "$NOT_SET_ANYWHERE", "$$", "/", ".",
    "é\u2028", "x" * 5000, "\x7f", "0x10", "1e5", "null", [], [[]], [1], [1, 2], [0, 0], ["x", 1], {}, {"a": 1},
    {"name": "x"}, [10**9, 10**9], [1e9, 1e9], [-1, -1],
)  # fmt: skip


def mutate(rng):
    """Return the recipe with one to three slips: of values, of keys, of characters."""
    from prior3d.recipe.yaml12 import dump, load

    if rng.random() < 0.3:
        return _with_other_characters(RECIPE, rng)
    content = load(RECIPE, "recipe").value
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        (_with_another_value if rng.random() < 0.7 else _with_other_keys)(content, rng)
    return dump(content)


def _places(content):
    """All (container, key) of a nested content."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in list(items):
        yield content, key
        if isinstance(value, dict | list):
            yield from _places(value)


def _with_another_value(content, rng):
    places = list(_places(content))
    container, key = rng.choice(places)
    if rng.random() < 0.2:  # that of another key
        other, name = rng.choice(places)
        container[key] = deepcopy(other[name])
    elif isinstance(container[key], int | float) and rng.random() < 0.4:
        container[key] = container[key] * rng.choice((-1, 0, 10, 1000, 10**6, 0.5, 1e-6))
    else:
        container[key] = deepcopy(rng.choice(WEIRD))


def _with_other_keys(content, rng):
    places = [(container, key) for container, key in _places(content) if isinstance(container, dict)]
    container, key = rng.choice(places)
    kind = rng.randrange(4)
    if kind == 0:
        del container[key]
    elif kind == 1:
        container[_typo(key, rng)] = container.pop(key)
    elif kind == 2:
        container[rng.choice(places)[1]] = deepcopy(container[key])
    else:
        other, name = rng.choice(places)
        other[name] = deepcopy(container[key])


def _typo(text, rng):
    at = rng.randrange(len(text))
    letter = rng.choice("abcxyz_-. 0é:#")
    return rng.choice((text[:at] + text[at + 1 :], text[:at] + letter + text[at:], text[:at] + letter + text[at + 1 :]))


def _with_other_characters(text, rng):
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        lines = text.split("\n")
        kind, line = rng.randrange(6), rng.randrange(len(lines))
        if kind == 0:
            del lines[line]
        elif kind == 1:
            lines.insert(line, rng.choice(lines))
        elif kind == 2:
            lines[line] = rng.choice((" ", "  ", "\t", "- ", "#")) + lines[line]
        else:
            at = rng.randrange(len(text))
            letter = rng.choice("0123456789 \t\n:,-[]{}#&*!|>'\"%@`~.eE_\x00\x85\ufeff\u200bxé")
            text = text[:at] + ("" if kind == 3 else letter) + text[at + (kind != 4) :]
            continue
        text = "\n".join(lines)
    return text


def outcome(text, file):
    """Return "refused" or "built"; raise whatever else comes of a recipe."""
    from prior3d.errors import UserError
    from prior3d.pretraining.building import build
    from prior3d.recipe import load_recipe
    from prior3d.registry import Registry

    file.write_text(text, encoding="utf-8")
    try:
        recipe = load_recipe(file)
        assert load_recipe(file).to_yaml() == recipe.to_yaml()
        with recipe.source.locating():
            build(recipe, Registry(recipe.plugins))
    except UserError as error:
        line = str(error)
        assert line and line.splitlines() == [line], repr(line)
        assert line.startswith(f"{file.name}"), line
        return "refused"
    return "built"


def peak():
    """Return the most memory this program ever held, in bytes; getrusage would count the process that started it."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main(seed, count):
    """Try mutations of a seed; print a summary, and each that is neither refused nor built."""
    import os
    import tempfile

    import torch

    torch.set_num_threads(1)
    wrong, counts = 0, {"refused": 0, "built": 0}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        assert outcome(RECIPE, Path("r.yaml")) == "built"  # and all is imported: what follows may only grow so far
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2 * GIB, resource.RLIM_INFINITY))
        before = peak()
        for number in range(count):
            text = mutate(random.Random(f"{seed}/{number}"))
            try:
                counts[outcome(text, Path("r.yaml"))] += 1
            except Exception:
                wrong += 1
                print(f"--- {seed}/{number}\n{text}\n{traceback.format_exc()}", flush=True)
            grown = peak() - before
            if grown > 300 * MIB:  # one tiny recipe must not need more than that
                wrong += 1
                print(f"--- {seed}/{number} took {grown // MIB} MiB more\n{text}", flush=True)
                before += grown
        print(f"{counts} wrong {wrong} peak {peak() / GIB:.2f} GiB")
        return int(wrong > 0 or peak() > 2 * GIB)


def run(seed, count):
    done = subprocess.run(
        [sys.executable, __file__, str(seed), str(count)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    counts = done.stdout.splitlines()[-1]
    assert "'refused': 0" not in counts and "'built': 0" not in counts, counts  # of both there are some


def test_mutated_recipes_are_refused_in_one_line_or_build():
    run(0, 50)


@pytest.mark.slow
def test_many_mutated_recipes_are_refused_in_one_line_or_build():
    run(1, 3000)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
