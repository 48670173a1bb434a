"""Measure speed and memory of a recipe's training step, with and without its priors, in one run.

    python tools/bench step recipes/joint.yaml data.size=[240,320] backbone.name=resnet50 --steps 30

One batch is drawn and stays on the device, so the loader is not measured. "backbone alone" encodes the same images
and differentiates the mean of the same features. Each prior then runs alone on the backbone, then all priors
together. "needed" is the sum of the passes that such a step cannot avoid, measured alone in the same run: the
backbone, the frozen reference where it is read, and a sparse 3D U-Net forward and backward on the same voxels. Times
are medians over steps after a warm-up, with the device synchronized; memory is the allocator's peak. On a GPU, a
profile of a few more steps gives, per step: kernels launched, waits of the host for the device, and how long the
device worked. As in a training, what launches the same kernels at every step is replayed as CUDA graphs, unless
`trainer.cuda_graphs=false`. `--waits` prints the lines of code that wait; `--kernels` the kernels that take longest.
"""

import argparse
import contextlib
import json
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from prior3d.contracts.prior import FEATURE_KINDS
from prior3d.contracts.runner import SceneJob
from prior3d.data.preparing import prepare as prepare_data
from prior3d.data.sample.loading import DrawStream, make_loader, raise_errors, to_device, to_float
from prior3d.jobs import Store, run_jobs
from prior3d.pretraining.building import Parts, build, fields_to_decode, training_samples
from prior3d.pretraining.graphs import WARM_UP as TRIALS
from prior3d.pretraining.graphs import Graphs
from prior3d.pretraining.objective import JointObjective, encode
from prior3d.pretraining.offline import Lift, stages
from prior3d.pretraining.optimization import make_optimizer
from prior3d.randomness import reseed
from prior3d.recipe import Recipe, load_recipe
from prior3d.registry import Registry
from prior3d.sparse import MinkUNet, SparseTensor

WARM_UP = 2 * TRIALS + 5
TEACHERS = frozenset({"reference", "ema"})


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("tools/bench step", description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--waits", action="store_true", help="print where a step waits for the device")
    parser.add_argument("--kernels", type=int, default=0, metavar="N", help="print the N kernels that take longest")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    options = parser.parse_args(arguments)
    recipe = load_recipe(options.recipe, options.overrides)
    parts = build(recipe, Registry(recipe.plugins))
    prepare_data(parts.dataset, fields_to_decode(parts.objective, parts.dataset))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parts.backbone.to(device).train()
    parts.objective.to(device).train()
    prepare_priors(parts)
    batch = one_batch(recipe, parts, device)
    cases = {"backbone alone": {}} | {label: {label} for label in parts.objective.priors}
    cases["all priors"] = set(parts.objective.priors)
    results = {name: measure(recipe, parts, batch, chosen, options, device) for name, chosen in cases.items()}
    needed = needed_by(recipe, parts, batch, cases, results["backbone alone"]["ms"], options.steps, device)
    images = sum(batch[field].shape[:2].numel() for field in parts.objective.encodes)
    height, width = recipe.data.size
    setting = f"{images} images of {height} x {width} a step, {recipe.trainer.precision}, {name_of(device)}"
    print(f"{recipe.backbone.name}, {setting}")
    alone = results["backbone alone"]["ms"]
    for name, result in results.items():
        speed, ratio = images / result["ms"] * 1000, result["ms"] / alone
        line = f"{name:24} {result['ms']:8.1f} ms  x{ratio:5.2f}  x{result['ms'] / needed[name]:5.2f} of "
        line += f"{needed[name]:6.1f} ms needed  {speed:8.1f} images/s  {result['gib']:6.2f} GiB"
        if "launches" in result:
            line += (
                f"  {result['launches']:6.0f} launches  {result['waits']:4.0f} waits  busy {result['busy ms']:7.1f} ms"
            )
        print(line)
    if options.json:
        options.json.write_text(json.dumps({"images": images, "results": results, "needed": needed}, indent=2))


def prepare_priors(parts: Parts) -> None:
    """Run every offline stage once with the initial backbone, even for priors that would wait for a moving average."""
    store = Store(Path(tempfile.mkdtemp()))
    for label, prior in stages(parts.objective).items():
        teacher = deepcopy(parts.backbone).requires_grad_(False).eval()
        lift = Lift(label, prior, parts.dataset, lambda t=teacher: t, False)
        scenes = enumerate(parts.dataset.scenes)
        jobs = [SceneJob(label, name, {"scene": scene}, partial(lift, scene)) for scene, name in scenes]
        start = time.perf_counter()
        prior.attach(run_jobs(jobs, store))
        print(f"{label}: {len(parts.dataset.scenes)} scenes prepared in {time.perf_counter() - start:.1f} s")


def one_batch(recipe: Recipe, parts: Parts, device: str) -> dict[str, Tensor]:
    """Return one batch on the device."""
    samples = training_samples(parts, recipe.data, recipe.seed)
    batch = next(iter(make_loader(samples, DrawStream(0, 1, recipe.data.batch_size), 0)))
    raise_errors(batch)
    tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
    return to_float(to_device(tensors, device, samples.table), samples.table)


def measure(
    recipe: Recipe,
    parts: Parts,
    batch: dict[str, Tensor],
    chosen: set[str],
    options: argparse.Namespace,
    device: str,
) -> dict[str, float]:
    """Return the median time of a step in ms, the peak memory in GiB and, on a GPU, counts, with the chosen priors."""
    terms = {label: term for label, term in parts.objective.terms.items() if label in chosen}
    objective = JointObjective({label: parts.objective.priors[label] for label in terms}, terms)
    optimizer = make_optimizer(parts.backbone, [objective], recipe.optim)
    fields = parts.objective.encodes  # the same images in every case
    reference = deepcopy(parts.backbone).requires_grad_(False).eval()
    teachers = objective.teachers(reference=reference, ema=reference)

    graphs = Graphs() if device == "cuda" and recipe.trainer.cuda_graphs else None
    backbone = graphs.backbone("backbone", parts.backbone, trains=True) if graphs else parts.backbone
    if graphs:
        for name, teacher in teachers.items():
            teachers[name] = replace(teacher, backbone=graphs.backbone(name, teacher.backbone, trains=False))
    evaluate = {"evaluate": graphs.prior} if graphs else {}

    def run(step: int) -> None:
        with in_precision(recipe, device):
            result = encode(backbone, batch, fields, parts.objective.reads, teachers)
            if terms:
                loss = objective(batch, result.features, step, partial(reseed, "bench", step), **evaluate).total
            else:
                loss = sum(
                    tensor.float().mean() for tensor in (result.maps.dense, result.maps.pooled) if tensor is not None
                )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    result = {"ms": milliseconds(run, options.steps, device)}
    if device == "cuda":
        result |= {"gib": torch.cuda.max_memory_allocated() / 2**30, **counted(run, options)}
    else:
        result["gib"] = float("nan")
    return result


def in_precision(recipe: Recipe, device: str) -> contextlib.AbstractContextManager:
    bf16 = recipe.trainer.precision == "bf16"
    return torch.autocast(device, torch.bfloat16) if bf16 else contextlib.nullcontext()


def milliseconds(run: Callable[[int], None], steps: int, device: str) -> float:
    """Return the median time of a call after a warm-up."""
    times = []
    for step in range(steps + WARM_UP):
        synchronize(device)
        start = time.perf_counter()
        run(step)
        synchronize(device)
        times.append(time.perf_counter() - start)
    return median(times[WARM_UP:]) * 1000


def needed_by(
    recipe: Recipe,
    parts: Parts,
    batch: dict[str, Tensor],
    cases: dict[str, set[str]],
    backbone: float,
    steps: int,
    device: str,
) -> dict[str, float]:
    """Return for each case the ms of the passes that it cannot avoid: backbone, teachers, 3D U-Nets."""
    objective = parts.objective
    teacher = deepcopy(parts.backbone).requires_grad_(False).eval()
    images = torch.cat([batch[field].flatten(0, 1) for field in objective.encodes])

    def teach(step: int) -> None:
        with torch.no_grad(), in_precision(recipe, device):
            teacher(images, objective.reads & FEATURE_KINDS)

    taught = milliseconds(teach, steps, device) if TEACHERS & objective.reads else 0.0
    nets = {}
    for label in objective.priors:
        grids = grids_of(recipe, parts, batch, label, device)
        passes = [partial(pass_through, recipe, net, grid, device) for net, grid in grids.items()]
        nets[label] = sum(milliseconds(run, steps, device) for run in passes)
        for grid in grids.values():
            print(f"{label}: 3D U-Net over {len(grid.features):,} voxels: {nets[label]:.1f} ms")
    needed = {}
    for name, chosen in cases.items():
        teachers = TEACHERS & frozenset().union(*(objective.priors[label].reads for label in chosen))
        needed[name] = backbone + len(teachers) * taught + sum(nets[label] for label in chosen)
    return needed


def grids_of(
    recipe: Recipe, parts: Parts, batch: dict[str, Tensor], label: str, device: str
) -> dict[MinkUNet, SparseTensor]:
    """Return the sparse 3D U-Nets of a prior, each with the grid that it gets in a step."""
    prior, found = parts.objective.priors[label], {}
    hooks = [
        net.register_forward_pre_hook(lambda net, given: found.setdefault(net, given[0]))
        for net in prior.modules()
        if isinstance(net, MinkUNet)
    ]
    if hooks:
        with in_precision(recipe, device):
            result = encode(parts.backbone, batch, parts.objective.encodes, parts.objective.reads)
            reseed("bench", 0, label)
            prior(batch, result.features)
    for hook in hooks:
        hook.remove()
    return found


def pass_through(recipe: Recipe, net: MinkUNet, grid: SparseTensor, device: str, step: int) -> None:
    """Run a U-Net forward and backward on new tensors of the same voxels, kernel maps included."""
    with in_precision(recipe, device):
        rows = grid.coordinates.clone()
        out = net(SparseTensor(grid.features, rows, batch_size=grid.batch_size)).features
    out.float().mean().backward()
    net.zero_grad(set_to_none=True)


def counted(run: Callable[[int], None], options: argparse.Namespace, steps: int = 3) -> dict[str, float]:
    """Return launches, waits and busy ms per step on a GPU."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        for step in range(steps):
            run(step)
        torch.cuda.synchronize()
    events = profile.events()
    busy, kernels = 0.0, Counter()
    for event in events:
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation:
            busy += event.device_time
            kernels[event.name] += event.device_time
    calls = Counter(event.name for event in events)
    launches = sum(count for name, count in calls.items() if "LaunchKernel" in name or "GraphLaunch" in name)
    waits = sum(count for name, count in calls.items() if name.endswith(("Synchronize", "cudaMemcpy"))) - 1
    for name, microseconds in kernels.most_common(options.kernels):
        print(f"    {microseconds / 1000 / steps:8.3f} ms  {name[:140]}")
    if options.waits:
        print_waits(run)
    return {"launches": launches / steps, "waits": waits / steps, "busy ms": busy / 1000 / steps}


def print_waits(run: Callable[[int], None]) -> None:
    """Print the lines of this project's code that wait for the device in one step, and how often."""
    found = Counter()

    def note(*_: object) -> None:
        lines = [f"{frame.filename}:{frame.lineno} {frame.line}" for frame in traceback.extract_stack()[:-1]]
        own = [line for line in lines if "prior3d" in line] or lines
        found[own[-1]] += 1

    torch.cuda.set_sync_debug_mode("warn")
    show, warnings.showwarning = warnings.showwarning, note
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = note
            run(0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        warnings.showwarning = show
    for line, times in found.most_common():
        print(f"    waits {times}x at {line}")


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def name_of(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU threads"
