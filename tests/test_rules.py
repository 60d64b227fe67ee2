"""The rules of CONTRIBUTING.md that a program can check."""

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path

import glassgpt
from glassgpt import cli

ROOT = Path(__file__).parents[1]
PACKAGE = Path(glassgpt.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES = 70
STYLESHEET = "training/report.py"  # whose colours have names that begin as options do
# (file, call) of writes that need not be whole: a log or records that grow, a file that is unfinished by its name, and
# notes that a reader checks before it believes them
ALLOWED_WRITES = {
    ("bench/report.py", "temporary.write_text"),
    ("checkpoint.py", "path.open"),  # in a directory that is put in place whole
    ("files.py", "temporary.write_text"),
    ("cli/console.py", "Path(os.devnull).open"),
    ("cli/sweep.py", "results.write_text"),
    ("data/prepare/parts.py", "(folder / _TOKENS).open"),
    ("data/prepare/parts.py", "(new / _ABOUT).write_text"),
    ("data/shards.py", "temporary.open"),
    ("data/tokens.py", "temporary.open"),
    ("generation/batch.py", "path.open"),
    ("training/log.py", "(self._run / name).open"),
    ("training/tensorboard.py", "self._path.open"),
    ("training/state.py", "(temporary / _STATE / 'state.json').write_text"),
    ("weights/download/file.py", "self.note.write_text"),
    ("weights/download/file.py", "self.part.open"),
    ("weights/download/file.py", "_stamp_path(path).write_text"),
    ("weights/families/book.py", "temporary.open"),
}


def nodes() -> Iterator[tuple[str, ast.AST]]:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            yield path.relative_to(PACKAGE).as_posix(), node


def test_no_function_has_to_be_scrolled_through() -> None:
    long = [
        f"{name}: {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for name, node in nodes()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno >= MOST_LINES
    ]
    assert not long, "\n".join(long)


def test_files_are_written_whole_or_not_at_all() -> None:
    """Through `glassgpt.files`, so that a kill leaves the old file or the new one."""
    found = set()
    for name, node in nodes():
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            text = ast.unparse(node)
            opens = node.func.attr == "open" and re.search(r"['\"][wax]b?\+?['\"]", text)
            if node.func.attr in ("write_text", "write_bytes") or opens:
                found.add((name, ast.unparse(node.func)))
    assert found == ALLOWED_WRITES


def test_the_library_names_no_option_of_the_command_line() -> None:
    """Who calls it from Python has none. The demo's last words are for a terminal."""
    wrong = [
        f"{name}:{node.lineno}: {node.value[:80]!r}"
        for name, node in nodes()
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and not name.startswith(("cli/", "training/terminal.py", "demo.py", STYLESHEET))
        and re.search(r"(?<![\w`-])--[a-z]", node.value.replace("`export --to`", ""))
    ]
    assert not wrong, "\n".join(wrong)


def test_the_version_is_written_once() -> None:
    assert f'__version__ = "{glassgpt.__version__}"' in (PACKAGE / "__init__.py").read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert not re.search(r"^version *=", project.split("[tool.")[0], re.MULTILINE)
    assert 'attr = "glassgpt.__version__"' in project


def options_known() -> set[str]:
    (commands,) = (a.choices for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction))
    parsers = [cli.parser(), *commands.values()]
    return {flag for parser in parsers for action in parser._actions for flag in action.option_strings}


def test_no_message_names_an_option_that_does_not_exist() -> None:
    """Every `--word` in the strings of the commands, and in the pages that tell what to type."""
    texts = [
        (name, node.value)
        for name, node in nodes()
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and name != STYLESHEET
    ]
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    texts += [
        (page.name, line)
        for page in pages
        for line in page.read_text(encoding="utf-8").splitlines()
        if "glassgpt" in line or page.name != "README.md"
    ]
    # of scripts and other programs that the pages name
    scripts = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks").glob("*.py"))
    others = set(re.findall(r'"(--[a-z][a-z0-9-]*)"', scripts)) | {"--reference", "--logdir", "--array", "--dependency"}
    others |= {"--rm", "--served-model-name"}  # of podman and of vLLM
    # of torchrun and of SLURM
    others |= {"--standalone", "--nproc-per-node", "--nnodes", "--node-rank", "--master-addr", "--master-port"}
    others |= {"--rdzv-backend", "--rdzv-endpoint", "--rdzv-id", "--max-restarts", "--shutdown-timeout"}
    others |= {"--nodes", "--ntasks-per-node", "--gpus-per-node", "--cpus-per-task", "--time", "--signal"}
    known = options_known() | others
    wrong = {
        f"{name}: {word}"
        for name, text in texts
        for word in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text)
        if word not in known
    }
    assert not wrong, "\n".join(sorted(wrong))
