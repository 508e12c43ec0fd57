"""What a real profile costs: its plan counted, times a few steps and answers measured on this GPU.

Nothing is fetched for it. Without data the paper's numbers are assumed; without the model nothing
is said of the disk; without a GPU nothing of hours, but for what docs/full-scale.md knows.
"""

import math
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoModelForImageTextToText

from lib.base import paths, runs
from lib.base.missing import Missing
from lib.evaluation import evaluate
from lib.model import check as model_check
from lib.model import llava as models
from lib.model.merged import DTYPE
from lib.model.prompts import read_processor
from lib.running import experiments, memory, origins, recipes
from lib.running.profiles import Profile
from lib.scale import features, harness, measurement, specificity

GIB = 2**30
ASSUMED = {"train": 1800, "records": 2400, "pairs": 28_800, "pictures": 3000}  # the paper's
ANSWER = 1500  # bytes of an answer in answers.jsonl, with its question
CHECKPOINT = 2 * 12  # bytes of a trained parameter: float32 with AdamW's two moments, old and new
TABLE = paths.ROOT / "docs" / "full-scale.md"
ROW = re.compile(r"^\| `(\S+)` \| ([^|]+) \| (.+) \|$", re.MULTILINE)


@dataclass(frozen=True)
class Counts:
    """What there is to do: the data's sizes, and the answers of one model."""

    train: int
    records: int
    pairs: int
    pictures: int
    answers: int
    judged: int  # of these, by a model
    assumed: bool


@dataclass(frozen=True)
class Sizes:
    """Of the model: parameters, its files' bytes, and what is kept on the disk because of it."""

    parameters: int
    weights: int
    picture: int  # bytes of the tower's features of a picture
    trained: int  # parameters
    itemsize: int  # bytes of a number


@dataclass(frozen=True)
class Line:
    """One step of the plan. NaN: not known here."""

    step: str
    count: int
    unit: str
    seconds: float  # each
    memory: float  # bytes on the GPU, at the peak
    disk: float  # bytes


@dataclass(frozen=True)
class Costs:
    """All lines of a profile, what is to be said of them, and the disk that is missing, if any."""

    profile: Profile
    counts: Counts
    lines: list[Line]
    remarks: list[str]
    short: str

    def hours(self, slots: int = 1) -> dict[str, float]:
        """Hours of the plan's steps by their names, so many runs at once; none if not measured."""
        found, name = Counter(), ""
        for line in self.lines:  # the answers' line follows that of their training
            name = name if line.step.startswith(" ") else line.step
            at_once = slots if "runs" in name else 1
            found[name] += line.count * line.seconds / 3600 / at_once
        return {} if any(map(math.isnan, found.values())) else dict(found)

    def __str__(self) -> str:
        counts, models_ = self.counts, 1 + len(_runs(self.profile))
        said = "assumed, the paper's" if counts.assumed else "as the data are"
        judged = f", {models_ * counts.judged:,} of them for a judge" if counts.judged else ""
        return "\n".join([
            f"Expected costs of {self.profile.name}: {counts.records:,} records, "
            f"{counts.pairs:,} pairs, {counts.pictures:,} pictures ({said}); {models_ - 1} runs of "
            f"{self.profile.unlearning.steps_for(counts.train):,} steps; "
            f"{models_ * counts.answers:,} answers{judged}",
            f"{'step':40}{'count':>22}{'hours':>8}{'GPU GiB':>9}{'disk GiB':>10}",
            *map(_shown, [*self.lines, _total(self.lines)]), *self.remarks,
            *filter(None, [self.short])])


def _total(lines: Sequence[Line]) -> Line:
    return Line("in all", 1, "", sum(line.count * line.seconds for line in lines),
                max((line.memory for line in lines if not math.isnan(line.memory)),
                    default=math.nan), sum(line.disk for line in lines))


def _shown(line: Line) -> str:
    values = (line.count * line.seconds / 3600, line.memory / GIB, line.disk / GIB)
    hours, room, disk = ("?" if math.isnan(value) else f"{value:.1f}" for value in values)
    count = f"{line.count:,} {line.unit}" if line.unit else ""
    return f"{line.step:40}{count:>22}{hours:>8}{room:>9}{disk:>10}"


def expected(profile: Profile, gpu: str | None = None, measure: bool = False) -> Costs:
    """The plan's costs on this machine, or with the hours that are known of another `gpu`.

    Measures, where it can and has not yet, only if told to. ValueError for an unknown `gpu`.
    """
    counts, found, remarks = counted(profile), {}, []
    if why := known(gpu) if gpu else _unmeasurable(profile):
        remarks.append(why)
    else:
        found, remark = _measured(profile, measure)
        remarks.append(remark)
    sizes = _sizes(profile, bool(gpu))
    if sizes is None:
        remarks.append("What is needed on the disk can be told once the model is here.")
    elif sizes.weights:
        remarks.append(f"The model's own files take {sizes.weights / GIB:.1f} GiB.")
    lines = _lines(profile, counts, found, sizes)
    return Costs(profile, counts, lines, remarks, _short(profile, lines))


def _runs(profile: Profile) -> list[recipes.Run]:
    return [run for group in _groups(profile).values() for run in group]


def _groups(profile: Profile) -> dict[str, list[recipes.Run]]:
    """The runs by the plan's steps."""
    named = {"unlearning without PD": experiments.main_runs(profile, False),
             "unlearning with PD": experiments.main_runs(profile, True),
             "PO at other weights of PD": experiments.sweep_runs(profile)}
    return {f"{name}: {len(chosen)} runs": chosen for name, chosen in named.items() if chosen}


def _lines(profile: Profile, counts: Counts, found: dict, sizes: Sizes | None) -> list[Line]:
    def value(name: str) -> float:
        return found.get(name, math.nan)

    def bytes_(count: int, name: str) -> float:
        return count * getattr(sizes, name) if sizes else math.nan

    def answers(step: str, of: int) -> Line:
        return Line(step, of * counts.answers, "answers", value("answering_seconds"),
                    value("answering_bytes"), of * counts.answers * ANSWER)

    kept = sizes.itemsize if sizes else 0
    lines = [Line("vision tower's features", counts.pictures, "pictures", value("tower_seconds"),
                  value("tower_bytes"), bytes_(counts.pictures, "picture")),
             answers("original model: answers and gate", 1)]
    steps = profile.unlearning.steps_for(counts.train)
    for name, chosen in _groups(profile).items():
        lines += [Line(name, len(chosen) * steps, "steps", value("training_seconds"),
                       value("training_bytes"), bytes_(len(chosen) * kept + CHECKPOINT, "trained")),
                  answers("    their answers", len(chosen))]
    if questions := sum(each.questions for each in harness.named(profile.benchmarks)):
        asked = 1 + sum(run.prompt_decouple_weight is None for run in _runs(profile))
        lines.append(Line(f"specificity by {profile.benchmarks}: {asked} runs", asked * questions,
                          "questions", specificity.SECONDS if found else math.nan, math.nan,
                          bytes_(getattr(torch, DTYPE).itemsize, "parameters")))  # merged
    return lines


def _short(profile: Profile, lines: Sequence[Line]) -> str:
    """What is missing on the disk, in a sentence; what the results take already is not needed."""
    folder = root = paths.runs_root().resolve()
    while not folder.exists():
        folder = folder.parent
    there = sum(path.stat().st_size for path in paths.profile_dir(profile.name).rglob("*")
                if path.is_file())
    needed = sum(line.disk for line in lines) - there
    free = shutil.disk_usage(folder).free
    return (f"Too little disk: {needed / GIB:.1f} GiB are needed in {root}, and "
            f"{free / GIB:.1f} GiB are free. Set SAFEERASER_RUNS to a larger disk."
            if free < needed else "")


# Counted.


def counted(profile: Profile) -> Counts:
    """The data's sizes and the answers that a model gives, or the paper's without data to read."""
    settings = profile.evaluation
    try:
        read = origins.checked(profile, pictures=False) if _here(profile.data, "dataset") else None
    except Missing:  # a plan says so, and a run checks them first
        read = None
    if read is None:
        some = 6 * (settings.train_records or ASSUMED["train"])
        models_ = ASSUMED["records"] - ASSUMED["train"] + min(some, ASSUMED["train"])
        sizes, asked = ASSUMED, Counter(harmful=4 * models_, safe=4 * models_, retain=4 * models_)
    else:
        records = [*read.train, *read.val]
        pairs = sum(len(of) for record in records for _, of in record.sets().values())
        sizes = {"train": len(read.train), "records": len(records), "pairs": pairs,
                 "pictures": len(features.pictures(read))}
        asked = Counter(q.set for q in evaluate.questions(read, settings.train_records))
    asked["harmful"] *= 1 + settings.samples
    judged = sum(count for kind, count in asked.items() if profile.judge_of(kind) != "rules")
    return Counts(**sizes, answers=asked.total(), judged=judged, assumed=read is None)


def _sizes(profile: Profile, elsewhere: bool) -> Sizes | None:
    """Of modules without weights, made from the model's config; None where that is not here.

    elsewhere: an open dtype is then that of a GPU.
    """
    folder, runtime = _here(profile.model), profile.runtime
    if folder is None or not (folder / "config.json").exists():
        return None
    dtype = torch.bfloat16 if elsewhere and runtime.dtype == "auto" else models.dtype_of(runtime)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype,
                                                        trust_remote_code=False)
        parameters = model.num_parameters()
        picture = features.size(model, read_processor(folder, config), 1)
        trained = models.add_lora(model, profile.unlearning).num_parameters(only_trainable=True)
    files = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return Sizes(parameters, files, picture, trained, dtype.itemsize)


def _here(source: str | None, kind: str = "model") -> Path | None:
    """The folder of a source, if nothing has to be fetched for it."""
    if source is None or Path(source).is_dir():
        return source and Path(source)
    try:
        return Path(snapshot_download(source, repo_type=kind, local_files_only=True))
    except (OSError, ValueError):
        return None


# Measured here, or known of other machines.


def _measured(profile: Profile, measure: bool) -> tuple[dict[str, float], str]:
    """What a few steps and answers took here, if that is there or is to be measured; a remark."""
    made = measurement.measurement(profile)
    try:
        if measure and not made.is_done():
            print(f"Measuring {measurement.STEPS} training steps and {measurement.QUESTIONS} "
                  "answers: about a minute, after the model is loaded.", flush=True)
            made.make()
    except memory.OutOfMemory as error:
        return {}, str(error)
    if not made.is_done():
        return {}, "Hours are not measured yet: the same command with --list measures them."
    return runs.read_json(made.folder() / "metrics.json"), (
        f"Measured on {measurement.gpu() or 'this CPU'}. Hours are at most these: each run is "
        "taken to be as dear as the dearest loss, with PD.")


def _unmeasurable(profile: Profile) -> str:
    """Why nothing can be measured here, if so."""
    keys = ", ".join(key for key, _, _ in _table())
    model = _here(profile.model)
    lacking = {
        f"there is no GPU. --gpu NAME says what docs/full-scale.md knows of one: {keys}":
            measurement.gpu() is None,
        "its data are measured, too: give their folder with --data":
            _here(profile.data, "dataset") is None,
        f"{profile.model} is not on this machine yet": model is None or model_check.check(model),
    }
    return next((f"Hours cannot be told here: {why}." for why, is_so in lacking.items() if is_so),
                "")


def known(gpu: str) -> str:
    """What docs/full-scale.md expects of a GPU. ValueError, with the known names, if nothing."""
    for key, name, values in _table():
        if _plain(key) == _plain(gpu):
            room, seven, thirteen = values.split(" | ")
            return (f"Hours cannot be told here for another machine's {name} ({room} GiB). "
                    f"docs/full-scale.md, from data sheets and not measured, expects {seven} "
                    f"(llava-7b) and {thirteen} (llava-13b).")
    raise ValueError(f"docs/full-scale.md knows no GPU {gpu!r}; known: "
                     f"{', '.join(key for key, _, _ in _table())}. For another one name the known "
                     "one that is nearest in memory and speed.")


def _table() -> list[tuple[str, str, str]]:
    """(key, name, memory and hours) of each GPU there."""
    return ROW.findall(TABLE.read_text(encoding="utf-8"))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower()).removesuffix("gb")
