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

LOOK_SECONDS = 0.2  # how often to hear the workers, and to see whether another driver is done
GPUS = "CUDA_VISIBLE_DEVICES"


def make_all(pieces: Sequence[Piece], jobs: int, report: Report,
             gpus: Sequence[str] = ()) -> None:
    """Make those of the pieces that are not there, in at most `jobs` processes.

    With `gpus` (as CUDA_VISIBLE_DEVICES names them) each process sees one of them, and there are
    no more processes than GPUs. Raises RuntimeError when a piece failed, with what it said, after
    the others are finished, and at once when a process died.
    """
    with closing(Agenda(pieces)) as agenda:
        count = min(len(gpus) or jobs, jobs, max(1, len(agenda.waiting)))
        context = multiprocessing.get_context("spawn")
        news, free = context.SimpleQueue(), context.SimpleQueue()
        their_end, line = context.Pipe(duplex=False)
        for gpu in gpus or [None] * count:
            free.put(gpu)
        try:
            with (ProcessPoolExecutor(count, context, _begin, (their_end, free, news)) as pool,
                  their_end, line):  # which is closed first: nothing at work is waited for
                _follow(agenda, pool, count, news, report)
        except BrokenProcessPool:
            raise RuntimeError("A worker died, perhaps for want of memory: try --jobs 1. What is "
                               "finished is kept.") from None
        agenda.check()


def _follow(agenda: Agenda, pool: ProcessPoolExecutor, count: int, news, report: Report) -> None:
    """Give out the pieces and tell what the workers do until every one is made."""
    at_work: dict[Future, Piece] = {}
    while agenda.is_open():
        while len(at_work) < count and (piece := agenda.take()):
            at_work[pool.submit(_work, piece)] = piece
            pool.submit(int)  # the pool sees a new worker die only once it was called again
        if not at_work:
            time.sleep(LOOK_SECONDS)  # another driver makes the rest
        ended = wait(at_work, LOOK_SECONDS, FIRST_COMPLETED).done
        while not news.empty():
            agenda.tell(*news.get())
            report(agenda.told())
        for future in ended:
            agenda.finish(at_work.pop(future), future.result())
        report(agenda.told())


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
