"""Pieces of work side by side on this machine, each in a process that sees one GPU at most."""

import multiprocessing
import os
import queue
import traceback
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial

from lib.running.agenda import Agenda, Piece, Report

LOOK_SECONDS = 2  # how often to see whether a worker died, or another driver is done
GPUS = "CUDA_VISIBLE_DEVICES"


def make_all(pieces: Sequence[Piece], jobs: int, report: Report,
             gpus: Sequence[str] = ()) -> None:
    """Make those of the pieces that are not there, in at most `jobs` processes.

    With `gpus` (as CUDA_VISIBLE_DEVICES names them) each process sees one of them, and there are
    no more processes than GPUs. Raises RuntimeError when a piece failed, with what it said, after
    the others are finished, and at once when a process died.
    """
    context = multiprocessing.get_context("spawn")
    tasks, news = context.Queue(), context.Queue()
    with closing(Agenda(pieces)) as agenda:
        listed, workers = list(agenda.waiting), []
        try:
            for gpu in (gpus or [None] * jobs)[: min(jobs, len(listed))]:
                workers.append(context.Process(target=_work, daemon=True,
                                               args=(listed, tasks, news, os.getpid())))
                with _visible(gpu):
                    workers[-1].start()
            _follow(agenda, listed, workers, (tasks, news), report)
        finally:
            for worker in filter(multiprocessing.Process.is_alive, workers):
                worker.terminate()
                worker.join()
        agenda.check()


@contextmanager
def _visible(gpu: str | None) -> Iterator[None]:
    """Let processes that start in this block see one GPU only; None: what this process sees."""
    before = os.environ.get(GPUS)
    if gpu is not None:
        os.environ[GPUS] = gpu
    try:
        yield
    finally:
        os.environ.pop(GPUS, None)
        if before is not None:
            os.environ[GPUS] = before


def _follow(agenda: Agenda, listed: list[Piece], workers: list, queues: tuple,
            report: Report) -> None:
    """Give out the pieces and tell what the workers do until every one is made."""
    tasks, news = queues
    while agenda.is_open():
        while len(agenda.at_work) < len(workers) and (piece := agenda.take()):
            tasks.put(listed.index(piece))
        try:
            number, text, failure = news.get(timeout=LOOK_SECONDS)
        except queue.Empty:
            _check_alive(workers)
        else:
            piece = listed[number]
            agenda.at_work[piece] = text
            if text is None:
                agenda.finish(piece, failure)
        report(agenda.told())


def _check_alive(workers: list) -> None:
    dead = [worker for worker in workers if worker.exitcode]
    if dead:
        raise RuntimeError(f"A worker died (exit code {dead[0].exitcode}), perhaps for want of "
                           "memory: try --jobs 1. What is finished is kept.")


def _work(pieces: list[Piece], tasks, news, parent: int) -> None:
    """A worker: makes pieces until it is stopped, or its parent is gone."""
    while True:
        number, failure = _next(tasks, parent), None
        try:
            pieces[number].make(partial(_tell, news, number, parent))
        except Exception:
            failure = traceback.format_exc()
        news.put((number, None, failure))


def _next(tasks, parent: int) -> int:
    while True:
        try:
            return tasks.get(timeout=LOOK_SECONDS)
        except queue.Empty:
            _end_with(parent)


def _tell(news, number: int, parent: int, text: str) -> None:
    _end_with(parent)
    news.put((number, text, None))


def _end_with(parent: int) -> None:
    if os.getppid() != parent:  # killed: what it wanted is wanted no more
        os._exit(1)
