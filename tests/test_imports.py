"""What the source as a whole keeps to: imports go down, importing does nothing, nothing unsafe is called."""

import ast
import graphlib
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import glassgpt

PACKAGE = Path(glassgpt.__file__).parent
SOURCE = PACKAGE.parent

# From the ground up. A module imports its own layer and those below it; what is said of a folder counts for all of it
# that is not named itself. `docs/architecture.md` shows the same table.
LAYERS = (
    (
        "options",
        "terminal_text",
        "json_file",
        "toml_file",
        "files",
        "packages",
        "cores",
        "measured",
        "offline_tiktoken",
    ),
    (
        "config",
        "tokenizer",
        "kv_cache",
        "attention",
        "device",
        "weights.containers",
        "weights.download",
        "generation.cpu.numbers",
    ),
    ("language_model", "model"),
    ("data", "weights", "explain"),
    ("checkpoint", "generation"),
    ("weights.convert", "training", "book", "quantize"),
    ("demo", "bench", "server"),
    ("cli",),
    ("__main__",),
)
LEVEL = {unit: level for level, units in enumerate(LAYERS) for unit in units}
# (from, to) that go up on purpose: inside a function that runs long after both are there
UPWARDS = {("offline_tiktoken", "tokenizer")}
DOORS = sorted(path for path in SOURCE.glob("*.py") if path.name != "__init__.py")
MODULES = sorted(PACKAGE.rglob("*.py"))


def trees() -> Iterator[tuple[str, Path, ast.Module]]:
    for path in MODULES + DOORS:
        name = path.relative_to(SOURCE).as_posix()
        yield name, path, ast.parse(path.read_text(encoding="utf-8"), name)


def module_of(path: Path) -> str:
    """`generation/row.py` as "generation.row", the package's own `__init__.py` as ""."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def unit_of(module: str) -> str:
    """The entry of `LAYERS` that a module comes under."""
    while module and module not in LEVEL:
        module = module.rpartition(".")[0]
    return module


def imported(tree: ast.Module, path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, also those inside functions and under TYPE_CHECKING."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.parent.relative_to(SOURCE).parts
            above = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (above, node.module)))
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def run(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        env=environment,
        cwd=SOURCE.parent,
    )


# ---- imports ----------------------------------------


def package_imports() -> Iterator[tuple[str, str, str]]:
    """(file:line, module, imported module) of every import of the package inside the package, its face apart."""
    modules = {module_of(path) for path in MODULES}
    for name, path, tree in trees():
        if path in DOORS or path == PACKAGE / "__init__.py":
            continue  # the doors stand above everything; the package's face imports on first use
        for line, target in imported(tree, path):
            if target.split(".")[0] != "glassgpt":
                continue
            module = target.removeprefix("glassgpt").removeprefix(".")
            while module not in modules:
                module = module.rpartition(".")[0]
            yield f"{name}:{line}", module_of(path), module


def test_every_module_has_a_layer() -> None:
    unplaced = {module_of(path) for path in MODULES if not unit_of(module_of(path))} - {""}
    assert not unplaced, f"say in LAYERS where {', '.join(sorted(unplaced))} belongs"
    assert {unit_of(module_of(path)) for path in MODULES} - {""} == LEVEL.keys()


def test_imports_go_down_only() -> None:
    wrong = []
    for place, module, target in package_imports():
        if not target:
            wrong.append(f"{place} imports the package's face: name the module")
        elif LEVEL[unit_of(target)] > LEVEL[unit_of(module)] and (module, target) not in UPWARDS:
            wrong.append(f"{place} imports {target}, which lies above {module}")
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_itself_around_a_corner() -> None:
    """Module by module, imports inside functions and for type checkers included."""
    graph: dict[str, set[str]] = {}
    for _, module, target in package_imports():
        if target != module:
            graph.setdefault(module, set()).add(target)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_nothing_imports_a_door() -> None:
    doors = {door.stem for door in DOORS} | {"src"}
    wrong = [
        f"{name}:{line} imports the door {target}"
        for name, path, tree in trees()
        if path not in DOORS
        for line, target in imported(tree, path)
        if target.split(".")[0] in doors
    ]
    assert not wrong, "\n".join(wrong)


def test_the_architecture_page_shows_these_layers() -> None:
    page = (SOURCE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \d+ \| (.+) \|$", page, flags=re.MULTILINE)
    shown = [tuple(row.split(", ")) for row in rows]
    assert shown[: len(LAYERS) - 1] == list(LAYERS[:-1])


@pytest.mark.parametrize("module", ["glassgpt", "glassgpt.config", "glassgpt.generation", "glassgpt.cli"])
def test_the_command_line_starts_without_torch(module: str) -> None:
    # tiktoken's own modules are touched at once, for its table of encodings; what they stand on is not
    heavy = (
        "torch",
        "numpy",
        "tokenizers",
        "_tiktoken",
        "regex",
        "requests",
        "safetensors",
        "matplotlib",
        "httpx",
        "huggingface_hub",
    )
    done = run(f"import sys, {module}; print([m for m in {heavy!r} if m in sys.modules])")
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


@pytest.mark.parametrize(
    "module",
    ["decoder", "scheduler", "row", "sampling", "options", "text", "batch", "speculation"],
    ids=lambda name: f"generation.{name}",
)
def test_a_decoder_and_its_scheduler_need_no_torch(module: str) -> None:
    code = f"import sys, glassgpt.generation.{module}; print('torch' in sys.modules)"
    done = run(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")


def test_importing_does_nothing() -> None:
    """Every module and every door, warnings as errors: not a word, no random number, no default changed."""
    names = [
        ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        for path in MODULES
        if path.name != "__main__.py"
    ]
    names += [f"src.{door.stem}" for door in DOORS] if (SOURCE / "__init__.py").exists() else []
    done = run(
        "import importlib, os, signal, sys, threading, warnings\n"
        "import torch\n"
        "def state():\n"
        "    return {'random numbers': (torch.initial_seed(), torch.get_rng_state().tolist()),\n"
        "            'defaults': (torch.get_default_dtype(), torch.is_grad_enabled()),\n"
        "            'cores': torch.get_num_threads(),\n"
        "            'threads': threading.active_count(), 'signals': signal.getsignal(signal.SIGINT),\n"
        "            'environment': dict(os.environ), 'folder': os.getcwd(), 'excepthook': sys.excepthook}\n"
        "before = state()\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        "    changed = [key for key, value in state().items() if value != before[key]]\n"
        "    assert not changed, f'importing {name} changes: {changed}'\n"
    )
    assert not done.stdout + done.stderr, done.stdout + done.stderr
    assert done.returncode == 0


def test_the_packages_face() -> None:
    for name in glassgpt.__all__:
        assert getattr(glassgpt, name) is not None
    with pytest.raises(AttributeError, match="module 'glassgpt' has no attribute 'nonsense'"):
        glassgpt.nonsense  # noqa: B018


# ---- what is never called ----------------------------------------


def calls(tree: ast.Module) -> Iterator[tuple[int, str, ast.Call]]:
    """(line, name as written, the call) of every call of a plain or dotted name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func), node


def test_nothing_unpickles() -> None:
    wrong = []
    for name, path, tree in trees():
        for line, target in imported(tree, path):
            if target.split(".")[0] in (
                "pickle",
                "cPickle",
                "_pickle",
                "dill",
                "cloudpickle",
                "joblib",
                "shelve",
                "marshal",
            ):
                wrong.append(f"{name}:{line} imports {target}")
        for line, called, call in calls(tree):
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            if called in ("eval", "exec", "compile") or called.endswith(("np.load", "numpy.load")):
                wrong.append(f"{name}:{line} calls {called}")
            if called == "torch.load" and keywords.get("weights_only") != "True":
                wrong.append(f"{name}:{line} calls torch.load without weights_only=True")
            if keywords.get("weights_only") == "False" or keywords.get("allow_pickle") == "True":
                wrong.append(f"{name}:{line} lets a pickle in")
            if keywords.get("trust_remote_code") == "True" or keywords.get("shell") == "True":
                wrong.append(f"{name}:{line} runs somebody else's code")
    assert not wrong, "\n".join(wrong)


def test_the_library_prints_nothing() -> None:
    wrong = [
        f"{name}:{line}"
        for name, path, tree in trees()
        if path in MODULES and not module_of(path).startswith("cli")
        for line, called, _ in calls(tree)
        if called == "print"
    ]
    assert not wrong, "\n".join(wrong)


def test_every_text_file_is_utf8() -> None:
    """Elsewhere the default is another encoding, and the file that was written here cannot be read there."""
    wrong = []
    for name, _, tree in trees():
        for line, called, call in calls(tree):
            keywords = {keyword.arg for keyword in call.keywords}
            last = called.split(".")[-1]
            modes = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            if called == "open":
                wrong.append(f"{name}:{line} calls open(): use pathlib")
            elif last in ("read_text", "write_text") and called != "write_text" and "encoding" not in keywords:
                wrong.append(f"{name}:{line} calls {called} without encoding=")
            elif last == "open" and call.args and called.split(".")[0] not in ("os", "TokenFile"):
                binary = any("b" in mode for mode in modes) or "ab" in ast.unparse(call.args[0])
                if not binary and "encoding" not in keywords:
                    wrong.append(f"{name}:{line} calls {called} without encoding=")
            elif last == "open" and not call.args and "encoding" not in keywords:
                wrong.append(f"{name}:{line} calls {called} without encoding=")
    assert not wrong, "\n".join(wrong)


# ---- the guard that all tests stand behind ----------------------------------------


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "example.invalid"])
def test_the_network_is_closed_to_tests(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with pytest.raises(RuntimeError, match=f"a test tried to (reach|resolve) '?{host}"):
        socket.create_connection((host, 80), timeout=1)
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(family, kind) as connection:
            for use in (connection.connect, connection.connect_ex, lambda to: connection.sendto(b"x", to)):
                with pytest.raises(RuntimeError, match=f"a test tried to reach {host}:80; tests run offline"):
                    use((host, 80))


def test_this_machine_is_open_to_tests() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for host in ("127.0.0.1", "localhost"):
            with socket.create_connection((host, port), timeout=5) as client:
                accepted, _ = server.accept()
                client.sendall(b"x")
                assert accepted.recv(1) == b"x"
                accepted.close()


def test_the_public_names_are_listed_before_they_are_used() -> None:
    """In a fresh process, since a name that was used is in the module."""
    code = "import glassgpt; print(sorted(set(dir(glassgpt)) - {'__version__'}) == sorted(glassgpt.__all__))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True\n"
