"""A report for TensorBoard: every metric as a point, every figure as a picture."""

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
    """Add an events file to a folder, whole or not at all.

    Args:
        folder: that TensorBoard reads.
        comparison: the metrics.
        figures: name to figure.
        steps: model to the training step it is of: these models are then one curve per metric, tagged
            `probes/<probe>/<metric>`. Without, each model has tags of its own, `<probe>/<metric>/<model>`.
    """
    from torch.utils.tensorboard import SummaryWriter

    last = max((steps or {"": 0}).values())
    # Beside the folder's own files, not in the system's: a rename must not cross file systems.
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
