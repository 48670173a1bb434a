"""Progress where no terminal is: a line now and then, with the time that is left."""

import io

import pytest
from rich.console import Console

from prior3d.pretraining import progress


@pytest.mark.parametrize(
    ("seconds", "lines"),
    [
        (1.0, []),  # a short stage says nothing
        (20.0, ["train: pairs: 2 of 5, about 60 s left", "train: pairs: 4 of 5, about 20 s left"]),
        (
            3600.0,
            [f"train: pairs: {n} of 5, about {5 - n}.0 h left" for n in (1, 2, 3)]
            + ["train: pairs: 4 of 5, about 60 min left"],
        ),
    ],
)
def test_off_a_terminal_a_line_now_and_then_says_how_long_it_takes(monkeypatch, seconds, lines):
    clock = iter(range(100))
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds * next(clock))
    console = Console(file=io.StringIO(), width=200)
    assert list(progress.Bars(console)("abcde", "train: pairs", 5)) == list("abcde")
    assert console.file.getvalue().splitlines() == lines


def test_brackets_and_colons_are_printed_as_they_are(capsys):
    lines = ["pip install 'prior3d[gpu]'", "/a/[/b]/c.png is cut off", "seed:100:x [red]"]
    for line in lines:
        progress.make_console().print(line)
    assert capsys.readouterr().out.splitlines() == lines
