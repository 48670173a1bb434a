"""Measure speed and memory of a recipe's training step, with and without its priors, in one run.

    python tools/bench step recipes/joint.yaml data.size=[240,320] backbone.name=resnet50 --steps 30

One batch is drawn and stays on the device, so the loader is not measured. "backbone alone" encodes the same images and
differentiates the mean of the same features. Each prior then runs alone on the backbone, then all priors together.
Times are medians over steps after a warm-up, with the device synchronized; memory is the allocator's peak. On a GPU,
a profile of a few more steps gives, per step: kernels launched, waits of the host for the device, and how long the
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
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from prior3d.contracts.runner import SceneJob
from prior3d.data.preparing import prepare as prepare_data
from prior3d.data.sample.loading import DrawStream, make_loader, raise_errors, to_float
from prior3d.jobs import Store, run_jobs
from prior3d.pretraining.building import Parts, build, fields_to_decode, training_samples
from prior3d.pretraining.graphs import WARM_UP, Graphs
from prior3d.pretraining.objective import JointObjective, encode
from prior3d.pretraining.offline import Lift, stages
from prior3d.pretraining.optimization import make_optimizer
from prior3d.randomness import reseed
from prior3d.recipe import Recipe, load_recipe
from prior3d.registry import Registry


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
    images = sum(batch[field].shape[:2].numel() for field in parts.objective.encodes)
    height, width = recipe.data.size
    setting = f"{images} images of {height} x {width} a step, {recipe.trainer.precision}, {name_of(device)}"
    print(f"{recipe.backbone.name}, {setting}")
    alone = results["backbone alone"]["ms"]
    for name, result in results.items():
        speed, ratio = images / result["ms"] * 1000, result["ms"] / alone
        line = f"{name:28} {result['ms']:9.1f} ms  x{ratio:5.2f}  {speed:9.1f} images/s  {result['gib']:7.2f} GiB"
        if "launches" in result:
            line += (
                f"  {result['launches']:6.0f} launches  {result['waits']:4.0f} waits  busy {result['busy ms']:7.1f} ms"
            )
        print(line)
    if options.json:
        options.json.write_text(json.dumps({"images": images, "results": results}, indent=2))


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
    return to_float({k: v.to(device) for k, v in batch.items() if isinstance(v, Tensor)}, samples.table)


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
    bf16 = torch.autocast(device, torch.bfloat16) if recipe.trainer.precision == "bf16" else contextlib.nullcontext()

    graphs = Graphs() if device == "cuda" and recipe.trainer.cuda_graphs else None
    backbone = graphs.backbone("backbone", parts.backbone, trains=True) if graphs else parts.backbone
    evaluate = {"evaluate": graphs.prior} if graphs else {}

    def run(step: int) -> None:
        with bf16:
            result = encode(backbone, batch, fields, parts.objective.reads)
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
    times = []
    warm_up = 2 * WARM_UP + 5
    for step in range(options.steps + warm_up):
        synchronize(device)
        start = time.perf_counter()
        run(step)
        synchronize(device)
        times.append(time.perf_counter() - start)
    result = {"ms": median(times[warm_up:]) * 1000}
    if device == "cuda":
        result |= {"gib": torch.cuda.max_memory_allocated() / 2**30, **counted(run, options)}
    else:
        result["gib"] = float("nan")
    return result


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
