"""What Ray's tasks do on their machines, and how results travel between two machines' stores.

A machine that sees the driver's runs folder works in it. Another one has a runs folder of its own:
what a piece needs is copied there first, and what it made is copied to the driver. Copies go
through `Store.adopt`: as parts of plain files, checked against the manifest, whole or not at all.
"""

import os
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from lib.base import environment
from lib.base.runs import Store, is_whole, read_json
from lib.running.agenda import Piece

RUNS = "SAFEERASER_RUNS"
OWN = os.environ.get(RUNS)  # as the node was started with: tasks change it
PART = 2**24  # bytes per part: 16 MiB
TELL_SECONDS = 1


@dataclass(frozen=True)
class Home:
    """Where the driver is: its node, its runs folder, and a file in it that no other folder has."""

    node: str
    runs: Path
    mark: Path  # relative to `runs`


@dataclass(frozen=True)
class Site:
    """A node, and the runs folder that tasks use there: `shared` if it is the driver's own."""

    node: str
    host: str
    runs: Path
    shared: bool


@dataclass(frozen=True)
class Survey:
    """What a node sees of the results that are asked for, relative to its runs folder.

    `finished` are those of a folder of its own: a shared one's are known.
    """

    site: Site
    finished: set[Path]
    begun: set[Path]
    lacks: list[str]  # packages and folders


def site(home: Home) -> Site:
    """Return which runs folder this process uses, and let it use it.

    It is SAFEERASER_RUNS as the node was started with, else the same path as the driver's.
    """
    import ray

    own = Path(OWN or home.runs).expanduser()
    runs = own if own.is_absolute() else home.runs
    os.environ[RUNS] = str(runs)
    node = ray.get_runtime_context().get_node_id()
    return Site(node, socket.gethostname(), runs, (runs / home.mark).exists())


def survey(home: Home, wanted: Sequence[Path], requirements: Sequence[str],
           folders: Sequence[Path]) -> Survey:
    """Look at what this node has; it should have the packages `requirements`, and `folders`."""
    here = site(home)
    finished = {name for name in wanted if not here.shared and is_whole(here.runs / name)}
    begun = {name for name in wanted if (here.runs / f"{name}.partial").exists()}
    lacks = environment.missing(requirements) if requirements else []
    lacks += [f"the folder {folder}" for folder in folders if not folder.is_dir()]
    return Survey(here, finished, begun - finished, lacks)


def make(piece: Piece, home: Home, desk) -> Site:
    """Make a piece in this node's store and return where it is."""
    here = site(home)
    if not here.shared:
        for need in piece.needs:
            fetch(home.node, need, here.runs / need.relative_to(home.runs))
    piece.make(partial(_tell, desk, piece.name, here.host, [0.0]))
    return here


def _tell(desk, name: str, host: str, last: list[float], text: str) -> None:
    if time.monotonic() - last[0] >= TELL_SECONDS:
        last[0] = time.monotonic()
        desk.tell.remote(name, f"{text} (on {host})")


class Desk:
    """An actor beside the driver: takes what workers say until the driver asks."""

    def __init__(self):
        self._said: dict[str, str] = {}

    def tell(self, name: str, text: str) -> None:
        self._said[name] = text

    def told(self) -> dict[str, str]:
        said, self._said = self._said, {}
        return said


def fetch(node: str, source: Path, target: Path) -> None:
    """Copy a finished result from another node's store into this process's, if it is not here."""
    Store(target.parent).adopt(target.name, lambda folder: receive(_parts(node, source), folder))


def _parts(node: str, source: Path) -> Iterator[tuple[str, bytes]]:
    import ray

    task = ray.remote(send).options(
        num_cpus=0, max_retries=0, num_returns="streaming", _generator_backpressure_num_objects=4,
        scheduling_strategy=on(node))
    return (ray.get(part) for part in task.remote(source))


def on(node: str, soft: bool = False):
    """The scheduling strategy that keeps a task on a node (`soft`: if that is there)."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node, soft=soft)


def send(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (relative name, bytes) for every part of every file of a finished result, in order."""
    manifest = read_json(folder / "manifest.json")
    for name in ("manifest.json", *manifest["files"]):
        with (folder / name).open("rb") as file:
            yield name, file.read(PART)  # an empty file has one part
            while part := file.read(PART):
                yield name, part


def receive(parts: Iterable[tuple[str, bytes]], folder: Path) -> None:
    """Write the parts of plain files into an empty folder. Raises ValueError for a name that
    leads out of it."""
    for name, data in parts:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\0" in name:
            raise ValueError(f"A file of {folder.name} that arrived leads out of it: {name!r}.")
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("ab") as file:
            file.write(data)
