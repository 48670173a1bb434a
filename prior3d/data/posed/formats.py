"""Choice of the reader that opens a folder: by the name of its format, or the one that recognizes it best."""

import logging
from collections.abc import Collection, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from prior3d.contracts.reader import Reader
from prior3d.data.posed.files import seen_in
from prior3d.errors import UserError, section
from prior3d.messages import bug
from prior3d.registry import current
from prior3d.registry.members import checked_class
from prior3d.registry.schema import OptionsOf, plain, validate_options

_LOG = logging.getLogger(__name__)

AUTO = "auto"
"""Format name that is not a format: every reader checks the folder."""


def _chosen(options: Mapping[str, object]) -> str | None:
    """Return the format that the options `format` and `root` choose; None if they do not fit: the dataset says why."""
    if options["format"] != AUTO:
        return str(options["format"])
    best: list[str] = []
    with suppress(UserError):
        best = _surest(recognizing(existing_root(options["root"])))
    return best[0] if len(best) == 1 else None


ReaderOptions = Annotated[dict[str, Any] | None, OptionsOf("readers", "format", _chosen)]
"""Type of a dataset's option that holds the options of a reader, next to its options `root` and `format`."""


def make_reader(root: Path, format: str, options: Mapping[str, object], options_key: str = "") -> Reader:
    """Make the reader of a folder.

    Args:
        root: Folder; `~` is the home folder.
        format: Name of the reader; `auto` for the one that recognizes the folder.
        options: Options of the reader.
        options_key: Section of the options, for messages; "" if they are in the same section as `root`.

    Raises:
        UserError: The folder or format does not exist, the folder has no scene, several formats recognize it, or an
            option is wrong.
    """
    folder = existing_root(root)
    cls = checked_class(_recognized(folder) if format == AUTO else current().get("readers", format, "format"), "format")
    with section(options_key):
        checked = validate_options(cls, plain(options), "")
    with section(options_key, elsewhere={"root": "root"}):
        return cls(folder, **checked)


def existing_root(root: Path) -> Path:
    """Return a folder, `~` expanded; raise UserError for `root` if it does not exist."""
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise UserError(f"no folder {folder}", "root")
    return folder


def recognizing(folder: Path, formats: Collection[str] | None = None) -> dict[str, int]:
    """Return {format: confidence} of the formats that recognize a folder, the most confident first.

    Args:
        folder: Existing folder.
        formats: Formats to try; None for all that are installed. Broken ones are skipped, with a warning.

    Raises:
        UserError: No format recognizes the folder; the message lists its contents.
    """
    asked, broken, registry = {}, [], current()
    for name in dict.fromkeys(plugin.name for plugin in registry.list("readers")):
        if formats is None or name in formats:
            try:
                asked[name] = int(checked_class(registry.get("readers", name)).recognizes(folder))
            except Exception as error:  # a broken plugin ends only the runs that name it
                broken.append(name)
                _warn_once(name, error.message if isinstance(error, UserError) else bug(error))
    found = {name: sure for name, sure in sorted(asked.items(), key=lambda item: -item[1]) if sure > 0}
    if not found:
        doubt = f"; these are broken: {', '.join(broken)}" if broken else ""
        names = ", ".join(asked) or "none is installed"
        raise UserError(f"no format ({names}) recognizes {folder}: {seen_in(folder)}{doubt}", "root")
    return found


def _surest(found: Mapping[str, int]) -> list[str]:
    return [name for name, sure in found.items() if sure == max(found.values())]


def _recognized(folder: Path) -> type[Reader]:
    found = recognizing(folder)
    best = _surest(found)
    if len(best) > 1:
        raise UserError(f"{' and '.join(best)} both recognize {folder}: set the right one", "format")
    return current().get("readers", best[0], "format")


@cache
def _warn_once(name: str, problem: str) -> None:
    _LOG.warning("the reader %s is broken and skipped: %s", name, problem)
