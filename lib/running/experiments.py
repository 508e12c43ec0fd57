"""Every run that the chapters need, as steps in the run store: dataset, base model, unlearning.

`steps` is what the pipeline makes; `dataset`, `load`, `answers`, `history` and `probes` are what
the notebooks read; `origins` and `recipes` know how each is made. Independent runs go side by side,
one thread each: a run's numbers then do not depend on how many are at work.
"""

import errno
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import pandas as pd
import torch

from lib.base import runs
from lib.base.extras import scale
from lib.data import dataset as datasets
from lib.data import discretion
from lib.evaluation import judges, metrics
from lib.evaluation.known_answers import OF_EVERY_DAY
from lib.evaluation.world_rule import RuleJudge
from lib.model import generate
from lib.model import llava as models
from lib.model.packing import Packer
from lib.model.settings import Evaluation
from lib.running import origins, recipes, workers
from lib.running.agenda import Piece
from lib.running.origins import BASE_THREADS, Report, quiet
from lib.running.profiles import Profile
from lib.running.recipes import PROBE, GateError, Run, gate, rules, task
from lib.unlearning import methods

__all__ = ["BASE_THREADS", "PROBE", "GateError", "Run", "Step", "answers", "base_log", "brief",
           "dataset", "ensure", "features", "gate", "history", "known_answers", "load", "main_runs",
           "original_metrics", "packer", "per_answer", "probes", "rules", "speakers", "steps",
           "sweep_runs", "task"]
BRIEF_TOKENS = 64  # about what a table of answers shows
# The metric that stands in the paper's column: with the quirks, and for a real model without.
OFFICIAL_HEADLINE = {"asr_sampled": "asr", "rr_sampled": "rr"}
OUR_HEADLINE = {"rouge_l_f": "rouge_l"}


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


def main_runs(profile: Profile, prompt_decouple: bool) -> list[Run]:
    """All methods and seeds, without or with PD."""
    return [Run(method, prompt_decouple, seed) for method in methods.METHODS
            for seed in profile.seeds]


def sweep_runs(profile: Profile) -> list[Run]:
    """PO at further weights of PD; 0 and the official 1 are among the main runs."""
    return [Run("po", True, seed, weight) for weight in profile.sweep_weights
            for seed in profile.seeds]


# What the notebooks read.


def dataset(profile: Profile) -> datasets.Dataset:
    """The profile's dataset; written, or a real one checked, first if that has not been done.

    Of a real one this process shows nothing harmful from now on, unless it is told to.
    """
    read = origins.read_dataset(profile)
    if profile.data is not None:
        discretion.guard(read)
    return read


def load(profile: Profile, run: Run | None = None) -> tuple:
    """(model, processor): the original model, or with the adapter of a run."""
    model, processor = origins.load(profile)
    if run is not None:
        model = models.load_adapter(model, recipes.run(profile, run).done() / "adapter")
    return model, processor


def packer(profile: Profile, model, processor) -> Packer:
    """What makes the batches of the profile's runs."""
    return recipes.packer(profile, model, processor, features(profile, model, processor))


def features(profile: Profile, model, processor):
    """What the frozen tower gives for a picture; from the disk where the profile keeps it."""
    return origins.tower_features(profile, model, processor)


def brief(profile: Profile) -> Evaluation:
    """How a question is answered that only asks whether the model refuses, or for a glance."""
    longest = min(BRIEF_TOKENS, profile.evaluation.max_new_tokens)
    return replace(profile.evaluation, max_new_tokens=longest)


def speakers(profile: Profile, chosen: Sequence[Run | None]) -> list[Callable[[Path, str], str]]:
    """For each run (None: the original) what answers a picture and a question, for `gallery.ask`.

    All are one model with several adapters: of a large one there is no room for two.
    """
    model, processor = origins.load(profile)
    for run in filter(None, chosen):
        folder = recipes.run(profile, run).done() / "adapter"
        model = models.load_adapter(model, folder, _adapter(run))
    return [partial(_say, profile, model, processor, features(profile, model, processor), run)
            for run in chosen]


def _adapter(run: Run) -> str:
    return "_".join(["run", *re.findall(r"\w+", str(run))])


def _say(profile: Profile, model, processor, seen, run: Run | None, picture: Path,
         question: str) -> str:
    query = [generate.Query(picture, question)]
    if run is None:
        with model.disable_adapter():
            return generate.answer(model, processor, seen, query, brief(profile))[0]
    model.set_adapter(_adapter(run))
    return generate.answer(model, processor, seen, query, brief(profile))[0]


def base_log(profile: Profile) -> pd.DataFrame:
    """The base model's training: stage, step, loss (nats), accuracy (0 to 1)."""
    return pd.DataFrame(runs.read_jsonl(origins.base(profile).done() / "log.jsonl"))


def answers(profile: Profile, chosen: Sequence[Run | None]) -> pd.DataFrame:
    """All answers of these runs (None: the original model), after method, prompt_decouple, seed,
    weight (of PD; 0 without). A real profile's end with `judge`: who labelled them."""
    found = pd.concat([_labelled(profile, run, "answers.jsonl") for run in chosen],
                      ignore_index=True)
    return found.assign(judge=found["set"].map(profile.judge_of)) if profile.real else found


def per_answer(profile: Profile, chosen: Sequence[Run | None]) -> pd.DataFrame:
    """`metrics.per_answer` of these runs, with method, prompt_decouple, seed, weight; under the
    paper's names the metrics that `called` says; with the profile's benchmarks."""
    parts = []
    for run in chosen:
        frame = metrics.per_answer(_labelled(profile, run, "answers.jsonl"))
        if profile.benchmarks:
            frame = scale("specificity").joined(frame, profile, run)
        parts.append(frame.assign(**_labels(profile, run)))
    frame = pd.concat(parts, ignore_index=True)
    return frame.assign(metric=frame["metric"].replace(called(profile)))


def called(profile: Profile) -> dict[str, str]:
    """What a profile's tables call the metrics that have another name there than in `metrics`.

    The one that gives its name away gets "_greedy" or "_precision" after it. The laptop's stay as
    they are: greedy answers, and precision with recall and F beside it.
    """
    if not profile.real:
        return {}
    names = OFFICIAL_HEADLINE if profile.official_quirks else OUR_HEADLINE
    ending = "_greedy" if profile.official_quirks else "_precision"
    return {name: f"{name}{ending}" for name in names.values()} | names


def history(profile: Profile, chosen: Sequence[Run]) -> pd.DataFrame:
    """Every term of the loss at every step: ..., step, term, value (nats)."""
    return _long(profile, chosen, "history.jsonl", "term")


def probes(profile: Profile, chosen: Sequence[Run]) -> pd.DataFrame:
    """SARR, RR and every term at some steps, held out if anything is: ..., step, metric, value."""
    return _long(profile, chosen, "probes.jsonl", "metric")


def _long(profile: Profile, chosen: Sequence[Run], file: str, name: str) -> pd.DataFrame:
    # First melted, then labelled: `prompt_decouple` is the name of a term, too.
    parts = [_with_labels(profile, run, _rows(profile, run, file).melt("step", var_name=name))
             for run in chosen]
    return pd.concat(parts, ignore_index=True)


def _labelled(profile: Profile, run: Run | None, file: str) -> pd.DataFrame:
    return _with_labels(profile, run, _rows(profile, run, file))


def _rows(profile: Profile, run: Run | None, file: str) -> pd.DataFrame:
    made = recipes.original(profile) if run is None else recipes.run(profile, run)
    return pd.DataFrame(runs.read_jsonl(made.done() / file))


def _with_labels(profile: Profile, run: Run | None, frame: pd.DataFrame) -> pd.DataFrame:
    for place, (name, value) in enumerate(_labels(profile, run).items()):
        frame.insert(place, name, value)
    return frame


def _labels(profile: Profile, run: Run | None) -> dict:
    if run is None:
        return {"method": "vanilla", "prompt_decouple": 0, "seed": profile.pretraining.seed,
                "weight": 0.0}
    return {"method": run.method, "prompt_decouple": int(run.prompt_decouple), "seed": run.seed,
            "weight": recipes.row(profile, run).get("prompt_decouple", 0.0)}


def known_answers(profile: Profile) -> pd.DataFrame:
    """How the profile's judge does on the known answers (`judges.known_answers`).

    Of rules, found now and here; of a model, what it said before the runs, without the answers:
    why, expected, label, judge, set, right.
    """
    if profile.judge == "rules":
        return judges.known_answers(RuleJudge())
    folder = recipes.known_answers(profile).done()
    return pd.DataFrame(runs.read_jsonl(folder / "known_answers.jsonl"))


def original_metrics(profile: Profile) -> dict:
    """metrics.json of the original model."""
    return runs.read_json(recipes.original(profile).done() / "metrics.json")


# What the pipeline makes.


def steps(profile: Profile, chapters: Sequence[str], jobs: int,
          make_all: Callable = workers.make_all) -> list[Step]:
    """What these chapters need ("00" to "05"), in order; `jobs` runs go side by side, by an
    engine's `make_all`."""
    if profile.judge == "rules":
        judges.known_answers(RuleJudge())
    wanted = [name for name, readers in _READERS.items() if set(readers) & set(chapters)]
    every = {**_prepared(profile, make_all),
             "original": _step(recipes.original, profile, "original model: answers and gate",
                               profile.run_minutes / 6, make_all),
             "baselines": _group(profile, "unlearning without PD", main_runs(profile, False), jobs,
                                 make_all),
             "decoupled": _group(profile, "unlearning with PD", main_runs(profile, True), jobs,
                                 make_all),
             "sweep": _group(profile, "PO at other weights of PD", sweep_runs(profile), jobs,
                             make_all)}
    if "specificity" in wanted and profile.benchmarks:
        every["specificity"] = _benchmarks(profile, jobs, make_all)
    if profile.judge != "rules":
        every["judge"] = _gate(profile, [every[name] for name in _JUDGED], make_all)
    return [every[name] for name in wanted if name in every]


def _benchmarks(profile: Profile, jobs: int, make_all: Callable) -> Step:
    """Specificity of the original model and every main run. Raises Missing if it cannot be had."""
    specificity = scale("specificity")
    version = specificity.check(profile)
    describe = partial(specificity.measured, version=version)
    measured = [None, *main_runs(profile, False), *main_runs(profile, True)]
    return _group(profile, f"specificity by {profile.benchmarks}", measured, jobs, make_all,
                  describe, specificity.minutes(profile))


def _gate(profile: Profile, judged: Sequence[Step], make_all: Callable) -> Step:
    """The known answers, put to a model before anything that it is to judge, each time anew."""
    step = _step(recipes.known_answers, profile, f"judge: {len(OF_EVERY_DAY)} known answers", 1,
                 make_all)

    def make(report: Report) -> None:
        recipes.known_answers(profile).forget()
        step.make(report)

    return replace(step, make=make, before=tuple(each.id for each in judged))


def _prepared(profile: Profile, make_all: Callable) -> dict[str, Step]:
    """What comes before the first answer: a world and a model of our own, or what is given."""
    if not profile.real:
        return {"dataset": _step(origins.dataset, profile, "dataset", 0.1),
                "base": _step(origins.base, profile, "small LLaVA, from nothing",
                              profile.base_minutes)}
    checked = {"dataset": _step(origins.dataset, profile, "dataset: read and checked", 2)}
    if not profile.runtime.stored_features:
        return checked
    return {**checked, "tower": _step(origins.tower, profile, "vision tower's features", 5,
                                      make_all)}


_READERS = {  # step: the chapters that need it
    "dataset": ("00", "01", "02", "03", "04", "05"),
    "judge": ("00", "02", "03", "04", "05"),
    "base": ("00", "02", "03", "04", "05"),
    "tower": ("00", "02", "03", "04", "05"),
    "original": ("00", "02", "03", "04", "05"),
    "baselines": ("02", "03", "04", "05"),
    "decoupled": ("02", "03", "04", "05"),
    "sweep": ("04",),
    "specificity": ("02", "03", "04", "05"),
}
_JUDGED = ("original", "baselines", "decoupled", "sweep")


def _step(describe: Callable, profile: Profile, name: str, minutes: float,
          make_all: Callable | None = None) -> Step:
    made = describe(profile)

    def make(report: Report) -> None:
        if make_all is not None and profile.runtime.device != "cpu":
            # Not in this process: it would keep a GPU's memory, and need not have a GPU at all.
            make_all([_piece(name, profile, describe)], 1, report)
        else:
            describe(profile, report).make()

    return Step(made.folder().name, name, minutes, made.is_done, make)


def _group(profile: Profile, name: str, chosen: Sequence[Run | None], jobs: int,
           make_all: Callable, describe: Callable = recipes.run, minutes: float | None = None
           ) -> Step:
    """A result of `describe` for each run (None: the original model), `minutes` each."""
    made, minutes = [describe(profile, run) for run in chosen], minutes or profile.run_minutes
    folders = sorted(each.folder().name for each in made)
    label = f"{name}: {len(chosen)} runs"
    return Step(sha256(" ".join(folders).encode()).hexdigest()[:12], label,
                minutes * len(chosen) / jobs,
                lambda: all(each.is_done() for each in made),
                lambda report: ensure(profile, chosen, jobs, report, make_all, describe))


def ensure(profile: Profile, chosen: Sequence[Run | None], jobs: int, report: Report = quiet,
           make_all: Callable = workers.make_all, describe: Callable = recipes.run) -> None:
    """Make those of the runs' results that are not there, `jobs` at once, by an engine's
    `make_all`."""
    make_all([_piece(str(run or "original model"), profile, describe, run) for run in chosen],
             jobs, report)


def _piece(name: str, profile: Profile, describe: Callable, *details) -> Piece:
    """What `describe(profile, *details)` makes, from what it needs."""
    made = describe(profile, *details)
    given = [Path(place) for place in (profile.model, profile.data) if place]
    return Piece(name, made.folder(),
                 partial(_make, made.folder().name, describe, profile, *details),
                 needs=tuple(need.folder() for need in made.needs),
                 reads=tuple(folder for folder in given if folder.is_dir()))


def _make(wanted: str, describe: Callable, profile: Profile, *details_and_report) -> None:
    """Make a piece where it was sent to, with one thread: results must not depend on the engine."""
    torch.set_num_threads(1)
    made, host = describe(profile, *details_and_report), socket.gethostname()
    if made.folder().name != wanted:
        raise ValueError(f"{wanted} cannot be made on {host}: {profile.model} or {profile.data} "
                         "holds other files there than where the command was started.")
    try:
        made.make()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise RuntimeError(f"The disk of {host} with {made.folder().parent} is full: make room "
                           "there and run this again. What is finished is kept.") from error
