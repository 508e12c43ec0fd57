"""What there is to make: a step per kind of run, in order, and who makes it.

Independent runs go side by side, one thread each: a run's numbers then do not depend on how many
are at work.
"""

import errno
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import torch

from lib.base.extras import scale
from lib.evaluation import judges
from lib.evaluation.known_answers import OF_EVERY_DAY
from lib.evaluation.world_rule import RuleJudge
from lib.running import origins, recipes, workers
from lib.running.agenda import Piece
from lib.running.profiles import Profile
from lib.running.results import Report, Result, quiet
from lib.running.training import Run
from lib.unlearning import methods


@dataclass(frozen=True)
class Step:
    """One line of the plan; `id` names the store's folders that it makes.

    `before`: the ids of steps before which it has to be made anew, even if it is there.
    """

    id: str
    name: str
    minutes: float
    is_done: Callable[[], bool]
    make: Callable[[Report], None]
    before: tuple[str, ...] = ()
    results: tuple[Result, ...] = ()  # all that it makes


def main_runs(profile: Profile, prompt_decouple: bool) -> list[Run]:
    """All methods and seeds, without or with PD."""
    return [Run(method, prompt_decouple, seed) for method in methods.METHODS
            for seed in profile.seeds]


def sweep_runs(profile: Profile) -> list[Run]:
    """PO at further weights of PD; 0 and the official 1 are among the main runs."""
    return [Run("po", True, seed, weight) for weight in profile.sweep_weights
            for seed in profile.seeds]


@dataclass(frozen=True)
class Reads:
    """Results that chapters read, and a line of the plan: what `describe` describes for each run.

    `runs(profile)`: None is the original model. What they are made from follows from their `needs`.
    """

    name: str
    runs: Callable[[Profile], Sequence[Run | None]]
    describe: Callable = recipes.results


ORIGINAL = Reads(recipes.ORIGINAL, lambda profile: [None])
WITHOUT = Reads(recipes.WITHOUT, partial(main_runs, prompt_decouple=False))
WITH = Reads(recipes.WITH, partial(main_runs, prompt_decouple=True))
SWEEP = Reads(recipes.SWEEP, sweep_runs)
CHAPTERS = {  # what each reads, beside the dataset; one that is not here reads that alone
    "00": (ORIGINAL,),
    "02": (ORIGINAL, WITHOUT, WITH),
    "03": (ORIGINAL, WITHOUT, WITH),
    "04": (ORIGINAL, WITHOUT, WITH, SWEEP),
    "05": (ORIGINAL, WITHOUT, WITH),
}


def steps(profile: Profile, chapters: Sequence[str], jobs: int,
          make_all: Callable = workers.make_all) -> list[Step]:
    """What these chapters need, in order; `jobs` runs go side by side, by an engine's
    `make_all`."""
    if profile.judge == "rules":
        judges.known_answers(RuleJudge())
    wanted = list(dict.fromkeys(reads for chapter in chapters
                                for reads in CHAPTERS.get(chapter, ())))
    prepared = _prepared(profile, make_all) if wanted else [_dataset(profile)]
    original = partial(_step, _of_original, profile, f"{recipes.ORIGINAL}: answers and gate",
                       profile.run_minutes / 6, make_all)
    made = [original() if reads is ORIGINAL else _group(profile, reads, jobs, make_all)
            for reads in wanted]
    judged = [] if profile.judge == "rules" or not made else [_gate(profile, made, make_all)]
    if profile.benchmarks and WITH in wanted:
        made.append(_benchmarks(profile, jobs, make_all))
    return [prepared[0], *judged, *prepared[1:], *made]


def _benchmarks(profile: Profile, jobs: int, make_all: Callable) -> Step:
    """Specificity of the original model and every main run. Raises Missing if it cannot be had."""
    specificity = scale("specificity")
    version = specificity.check(profile)
    reads = Reads(f"specificity by {profile.benchmarks}",
                  lambda profile: [None, *main_runs(profile, False), *main_runs(profile, True)],
                  partial(specificity.measured, version=version))
    return _group(profile, reads, jobs, make_all, specificity.minutes(profile))


def _gate(profile: Profile, judged: Sequence[Step], make_all: Callable) -> Step:
    """The known answers, put to a model before anything that it is to judge, each time anew."""
    step = _step(recipes.known_answers, profile, f"judge: {len(OF_EVERY_DAY)} known answers", 1,
                 make_all)

    def make(report: Report) -> None:
        recipes.known_answers(profile).forget()
        step.make(report)

    return replace(step, make=make, before=tuple(each.id for each in judged))


def _dataset(profile: Profile) -> Step:
    if profile.real:
        return _step(origins.dataset, profile, "dataset: read and checked", 2)
    return _step(origins.dataset, profile, "dataset", 0.1)


def _prepared(profile: Profile, make_all: Callable) -> list[Step]:
    """What comes before the first answer: a world and a model of our own, or what is given."""
    if not profile.real:
        return [_dataset(profile), _step(origins.base, profile, "small LLaVA, from nothing",
                                         profile.base_minutes)]
    if not profile.runtime.stored_features:
        return [_dataset(profile)]
    return [_dataset(profile), _step(origins.tower, profile, "vision tower's features", 5,
                                     make_all)]


def _of_original(profile: Profile) -> tuple[Result, ...]:
    return recipes.results(profile, None)


def _chain(describe: Callable, profile: Profile, *details) -> tuple[Result, ...]:
    """What is made in one go: the result, or the results, that `describe` describes."""
    found = describe(profile, *details)
    return found if isinstance(found, tuple) else (found,)


def _step(describe: Callable, profile: Profile, name: str, minutes: float,
          make_all: Callable | None = None) -> Step:
    chain = _chain(describe, profile)

    def make(report: Report) -> None:
        if make_all is not None and profile.runtime.device != "cpu":
            # Not in this process: it would keep a GPU's memory, and need not have a GPU at all.
            make_all([_piece(name, profile, describe)], 1, report)
        else:
            for result in _chain(describe, profile):
                result.make(report)

    return Step(chain[-1].folder().name, name, minutes, lambda: _all_done(chain), make,
                results=chain)


def _group(profile: Profile, reads: Reads, jobs: int, make_all: Callable,
           minutes: float | None = None) -> Step:
    """All of the runs, `minutes` each."""
    chosen = reads.runs(profile)
    chains = [_chain(reads.describe, profile, run) for run in chosen]
    folders = sorted(chain[-1].folder().name for chain in chains)
    every = tuple(result for chain in chains for result in chain)
    return Step(sha256(" ".join(folders).encode()).hexdigest()[:12],
                f"{reads.name}: {len(chosen)} runs",
                (minutes or profile.run_minutes) * len(chosen) / jobs, lambda: _all_done(every),
                lambda report: ensure(profile, chosen, jobs, report, make_all, reads.describe),
                results=every)


def _all_done(made: Sequence[Result]) -> bool:
    return all(result.is_done() for result in made)


def ensure(profile: Profile, chosen: Sequence[Run | None], jobs: int, report: Report = quiet,
           make_all: Callable = workers.make_all, describe: Callable = recipes.results) -> None:
    """Make those of the runs' results that are not there, `jobs` at once, by an engine's
    `make_all`."""
    make_all([_piece(str(run or recipes.ORIGINAL), profile, describe, run) for run in chosen],
             jobs, report)


def _piece(name: str, profile: Profile, describe: Callable, *details) -> Piece:
    """What `describe(profile, *details)` makes, from what it needs."""
    *before, last = _chain(describe, profile, *details)
    given = [Path(place) for place in (profile.model, profile.data) if place]
    return Piece(name, last.folder(),
                 partial(_make, last.folder().name, describe, profile, *details),
                 reads=tuple(folder for folder in given if folder.is_dir()),
                 before=tuple(result.folder() for result in before))


def _make(wanted: str, describe: Callable, profile: Profile, *details_and_report) -> None:
    """Make a piece where it was sent to, with one thread: results must not depend on the engine."""
    torch.set_num_threads(1)
    *details, report = details_and_report
    chain, host = _chain(describe, profile, *details), socket.gethostname()
    if chain[-1].folder().name != wanted:
        raise ValueError(f"{wanted} cannot be made on {host}: {profile.model} or {profile.data} "
                         "holds other files there than where the command was started.")
    judges.check(profile.judge)  # before training, and on this machine
    try:
        for result in chain:
            result.make(report)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise RuntimeError(f"The disk of {host} with {chain[-1].folder().parent} is full: make "
                           "room there and run this again. What is finished is kept.") from error
