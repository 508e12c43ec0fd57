"""Where a result comes from: commit, package versions, machine, memory."""

import importlib.metadata
import os
import platform
import re
import resource
import subprocess
import sys
from pathlib import Path

from lib.base import paths

COMMIT = "SAFEERASER_COMMIT"  # told to a worker that has the code without its repository
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
