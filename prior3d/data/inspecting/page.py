"""One HTML page about recordings, with pictures inside it; no scripts, no other files."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from prior3d.data.inspecting.edges import depth_edges
from prior3d.data.inspecting.findings import Finding
from prior3d.data.inspecting.sample import SceneSample
from prior3d.data.inspecting.summary import motion, pair_matrix
from prior3d.data.spacing import evenly_chosen
from prior3d.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = "body{font:15px sans-serif;max-width:1000px;margin:2em auto;padding:0 1em}img{max-width:100%}" + (
    "pre{white-space:pre-wrap;background:#f4f4f4;padding:.7em}.bad{border-left:4px solid #c33;padding-left:.7em}"
)
_CLOUD_FRAMES = 24


@dataclass(frozen=True)
class SceneReport:
    """What was found in one scene: lines of text, findings with their recipe lines, and the sample, if any."""

    name: str
    lines: Sequence[str]
    findings: Sequence[tuple[Finding, str]]
    sample: SceneSample | None


def write_page(page: Path, root: Path, lines: Sequence[str], reports: Sequence[SceneReport]) -> None:
    """Write the page.

    Raises:
        UserError: The page cannot be written.
    """
    parts = ["<!doctype html><html lang='en'><meta charset='utf-8'>", f"<title>{html.escape(root.name)}</title>"]
    parts += [f"<style>{_STYLE}</style><h1>{html.escape(root.name)}</h1>", _pre(lines)]
    for report in reports:
        parts += [f"<h2>{html.escape(report.name)}</h2>", _pre(report.lines)]
        for finding, line in report.findings:
            shown = f"<br><code>{html.escape(line)}</code>" if line else ""
            parts.append(f"<p class='bad'><b>{html.escape(finding.kind)}</b>: {html.escape(finding.mend)}{shown}</p>")
        if report.sample is not None and report.sample.frames:
            for title, figure in pictures(report.sample).items():
                parts.append(f"<h3>{title}</h3><img alt='{title}' src='data:image/png;base64,{_encoded(figure)}'>")
    try:
        page.write_text("\n".join([*parts, "</html>"]), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {page}: {error.strerror}") from None


def pictures(sample: SceneSample) -> dict[str, "Figure"]:
    """Return the figures of a scene by title."""
    return {
        "Color with the edges of depth": _overlay(sample),
        "Points and cameras from above": _above(sample),
        "Overlap and angle of pairs": _pairs(sample),
        "Depth and motion": _histograms(sample),
    }


def _overlay(sample: SceneSample) -> "Figure":
    frames = list(sample.frames.items())
    chosen = [frames[index] for index in evenly_chosen(len(frames), 4)]
    figure = _figure(10, 2.6 * ((len(chosen) + 1) // 2) * 1.3)
    axes = figure.subplots((len(chosen) + 1) // 2, 2, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, (number, frame) in zip(axes, chosen, strict=False):
        rows, columns = depth_edges(frame.depth)
        axis.imshow(frame.gray, cmap="gray", vmin=0, vmax=255)
        axis.scatter(columns, rows, s=1.5, c="red", linewidths=0)
        axis.set_title(f"frame {number}", fontsize=9)
    return figure


def _above(sample: SceneSample) -> "Figure":
    frames = list(sample.frames.values())
    points, shades = [], []
    for frame in (frames[index] for index in evenly_chosen(len(frames), _CLOUD_FRAMES)):
        rows, columns = (grid[::3] for grid in np.nonzero(frame.depth > 0))
        pixels = np.stack([columns + 0.5, rows + 0.5, np.ones(len(rows))])
        seen = np.linalg.inv(frame.intrinsics) @ pixels * frame.depth[rows, columns]
        points.append((frame.world_from_camera[:3, :3] @ seen).T + frame.world_from_camera[:3, 3])
        shades.append(frame.gray[rows, columns])
    cloud, shade, centers = np.concatenate(points), np.concatenate(shades), sample.poses[:, :3, 3]
    up = int(np.abs(np.mean(sample.poses[:, :3, 1], axis=0)).argmax())  # the world axis nearest to the cameras' y
    across, along = (axis for axis in range(3) if axis != up)
    figure = _figure(7, 6)
    axis = figure.subplots()
    axis.scatter(cloud[:, across], cloud[:, along], s=0.4, c=shade, cmap="gray", linewidths=0)
    axis.plot(centers[:, across], centers[:, along], "-", color="red", linewidth=1, label="camera")
    axis.plot(*centers[0, [across, along]], "o", color="blue", label="first frame")
    ahead = sample.poses[:: max(1, len(sample.poses) // 20)]
    axis.quiver(*ahead[:, [across, along], 3].T, *ahead[:, [across, along], 2].T, color="red", width=0.003)
    if len(cloud):
        low, high = np.percentile(cloud[:, [across, along]], [1, 99], axis=0)
        low, high = (
            np.minimum(low, centers[:, [across, along]].min(0)),
            np.maximum(high, centers[:, [across, along]].max(0)),
        )
        margin = 0.05 * (high - low).max() + 0.1
        axis.set_xlim(low[0] - margin, high[0] + margin)
        axis.set_ylim(low[1] - margin, high[1] + margin)
    axis.set_aspect("equal")
    axis.set_xlabel(f"{'xyz'[across]}, meters")
    axis.set_ylabel(f"{'xyz'[along]}, meters")
    axis.legend(fontsize=8)
    return figure


def _pairs(sample: SceneSample) -> "Figure":
    figure = _figure(10, 4.2)
    names, most = ("overlap", "angle, degrees"), (1, None)
    for axis, values, name, high in zip(figure.subplots(1, 2), pair_matrix(sample), names, most, strict=True):
        figure.colorbar(axis.imshow(values, vmin=0, vmax=high), ax=axis, shrink=0.8)
        axis.set_title(f"{name} of sampled frames", fontsize=9)
    return figure


def _histograms(sample: SceneSample) -> "Figure":
    figure = _figure(10, 3)
    steps, turns = motion(sample.poses)
    names = ("depth, meters", "motion per frame, cm", "turn per frame, degrees")
    for axis, values, name in zip(
        figure.subplots(1, 3), (sample.known_depth(), 100 * steps, turns), names, strict=True
    ):
        axis.hist(np.round(values, 3), bins=40, color="#456")  # equal but for rounding: too narrow for bins
        axis.set_xlabel(name, fontsize=9)
    return figure


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _encoded(figure: "Figure") -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=90, format="png")
    return base64.b64encode(buffer.getvalue()).decode()


def _pre(lines: Sequence[str]) -> str:
    return f"<pre>{html.escape(chr(10).join(lines))}</pre>"
