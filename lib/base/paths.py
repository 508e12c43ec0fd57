"""Where things are. The environment variable SAFEERASER_RUNS moves everything that a run writes."""

import os
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
PUBLISHED_FIGURES = ROOT / "figures"


def runs_root() -> Path:
    """Return the folder of all profiles' results: SAFEERASER_RUNS, or `runs` in the repository.

    A relative SAFEERASER_RUNS starts at the repository, not at the working directory: the shell
    and the notebook kernels have different ones and must agree.
    """
    return ROOT / Path(os.environ.get("SAFEERASER_RUNS") or "runs").expanduser()


def profile_dir(name: str) -> Path:
    """Return the folder of one profile's results."""
    return runs_root() / name


def figures_dir(name: str) -> Path:
    """Return the folder into which one profile's notebooks draw."""
    return profile_dir(name) / "figures"


def notebooks_dir(name: str) -> Path:
    """Return the folder of one profile's executed notebooks."""
    return profile_dir(name) / "notebooks"


def private(folder: Path) -> None:
    """Make a folder, if it is not there, into which nobody but its owner can look.

    Where a file system knows no owners, or the folder is another's, it stays as it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):
        folder.chmod(0o700)
