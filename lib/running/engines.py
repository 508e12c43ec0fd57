"""How the runs are made: on this machine, or on a Ray cluster.

An engine has `slots` (so many at once), `summary` (what there is to work with, in words) and
`make_all(pieces, jobs, report)`.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from lib.base import environment
from lib.base.extras import scale
from lib.running import workers

NAMES = ("local", "ray")


def check(name: str, address: str | None) -> None:
    """Raise ValueError, saying what to do, if the options --engine and --address do not fit."""
    if address and name != "ray":
        raise ValueError(f"--address {address}: it belongs to --engine ray.")
    if address and not re.fullmatch(r"auto|[\w.:\[\]-]+:\d+", address):
        raise ValueError(f"--address {address}: give auto, for the cluster of which this machine "
                         "is a node, or the HOST:PORT of its head.")
    if name == "ray" and (lacking := environment.missing(environment.extra("ray"))):
        raise ValueError(f"--engine ray needs Ray, and {', '.join(lacking)} is missing here: "
                         f"{environment.pip_command('ray')}")


@dataclass(frozen=True)
class Local:
    """This machine: one run per GPU, or per core."""

    slots: int
    summary: str
    make_all: Callable


@contextmanager
def start(name: str, jobs: int, device: str, address: str | None = None) -> Iterator:
    """The engine of this name, until the end of the block.

    `device` is where a profile's models compute: "cpu", "cuda", or "auto" (the GPUs if there are
    any). Raises RuntimeError, saying what to do, if what it takes is not there.
    """
    if name == "ray":
        with scale("ray_engine").start(address, jobs, device) as cluster:
            yield cluster
    else:
        yield local(jobs, gpus() if device != "cpu" else [], device)


def local(jobs: int, found: list[str], device: str) -> Local:
    """The engine of this machine, at most `jobs` side by side, with these GPUs."""
    if device == "cuda" and not found:
        raise RuntimeError("This profile needs a GPU, and none is to be seen here (nvidia-smi "
                           "lists them; CUDA_VISIBLE_DEVICES hides some).")
    if not found:
        return Local(jobs, f"{jobs} side by side", workers.make_all)
    used = found[:jobs]
    return Local(len(used), f"{len(used)} side by side, each on one GPU of {len(found)}",
                 partial(workers.make_all, gpus=used))


def gpus() -> list[str]:
    """This process's GPUs, as CUDA_VISIBLE_DEVICES names them; none is touched."""
    import torch

    count, named = torch.cuda.device_count(), os.environ.get(workers.GPUS)
    return named.split(",")[:count] if named else [str(number) for number in range(count)]
