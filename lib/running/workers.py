"""Pieces of work side by side on this machine, each in a process that sees one GPU at most."""

import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing

from lib.running.agenda import Agenda, Piece, Report

LOOK_SECONDS = 2  # how often to tell how far it is, and to see whether another driver is done
GPUS = "CUDA_VISIBLE_DEVICES"


def make_all(pieces: Sequence[Piece], jobs: int, report: Report,
             gpus: Sequence[str] = ()) -> None:
    """Make those of the pieces that are not there, in at most `jobs` processes.

    With `gpus` (as CUDA_VISIBLE_DEVICES names them) each process sees one of them, and there are
    no more processes than GPUs. Raises RuntimeError when a piece failed, with what it said, after
    the others are finished, and at once when a process died.
    """
    context = multiprocessing.get_context("spawn")
    count, news = len(gpus[:jobs]) or jobs, context.SimpleQueue()
    free, (their_end, line) = context.SimpleQueue(), context.Pipe(duplex=False)
    for gpu in gpus or [None] * count:
        free.put(gpu)
    with closing(Agenda(pieces)) as agenda:
        with (ProcessPoolExecutor(count, context, _begin, (their_end, free, news)) as pool,
              their_end, line):  # which is closed first: nothing that is at work is waited for
            _follow(agenda, pool, count, news, report)
        agenda.check()


def _follow(agenda: Agenda, pool: ProcessPoolExecutor, count: int, news, report: Report) -> None:
    """Give out the pieces and tell what the workers do until every one is made."""
    at_work: dict[Future, Piece] = {}
    while agenda.is_open():
        while len(at_work) < count and (piece := agenda.take()):
            at_work[pool.submit(_work, piece)] = piece
        if not at_work:
            time.sleep(LOOK_SECONDS)  # another driver makes the rest
        ended = wait(at_work, LOOK_SECONDS, FIRST_COMPLETED).done
        while not news.empty():
            folder, text = news.get()
            agenda.tell(folder, text)
        for future in ended:
            agenda.finish(at_work.pop(future), _failure(future))
        report(agenda.told())


def _failure(ended: Future) -> str | None:
    """What made a piece fail. Raises RuntimeError if its process died."""
    try:
        return ended.result()
    except BrokenProcessPool:
        raise RuntimeError("A worker died, perhaps for want of memory: try --jobs 1. What is "
                           "finished is kept.") from None


# In a worker.


def _begin(line, free, news) -> None:
    """See one GPU of the free ones only; end as soon as the driver lets go of the line, or died."""
    global _news
    _news = news
    if (gpu := free.get()) is not None:
        os.environ[GPUS] = gpu
    threading.Thread(target=_end_with, args=(line,), daemon=True).start()


def _end_with(line) -> None:
    line.poll(None)
    os._exit(1)


def _work(piece: Piece) -> str | None:
    """Make a piece; the account of its failure, if it fails (not every exception can be sent)."""
    try:
        piece.make(lambda text: _news.put((piece.folder, text)))
    except Exception:
        return traceback.format_exc()
    return None
