"""What a reader of a report has to mind, found in what was measured."""

from collections.abc import Iterable, Iterator

from prior3d.reporting.comparison import Comparison, Section
from prior3d.reporting.plain import describe_data

_FEW = 10
"""Scenes below which an interval over them is rough."""

_FROZEN = (
    "Unless a probe says otherwise, features are frozen, and BatchNorm statistics were estimated anew on the same"
    " images for every model."
)


def notes_on(comparison: Comparison) -> list[str]:
    """Return a sentence on everything that limits what the numbers say."""
    sections = comparison.sections
    notes = [
        *_on_groups(sections),
        *_about(
            (section for section in sections if section.task.parts["held_out"].spec.split == "validation"),
            "measured on the validation split: to choose by, not to report.",
        ),
        *_about(
            (section for section in sections if section.task.probe.seeded and section.task.seeds == 1),
            "one seed of what the probe draws (its head, its order, its labels): more show their spread (`seeds: 3`,"
            " or --seeds of prior3d-eval).",
        ),
    ]
    return [*notes, _FROZEN]


def _on_groups(sections: Iterable[Section]) -> Iterator[str]:
    one, few = [], []
    for section in sections:
        scenes = describe_data(section.task)["held_out"]["scenes"]
        if scenes == 1:
            one.append(section)
        elif scenes < _FEW:
            few.append(section)
    yield from _about(
        one,
        "a single scene or folder: the interval is over its images, which are alike; it says nothing about others.",
    )
    yield from _about(few, f"fewer than {_FEW} scenes: the interval over them is rough.")


def _about(sections: Iterable[Section], text: str) -> Iterator[str]:
    labels = [section.task.label for section in sections]
    if labels:
        yield f"{', '.join(labels)}: {text}"
