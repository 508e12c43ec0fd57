"""Where a result comes from: its code, commit, package versions, machine, memory."""

import ast
import hashlib
import importlib.metadata
import os
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from lib.base import paths

COMMIT = "SAFEERASER_COMMIT"  # told to a worker that has the code without its repository
ARITHMETIC = ("torch", "transformers")  # other versions may give other numbers
MACHINERY = ("lib", "lib.base", "lib.running")  # where no number of a result is made
DATA = (".csv", ".toml")  # of a module, beside it
PACKAGES = ("torch", "transformers", "peft", "datasets", "numpy", "pandas", "rouge-score")


def describe(device: str | None = None) -> dict:
    """Return what a manifest says about the program and the machine.

    `device` defaults to the name of the GPU that this process has used, else "cpu".
    """
    commit, dirty = git_commit(paths.ROOT)
    return {
        "git_commit": commit, "git_dirty": dirty, "packages": package_versions(),
        "python": platform.python_version(), "platform": platform.platform(),
        "device": device or _device_in_use(), "peak_memory_mb": peak_memory_mb(),
    }


def code(modules: Iterable[str]) -> dict[str, str]:
    """The code that results depend on: a hash of these modules of lib with all that they import,
    and the versions of torch and transformers.

    Imports are followed but into lib's machinery (paths, messages, store, plan), and DATA beside a
    module that names it counts. Docstrings, comments and formatting do not.
    """
    versions = package_versions()
    return {"lib": _code_hash(paths.ROOT, tuple(modules)),
            **{name: versions.get(name, "").partition("+")[0] for name in ARITHMETIC}}


@cache
def _code_hash(root: Path, modules: tuple[str, ...]) -> str:
    found, waiting = {}, list(modules)
    while waiting:
        name = waiting.pop()
        if name not in found:
            tree = ast.parse(_file_of(root, name).read_text(encoding="utf-8"))
            waiting += [] if _is_machinery(name) else _imported(root, tree)
            found[name] = "\0".join([_bare(tree), *_data(_file_of(root, name).parent, tree)])
    texts = "\0".join(f"{name}\0{found[name]}" for name in sorted(found))
    return hashlib.sha256(texts.encode()).hexdigest()[:16]


def _file_of(root: Path, module: str) -> Path:
    return root.joinpath(*module.split(".")).with_suffix(".py")


def _is_machinery(module: str) -> bool:
    return module.rpartition(".")[0] in MACHINERY


def _imported(root: Path, tree: ast.Module) -> Iterator[str]:
    """The modules of lib that a module imports, anywhere in it, but for machinery."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        yield from (name for name in names if name.startswith("lib.")
                    and not _is_machinery(name) and _file_of(root, name).is_file())


def _data(folder: Path, tree: ast.Module) -> Iterator[str]:
    """The tables and texts beside a module that it names."""
    named = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)
             and str(node.value).endswith(DATA)}
    yield from (path.read_text(encoding="utf-8") for path in sorted(map(folder.joinpath, named))
                if path.is_file())


def _bare(tree: ast.Module) -> str:
    """A module's code without docstrings; comments and formatting are not in the tree."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):  # texts that stand alone do nothing, wherever they are
            node.body = [one for one in body if not (
                isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant)
                and isinstance(one.value.value, str))]
    return ast.unparse(tree)


def git_commit(folder: Path) -> tuple[str | None, bool | None]:
    """Return (commit, whether tracked files differ from it); (None, None) where there is no git."""
    if not (folder / ".git").exists():  # else git would answer for a repository further up
        commit, _, changed = os.environ.get(COMMIT, "").partition(" ")
        return (commit, bool(changed)) if commit else (None, None)
    command = ["git", "--no-optional-locks", "status", "--porcelain=v2", "--branch", "-uno"]
    try:
        status = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None, None
    commit = re.search(r"^# branch\.oid ([0-9a-f]{40,64})$", status.stdout, re.MULTILINE)
    if not commit:
        return None, None
    return commit[1], any(not line.startswith("#") for line in status.stdout.splitlines())


def package_versions() -> dict[str, str]:
    """Return the versions of those PACKAGES that are installed, without importing them."""
    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def peak_memory_mb() -> float:
    """Return the most memory this process has held so far, in MB (10^6 bytes)."""
    status = Path("/proc/self/status")
    high = status.exists() and re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
    if high:  # on Linux ru_maxrss would begin at the memory of the process that started this one
        return round(int(high[1]) * 1024 / 1e6, 1)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


def _device_in_use() -> str:
    torch = sys.modules.get("torch")  # not imported only for this: it takes seconds
    return torch.cuda.get_device_name() if torch and torch.cuda.is_initialized() else "cpu"
