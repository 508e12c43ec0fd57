"""What is made from dataset and original model: its answers, and a result per unlearning run.

`original` and `run` say what determines a result and how it is built; `origins` has what comes
before.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from lib.base import disk, runs
from lib.base.extras import scale
from lib.base.paths import profile_dir
from lib.data import dataset as datasets
from lib.evaluation import evaluate, judges
from lib.evaluation.refusal_rule import RefusalRule
from lib.evaluation.verdicts import Judge
from lib.evaluation.world_rule import RuleJudge
from lib.model import llava as models
from lib.model.merged import merge_if_exact
from lib.model.packing import Packer
from lib.running import origins
from lib.running.origins import Made, Report, quiet
from lib.running.profiles import Profile
from lib.unlearning import methods
from lib.unlearning.train import Task, unlearn

PROBE = 64  # questions per probe, at most: half about harmful pictures and half about safe ones


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
        """The weights of its loss, by the official code's rows."""
        return self.row_of("official")

    def row_of(self, rows: str) -> dict[str, float]:
        """The weights of its loss, by these rows (`methods.ROWS`)."""
        return methods.weights(self.method, self.prompt_decouple, self.prompt_decouple_weight, rows)

    def __str__(self) -> str:
        weight = "" if self.prompt_decouple_weight is None else f" {self.prompt_decouple_weight:g}"
        return f"{methods.run_name(self.method, self.prompt_decouple)}{weight}, seed {self.seed}"


# The judge.


def known_answers(profile: Profile, report: Report = quiet) -> Made:
    """How a model does as the profile's judge on answers whose verdict a person has written down.

    The answers themselves are not kept. Raises ValueError if it is not good enough, JudgeStopped if
    it cannot be asked.
    """
    config = {"judge": profile.judge, "recipe": origins.RECIPE}

    def build(folder: Path) -> dict:
        table = judges.known_answers(judges.get(profile.judge, profile_dir(profile.name)))
        shown = table[["judge", "set", "why", "expected", "label", "right"]]
        runs.write_jsonl(folder / "known_answers.jsonl", shown.to_dict("records"))
        return {"right": int(table.right.sum()), "n": len(table)}

    return Made(profile, "judge", config, build)


# The original model's answers, and the gate on them.


def original(profile: Profile, report: Report = quiet) -> Made:
    """The original model's answers."""
    config = {**origins.identity(profile), "dataset": origins.dataset(profile).folder().name,
              "evaluation": _evaluation(profile), "recipe": origins.RECIPE}

    def build(folder: Path) -> dict:
        if not profile.real:
            torch.set_num_threads(origins.BASE_THREADS)
        judges.check(profile.judge)
        model, processor = origins.load(profile)
        seen = origins.tower_features(profile, model, processor)
        frame = _evaluate(profile, model, processor, seen, report, folder)
        runs.write_jsonl(folder / "answers.jsonl", frame.to_dict("records"))
        found = evaluate.summary(frame)
        if profile.strict:
            gate(profile, found)
        return found

    return Made(profile, "original", config, build, origins.needs(profile))


def gate(profile: Profile, found: dict) -> pd.DataFrame:
    """The gate as a table (metric, reached, needed, passed), from the original's metrics on val.

    Raises GateError at a strict profile unless all are reached. A real model that misses one is a
    finding, not a fault that more training would mend, so there the table is all.
    """
    val, needed = found.get("generality", {}), asdict(profile.gate)
    rows = [(name, val[name]["value"], needed[name], -1 if name == "sarr" else 1)
            for name in needed if needed[name] is not None and name in val]
    table = pd.DataFrame([{"metric": name, "reached": value, "needed": bound,
                           "sense": "at least" if sign > 0 else "at most",
                           "passed": sign * value >= sign * bound}
                          for name, value, bound, sign in rows],
                         columns=["metric", "reached", "needed", "sense", "passed"])
    if profile.strict and not table.passed.all():
        missed = "; ".join(f"{row.metric} is {row.reached:.3f}, must be {row.sense} {row.needed}"
                           for row in table[~table.passed].itertuples())
        raise GateError(
            f"The base model does not see well enough to unlearn anything from it: {missed}. Raise "
            "instruction_steps or contrastive_steps of the profile (lib/running/profiles.py), or "
            "try "
            "another seed there, and run this again.")
    return table


# An unlearning run.


def run(profile: Profile, chosen: Run, report: Report = quiet) -> Made:
    """One unlearning run: adapter, history, probes and answers."""
    quirk = {"official_quirks": True} if profile.official_quirks else {}
    config = {**origins.identity(profile), "dataset": origins.dataset(profile).folder().name,
              "weights": row(profile, chosen), "seed": chosen.seed,
              "unlearning": _on(profile.unlearning), "evaluation": _evaluation(profile),
              "recipe": origins.RECIPE, **quirk}
    return Made(profile, f"unlearn-{chosen.method}", config,
                partial(_unlearn, profile, chosen, report), origins.needs(profile))


def row(profile: Profile, chosen: Run) -> dict[str, float]:
    """The weights of a run's loss at this profile."""
    return chosen.row_of(profile.rows)


def task(profile: Profile, chosen: Run) -> Task:
    """A run, as `unlearn` takes it."""
    return Task(row(profile, chosen), chosen.seed, profile.unlearning, profile.runtime,
                profile.official_quirks)


def packer(profile: Profile, model, processor, seen) -> Packer:
    """What makes a profile's training batches; `seen` gives the pictures' features."""
    return Packer(model, processor, seen, profile.unlearning.max_answer_tokens,
                  end=not profile.official_quirks)


def _on(settings) -> dict:
    """Settings without those that are off: results from before there was such a one stay valid."""
    return {name: value for name, value in asdict(settings).items() if value}


def _evaluation(profile: Profile) -> dict:
    """What determines answers and labels, for a config. A real model's batch follows its memory."""
    settings = asdict(profile.evaluation)
    if profile.real:
        del settings["batch"]
        settings["judge"] = profile.judge
        if profile.judge.endswith("rules"):  # alone or beside a guard
            settings["rule"] = RefusalRule.name
    if profile.generator != "transformers":
        settings["generator"] = profile.generator
    return settings


def _unlearn(profile: Profile, chosen: Run, report: Report, folder: Path) -> dict:
    judges.check(profile.judge)  # on this machine, which may not be the one with the plan
    read, (model, processor) = origins.read_dataset(profile), origins.load(profile)
    seen = origins.tower_features(profile, model, processor)
    if (folder / "probes.jsonl").exists():  # killed after training: only answers are missing
        model = models.load_adapter(model, folder / "adapter")
    else:
        model = _train(profile, chosen, report, folder, read, model, processor, seen)
    merge_if_exact(model)
    frame = _evaluate(profile, model, processor, seen, report, folder)
    runs.write_jsonl(folder / "answers.jsonl", frame.to_dict("records"))
    return evaluate.summary(frame)


def _train(profile: Profile, chosen: Run, report: Report, folder: Path, read: datasets.Dataset,
           model, processor, seen) -> object:
    """The model with its adapter, which is in `folder` then, with history and, last, probes."""
    probe = partial(_probe, profile, processor, seen, read)
    model, history, probes = unlearn(model, packer(profile, model, processor, seen), read,
                                     task(profile, chosen), folder / "checkpoint", probe, report)
    model.save_pretrained(folder / "adapter")
    disk.flush_all(folder / "adapter")  # before probes.jsonl, which says that it is there
    for name, rows in (("history", history), ("probes", probes)):
        runs.write_jsonl(folder / f"{name}.jsonl", [dict(sorted(one.items())) for one in rows])
    return model


# Evaluation.


def _judge(profile: Profile, read: datasets.Dataset) -> Judge:
    """The profile's."""
    refusals = read.refusals if profile.real else None
    return judges.get(profile.judge, profile_dir(profile.name), refusals)


def rules(profile: Profile, read: datasets.Dataset) -> RuleJudge | RefusalRule:
    """The rules that label at no cost: exact for IconWorld, of a real answer only its refusal."""
    return RefusalRule(read.refusals) if profile.real else RuleJudge()


def _evaluate(profile: Profile, model, processor, seen, report: Report,
              folder: Path) -> pd.DataFrame:
    """All answers, kept one by one: what was answered before a break is not asked again."""
    read, checkpoint = origins.read_dataset(profile), folder / "checkpoint"
    asked = evaluate.questions(read, profile.evaluation.train_records)
    with _generator(profile, model, processor, checkpoint) as say:
        return evaluate.evaluate(model, processor, seen, asked, profile.evaluation,
                                 _judge(profile, read), read.root, report,
                                 checkpoint / "answers.jsonl", say)


def _generator(profile: Profile, model, processor, scratch: Path):
    """A context that gives what answers; None is transformers."""
    known = {"transformers": nullcontext,
             "vllm": lambda: scale("vllm").answerer(model, processor, scratch)}
    if profile.generator not in known:
        raise ValueError(f"There is no generator {profile.generator!r}; known: {', '.join(known)}.")
    return known[profile.generator]()


def _probe(profile: Profile, processor, seen, read: datasets.Dataset, model) -> dict:
    """RR and SARR on a few questions, held out if there are such."""
    asked = evaluate.questions(read, None)
    few = [question for kind in ("harmful", "safe")
           for question in _spread(evaluate.held_out(asked, kind), PROBE // 2)]
    model.eval()
    frame = evaluate.evaluate(model, processor, seen, few, replace(profile.evaluation, samples=0),
                              rules(profile, read), read.root)
    found = evaluate.summary(frame.assign(split="val"))["generality"]
    return {name: found[name]["value"] for name in ("asr", "rr", "sarr")}


def _spread(items: Sequence, count: int) -> list:
    return list(items)[:: max(1, len(items) // count)]
