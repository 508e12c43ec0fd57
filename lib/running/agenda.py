"""What is still to be made, and who makes it: the part of an engine that is the same for all.

A piece is one result of the run store. A driver is a process that gives out pieces to workers. Of
several drivers with the same store each gives out what no other has claimed, and waits for the
rest: one that is killed loses its claims with its life.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from lib.base import runs
from lib.base.progress import minutes_in_words

Report = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Piece:
    """One result, in `folder` of the store when it is made, and those made `before` it.

    `make(report)` makes them, and nothing if they are there; it has to be picklable. `reads` are
    the folders outside of the store that it reads: a model, a dataset.
    """

    name: str
    folder: Path
    make: Callable[[Report], object]
    reads: tuple[Path, ...] = ()
    before: tuple[Path, ...] = ()

    def is_whole(self) -> bool:
        """Tell whether all of it is there."""
        return all(map(runs.is_whole, (*self.before, self.folder)))


class Agenda:
    """The pieces that are not there yet: each waits, is at work, or is finished."""

    def __init__(self, pieces: Sequence[Piece]):
        self.waiting = [piece for piece in pieces if not piece.is_whole()]
        self.at_work: dict[Piece, str] = {}  # with what it said last
        self.count, self.finished, self.made = len(self.waiting), 0, 0
        self._failures: list[tuple[Piece, str]] = []
        self._claims: dict[Piece, ExitStack] = {}
        self._started = time.monotonic()

    def is_open(self) -> bool:
        """Tell whether anything is left to be made, by this driver or by another one."""
        return bool(self.waiting or self.at_work)

    def take(self) -> Piece | None:
        """Hand out a piece that no other driver has claimed, and that is not there meanwhile."""
        for piece in list(self.waiting):
            claim = ExitStack()
            if not claim.enter_context(runs.claimed(piece.folder)):
                continue
            self._claims[piece] = claim
            self.waiting.remove(piece)
            self.at_work[piece] = "starts"
            if not piece.is_whole():
                return piece
            self._end(piece)  # another driver has made it
            self.finished += 1
        return None

    def tell(self, folder: Path, text: str) -> None:
        """Note what the maker of a piece that is at work says."""
        for piece in self.at_work:
            if piece.folder == folder:
                self.at_work[piece] = text

    def finish(self, piece: Piece, failure: str | None = None) -> None:
        """Count a piece as done, or as failed with this account."""
        self._end(piece)
        self.finished += 1
        self.made += 1
        if failure:
            self._failures.append((piece, failure))

    def told(self) -> str:
        """How far it is: `3 of 8 done, about 4 min left; PO, seed 1: step 5 of 6`."""
        words = [f"{self.finished} of {self.count} done{self._left()}"]
        words += [f"{piece.name}: {said}" for piece, said in self.at_work.items()]
        if self.waiting and not self.at_work:
            words.append(f"waiting for another process that makes {self.waiting[0].name}")
        return "; ".join(words)

    def close(self) -> None:
        """Give up every claim."""
        for piece in list(self._claims):
            self._end(piece)

    def check(self) -> None:
        """Raise RuntimeError if pieces have failed, with the account of the first."""
        if self._failures:
            piece, failure = self._failures[0]
            raise RuntimeError(f"{len(self._failures)} of {self.count} failed, the first of them "
                               f"{piece.name}:\n{failure}")

    def _end(self, piece: Piece) -> None:
        self.at_work.pop(piece, None)
        self._claims.pop(piece).close()

    def _left(self) -> str:
        if not self.made:
            return ""
        each = (time.monotonic() - self._started) / 60 / self.made
        return f", about {minutes_in_words(each * (self.count - self.finished))} left"
