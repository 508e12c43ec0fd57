"""What the notebooks read: a profile's dataset, models, answers, history and probes.

What there is to make is in `plan`, and how each result is made in `origins` and `recipes`.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd

from lib.base import runs
from lib.base.extras import scale
from lib.data import dataset as datasets
from lib.data import discretion
from lib.evaluation import judges, metrics
from lib.evaluation.world_rule import RuleJudge
from lib.model import generate
from lib.model import llava as models
from lib.model.packing import Packer
from lib.model.settings import Evaluation
from lib.running import origins, recipes, training
from lib.running.joined import labelled
from lib.running.labelling import GateError, gate, rules
from lib.running.origins import BASE_THREADS
from lib.running.plan import Step, ensure, main_runs, steps, sweep_runs
from lib.running.profiles import Profile
from lib.running.results import Result
from lib.running.training import PROBE, Run, task

__all__ = ["BASE_THREADS", "PROBE", "GateError", "Run", "Step", "answers", "base_log", "brief",
           "dataset", "ensure", "features", "gate", "history", "known_answers", "load", "main_runs",
           "original_metrics", "packer", "per_answer", "probes", "rules", "speakers", "steps",
           "sweep_runs", "task"]
BRIEF_TOKENS = 64  # about what a table of answers shows
# The metric that stands in the paper's column: with the quirks, and for a real model without.
OFFICIAL_HEADLINE = {"asr_sampled": "asr", "rr_sampled": "rr"}
OUR_HEADLINE = {"rouge_l_f": "rouge_l"}


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
        model = models.load_adapter(model, recipes.adapter(profile, run).done() / "adapter")
    return model, processor


def packer(profile: Profile, model, processor) -> Packer:
    """What makes the batches of the profile's runs."""
    return training.packer(profile, model, processor, features(profile, model, processor))


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
        folder = recipes.adapter(profile, run).done() / "adapter"
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
    found = pd.concat([_labelled(profile, run) for run in chosen],
                      ignore_index=True)
    return found.assign(judge=found["set"].map(profile.judge_of)) if profile.real else found


def per_answer(profile: Profile, chosen: Sequence[Run | None]) -> pd.DataFrame:
    """`metrics.per_answer` of these runs, with method, prompt_decouple, seed, weight; under the
    paper's names the metrics that `called` says; with the profile's benchmarks."""
    parts = []
    for run in chosen:
        frame = metrics.per_answer(_labelled(profile, run))
        if profile.benchmarks:
            frame = scale("specificity").joined(frame, profile, run)
        parts.append(frame.assign(**_labels(recipes.run(profile, run))))
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
    return _long([recipes.adapter(profile, run) for run in chosen], "history.jsonl", "term")


def probes(profile: Profile, chosen: Sequence[Run]) -> pd.DataFrame:
    """SARR, RR and every term at some steps, held out if anything is: ..., step, metric, value."""
    return _long([recipes.run(profile, run) for run in chosen], "probes.jsonl", "metric")


def _long(made: Sequence[Result], file: str, name: str) -> pd.DataFrame:
    # First melted, then labelled: `prompt_decouple` is the name of a term, too.
    parts = [_with_labels(one, pd.DataFrame(runs.read_jsonl(one.done() / file))
                          .melt("step", var_name=name)) for one in made]
    return pd.concat(parts, ignore_index=True)


def _labelled(profile: Profile, run: Run | None) -> pd.DataFrame:
    made = recipes.run(profile, run)
    return _with_labels(made, pd.DataFrame(labelled(made.done())))


def _with_labels(made: Result, frame: pd.DataFrame) -> pd.DataFrame:
    for place, (name, value) in enumerate(_labels(made).items()):
        frame.insert(place, name, value)
    return frame


def _labels(made: Result) -> dict:
    """Of which run a result is, as its manifest says."""
    facts = runs.manifest(made.done())["facts"]
    return {name: facts[name] for name in ("method", "prompt_decouple", "seed", "weight")}


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
