"""What a real profile costs: its plan counted, times a few steps and answers measured on this GPU.

The steps and answers are those of a run: the same data, settings and code, with the dearest of the
losses. Nothing is fetched for it. Where nothing can be measured it says what docs/full-scale.md
knows of other machines.
"""

import re
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import cycle, islice
from math import nan
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from huggingface_hub import snapshot_download

from lib.base import paths, runs
from lib.base.missing import Missing
from lib.data.dataset import Dataset
from lib.evaluation import evaluate
from lib.model import check as model_check
from lib.model import generate
from lib.model.merged import merge_if_exact
from lib.model.packing import Features
from lib.running import experiments, memory, origins, recipes, training
from lib.running.profiles import Profile
from lib.running.results import Report, Result
from lib.scale import features, sources
from lib.unlearning.terms import TERMS
from lib.unlearning.train import step_rows, unlearn

STEPS, QUESTIONS = 3, 16  # that are timed, after one step and one answer that are not
TABLE = paths.ROOT / "docs" / "full-scale.md"
ROW = re.compile(r"^\| `([a-z]\S*)` \|.*$", re.MULTILINE)


@dataclass(frozen=True)
class Costs:
    """What a plan costs, in words, and the hours of its parts; of none that are not measured."""

    text: str
    alone: dict[str, float]

    def hours(self, slots: int = 1) -> dict[str, float]:
        """Hours of the plan's steps by their names, so many runs at once."""
        return {name: hours / (slots if "runs" in name else 1)
                for name, hours in self.alone.items()}


def expected(profile: Profile, gpu: str | None = None, measure: bool = False) -> Costs:
    """The plan's costs on this machine, or with the hours that are known of another `gpu`.

    Measures, where it can and has not yet, only if told to. ValueError for an unknown `gpu`.
    """
    read = _dataset(profile)
    found, said = ({}, known(gpu)) if gpu else _seconds(profile, read, measure)
    if read is None:
        return Costs(f"What {profile.name} takes can be counted once --data gives the data. {said}",
                     {})
    table, counts = _table(profile, read)
    step, answer = (found.get(name, nan) / 3600 for name in ("step_seconds", "answer_seconds"))
    table["hours"] = table["steps"] * step + table["answers"] * answer
    whole = pd.concat([table, table.sum(skipna=False).to_frame("in all").T])
    shown = whole.astype({"steps": int, "answers": int}).to_string(na_rep="?", float_format="%.1f")
    return Costs(f"Expected costs of {profile.name}: {counts}\n{shown}\n{said}",
                 table["hours"].dropna().to_dict())


def _table(profile: Profile, read: Dataset) -> tuple[pd.DataFrame, str]:
    """Steps and answers of the plan's steps, by their names; and of what they are, in words."""
    asked = Counter(q.set for q in evaluate.questions(read, profile.evaluation.train_records))
    asked["harmful"] *= 1 + profile.evaluation.samples
    judged = sum(count for kind, count in asked.items() if profile.judge_of(kind) != "rules")
    counts = (f"{len(read.train) + len(read.val):,} records, {len(features.pictures(read)):,} "
              f"pictures; {asked.total():,} answers of each model, {judged:,} of them for a judge")
    rows = {f"{recipes.ORIGINAL}: answers and gate": (0, asked.total())}
    for name, of in ((recipes.WITHOUT, experiments.main_runs(profile, False)),
                     (recipes.WITH, experiments.main_runs(profile, True)),
                     (recipes.SWEEP, experiments.sweep_runs(profile))):
        steps = profile.unlearning.steps_for(len(read.train))
        rows[f"{name}: {len(of)} runs"] = (len(of) * steps, len(of) * asked.total())
    return pd.DataFrame.from_dict(rows, "index", columns=["steps", "answers"]), counts


def _dataset(profile: Profile) -> Dataset | None:
    try:
        return origins.checked(profile, pictures=False) if _here(profile.data, "dataset") else None
    except Missing:  # a plan says so, and a run checks them first
        return None


def _here(source: str | None, kind: str) -> Path | None:
    """The folder of a source, if nothing has to be fetched for it."""
    if source is None or Path(source).is_dir():
        return source and Path(source)
    try:
        return Path(snapshot_download(source, repo_type=kind, local_files_only=True))
    except (OSError, ValueError):
        return None


def known(gpu: str = "") -> str:
    """What docs/full-scale.md expects of a GPU, or of all. ValueError, with the known names, if
    that is nothing."""
    rows = {row[1]: row[0] for row in ROW.finditer(TABLE.read_text(encoding="utf-8"))}
    wanted = re.sub(r"[^a-z0-9]|gb$", "", gpu.lower())
    found = [row for name, row in rows.items() if wanted in name.replace("-", "")]
    if not found:
        raise ValueError(f"docs/full-scale.md knows no GPU {gpu!r}; known: {', '.join(rows)}. For "
                         "another one name the known one that is nearest in memory and speed.")
    return "\n".join(["Hours by docs/full-scale.md, from data sheets, not measured:",
                      "| --gpu | GPU | GiB | llava-7b | llava-13b |", *found])


def _seconds(profile: Profile, read: Dataset | None, measure: bool) -> tuple[dict, str]:
    """What a few steps and answers took here, if that is there or is to be measured; a remark."""
    if gpu() is None:
        return {}, "There is no GPU here to measure hours on. " + (known() if measure else "")
    model = _here(profile.model, "model")
    if model is None or model_check.check(model):
        return {}, f"Hours are measured once {profile.model} has been downloaded."
    if read is None:
        return {}, "Hours are measured on them."
    made = measurement(profile)
    if not (measure or made.is_done()):
        return {}, "Hours are not measured yet: the same command with --list measures them."
    if not made.is_done():
        print(f"Measuring {STEPS} training steps and {QUESTIONS} answers: about a minute, after "
              "the model is loaded.", flush=True)
    try:
        found = runs.read_json(made.make() / "metrics.json")
    except memory.OutOfMemory as error:
        return {}, str(error)
    return found, (f"Measured on {gpu()}, of whose memory {found['peak_bytes'] / 2**30:.1f} GiB "
                   "were taken. Hours are at most these: each run is taken to be as dear as the "
                   "dearest loss, with PD.")


# The measurement.


def gpu() -> str | None:
    """The name of this machine's first GPU, as its driver has it."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def measurement(profile: Profile) -> Result:
    """Seconds of a step and of an answer, and the peak of the GPU's memory in bytes."""
    settings = {name: asdict(getattr(profile, name))
                for name in ("runtime", "unlearning", "evaluation")}
    config = {**origins.identity(profile), **settings, "device": gpu() or "cpu",
              "data": sources.identity(profile.data, "dataset"), "leave_out": profile.leave_out,
              "official_quirks": profile.official_quirks,
              "weights": training.row(profile, _dearest(profile))}
    return Result(profile, "costs", config, partial(_measure, profile))


def _dearest(profile: Profile) -> training.Run:
    """The run with PD that reads most answers; the original model's count as one kind more."""
    return max(experiments.main_runs(profile, True), key=lambda run: sum(
        len(TERMS[name].reads) + TERMS[name].needs_original for name in training.row(profile, run)))


def _measure(profile: Profile, folder: Path, report: Report) -> dict[str, float]:
    read, (model, processor) = origins.checked(profile, pictures=False), origins.load(profile)
    rare = STEPS + 2
    settings = replace(profile.unlearning, steps=STEPS + 1, epochs=None, probe_every=rare,
                       checkpoint_every=rare)
    task = replace(training.task(profile, _dearest(profile)), settings=settings)
    queries, seen, ends = _queries(profile, read), Features(model, processor), []
    shown = {row.image for step in range(STEPS + 1) for row in step_rows(read, task, step)}
    seen.add(sorted(filter(None, shown.union(query.image for query in queries))))
    with TemporaryDirectory() as scratch:
        packer = training.packer(profile, model, processor, seen)
        model, _, _ = unlearn(model, packer, read, task, Path(scratch),
                              report=lambda text: ends.append(time.perf_counter()))
    merge_if_exact(model)
    ask = partial(generate.answer, model, processor, seen, settings=profile.evaluation)
    ask(queries=queries[:1])
    started = time.perf_counter()
    ask(queries=queries)
    return {"step_seconds": (ends[-1] - ends[-1 - STEPS]) / STEPS,
            "answer_seconds": (time.perf_counter() - started) / len(queries),
            "peak_bytes": torch.cuda.max_memory_allocated()}


def _queries(profile: Profile, read: Dataset) -> list[generate.Query]:
    """A few held-out questions, as often as fills a run's batch."""
    asked = evaluate.held_out(evaluate.questions(read, None), "harmful")[:QUESTIONS]
    count = max(QUESTIONS, profile.evaluation.batch or generate.ON_A_GPU)
    return [generate.Query(q.image, q.question) for q in islice(cycle(asked), count)]
