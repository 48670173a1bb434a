"""Measure sparse convolution: every engine that runs here, and the yardsticks that are installed, in one run.

    python tools/bench sparse --voxels 777000 95000 --cases network convolution

"network" is MinkUNet34C from 3 to 96 channels, forward and backward, kernel maps included, on other coordinates each
time; the yardstick is the same network in spconv, if `import spconv.pytorch` works. "convolution" is one 3^3
convolution C -> C, forward and backward, with its maps cached; yardsticks are FlexGEMM, if `import flex_gemm` works,
and the arithmetic alone: the floating-point operations of all pairs at the rate of a large matrix product measured
here. "first" is the time of the first call of a shape, which compiles and times. Times are medians with the device
synchronized; memory is the allocator's peak.
"""

import argparse
import importlib.util
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from prior3d.errors import UserError
from prior3d.files import write_json
from prior3d.registry.engines import choose, names
from prior3d.sparse import SparseTensor, batch_coordinates, mink_unet34c

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Timing:
    """One line of the table."""

    work: str
    precision: str
    what: str
    ms: float
    gib: float
    first_s: float


def sparse(args: argparse.Namespace) -> list[dict[str, object]]:
    """Return one row of figures per work, precision and engine or yardstick, printed as they come.

    Args:
        args: what `add_options` adds.
    """
    if args.log:
        logging.basicConfig(format="%(message)s")
        logging.getLogger("prior3d_plugins").setLevel(logging.DEBUG)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for count in args.voxels:
        batches = [scene(count, device, seed) for seed in range(3)]
        for case in args.cases:
            made = networks(batches, args, device) if case == "network" else convolutions(batches[0], args, device)
            for row in made:
                print_row(row, rows)
                rows.append(row)
    return [asdict(row) for row in rows]


def scene(count: int, device: torch.device, seed: int) -> Tensor:
    """Return about `count` voxels [N, 4] int32 of walls, boxes and balls in four rooms: 9 or 10 neighbors each."""
    side = (count / 20) ** 0.5
    for _ in range(3):  # larger until there are enough: boxes of least size make small rooms fuller
        draws = torch.Generator().manual_seed(seed)
        rows = batch_coordinates([surfaces(side, draws).floor().int().unique(dim=0) for _ in range(4)])
        side *= (count / len(rows)) ** 0.5
    return rows[torch.randperm(len(rows), generator=draws)].to(device)


def surfaces(side: float, draws: torch.Generator) -> Tensor:
    """Return points [N, 3], in voxels, on the surfaces of one room: turned, rough, dense enough to have no holes."""
    density, parts = 1.7, []

    def plane(corner: Tensor, u: Tensor, v: Tensor) -> None:
        number = int(density * u.norm() * v.norm())
        at = torch.rand(number, 2, generator=draws)
        parts.append(corner + at[:, :1] * u + at[:, 1:] * v)

    x, y, z = torch.linalg.qr(torch.randn(3, 3, generator=draws))[0]
    zero = torch.zeros(3)
    plane(zero, side * x, side * y)
    plane(zero, side * x, 0.5 * side * z)
    plane(zero, side * y, 0.5 * side * z)
    plane(side * y, side * x, 0.5 * side * z)
    for _ in range(14):
        axes = torch.linalg.qr(torch.randn(3, 3, generator=draws))[0]
        sizes = 2 * (0.06 * side * torch.rand(3, generator=draws) + 3)
        corner = side * torch.rand(3, generator=draws) * torch.tensor([1, 1, 0.3])
        for first, second in ((0, 1), (1, 2), (2, 0)):
            for third in (0.0, 1.0):
                other = 3 - first - second
                start = corner + third * sizes[other] * axes[other]
                plane(start, sizes[first] * axes[first], sizes[second] * axes[second])
        radius = float(0.06 * side * torch.rand(1, generator=draws) + 3)
        ball = torch.randn(int(4 * torch.pi * radius**2 * density), 3, generator=draws)
        center = side * torch.rand(3, generator=draws) * torch.tensor([1, 1, 0.3])
        parts.append(center + radius * nn.functional.normalize(ball, dim=1))
    points = torch.cat(parts)
    return points + 0.04 * torch.randn(points.shape, generator=draws)


def engines(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> list[str]:
    """Return the engines to measure that run here."""
    known = args.engines or names("sparse")
    return [name for name in known if choose_or_none(name, device, dtype)]


def choose_or_none(name: str, device: torch.device, dtype: torch.dtype) -> object | None:
    try:
        return choose("sparse", name, device, dtype)
    except UserError as refusal:
        print(f"without {name}: {refusal}")
        return None


def networks(batches: list[Tensor], args: argparse.Namespace, device: torch.device) -> Iterable[Timing]:
    work = f"MinkUNet34C, {len(batches[0]):,} voxels"
    for precision in args.precisions:
        dtype = HALF.get(precision, torch.float32)
        makers: dict[str, Callable[[], nn.Module]] = {
            name: partial(mink_unet34c, 3, 96, engine=name) for name in engines(args, device, dtype)
        }
        if importlib.util.find_spec("spconv") and device.type == "cuda":
            makers["spconv"] = spconv_unet34c
        for name, make in makers.items():
            torch.manual_seed(0)
            net = make().to(device)
            steps = [
                partial(network_step, net, rows, torch.rand(len(rows), 3, device=device), precision) for rows in batches
            ]
            yield measured(work, precision, name, steps, args.repeats, device)
            del net, steps


def network_step(net: nn.Module, rows: Tensor, colors: Tensor, precision: str) -> None:
    with in_precision(precision, rows.device):
        if getattr(net, "is_spconv", False):
            out = net(colors, rows)
        else:
            out = net(SparseTensor(colors, rows, batch_size=4)).features
    out.float().square().mean().backward()
    net.zero_grad(set_to_none=True)


def in_precision(precision: str, device: torch.device) -> Any:
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    return torch.autocast(device.type, HALF[precision]) if precision in HALF else nullcontext()


def convolutions(rows: Tensor, args: argparse.Namespace, device: torch.device) -> Iterable[Timing]:
    kernel_map = SparseTensor(rows.new_zeros(len(rows), 1).float(), rows).manager.kernel_map(1, 1, 3)
    pairs = sum(kernel_map.counts)
    rates = {precision: rate(precision, device) for precision in args.precisions}
    for channels in args.channels:
        work = f"k3 {channels}->{channels}, {len(rows):,} voxels, {pairs / 1e6:.1f} M pairs"
        for precision in args.precisions:
            dtype = HALF.get(precision, torch.float32)
            in_precision(precision, device)
            features = torch.randn(len(rows), channels, device=device).to(dtype).requires_grad_()
            weight = (0.1 * torch.randn(27, channels, channels, device=device)).to(dtype).requires_grad_()
            gradient = torch.randn(len(rows), channels, device=device).to(dtype)
            for name in engines(args, device, dtype):
                engine = choose("sparse", name, device, dtype)
                step = partial(convolution_step, engine.convolve, features, weight, kernel_map, gradient)
                yield measured(work, precision, name, [step], args.repeats, device)
            if importlib.util.find_spec("flex_gemm") and device.type == "cuda" and precision != "bf16":
                yield measured(
                    work,
                    precision,
                    "flex_gemm",
                    [flex_gemm_step(rows, features, weight, gradient)],
                    args.repeats,
                    device,
                )
            arithmetic = 3 * 2 * pairs * channels**2 / rates[precision]
            yield Timing(work, precision, "arithmetic alone", 1000 * arithmetic, float("nan"), float("nan"))


def convolution_step(convolve: Callable[..., Tensor], features: Tensor, weight: Tensor, *others: object) -> None:
    kernel_map, gradient = others
    torch.autograd.grad(convolve(features, weight, kernel_map), (features, weight), gradient)


def flex_gemm_step(rows: Tensor, features: Tensor, weight: Tensor, gradient: Tensor) -> Callable[[], None]:
    """The same convolution in FlexGEMM, whose coordinates start at 0 and whose weight is [C_out, x, y, z, C_in]."""
    from flex_gemm.ops.spconv import sparse_submanifold_conv3d

    rows = shifted(rows)
    shape = torch.Size([4, features.shape[1], *(rows[:, 1:].amax(0) + 1).tolist()])
    own = weight.detach().view(3, 3, 3, *weight.shape[1:]).permute(4, 2, 1, 0, 3).contiguous().requires_grad_()
    bias = torch.zeros(weight.shape[2], device=rows.device, dtype=weight.dtype).requires_grad_()
    _, cache = sparse_submanifold_conv3d(features, rows, shape, own, bias)

    def step() -> None:
        out, _ = sparse_submanifold_conv3d(features, rows, shape, own, bias, cache)
        torch.autograd.grad(out, (features, own), gradient)

    return step


def shifted(rows: Tensor) -> Tensor:
    """Return coordinates from 0, by a multiple of 16 that keeps the cells of all levels."""
    low = rows[:, 1:].amin(0).div(16, rounding_mode="floor") * 16
    return torch.cat([rows[:, :1], rows[:, 1:] - low], 1).contiguous()


def rate(precision: str, device: torch.device) -> float:
    """Return operations a second of a large matrix product."""
    in_precision(precision, device)
    size = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(size, size, device=device).to(HALF.get(precision, torch.float32)) for _ in range(2))
    ms, _ = timed([lambda: a @ b], 10, device)
    return 2 * size**3 / (ms / 1000)


def measured(
    work: str, precision: str, name: str, steps: list[Callable[[], None]], repeats: int, device: torch.device
) -> Timing:
    """Time the first call apart, then the median over all batches."""
    synchronize(device)
    start = time.perf_counter()
    steps[0]()
    synchronize(device)
    first = time.perf_counter() - start
    for step in steps[1:]:
        step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    ms, _ = timed(steps, repeats, device)
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else float("nan")
    return Timing(work, precision, name, ms, peak, first)


def timed(steps: list[Callable[[], object]], repeats: int, device: torch.device) -> tuple[float, list[float]]:
    """Return the median and all times in ms; the device is idle before and after each call."""
    times = []
    for index in range(repeats + 2):
        synchronize(device)
        start = time.perf_counter()
        steps[index % len(steps)]()
        synchronize(device)
        times.append(1000 * (time.perf_counter() - start))
    return median(times[2:]), times


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def print_row(row: Timing, before: list[Timing]) -> None:
    """Print a line, with its ratio to the yardstick of the same work if that has been measured."""
    same = [one for one in before if (one.work, one.precision) == (row.work, row.precision)]
    ratios = "  ".join(f"{row.ms / one.ms:.2f}x {one.what}" for one in same)
    print(
        f"{row.work:44} {row.precision:5} {row.what:17} {row.ms:9.2f} ms  {row.gib:6.2f} GiB  "
        f"first {row.first_s:6.2f} s  {ratios}",
        flush=True,
    )


# MinkUNet34C in spconv: the same layers and channels; its strided layers have kernel 2, as ours have.


class SpconvBlock(nn.Module):
    """A residual block."""

    def __init__(self, inputs: int, outputs: int, level: int) -> None:
        import spconv.pytorch as spconv

        super().__init__()
        self.first = spconv.SubMConv3d(inputs, outputs, 3, bias=False, indice_key=f"subm{level}")
        self.second = spconv.SubMConv3d(outputs, outputs, 3, bias=False, indice_key=f"subm{level}")
        self.norms = nn.ModuleList(nn.BatchNorm1d(outputs) for _ in range(2))
        self.shortcut = (
            nn.Identity()
            if inputs == outputs
            else nn.Sequential(nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs))
        )

    def forward(self, x: Any) -> Any:
        """Return the block's result on the same voxels."""
        out = self.first(x)
        out = self.second(out.replace_feature(self.norms[0](out.features).relu()))
        return out.replace_feature((self.norms[1](out.features) + self.shortcut(x.features)).relu())


class SpconvUNet(nn.Module):
    """The U-Net."""

    is_spconv = True

    def __init__(self, inputs: int, outputs: int, planes: tuple[int, ...], layers: tuple[int, ...], stem: int) -> None:
        import spconv.pytorch as spconv

        super().__init__()
        self.stem = spconv.SubMConv3d(inputs, stem, 5, bias=False, indice_key="stem")
        self.norm = nn.BatchNorm1d(stem)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        channels, skips = stem, []
        for i in range(4):
            skips.append(channels)
            conv = spconv.SparseConv3d(channels, channels, 2, stride=2, bias=False, indice_key=f"down{i}")
            self.down.append(self._stage(conv, channels, channels, planes[i], layers[i], i + 1))
            channels = planes[i]
        for i in range(4, 8):
            conv = spconv.SparseInverseConv3d(channels, planes[i], 2, bias=False, indice_key=f"down{7 - i}")
            self.up.append(self._stage(conv, planes[i], planes[i] + skips.pop(), planes[i], layers[i], 7 - i))
            channels = planes[i]
        self.final = nn.Linear(channels, outputs)

    def _stage(self, conv: nn.Module, normed: int, inputs: int, outputs: int, blocks: int, level: int) -> nn.ModuleDict:
        channels = [inputs] + [outputs] * blocks
        made = [SpconvBlock(channels[i], outputs, level) for i in range(blocks)]
        return nn.ModuleDict({"conv": conv, "norm": nn.BatchNorm1d(normed), "blocks": nn.Sequential(*made)})

    def forward(self, colors: Tensor, rows: Tensor) -> Tensor:
        """Return features [N, C] of voxels [N, 4]."""
        import spconv.pytorch as spconv

        rows = shifted(rows)
        shape = [int(-(-(size + 1) // 16) * 16) for size in rows[:, 1:].amax(0).tolist()]
        x = self.stem(spconv.SparseConvTensor(colors, rows, shape, 4))
        x = x.replace_feature(self.norm(x.features).relu())
        skips = []
        for stage in self.down:
            skips.append(x.features)
            x = stage["conv"](x)
            x = stage["blocks"](x.replace_feature(stage["norm"](x.features).relu()))
        for stage in self.up:
            x = stage["conv"](x)
            normed = stage["norm"](x.features).relu()
            x = stage["blocks"](x.replace_feature(torch.cat([normed, skips.pop()], 1)))
        return self.final(x.features)


def spconv_unet34c() -> nn.Module:
    import spconv.constants

    spconv.constants.SPCONV_ALLOW_TF32 = True
    return SpconvUNet(3, 96, (32, 64, 128, 256, 256, 128, 96, 96), (2, 3, 4, 6, 2, 2, 2, 2), 32)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--voxels", type=int, nargs="+", default=[777_000, 95_000])
    parser.add_argument("--cases", nargs="+", choices=["network", "convolution"], default=["network", "convolution"])
    parser.add_argument("--channels", type=int, nargs="+", default=[64, 96, 128, 256])
    parser.add_argument(
        "--precisions", nargs="+", choices=["fp32", "tf32", "fp16", "bf16"], default=["tf32", "fp16", "bf16"]
    )
    parser.add_argument("--engines", nargs="+", help="names of engines; all that run here if left out")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--log", action="store_true", help="print what each configuration of sparse/triton takes")


def main(arguments: Sequence[str]) -> None:
    """Measure, and print a line per measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args(arguments)
    rows = sparse(args)
    if args.json:
        write_json(args.json, {"rows": rows})
