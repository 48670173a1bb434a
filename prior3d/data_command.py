"""The command `prior3d-data` and its subcommands; each is an entry of `SUBCOMMANDS`.

Numpy, torch and readers are imported only when a subcommand runs.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from prior3d.errors import UserError, on_command_line
from prior3d.messages import OneLineParser
from prior3d.version import __version__

_BAD_INPUT, _INTERRUPTED = 2, 130


class Subcommand(NamedTuple):
    """A subcommand: one line about it, a function that adds its arguments, and one that runs it."""

    about: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run `prior3d-data`.

    Args:
        argv: Command-line arguments; by default those of the process.

    Returns:
        The subcommand's exit status; 2 after an error that the user can fix, 130 after Ctrl-C.
    """
    try:
        arguments = _parser().parse_args(argv)
        return SUBCOMMANDS[arguments.subcommand].run(arguments)
    except UserError as error:
        print(f"prior3d-data: {on_command_line(error)}", file=sys.stderr)
        return _BAD_INPUT
    except KeyboardInterrupt:
        return _INTERRUPTED


def _parser() -> OneLineParser:
    parser = OneLineParser(prog="prior3d-data", description="Look at posed recordings before training on them.")
    parser.add_argument("--version", action="version", version=f"prior3d {__version__}")
    commands = parser.add_subparsers(dest="subcommand", required=True, metavar="COMMAND")
    for name, subcommand in SUBCOMMANDS.items():
        one = commands.add_parser(name, help=subcommand.about, description=subcommand.about)
        subcommand.add_arguments(one)
    return parser


def _inspect_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("root", type=Path, metavar="ROOT", help="folder of scenes, or of one scene")
    add("overrides", nargs="*", metavar="KEY=VALUE", help="as in a recipe: data.reader.depth_scale=5000")
    add("--html", type=Path, metavar="PAGE", help="also write one HTML page with pictures; needs nothing else")
    add("--frames", type=int, default=48, metavar="N", help="frames to decode per scene; 48 by default")
    add("--plugin", action="append", default=[], metavar="FILE", help="a Python file with readers")
    parser.epilog = "exit status: 0 nothing found, 1 something found, 2 the data cannot be read"


def _inspect(arguments: argparse.Namespace) -> int:
    from prior3d.inspecting import inspect

    return inspect(arguments)


SUBCOMMANDS = {
    "inspect": Subcommand("Say what a folder of recordings is, and what seems misread.", _inspect_arguments, _inspect)
}
"""Dict from name to subcommand."""
