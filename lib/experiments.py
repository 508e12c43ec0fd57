"""Every run that the chapters need, as steps in the run store: dataset, base model, unlearning.

`steps` is what the pipeline makes; `dataset`, `load`, `answers`, `history` and `probes` are what
the notebooks read. Independent runs go side by side, one thread each: a run's numbers then do not
depend on how many are at work.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from hashlib import sha256
from pathlib import Path

import pandas as pd
import torch
from transformers.utils import logging as transformers_logging

from lib import dataset as datasets
from lib import evaluate, iconworld, losses, metrics, pretrain, runs, workers
from lib import model as models
from lib.agenda import Piece, Report
from lib.batching import Features, Packer
from lib.judges import RuleJudge, known_answers
from lib.paths import profile_dir
from lib.profiles import Profile
from lib.unlearn import Task, unlearn

RECIPE = 1  # to be raised when code changes what a run's numbers are
BASE_THREADS = 2  # whatever the machine has: the number of threads is part of the arithmetic
PROBE = 64  # questions per probe, at most: half about harmful pictures and half about safe ones
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


class GateError(RuntimeError):
    """The base model is not good enough to unlearn anything from it."""


@dataclass(frozen=True)
class Run:
    """One unlearning run; a weight for PD other than the method's own is part of the sweep."""

    method: str
    prompt_decouple: bool
    seed: int
    prompt_decouple_weight: float | None = None

    @property
    def row(self) -> dict[str, float]:
        """The weights of its loss."""
        return losses.weights(self.method, self.prompt_decouple, self.prompt_decouple_weight)

    def __str__(self) -> str:
        weight = "" if self.prompt_decouple_weight is None else f" {self.prompt_decouple_weight:g}"
        return f"{self.method.upper()}{' + PD' * self.prompt_decouple}{weight}, seed {self.seed}"


@dataclass(frozen=True)
class Step:
    """One line of the plan; `id` names the store's folders that it makes."""

    id: str
    name: str
    minutes: float
    is_done: Callable[[], bool]
    make: Callable[[Report], None]


def main_runs(profile: Profile, prompt_decouple: bool) -> list[Run]:
    """All methods and seeds, without or with PD."""
    return [Run(method, prompt_decouple, seed) for method in losses.METHODS
            for seed in profile.seeds]


def sweep_runs(profile: Profile) -> list[Run]:
    """PO at further weights of PD; 0 and the official 1 are among the main runs."""
    return [Run("po", True, seed, weight) for weight in profile.sweep_weights
            for seed in profile.seeds]


# What the notebooks read.


def dataset(profile: Profile) -> datasets.Dataset:
    """The profile's dataset; written first if it is not there."""
    return _read(_make_dataset(profile))


@cache
def _read(folder: Path) -> datasets.Dataset:
    """Checks a thousand pictures once per process: what is in the store does not change."""
    return datasets.read(folder)


def load(profile: Profile, run: Run | None = None) -> tuple:
    """(model, processor): the original model, or with the adapter of a run."""
    model, processor = models.load(_base(profile).folder() / "model")
    if run is not None:
        model = models.load_adapter(model, _done(_run(profile, run)) / "adapter")
    return model, processor


def base_log(profile: Profile) -> pd.DataFrame:
    """The base model's training: stage, step, loss (nats), accuracy (0 to 1)."""
    return pd.DataFrame(runs.read_jsonl(_done(_base(profile)) / "log.jsonl"))


def answers(profile: Profile, chosen: Sequence[Run | None]) -> pd.DataFrame:
    """All answers of these runs (None: the original model), after method, prompt_decouple, seed,
    weight (of PD; 0 without)."""
    return pd.concat([_labelled(profile, run, "answers.jsonl") for run in chosen],
                     ignore_index=True)


def per_answer(profile: Profile, chosen: Sequence[Run | None]) -> pd.DataFrame:
    """`metrics.per_answer` of these runs, with method, prompt_decouple, seed, weight."""
    parts = []
    for run in chosen:
        frame = _labelled(profile, run, "answers.jsonl")
        parts.append(metrics.per_answer(frame).assign(**_labels(profile, run)))
    return pd.concat(parts, ignore_index=True)


def history(profile: Profile, chosen: Sequence[Run]) -> pd.DataFrame:
    """Every term of the loss at every step: ..., step, term, value (nats)."""
    return _long(profile, chosen, "history.jsonl", "term")


def probes(profile: Profile, chosen: Sequence[Run]) -> pd.DataFrame:
    """SARR, RR and every term on val at some steps: ..., step, metric, value."""
    return _long(profile, chosen, "probes.jsonl", "metric")


def _long(profile: Profile, chosen: Sequence[Run], file: str, name: str) -> pd.DataFrame:
    # First melted, then labelled: `prompt_decouple` is the name of a term, too.
    parts = [_with_labels(profile, run, _rows(profile, run, file).melt("step", var_name=name))
             for run in chosen]
    return pd.concat(parts, ignore_index=True)


def _labelled(profile: Profile, run: Run | None, file: str) -> pd.DataFrame:
    return _with_labels(profile, run, _rows(profile, run, file))


def _rows(profile: Profile, run: Run | None, file: str) -> pd.DataFrame:
    made = _vanilla(profile) if run is None else _run(profile, run)
    return pd.DataFrame(runs.read_jsonl(_done(made) / file))


def _with_labels(profile: Profile, run: Run | None, frame: pd.DataFrame) -> pd.DataFrame:
    for place, (name, value) in enumerate(_labels(profile, run).items()):
        frame.insert(place, name, value)
    return frame


def _labels(profile: Profile, run: Run | None) -> dict:
    if run is None:
        return {"method": "vanilla", "prompt_decouple": 0, "seed": profile.pretraining.seed,
                "weight": 0.0}
    return {"method": run.method, "prompt_decouple": int(run.prompt_decouple), "seed": run.seed,
            "weight": run.row.get("prompt_decouple", 0.0)}


# What the store holds.


@dataclass(frozen=True)
class _Made:
    """A result in the profile's store, and how it is built."""

    profile: Profile
    step: str
    config: dict
    build: Callable[[Path], dict | None]

    def folder(self) -> Path:
        return self._store().folder(self.step, self.config)

    def is_done(self) -> bool:
        return self._store().is_done(self.step, self.config)

    def make(self) -> Path:
        return self._store().make(self.step, self.config, self.build)

    def _store(self) -> runs.Store:
        return runs.Store(profile_dir(self.profile.name))


def _done(made: _Made) -> Path:
    if not made.folder().exists():
        raise FileNotFoundError(
            f"{made.folder()} is not there yet: run ./reproduce.sh --profile {made.profile.name}, "
            "which makes all that the notebooks read.")
    return made.folder()


def _quiet(text: str) -> None:
    """Reports nothing."""


def _dataset(profile: Profile) -> _Made:
    config = {"recipe": RECIPE, "world": asdict(profile.world)}

    def build(partial_folder: Path) -> dict:
        folder = iconworld.write(profile.world, partial_folder / "iconworld")
        read = datasets.read(folder)
        return {"train": len(read.train), "val": len(read.val)}

    return _Made(profile, "dataset", config, build)


def _make_dataset(profile: Profile) -> Path:
    return _dataset(profile).make() / "iconworld"


def _base(profile: Profile, report: Report = _quiet) -> _Made:
    config = {"recipe": RECIPE, "world": asdict(profile.world), "seed": profile.pretraining.seed,
              "architecture": asdict(profile.architecture),
              "pretraining": asdict(profile.pretraining)}

    def build(folder: Path) -> dict:
        torch.set_num_threads(BASE_THREADS)
        model, processor, log = pretrain.train(profile, report)
        models.save(model, processor, folder / "model")
        runs.write_jsonl(folder / "log.jsonl", log)
        return {"parameters": sum(p.numel() for p in model.parameters())}

    return _Made(profile, "base", config, build)


def _vanilla(profile: Profile, report: Report = _quiet) -> _Made:
    """The original model's answers, and the gate on them."""
    config = {"base": _base(profile).folder().name, "dataset": _dataset(profile).folder().name,
              "evaluation": asdict(profile.evaluation), "recipe": RECIPE}

    def build(folder: Path) -> dict:
        torch.set_num_threads(BASE_THREADS)
        model, processor = models.load(_done(_base(profile)) / "model")
        frame = _evaluate(profile, model, processor, Features(model, processor), report)
        runs.write_jsonl(folder / "answers.jsonl", frame.to_dict("records"))
        found = evaluate.summary(frame)
        if profile.strict:
            gate(profile, found)
        return found

    return _Made(profile, "original", config, build)


def gate(profile: Profile, found: dict) -> pd.DataFrame:
    """The gate as a table (metric, reached, needed, passed), from the original's metrics on val.

    Raises GateError at a strict profile unless all four are reached.
    """
    val, needed = found["generality"], profile.gate
    rows = [("asr", val["asr"]["value"], needed.asr, 1),
            ("exact_match", val["exact_match"]["value"], needed.exact_match, 1),
            ("sarr", val["sarr"]["value"], needed.sarr, -1),
            ("specificity", val["specificity"]["value"], needed.specificity, 1)]
    table = pd.DataFrame([{"metric": name, "reached": value, "needed": bound,
                           "sense": "at least" if sign > 0 else "at most",
                           "passed": sign * value >= sign * bound}
                          for name, value, bound, sign in rows])
    if profile.strict and not table.passed.all():
        missed = "; ".join(f"{row.metric} is {row.reached:.3f}, must be {row.sense} {row.needed}"
                           for row in table[~table.passed].itertuples())
        raise GateError(
            f"The base model does not see well enough to unlearn anything from it: {missed}. Raise "
            "instruction_steps or contrastive_steps of the profile in lib/profiles.py, or try "
            "another seed there, and run this again.")
    return table


def original_metrics(profile: Profile) -> dict:
    """metrics.json of the original model."""
    return runs.read_json(_done(_vanilla(profile)) / "metrics.json")


def _run(profile: Profile, run: Run, report: Report = _quiet) -> _Made:
    config = {"base": _base(profile).folder().name, "dataset": _dataset(profile).folder().name,
              "weights": run.row, "seed": run.seed, "unlearning": asdict(profile.unlearning),
              "evaluation": asdict(profile.evaluation), "recipe": RECIPE}
    return _Made(profile, f"unlearn-{run.method}", config, partial(_unlearn, profile, run, report))


def _unlearn(profile: Profile, run: Run, report: Report, folder: Path) -> dict:
    read, (model, processor) = dataset(profile), models.load(_done(_base(profile)) / "model")
    packer = Packer(model, processor, _features(_base(profile).folder()))
    task = Task(run.row, run.seed, profile.unlearning)
    probe = partial(_probe, profile, processor, packer.features, read)
    model, history, probes = unlearn(model, packer, read, task, folder / "checkpoint", probe,
                                     report)
    model.save_pretrained(folder / "adapter")
    for name, rows in (("history", history), ("probes", probes)):
        runs.write_jsonl(folder / f"{name}.jsonl", [dict(sorted(row.items())) for row in rows])
    model.merge_adapter()  # the same weights in fewer matrices: generation takes half the time
    frame = _evaluate(profile, model, processor, packer.features, report)
    runs.write_jsonl(folder / "answers.jsonl", frame.to_dict("records"))
    return evaluate.summary(frame)


@cache
def _features(base: Path) -> Features:
    """The tower never changes, so one worker's runs share its features."""
    return Features(*models.load(base / "model"))


def _evaluate(profile: Profile, model, processor, features: Features,
              report: Report) -> pd.DataFrame:
    judge, read = RuleJudge(), dataset(profile)
    known_answers(judge)
    asked = evaluate.questions(read, profile.evaluation.train_records)
    return evaluate.evaluate(model, processor, features, asked, profile.evaluation, judge,
                             read.root, report)


def _probe(profile: Profile, processor, features: Features, read: datasets.Dataset,
           model) -> dict:
    """RR and SARR on a few questions of val."""
    asked = evaluate.questions(read, 0)
    few = [question for kind in ("harmful", "safe")
           for question in _spread(evaluate.only(asked, set=kind, split="val"), PROBE // 2)]
    model.eval()
    frame = evaluate.evaluate(model, processor, features, few, _greedy(profile.evaluation),
                              RuleJudge(), read.root)
    found = evaluate.summary(frame)["generality"]
    return {name: found[name]["value"] for name in ("asr", "rr", "sarr")}


def _spread(items: Sequence, count: int) -> list:
    return list(items)[:: max(1, len(items) // count)]


def _greedy(settings):
    return type(settings)(**{**asdict(settings), "samples": 0})


# What the pipeline makes.


def steps(profile: Profile, chapters: Sequence[str], jobs: int,
          make_all: Callable = workers.make_all) -> list[Step]:
    """What these chapters need ("00" to "05"), in order; `jobs` runs go side by side, by an
    engine's `make_all`."""
    known_answers(RuleJudge())
    wanted = [name for name, readers in _READERS.items() if set(readers) & set(chapters)]
    every = {"dataset": _step(_dataset, profile, "dataset", 0.1),
             "base": _step(_base, profile, "small LLaVA, from nothing", profile.base_minutes),
             "original": _step(_vanilla, profile, "original model: answers and gate",
                               profile.run_minutes / 6, make_all),
             "baselines": _group(profile, "unlearning without PD", main_runs(profile, False), jobs,
                                 make_all),
             "decoupled": _group(profile, "unlearning with PD", main_runs(profile, True), jobs,
                                 make_all),
             "sweep": _group(profile, "PO at other weights of PD", sweep_runs(profile), jobs,
                             make_all)}
    return [every[name] for name in wanted]


_READERS = {  # step: the chapters that need it
    "dataset": ("00", "01", "02", "03", "04", "05"),
    "base": ("00", "02", "03", "04", "05"),
    "original": ("00", "02", "03", "04", "05"),
    "baselines": ("02", "03", "04", "05"),
    "decoupled": ("02", "03", "04", "05"),
    "sweep": ("04",),
}


def _step(describe: Callable, profile: Profile, name: str, minutes: float,
          make_all: Callable = workers.make_all) -> Step:
    made = describe(profile)

    def make(report: Report) -> None:
        if describe is _vanilla and profile.runtime.device != "cpu":
            # Not in this process: it would keep a GPU's memory, and need not have a GPU at all.
            make_all([_piece(name, profile, describe)], 1, report)
        else:
            (describe(profile) if describe is _dataset else describe(profile, report)).make()

    return Step(made.folder().name, name, minutes, made.is_done, make)


def _group(profile: Profile, name: str, chosen: list[Run], jobs: int, make_all: Callable) -> Step:
    made = [_run(profile, run) for run in chosen]
    folders = sorted(each.folder().name for each in made)
    label = f"{name}: {len(chosen)} runs"
    return Step(sha256(" ".join(folders).encode()).hexdigest()[:12], label,
                profile.run_minutes * len(chosen) / jobs,
                lambda: all(each.is_done() for each in made),
                lambda report: ensure(profile, chosen, jobs, report, make_all))


def ensure(profile: Profile, chosen: Sequence[Run], jobs: int, report: Report = _quiet,
           make_all: Callable = workers.make_all) -> None:
    """Make those of the runs that are not there, `jobs` at once, by an engine's `make_all`."""
    make_all([_piece(str(run), profile, _run, run) for run in chosen], jobs, report)


def _piece(name: str, profile: Profile, describe: Callable, *details) -> Piece:
    """What `describe(profile, *details)` makes from the dataset and the base model."""
    return Piece(name, describe(profile, *details).folder(),
                 partial(_make, describe, profile, *details),
                 needs=(_dataset(profile).folder(), _base(profile).folder()))


def _make(describe: Callable, *details_and_report) -> None:
    describe(*details_and_report).make()
