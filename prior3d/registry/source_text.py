"""Plugin kinds and documentation of a module's classes, read from its source without running it."""

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
    """A module's file is missing, unreadable or not Python; the message has the file and the reason."""


class Role(NamedTuple):
    """Role of a class, derived from its bases: a kind of plugin, and the prefix of its name (`sparse/`)."""

    kind: Kind
    prefix: str


BASES = {base: Role(kind, prefix) for kind, contract in KINDS.items() for base, prefix in contract.bases.items()}
"""Names of the base classes of plugins."""

_CLASS = r'^class {}\b[^:]*:\n+[ \t]+r?"""(.*?)(?:"""|$)'
"""Pattern of a class whose body begins with a docstring; captures the first line."""


@dataclass(frozen=True)
class Text:
    """Content of a module, read from its source.

    Attributes:
        imports: local name to the imported object: a dotted path that ends with the name of a module or of a class.
        classes: name to definition.
        names: all names defined at the top level, and `*` if they cannot be known.
        doc: the first line of the module's docstring.
    """

    imports: dict[str, str] = field(default_factory=dict)
    classes: dict[str, ast.ClassDef] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    doc: str = ""


def read_text(file: Path, what: str, package: str = "") -> Text:
    """Read a module's source.

    Args:
        file: file of the module.
        what: name of the file's role in messages.
        package: package of the module, for its relative imports.

    Raises:
        Unreadable: the file is missing, unreadable or not Python.
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
    """Locate a module without importing anything.

    Returns:
        Its file, if it exists and is Python text; and the first missing part of its dotted path, if any.
    """
    name, *rest = name.split(".")
    spec = importlib.util.find_spec(name)
    for part in rest:
        if spec is None:
            break
        name = f"{name}.{part}"
        # pass only the last part: with the full name, a folder without __init__ would import its parent
        spec = PathFinder.find_spec(part, spec.submodule_search_locations or [])
    if spec is None:
        return None, name
    return (Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None), None


class Texts:
    """Contents of modules, each read once.

    Args:
        followed: top-level packages whose modules are read to find the bases of a class.
    """

    def __init__(self, followed: Iterable[str]) -> None:
        self._followed = frozenset(followed)
        self._read: dict[str, Text | None] = {}
        self._located: dict[str, tuple[Path | None, str | None]] = {}

    def put(self, module: str, text: Text) -> None:
        """Store the content of a module that was already read."""
        self._read[module] = text

    def classes_of(self, text: Text) -> list[tuple[Role, str]]:
        """Return role and name of every public plugin class of a module."""
        roles = {name: self._role(text, name, ()) for name in text.classes}
        return [(role, name) for name, role in roles.items() if role is not None and not name.startswith("_")]

    def problem(self, module: str, name: str) -> str | None:
        """Return why a class certainly cannot be imported: missing module, missing name, or not Python."""
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
        """Return the first line of the documentation of a class, or of its module; empty if none can be read."""
        text = None
        try:
            for _ in range(8):  # classes are re-exported once or twice; the limit stops circular imports
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
        """Return the content of a module; None if it has no readable source."""
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
        """Return the first line of a class's docstring if a plain search of the module finds it, else None.

        Parsing the modules of all plugins would take longer than everything else in `--list`.
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
        """Return the role of a class of a module, from the first base that has a role."""
        if (id(text), name) in seen:  # a class that derives from itself
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
    """Yield the top-level statements of a module, including those inside `if`, `try` and `with`."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.Try | ast.With):
            for block in ("body", "handlers", "orelse", "finalbody"):
                for inner in getattr(statement, block, ()):
                    yield from _statements(inner.body if isinstance(inner, ast.ExceptHandler) else [inner])


def _dotted(base: ast.expr) -> str:
    """Return `prior3d.Prior` for `prior3d.Prior` and `prior3d.Prior[...]`; empty for other expressions."""
    if isinstance(base, ast.Subscript):
        base = base.value
    if isinstance(base, ast.Attribute):
        above = _dotted(base.value)
        return f"{above}.{base.attr}" if above else base.attr
    return getattr(base, "id", "")


def _first_line(node: ast.Module | ast.ClassDef) -> str:
    return (ast.get_docstring(node) or "").partition("\n")[0].strip()
