"""A report for TensorBoard: every metric as a point, every figure as an image."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from prior3d.figures import render
from prior3d.files import temporary_folder, writing_from_threads
from prior3d.reporting.comparison import Comparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_events(
    folder: Path, comparison: Comparison, figures: "Mapping[str, Figure]", steps: Mapping[str, int] | None = None
) -> None:
    """Add an events file to a folder, completely or not at all.

    Args:
        folder: Folder that TensorBoard reads.
        comparison: Metrics to write.
        figures: Dict from name to figure.
        steps: Dict from model to its training step: these models are then one curve per metric, tagged
            `probes/<probe>/<metric>`. Without it, each model has its own tags, `<probe>/<metric>/<model>`.
    """
    from torch.utils.tensorboard import SummaryWriter

    last = max((steps or {"": 0}).values())
    # Use a temporary folder on the same file system as the target: a rename must not cross file systems.
    with writing_from_threads(folder), temporary_folder(".events-", folder) as temporary:
        with SummaryWriter(temporary) as writer:
            for section in comparison.sections:
                for row in section.rows:
                    for column, found in row.columns.items():
                        if steps is None:
                            writer.add_scalar(f"{section.task.label}/{row.metric}/{column}", found.value, 0)
                        elif column in steps:
                            tag = f"probes/{section.task.label}/{row.metric}"
                            writer.add_scalar(tag, found.value, steps[column])
            for name, figure in figures.items():
                writer.add_image(f"probes/{name}", render(figure), last, dataformats="HWC")
        for file in Path(temporary).iterdir():
            file.rename(folder / file.name)
