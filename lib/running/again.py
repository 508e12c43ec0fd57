"""Results made by other code than today's: which they are, making them again, vouching for them."""

import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import torch

from lib.base import disk, runs
from lib.base.paths import profile_dir
from lib.running import chapters
from lib.running.agenda import Piece
from lib.running.plan import steps
from lib.running.profiles import Profile
from lib.running.results import Report, Result

SCRATCH = "again"  # in a profile's folder: what is made again only to be compared


def said(profile: Profile) -> str:
    """In a sentence, whether today's code made a profile's results."""
    numbers = [chapters.number(notebook) for notebook in chapters.find()]
    every = [result for step in steps(profile, numbers, 1) for result in step.results]
    there = [result for result in every if result.folder().exists()]
    other = [result for result in there if result.is_stale()]
    if not other:
        return f"All {len(there)} results were made by the code that is here."
    kinds = ", ".join(sorted({result.kind for result in other}))
    return (f"{len(other)} of {len(there)} results ({kinds}) were made by other code than is here, "
            "or from such results: ./reproduce.sh --stale makes them again, --vouch compares.")


def forget_stale(results: Iterable[Result]) -> list[Result]:
    """Remove the results that were made by other code, and what was made from them."""
    stale = [result for result in results if result.is_stale()]
    for result in reversed(stale):
        result.forget()
    return stale


def vouch(profile: Profile, results: Iterable[Result], jobs: int, make_all: Callable,
          report: Report) -> tuple[list[str], bool]:
    """Make one result of each kind again beside the store, and compare; what was found, in lines,
    and whether all had the same bits.

    Of one kind are results of one kind of step, method, and with or without PD. Where the bits are
    equal today's code counts as that of all of them.
    """
    kinds = _by_kind(result for result in results if result.is_own_stale())
    scratch = profile_dir(profile.name) / SCRATCH
    with disk.locked(scratch.parent / disk.LOCKS / SCRATCH):  # of two commands one waits
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            make_all([_piece(same[0], scratch) for same in kinds], jobs, report)
            compared = [_compared(same, scratch) for same in kinds]
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return [line for line, _ in compared], all(equal for _, equal in compared)


def _by_kind(results: Iterable[Result]) -> list[list[Result]]:
    found: dict[tuple, list[Result]] = {}
    for result in results:
        facts = result.facts
        kind = result.kind, facts.get("method"), facts.get("prompt_decouple")
        found.setdefault(kind, []).append(result)
    return list(found.values())


def _piece(result: Result, scratch: Path) -> Piece:
    return Piece(result.name, scratch / result.folder().name, partial(_make, result, scratch))


def _make(result: Result, scratch: Path, report: Report) -> None:
    torch.set_num_threads(1)  # as it was made first
    runs.Store(scratch).make(result.kind, result.config, lambda to: result.build(to, report))


def _compared(same: Sequence[Result], scratch: Path) -> tuple[str, bool]:
    """What one result made again says about those of its kind; stamps them if it may."""
    first = same[0]
    before, now = (runs.manifest(folder)["files"] for folder in
                   (first.folder(), scratch / first.folder().name))
    if other := sorted(name for name in before.keys() | now.keys()
                       if before.get(name) != now.get(name)):
        return f"{first.name}: other bits in {', '.join(other)}", False
    for result in same:
        runs.stamp(result.folder(), code=result.code(), vouched_by=first.name)
    return f"{first.name}: the same bits; this holds for {len(same)} of its kind", True
