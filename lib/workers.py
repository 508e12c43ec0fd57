"""Independent pieces of work side by side, each in a process with one thread.

One thread each, whatever the number of processes: the number of threads is part of the arithmetic,
and results must not depend on how many are at work.
"""

import multiprocessing
import os
import queue
import traceback
from collections.abc import Callable, Sequence
from functools import partial

import torch

Report = Callable[[str], None]


def make_all(items: Sequence, make: Callable[[object, Report], None], jobs: int,
             report: Report) -> None:
    """Call `make(item, report)` for every item, in at most `jobs` processes.

    `make` and the items have to be picklable; an item's str() is its name in reports. Raises
    RuntimeError when an item failed, with what it said, after the others are finished, and at once
    when a process died.
    """
    context = multiprocessing.get_context("spawn")
    tasks, news = context.Queue(), context.Queue()
    for number in range(len(items)):
        tasks.put(number)
    workers = [context.Process(target=_work, args=(list(items), make, tasks, news, os.getpid()),
                               daemon=True) for _ in range(min(jobs, len(items)))]
    for worker in workers:
        tasks.put(None)
        worker.start()
    try:
        _follow(workers, news, items, report)
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _follow(workers: list, news, items: Sequence, report: Report) -> None:
    """Tell what the workers do until every item is made."""
    at_work, finished, failures = {}, 0, []
    while finished < len(items):
        try:
            number, text, failure = news.get(timeout=2)
        except queue.Empty:
            _check_alive(workers)
            continue
        at_work[number] = text
        if text is None:
            finished += 1
            del at_work[number]
            failures += [(number, failure)] if failure else []
        states = "; ".join(f"{items[number]}: {said}" for number, said in at_work.items())
        report(f"{finished} of {len(items)} done; {states}")
    if failures:
        number, failure = failures[0]
        raise RuntimeError(f"{len(failures)} of {len(items)} failed, the first of them "
                           f"{items[number]}:\n{failure}")


def _check_alive(workers: list) -> None:
    dead = [worker for worker in workers if worker.exitcode]
    if dead:
        raise RuntimeError(f"A worker died (exit code {dead[0].exitcode}), perhaps for want of "
                           "memory: try --jobs 1. What is finished is kept.")


def _work(items: list, make: Callable, tasks, news, parent: int) -> None:
    """A worker: makes items until there are no more, or its parent is gone."""
    torch.set_num_threads(1)
    while (number := tasks.get()) is not None:
        failure = None
        try:
            make(items[number], partial(_tell, news, number, parent))
        except Exception:
            failure = traceback.format_exc()
        news.put((number, None, failure))


def _tell(news, number: int, parent: int, text: str) -> None:
    if os.getppid() != parent:  # killed: what it wanted is wanted no more
        os._exit(1)
    news.put((number, text, None))
