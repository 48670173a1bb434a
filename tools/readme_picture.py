"""Plot the README's figure: features as colors and matches across views, before and after training.

    python tools/readme_picture.py runs/joint-20250101-120000 --out docs/images/features.png

The run uses `recipes/joint.yaml`. The views are pairs from the test rooms that the correspondence probe measures on.
Colors are the first three principal components, on axes shared by both models and all views. A match is the nearest
feature among all cells of the other view. It is correct, and green, if it lies within the pixel distance from the truth
that the recipe's probe allows.
"""

import argparse
import io
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from torch.nn import functional as F

from prior3d import UserError, load_recipe
from prior3d.data.preparing import prepare
from prior3d.evaluation.models import find_subject, load_initial, load_trained
from prior3d.files import write_atomically
from prior3d.probes import FrozenMaps, FrozenModel, ProbeData, resize
from prior3d.probes.measuring import Measuring
from prior3d.probes.pictures import fit_shared_axes
from prior3d.probes.pictures.figures import read_maps, sample_features
from prior3d.probes.results import Results
from prior3d.probes.tasks import ProbeTask, build_tasks
from prior3d.randomness import generator
from prior3d.registry import Registry
from prior3d_plugins.probes.correspondence.matching import DescribedPair, Matches, match_cells
from prior3d_plugins.probes.correspondence.view_pairs import (
    ViewPair,
    cell_centers,
    choose_pairs,
    read_views,
    share_points,
)

_SHOWN = 24
"""Number of matches plotted per pair; the share in the title counts all matches."""

_RIGHT, _WRONG = "#2ee62e", "#ff3030"
_GAP = 4
"""Width of the gap between the two views of a pair, in pixels."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="folder of a run of recipes/joint.yaml")
    parser.add_argument("--out", type=Path, default=Path("docs/images/features.png"))
    parser.add_argument("--pairs", type=int, nargs="+", default=[0, 1], help="numbers of pairs of views")
    parser.add_argument("--degrees", type=float, nargs=2, default=[15, 40], help="angle between the views of a pair")
    parser.add_argument("--dpi", type=int, default=100)
    arguments = parser.parse_args()
    try:
        figure = plot_pairs(arguments.run, arguments.pairs, arguments.degrees)
    except UserError as error:
        print(f"readme_picture.py: {error}", file=sys.stderr)
        return 2
    content = io.BytesIO()
    figure.savefig(content, dpi=arguments.dpi, format="png", bbox_inches="tight", pad_inches=0.03)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.out, content.getvalue())
    print(f"{arguments.out}: {len(content.getvalue()) // 1000} kB")
    return 0


def plot_pairs(run: str, numbers: list[int], degrees: list[float]) -> Figure:
    """Measure a run before and after training on the test rooms, and plot some pairs of views."""
    subject = find_subject(run)
    if subject.run is None:
        raise UserError(f"{run} is not a run folder")
    recipe = load_recipe(subject.run.recipe)
    sections = {"correspondence": recipe.probes["correspondence"]}
    (task,) = build_tasks(sections, recipe.data, Registry(recipe.plugins), recipe.seed)
    for part in task.parts.values():
        prepare(part)
    size = tuple(recipe.data.size)
    models = {
        "before": load_initial(subject, recipe.backbone, size, recipe.seed),
        "after": load_trained(subject, recipe.backbone, size, recipe.seed),
    }
    figures = []

    def plot(task: ProbeTask, models: Mapping[str, FrozenModel], data: ProbeData, _: object) -> None:
        pairs = choose_pairs(data, task.probe.pairs_per_bin)
        fitting = [pair for pair in pairs if degrees[0] <= pair.angle_deg <= degrees[1]]
        figures.append(_figure(task, models, data, [fitting[number] for number in numbers]))

    backbones = {name: [model.backbone] for name, model in models.items()}
    Measuring("cpu").run([task], backbones, Results(), plot=plot, plotted=list(models))
    return figures[0]


@torch.no_grad()
def _figure(task: ProbeTask, models: Mapping[str, FrozenModel], data: ProbeData, pairs: list[ViewPair]) -> Figure:
    images = data.field("held_out", "image")
    views = [images.take(torch.tensor(pair.rows)).float() / 255 for pair in pairs]
    maps = read_maps(models, torch.cat(views), "dense")
    axes = fit_shared_axes(sample_features(maps))
    height, width = views[0].shape[-2:]
    figure = Figure(figsize=(9.0, 1.3 * 2 * len(pairs)))
    grid = GridSpec(2 * len(pairs), 3, figure, wspace=0.03, hspace=0.12)
    for row, (pair, both) in enumerate(zip(pairs, views, strict=True)):
        panel = figure.add_subplot(grid[2 * row : 2 * row + 2, 0])
        for image, left in zip(both, (0, width + _GAP), strict=True):
            panel.imshow(image.movedim(0, -1), extent=(left, left + width, height, 0))
        _finish(panel, f"two views, {pair.angle_deg:.0f} degrees apart", height, width)
        for column, (name, model) in enumerate(models.items(), 1):
            panel = figure.add_subplot(grid[2 * row, column])
            for index, left in enumerate((0, width + _GAP)):
                colors = axes.colors(name, maps[name][2 * row + index])
                panel.imshow(colors, extent=(left, left + width, height, 0), interpolation="nearest")
            _finish(panel, f"features, {name}", height, width)
            panel = figure.add_subplot(grid[2 * row + 1, column])
            for image, left in zip(both, (0, width + _GAP), strict=True):
                panel.imshow(image.mean(0), extent=(left, left + width, height, 0), cmap="gray", vmin=0, vmax=1)
            found = _match(task, model, data, pair)
            right = found.error <= task.probe.pixels
            for index in range(min(_SHOWN, len(right))):
                (x, y), (to_x, to_y) = found.cells[index].tolist(), found.found[index].tolist()
                color = _RIGHT if right[index] else _WRONG
                panel.plot((x, to_x + width + _GAP), (y, to_y), "-o", color=color, lw=0.7, ms=1.8, alpha=0.9)
            _finish(panel, f"matches, {name}: {100 * right.float().mean():.0f} % right", height, width)
    return figure


def _finish(panel: object, title: str, height: int, width: int) -> None:
    panel.set(xlim=(0, 2 * width + _GAP), ylim=(height, 0), xticks=[], yticks=[], frame_on=False)
    panel.set_title(title, fontsize=8, pad=2)


def _match(task: ProbeTask, model: FrozenModel, data: ProbeData, pair: ViewPair) -> Matches:
    """Match random points of the first view, as the probe does."""
    probe, rows = task.probe, torch.tensor(pair.rows)
    grid = tuple(-(-side // probe.cell) for side in data.size)
    maps = FrozenMaps(model, data, "held_out", probe.features).take(rows, unit_length=True)
    a, b = read_views(data, pair.rows, model.device)
    shared = share_points(a, b, cell_centers(data.size, grid, model.device))
    described = DescribedPair(a, b, shared, F.normalize(resize(maps, grid), dim=1))
    visible = shared.visible.nonzero()[:, 0]
    drawn = torch.randperm(len(visible), generator=generator("readme picture", *pair.rows))[: probe.points]
    return match_cells(described, visible[drawn])


if __name__ == "__main__":
    sys.exit(main())
