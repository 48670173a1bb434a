"""Print docs/options.md: the options of all plugins and of all sections of recipes, from their signatures.

Run it as `python tools/options.py > docs/options.md`.
"""

import inspect
import sys
from collections.abc import Sequence

from prior3d.recipe.help import SECTIONS, OptionRow, plugin_rows, rows
from prior3d.recipe.reading import own_options
from prior3d.registry import KINDS, Registry

_BUILT_IN = "prior3d_plugins."


def main() -> int:
    print(page(), end="")
    return 0


def page() -> str:
    """Return the page in Markdown."""
    parts = [
        "# Options",
        "This page is made by `python tools/options.py > docs/options.md`; do not edit it. `prior3d-train --help NAME`"
        "\nshows the same for any plugin that is installed, and for files: `prior3d-train --plugin FILE --help NAME`.",
        "## Sections of a recipe",
    ]
    for name, section in SECTIONS.items():
        parts += [f"### {name}", _summary(section), _table(rows(own_options(section)))]
    registry = Registry()
    for kind in KINDS:
        found = [(plugin, registry.get(kind, plugin.name)) for plugin in registry.list(kind)]
        built_in = [(plugin, cls) for plugin, cls in found if cls.__module__.startswith(_BUILT_IN)]
        parts.append(f"## {kind.capitalize()}")
        for plugin, cls in built_in:
            options = plugin_rows(plugin, cls)
            parts += [f"### {plugin.name}", _summary(cls), _table(options) if options else "No options."]
    return "\n\n".join(part for part in parts if part) + "\n"


def _summary(documented: type) -> str:
    return (inspect.getdoc(documented) or "").partition("\n\n")[0].replace("\n", " ")


def _table(options: Sequence[OptionRow]) -> str:
    lines = ["| option | type | default | meaning |", "|---|---|---|---|"]
    for row in options:
        name, kind, default, meaning = (cell.replace("|", "\\|").replace("\n", " ") for cell in row)
        lines.append(f"| `{name}` | {kind} | {default} | {meaning} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
