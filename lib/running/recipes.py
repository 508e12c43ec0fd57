"""What is made from dataset and original model: adapter -> answers -> labels, of every run.

Another judge labels again, another number of samples answers again, and neither trains again. Here
is what determines each; `training`, `answering` and `labelling` build them.
"""

from dataclasses import asdict
from functools import partial
from pathlib import Path

from lib.base import runs
from lib.base.extras import scale
from lib.base.paths import profile_dir
from lib.evaluation import judges
from lib.evaluation.refusal_rule import RefusalRule
from lib.running import answering, labelling, origins, training
from lib.running.profiles import Profile
from lib.running.results import Report, Result
from lib.running.training import Run, row

NO_PART = ("probe_every", "checkpoint_every")  # of an adapter's name: they do not change it
ORIGINAL = "original model"
WITHOUT, WITH = "unlearning without PD", "unlearning with PD"
SWEEP = "PO at other weights of PD"


def run(profile: Profile, chosen: Run | None) -> Result:
    """The last result of a run, its labels; of the original model, if there is no run."""
    return results(profile, chosen)[-1]


def original(profile: Profile) -> Result:
    """The original model's labels."""
    return run(profile, None)


def results(profile: Profile, chosen: Run | None) -> tuple[Result, ...]:
    """A run's adapter, answers and labels; the original model has no adapter.

    They share one model, so a process that makes all of them loads it once.
    """
    facts, at_hand = _facts(profile, chosen), {}
    given = origins.needs(profile)
    first = () if chosen is None else (_adapter(profile, chosen, at_hand, given, facts),)
    adapter = first[0] if first else None
    what = ({"adapter": adapter.folder().name} if adapter else
            {**origins.identity(profile), "dataset": origins.dataset(profile).folder().name})
    answers = Result(profile, "answers", {**what, "evaluation": _generation(profile)},
                     partial(answering.answer, profile, adapter, at_hand), first or given, facts)
    config = {"answers": answers.folder().name, "judge": judge_identity(profile)}
    labels = Result(profile, "labels", config,
                    partial(labelling.label, profile, answers, adapter), (answers, *first),
                    {**facts, "judge": profile.judge})
    return (*first, answers, labels)


def adapter(profile: Profile, chosen: Run) -> Result:
    """A run's adapter, with history and what was said to the probes."""
    return results(profile, chosen)[0]


def _adapter(profile: Profile, chosen: Run, at_hand: dict, given: tuple[Result, ...],
             facts: dict) -> Result:
    quirk = {"official_quirks": True} if profile.official_quirks else {}
    before = adapter(profile, chosen.after) if chosen.after else None
    after = {"after": before.folder().name} if before else {}
    config = {**origins.identity(profile), "dataset": origins.dataset(profile).folder().name,
              "weights": row(profile, chosen), "seed": chosen.seed,
              "unlearning": _on(profile.unlearning), **quirk, **after}
    return Result(profile, "adapter", config,
                  partial(training.train, profile, chosen, before, at_hand),
                  (*given, before) if before else given, facts)


def _facts(profile: Profile, chosen: Run | None) -> dict:
    """What the manifests of a run's results say about it."""
    if chosen is None:
        return {"part": ORIGINAL, "run": ORIGINAL, "method": "vanilla", "prompt_decouple": 0,
                "seed": profile.pretraining.seed, "weight": 0.0}
    part = WITH if chosen.prompt_decouple else WITHOUT
    if chosen.after or chosen.prompt_decouple_weight is not None:
        part = chosen.name if chosen.after else SWEEP
    return {"part": part, "run": str(chosen),
            "method": chosen.method, "prompt_decouple": int(chosen.prompt_decouple),
            "seed": chosen.seed, "weight": row(profile, chosen).get("prompt_decouple", 0.0)}


def _on(settings) -> dict:
    """Settings without those that are off, or that do not change the adapter."""
    return {name: value for name, value in asdict(settings).items()
            if value and name not in NO_PART}


def _generation(profile: Profile) -> dict:
    """What determines answers, for a config. A real model's batch follows its memory."""
    settings = asdict(profile.evaluation)
    if profile.real:
        del settings["batch"]
    if profile.generator != "transformers":
        settings["generator"] = profile.generator
    return settings


def judge_identity(profile: Profile) -> dict:
    """What determines a judge's labels, for a config: rule, or model, prompts and options."""
    if profile.judge == "rules":
        return {"rule": RefusalRule.name if profile.real else "IconWorld's rules"}
    return scale("judges").identity(profile.judge)


def known_answers(profile: Profile) -> Result:
    """How a model does as the profile's judge on answers whose verdict a person has written down.

    The answers themselves are not kept. Raises ValueError if it is not good enough, JudgeStopped if
    it cannot be asked.
    """
    return Result(profile, "judge", {"judge": judge_identity(profile)},
                  partial(_known_answers, profile), facts={"part": "judge"})


def _known_answers(profile: Profile, folder: Path, report: Report) -> dict:
    table = judges.known_answers(judges.get(profile.judge, profile_dir(profile.name)))
    shown = table[["judge", "set", "why", "expected", "label", "right"]]
    runs.write_jsonl(folder / "known_answers.jsonl", shown.to_dict("records"))
    return {"right": int(table.right.sum()), "n": len(table)}
