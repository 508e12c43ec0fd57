"""Labels for a model's answers, by the profile's judge, and the metrics that follow from them."""

from dataclasses import asdict
from pathlib import Path

import pandas as pd

from lib.base import runs
from lib.base.paths import profile_dir
from lib.data import dataset as datasets
from lib.evaluation import judges
from lib.evaluation.answers import row
from lib.evaluation.evaluate import summary
from lib.evaluation.refusal_rule import RefusalRule
from lib.evaluation.world_rule import RuleJudge
from lib.running import origins
from lib.running.profiles import Profile
from lib.running.results import Report, Result
from lib.running.training import probed


class GateError(RuntimeError):
    """The base model is not good enough to unlearn anything from it."""


def label(profile: Profile, answers: Result, adapter: Result | None, folder: Path,
          report: Report) -> dict:
    """Write the labels of these answers into `folder`, and the run's probes; return the metrics.

    Raises GateError if they are the original model's, and miss what a strict profile asks for.
    """
    read = origins.read_dataset(profile)
    judge = judges.get(profile.judge, profile_dir(profile.name),
                       read.refusals if profile.real else None)
    frame = judges.judged(pd.DataFrame(runs.read_jsonl(answers.done() / "answers.jsonl")), judge,
                          report)
    runs.write_jsonl(folder / "labels.jsonl", frame[["label", "score"]].to_dict("records"))
    if adapter is not None:
        probes = [_measured(profile, read, one)
                  for one in runs.read_jsonl(adapter.done() / "probes.jsonl")]
        runs.write_jsonl(folder / "probes.jsonl", probes)
    found = summary(frame)
    if adapter is None and profile.strict:
        gate(profile, found)
    return found


def rules(profile: Profile, read: datasets.Dataset) -> RuleJudge | RefusalRule:
    """The rules that label at no cost: exact for IconWorld, of a real answer only its refusal."""
    return RefusalRule(read.refusals) if profile.real else RuleJudge()


def _measured(profile: Profile, read: datasets.Dataset, probe: dict) -> dict:
    """A probe with RR and SARR, by rules, in place of its answers."""
    rows = [row(question, text, "greedy", 0, read.root)
            for question, text in zip(probed(read), probe["answers"], strict=True)]
    frame = judges.judged(pd.DataFrame(rows), rules(profile, read))
    found = summary(frame.assign(split="val"))["generality"]
    values = {name: found[name]["value"] for name in ("asr", "rr", "sarr")}
    terms = {name: value for name, value in probe.items() if name != "answers"}
    return dict(sorted({**terms, **values}.items()))


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
        missed = "; ".join(f"{one.metric} is {one.reached:.3f}, must be {one.sense} {one.needed}"
                           for one in table[~table.passed].itertuples())
        raise GateError(
            f"The base model does not see well enough to unlearn anything from it: {missed}. Raise "
            "instruction_steps or contrastive_steps of the profile (lib/running/profiles.py), or "
            "try another seed there, and run this again.")
    return table
