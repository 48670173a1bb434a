"""What the text of a module says of its classes: kind of plugin and documentation, without running any of it."""

import ast
import importlib.util
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NamedTuple

from prior3d.messages import shown
from prior3d.registry.kinds import KINDS, Kind


class Unreadable(Exception):
    """A module's file is missing, not readable or not Python; the message says which, and why."""


class Role(NamedTuple):
    """What a class is by its bases: a kind of plugin, and the prefix of its name (`sparse/`)."""

    kind: Kind
    prefix: str


BASES = {base: Role(kind, prefix) for kind, contract in KINDS.items() for base, prefix in contract.bases.items()}
"""Names of classes that plugins derive from."""

_CLASS = r'^class {}\b[^:]*:\n+[ \t]+r?"""(.*?)(?:"""|$)'
"""A class of a name whose body begins with a docstring; its first line."""


@dataclass(frozen=True)
class Text:
    """A module as its text has it.

    Attributes:
        imports: local name to what it stands for: a dotted path that ends with the name of a module or of a class.
        classes: name to definition.
        names: everything that is defined at the top, and `*` where that cannot be known.
        doc: the first line of the module's docstring.
    """

    imports: dict[str, str] = field(default_factory=dict)
    classes: dict[str, ast.ClassDef] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    doc: str = ""


def read_text(file: Path, what: str, package: str = "") -> Text:
    """Read a module's text.

    Args:
        file: the module.
        what: how messages call it.
        package: in which it lies, for its relative imports.

    Raises:
        Unreadable: for a file that is missing, not readable or not Python.
    """
    try:
        tree = ast.parse(file.read_bytes(), filename=str(file))
    except OSError as error:
        raise Unreadable(f"{what} {shown(file)} cannot be read: {error.strerror}") from error
    except SyntaxError as error:
        line = f"line {error.lineno}: " if error.lineno else ""
        raise Unreadable(f"{what} {shown(file)} is not Python: {line}{error.msg}") from error
    except (ValueError, RecursionError, MemoryError) as error:  # null bytes, in some versions of Python; deep nesting
        raise Unreadable(f"{what} {shown(file)} is not Python: {error or 'too deeply nested'}") from error
    text = Text(doc=_first_line(tree))
    for statement in _statements(tree.body):
        if isinstance(statement, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - statement.level] if statement.level else []
            module = ".".join([*above, *([statement.module] if statement.module else [])])
            text.imports.update({name.asname or name.name: f"{module}.{name.name}" for name in statement.names})
        elif isinstance(statement, ast.Import):
            for name in statement.names:
                top = name.name.partition(".")[0]
                text.imports.update({name.asname: name.name} if name.asname else {top: top})
        elif isinstance(statement, ast.ClassDef):
            text.classes[statement.name] = statement
        elif isinstance(statement, ast.FunctionDef):
            text.names.add("*" if statement.name == "__getattr__" else statement.name)
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            text.names.update(node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name))
    text.names.update(text.imports, text.classes)
    return text


def locate_module(name: str) -> tuple[Path | None, str | None]:
    """Look for a module without importing anything.

    Returns:
        Its file, if it is there and is Python text; and the first part of its path that is not there, if any.
    """
    name, *rest = name.split(".")
    spec = importlib.util.find_spec(name)
    for part in rest:
        if spec is None:
            break
        name = f"{name}.{part}"
        # by its last part: with the full name a folder without __init__ asks for its parent to be imported
        spec = PathFinder.find_spec(part, spec.submodule_search_locations or [])
    if spec is None:
        return None, name
    return (Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None), None


class Texts:
    """Texts of modules, each read once.

    Args:
        followed: top-level packages whose modules are read to find out what a class derives from.
    """

    def __init__(self, followed: Iterable[str]) -> None:
        self._followed = frozenset(followed)
        self._read: dict[str, Text | None] = {}
        self._located: dict[str, tuple[Path | None, str | None]] = {}

    def put(self, module: str, text: Text) -> None:
        """Keep the text of a module that is read already."""
        self._read[module] = text

    def classes_of(self, text: Text) -> list[tuple[Role, str]]:
        """Return role and name of every public plugin class of a module."""
        roles = {name: self._role(text, name, ()) for name in text.classes}
        return [(role, name) for name, role in roles.items() if role is not None and not name.startswith("_")]

    def problem(self, module: str, name: str) -> str | None:
        """Return why a class certainly cannot be imported: no such module, no such name in it, or it is not Python."""
        if module not in self._read and (missing := self._locate(module)[1]):
            return f"no module {missing}"
        if self._glance(module, name) is not None:
            return None
        try:
            text = self.module(module)
        except Unreadable as error:
            return str(error)
        lacks = text is not None and name.partition(".")[0] not in text.names and "*" not in text.names
        return f"no {name} in {module}" if lacks else None

    def summary(self, module: str, name: str) -> str:
        """Return the first line of a class's documentation, or of its module's; empty if there is none to read."""
        text = None
        try:
            for _ in range(8):  # classes are re-exported a time or two, and not in circles
                glanced = self._glance(module, name)
                if glanced is not None:
                    return glanced
                text = self.module(module)
                if text is None or name in text.classes or name not in text.imports:
                    break
                module, _, name = text.imports[name].rpartition(".")
        except Unreadable:
            return ""
        return "" if text is None else (_first_line(text.classes[name]) if name in text.classes else "") or text.doc

    def module(self, name: str) -> Text | None:
        """Return the text of a module; None if there is none to read."""
        if name not in self._read:
            file, _ = self._locate(name)
            package = name if file is not None and file.name == "__init__.py" else name.rpartition(".")[0]
            self._read[name] = None if file is None else read_text(file, "module", package)
        return self._read[name]

    def _locate(self, module: str) -> tuple[Path | None, str | None]:
        if module not in self._located:
            self._located[module] = locate_module(module)
        return self._located[module]

    def _glance(self, module: str, name: str) -> str | None:
        """Return the first line of a class's docstring where the class plainly stands in the module, else None.

        Parsing the modules of all plugins would take longer than all else that `--list` does.
        """
        file = None if module in self._read else self._locate(module)[0]
        if file is None:
            return None
        try:
            head = re.search(_CLASS.format(re.escape(name)), file.read_text("utf-8"), re.MULTILINE)
        except (OSError, UnicodeDecodeError):
            return None
        return head.group(1).strip() if head else None

    def _role(self, text: Text, name: str, seen: tuple[object, ...]) -> Role | None:
        """Return what a class of a module is, by the first of its bases that says so."""
        if (id(text), name) in seen:  # a class of its own name's base
            return None
        found = (self._role_of_base(text, base, (*seen, (id(text), name))) for base in text.classes[name].bases)
        return next((role for role in found if role is not None), None)

    def _role_of_base(self, text: Text, base: ast.expr, seen: tuple[object, ...]) -> Role | None:
        path = _dotted(base)
        head, _, rest = path.partition(".")
        if path in text.classes:
            return self._role(text, path, seen)
        if head in text.imports:
            return self._imported(".".join([text.imports[head], *([rest] if rest else [])]), seen)
        return BASES.get(path.rpartition(".")[2])

    def _imported(self, path: str, seen: tuple[object, ...]) -> Role | None:
        module, _, name = path.rpartition(".")
        top = module.partition(".")[0]
        if top == "prior3d" and name in BASES:
            return BASES[name]
        text = self.module(module) if top in self._followed and len(seen) < 16 else None
        if text is None:
            return None
        if name in text.classes:
            return self._role(text, name, seen)
        return self._imported(text.imports[name], (*seen, path)) if name in text.imports else None


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a module's top, those within `if`, `try` and `with` included."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.Try | ast.With):
            for block in ("body", "handlers", "orelse", "finalbody"):
                for inner in getattr(statement, block, ()):
                    yield from _statements(inner.body if isinstance(inner, ast.ExceptHandler) else [inner])


def _dotted(base: ast.expr) -> str:
    """Return `prior3d.Prior` for `prior3d.Prior` and `prior3d.Prior[...]`; empty for what is no name."""
    if isinstance(base, ast.Subscript):
        base = base.value
    if isinstance(base, ast.Attribute):
        above = _dotted(base.value)
        return f"{above}.{base.attr}" if above else base.attr
    return getattr(base, "id", "")


def _first_line(node: ast.Module | ast.ClassDef) -> str:
    return (ast.get_docstring(node) or "").partition("\n")[0].strip()
