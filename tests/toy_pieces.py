"""Pieces of work for the engines' tests, and a driver that they kill.

`python tests/toy_pieces.py TAG JOURNAL PAUSE [ADDRESS]` has them made, by Ray if there is an
address. Each piece reads a result that was made before; it is counted in JOURNAL, as in
`tests/killable_steps.py`, by every process that works on it.
"""

import os
import signal
import sys
from functools import partial
from pathlib import Path

from lib.base.paths import profile_dir
from lib.base.runs import Store
from lib.running import workers
from lib.running.agenda import Piece
from lib.scale import ray_engine
from tests import killable_steps

NAMES = tuple(killable_steps.STEPS[:4])


def store() -> Store:
    return Store(profile_dir("toy"))


def make(name: str, tag: str, journal: Path, pause: float, report) -> None:
    store().make(name, {"tag": tag}, partial(_build, name, journal, pause, report))


def _build(name: str, journal: Path, pause: float, report, folder: Path) -> dict:
    word = (store().folder("input", {}) / "word.txt").read_text()
    killable_steps.build(folder, name, journal, pause, report)
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return {"word": word, "gpu": gpu, "parent": os.getppid()}  # of a Ray's worker: its node


def fail(report) -> None:
    raise ValueError("the loss is not a number")


def die(report) -> None:
    os._exit(9)


def pieces(tag: str, journal: Path, pause: float = 0.0,
           slow: tuple[str, ...] = NAMES) -> list[Piece]:
    """Four pieces, after making what they need; the slow ones pause after every part."""
    needed = store().make("input", {}, lambda folder: write(folder / "word.txt"))
    return [Piece(name, store().folder(name, {"tag": tag}),
                  partial(make, name, tag, journal, pause * (name in slow)), (needed,))
            for name in NAMES]


def write(path: Path) -> None:
    path.write_text("original")


def lone(name: str, work) -> Piece:
    """A piece that never has a result."""
    return Piece(name, store().folder(name, {}), work)


def in_this_process(pieces: list[Piece], jobs: int, report) -> None:
    """An engine's `make_all` that starts no process; the number of threads is then 1 here, too."""
    for piece in pieces:
        piece.make(report)


def main(tag: str, journal: str, pause: str, address: str | None = None) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    made = pieces(tag, Path(journal), float(pause))
    if address is None:
        workers.make_all(made, 2, print)
    else:
        with ray_engine.start(address, 2, "cpu") as cluster:
            print(cluster.summary, flush=True)
            cluster.make_all(made, 2, partial(print, flush=True))


if __name__ == "__main__":
    from tests import toy_pieces  # so that workers find its functions under the same name

    toy_pieces.main(*sys.argv[1:])
