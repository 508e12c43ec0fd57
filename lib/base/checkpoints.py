"""Checkpoints of training: two are kept, and a damaged one counts as not there.

One is a folder `step-00000100` with `weights.safetensors`, `optimizer.safetensors` and `state.json`
(whatever its owner puts there). It gets its name when all of it is on the disk.
"""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from lib.base import disk
from lib.base.runs import read_json, write_json

DAMAGE = (FileNotFoundError, ValueError, KeyError, TypeError, SafetensorError)
WEIGHTS, OPTIMIZER = "weights.safetensors", "optimizer.safetensors"
log = logging.getLogger(__name__)


def save(folder: Path, step: int, state: dict, trained: Mapping[str, Tensor],
         optimizer: Optimizer) -> None:
    """Add a checkpoint to `folder` in one go, and keep the one before it."""
    fresh, final = folder / "next", folder / f"step-{step:08d}"
    if final.exists():
        return
    for older in [fresh, *sorted(folder.glob("step-*"))[:-1]]:
        shutil.rmtree(older, ignore_errors=True)
    fresh.mkdir(parents=True)
    save_file({name: p.detach().contiguous() for name, p in trained.items()}, fresh / WEIGHTS)
    save_file({f"{name}/{kind}": value for name, p in trained.items()
               for kind, value in optimizer.state[p].items()}, fresh / OPTIMIZER)
    write_json(fresh / "state.json", {"step": step, **state})
    disk.flush_all(fresh)  # else a power cut may leave the name without the bytes
    fresh.rename(final)
    disk.flush(folder)


def resume(folder: Path, trained: Mapping[str, Tensor], optimizer: Optimizer) -> dict | None:
    """Bring parameters and optimizer to the newest checkpoint that is whole; its state, if any."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            return _take(path, trained, optimizer)
        except DAMAGE as damage:
            log.warning("%s is damaged (%s: %s): the run goes on from before it.", path,
                        type(damage).__name__, damage)
            shutil.rmtree(path)
    return None


@torch.no_grad()
def _take(path: Path, trained: Mapping[str, Tensor], optimizer: Optimizer) -> dict:
    state, weights = read_json(path / "state.json"), load_file(path / WEIGHTS)
    moments = load_file(path / OPTIMIZER)
    if weights.keys() != trained.keys():  # nothing is changed before all was read
        raise KeyError("other weights than those that are trained")
    for name, parameter in trained.items():
        parameter.copy_(weights[name])
        optimizer.state[parameter] = {
            (kind := key.rpartition("/")[2]):
                value if kind == "step" else value.to(parameter.device)
            for key, value in moments.items() if key.rpartition("/")[0] == name}
    return state
