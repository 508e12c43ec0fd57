"""Checkpoints of work in progress: two are kept, and a damaged one counts as not there.

One is a folder `step-00000100` with `weights.safetensors`, `optimizer.safetensors` (whatever their
owner puts there) and `state.json`. It gets its name when all of it is on the disk.
"""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lib.base import disk
from lib.base.runs import read_json, write_json

DAMAGE = (FileNotFoundError, ValueError, KeyError, TypeError, SafetensorError)
TENSORS = ("weights", "optimizer")
log = logging.getLogger(__name__)


def save(folder: Path, step: int, state: dict, **tensors: dict[str, Tensor]) -> None:
    """Add a checkpoint to `folder` in one go, and keep the one before it. `tensors`: TENSORS."""
    fresh, final = folder / "next", folder / f"step-{step:08d}"
    if final.exists():
        return
    for older in [fresh, *sorted(folder.glob("step-*"))[:-1]]:
        shutil.rmtree(older, ignore_errors=True)
    fresh.mkdir(parents=True)
    for name in TENSORS:
        save_file(tensors[name], fresh / f"{name}.safetensors")
    write_json(fresh / "state.json", {"step": step, **state})
    disk.flush_all(fresh)  # else a power cut may leave the name without the bytes
    fresh.rename(final)
    disk.flush(folder)


def saved(folder: Path) -> Iterator[tuple[Path, dict, dict, dict]]:
    """The checkpoints in `folder` that can be read, the newest first: path, state, TENSORS."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            yield (path, read_json(path / "state.json"),
                   *(load_file(path / f"{name}.safetensors") for name in TENSORS))
        except DAMAGE as damage:
            discard(path, damage)


def discard(path: Path, damage: Exception) -> None:
    """Remove a checkpoint that cannot be used, and say so."""
    log.warning("%s is damaged (%s: %s): the run goes on from before it.", path,
                type(damage).__name__, damage)
    shutil.rmtree(path)
