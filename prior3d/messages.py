"""Wording of keys, values and files in one-line messages."""

import argparse
import difflib
import math
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from prior3d.errors import UserError


def join(path: Sequence[str | int]) -> str:
    """Return the dotted path of a key: ("data", "size", 0) is `data.size[0]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def did_you_mean(name: object, known: Iterable[str], most: int = 1) -> str:
    """Return `, did you mean 'x'?` with up to `most` known names nearest to a wrong one; empty if none is near.

    >>> did_you_mean("resnet81", ["resnet18", "resnet101"], most=2)
    ", did you mean 'resnet18' or 'resnet101'?"
    """
    near = difflib.get_close_matches(name, list(known), n=most) if isinstance(name, str) else []
    return f", did you mean {' or '.join(map(repr, near))}?" if near else ""


def unknown_key(name: str, known: Iterable[str]) -> str:
    """Return the message about a key that a section does not have."""
    known = [other for other in dict.fromkeys(known) if other != name]
    if hint := did_you_mean(name, known):
        return f"unknown key{hint}"
    return f"unknown key; there are {', '.join(known)}" if known else "unknown key"


def described(value: object) -> str:
    """Return the wording of a recipe value in a message."""
    if isinstance(value, str):
        return f"the text '{value if len(value) <= 60 else value[:57] + '...'}'"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float) and math.isinf(value):
        return "infinity" if value > 0 else "-infinity"
    if isinstance(value, list):
        return "a list"
    return "a section of keys" if isinstance(value, Mapping) else str(value)


def shown(file: Path) -> str:
    """Return the path of a file for messages: relative to the current folder if the file lies in it."""
    absolute, here = file.absolute(), Path.cwd()
    return str(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute)


def first_line(error: BaseException, otherwise: str = "") -> str:
    r"""Return the first line with text of an error's message; `otherwise`, or the error's type, if there is none.

    >>> first_line(RuntimeError("out of memory\ntried to allocate 2 GiB")), first_line(AssertionError())
    ('out of memory', 'AssertionError')
    """
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return text or otherwise or type(error).__name__


def bug(error: BaseException) -> str:
    """Return type, message and place of an error in a plugin's code, as one line."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    where = f" ({shown(Path(frames[-1].filename))}, line {frames[-1].lineno})" if len(frames) > 1 else ""
    return " ".join(f"{type(error).__name__}: {error}{where}".split())


class OneLineParser(argparse.ArgumentParser):
    """Report argument errors in the same one-line form as every other error."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError instead of printing the usage."""
        raise UserError(f"{message}; see --help")
