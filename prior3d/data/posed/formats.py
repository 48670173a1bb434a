"""Which reader opens a folder: by the name of its format, or the one that is surest to recognise it."""

from collections.abc import Collection, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path

from prior3d.contracts.reader import Reader
from prior3d.data.posed.files import seen_in
from prior3d.errors import UserError, section
from prior3d.registry import current
from prior3d.registry.schema import plain, validate_options

AUTO = "auto"
"""The format that is none: every reader is asked."""


def make_reader(root: Path, format: str, options: Mapping[str, object], options_key: str = "") -> Reader:
    """Make the reader of a folder.

    Args:
        root: the folder, `~` for the home.
        format: name of the reader; `auto` for the one that recognises the folder.
        options: of the reader.
        options_key: the section they stand in, for messages; "" where they stand next to `root`.

    Raises:
        UserError: there is no such folder, no such format or no scene in the folder, several formats recognise it, or
            an option is wrong.
    """
    folder = existing_root(root)
    cls = _recognised(folder) if format == AUTO else current().get("readers", format, "format")
    with section(options_key) if options_key else nullcontext():
        checked = validate_options(cls, plain(options), "")
    with section(options_key, elsewhere={"root": "root"}) if options_key else nullcontext():
        return cls(folder, **checked)


def existing_root(root: Path) -> Path:
    """Return a folder, `~` expanded; raise UserError for `root` if there is none."""
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise UserError(f"no folder {folder}", "root")
    return folder


def recognising(folder: Path, formats: Collection[str] | None = None) -> dict[str, int]:
    """Return {format: how sure it is} for those that recognise a folder, the surest first.

    Args:
        folder: exists.
        formats: to ask; None for all that are installed and can be imported.

    Raises:
        UserError: none does; the message says what lies there.
    """
    asked, broken, registry = {}, [], current()
    for plugin in registry.list("readers"):
        if formats is None or plugin.name in formats:
            broken.append(plugin.name)
            with suppress(UserError):  # a broken plugin ends only the runs that name it
                asked[plugin.name] = registry.get("readers", plugin.name).recognises(folder)
                broken.pop()
    found = {name: sure for name, sure in sorted(asked.items(), key=lambda item: -item[1]) if sure > 0}
    if not found:
        doubt = f"; not asked, as they are broken: {', '.join(broken)}" if broken else ""
        names = ", ".join(asked) or "none is installed"
        raise UserError(f"no format ({names}) recognises {folder}: {seen_in(folder)}{doubt}", "root")
    return found


def _recognised(folder: Path) -> type[Reader]:
    found = recognising(folder)
    best = [name for name, sure in found.items() if sure == max(found.values())]
    if len(best) > 1:
        raise UserError(f"{' and '.join(best)} both recognise {folder}: set the one it is", "format")
    return current().get("readers", best[0], "format")
