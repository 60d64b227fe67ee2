"""Writes into the docstring of each of the book's files in `src/` where its names are defined (`make docs`).

A row of the table is a name, then a file and a line. Which names there are is decided where the table stands; file and
line are found anew by following the file's imports through the source, of which nothing is run.
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"
HEADING = "Where the code is (`make docs` keeps the lines right):\n\n"


def doors() -> list[Path]:
    """The files that have such a table."""
    return [path for path in sorted(SOURCE.glob("*.py")) if HEADING in path.read_text(encoding="utf-8")]


def definition(path: Path, name: str) -> tuple[Path, ast.stmt]:
    """Where a name, "GPTModel" or "GPTModel.forward", that may be used in `path` is defined; `LookupError` if not."""
    first, _, attribute = name.partition(".")
    body = ast.parse(path.read_text(encoding="utf-8")).body
    for node in body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if first == (alias.asname or alias.name):
                    return definition(_file_of(node.module or ""), f"{alias.name}.{attribute}".rstrip("."))
        elif first in _names_of(node):
            return (path, node) if not attribute else _inside(path, node, attribute)
    raise LookupError(f"{path} has no {first}")


def table(path: Path) -> str:
    """The rows of a file as they should be."""
    names = [row.split()[0] for row in _rows(path.read_text(encoding="utf-8")).splitlines()]
    found = [definition(path, name) for name in names]
    width = max(map(len, names)) + 2
    return "".join(
        f"    {name:<{width}}{file.relative_to(ROOT).as_posix()}:{node.lineno}\n"
        for name, (file, node) in zip(names, found, strict=True)
    )


def rendered(path: Path) -> str:
    """The whole file with its table as it should be."""
    text = path.read_text(encoding="utf-8")
    return text.replace(HEADING + _rows(text), HEADING + table(path))


def _rows(text: str) -> str:
    match = re.search(re.escape(HEADING) + r"((?: {4}\S.*\n)+)", text)
    if match is None:
        raise LookupError("there is no row under the heading")
    return match[1]


def _file_of(module: str) -> Path:
    file = SOURCE.joinpath(*module.split("."))
    file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
    if not file.is_file():
        raise LookupError(f"{module} is not in {SOURCE.name}/")
    return file


def _names_of(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _inside(path: Path, node: ast.stmt, attribute: str) -> tuple[Path, ast.stmt]:
    """A method of a class, or of the first of its bases that has it."""
    if isinstance(node, ast.ClassDef):
        for inner in node.body:
            if attribute in _names_of(inner):
                return path, inner
        for base in node.bases:
            module, _, name = ast.unparse(base).rpartition(".")
            if module:  # as in `class GPTModel(model.GPTModel)`
                return definition(_module_file(path, module), f"{name}.{attribute}")
            return definition(path, f"{name}.{attribute}")
    raise LookupError(f"{path}: there is no {attribute} in line {node.lineno}")


def _module_file(path: Path, name: str) -> Path:
    """The file behind `from package import name`."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and name in (alias.name for alias in node.names):
            return _file_of(f"{node.module}.{name}")
    raise LookupError(f"{path} imports no module {name}")


if __name__ == "__main__":
    for door in doors():
        new = rendered(door)
        if new != door.read_text(encoding="utf-8"):
            door.write_text(new, encoding="utf-8", newline="\n")
            sys.stdout.write(f"{door.relative_to(ROOT)}\n")
