"""What a real profile costs: its plan counted, times a few steps and answers measured on this GPU.

Nothing is fetched for it. Without data the paper's numbers are assumed; without the model nothing
is said of the disk; without a GPU nothing of hours, but for what docs/full-scale.md knows.
"""

import re
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import nan
from pathlib import Path

import pandas as pd
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
from lib.running import experiments, memory, origins
from lib.running.profiles import Profile
from lib.scale import features, harness, measurement, specificity

GIB = 2**30
ASSUMED = {"train": 1800, "records": 2400, "pairs": 28_800, "pictures": 3000}  # the paper's
PER_RECORD = {"harmful": 4, "safe": 4, "retain": 4}  # questions of the evaluation, of these
ANSWER = 1500  # bytes of an answer in answers.jsonl, with its question
CHECKPOINT = 2 * 12  # bytes of a trained parameter: float32 with AdamW's two moments, old and new
TABLE = paths.ROOT / "docs" / "full-scale.md"
ROW = re.compile(r"^\| `(\S+)` \| ([^|]+) \| (\d+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)


@dataclass(frozen=True)
class Costs:
    """A row per part of the plan, by its step and what is counted: count, hours, GPU GiB, disk GiB.

    NaN: not known here. `remarks` are about all of it, `short` is about a disk that is too small.
    """

    title: str
    table: pd.DataFrame
    remarks: list[str]
    short: str

    def hours(self, slots: int = 1) -> dict[str, float]:
        """Hours of the plan's steps by their names, so many runs at once; none if not measured."""
        found = self.table.hours.groupby("step", sort=False).sum(min_count=1).dropna()
        return {step: hours / (slots if "runs" in step else 1) for step, hours in found.items()}

    def __str__(self) -> str:
        whole = self.table.sum(skipna=False).rename(("in all", "")).to_frame().T
        whole["GPU GiB"] = self.table["GPU GiB"].max()  # a peak
        counted_ = self.table.assign(count=self.table["count"].map("{:,}".format))
        shown = pd.concat([counted_, whole.assign(count="")])
        table = shown.to_string(na_rep="?", float_format="{:.1f}".format)
        return "\n".join([self.title, table, *filter(None, [*self.remarks, self.short])])


def expected(profile: Profile, gpu: str | None = None, measure: bool = False) -> Costs:
    """The plan's costs on this machine, or with the hours that are known of another `gpu`.

    Measures, where it can and has not yet, only if told to. ValueError for an unknown `gpu`.
    """
    counts, sizes = counted(profile), _sizes(profile, bool(gpu))
    why = known(gpu) if gpu else _unmeasurable(profile)
    found, remark = ({}, why) if why else _measured(profile, measure)
    table = _table(profile, counts, found, sizes)
    disk = (f"The model's own files take {sizes['weights'] / GIB:.1f} GiB more." if sizes else
            "What is needed on the disk can be told once the model is here.")
    return Costs(_title(profile, counts), table, [remark, disk],
                 _short(profile, table["disk GiB"].sum(skipna=False)))


def _title(profile: Profile, counts: Mapping) -> str:
    steps, models_ = profile.unlearning.steps_for(counts["train"]), 1 + sum(_runs(profile).values())
    judged = f", {models_ * counts['judged']:,} of them for a judge" if counts["judged"] else ""
    return (f"Expected costs of {profile.name}: {counts['records']:,} records, {counts['pairs']:,} "
            f"pairs, {counts['pictures']:,} pictures{' (assumed)' * counts['assumed']}; "
            f"{models_ - 1} runs of {steps:,} steps; "
            f"{models_ * counts['answers']:,} answers{judged}")


def _runs(profile: Profile) -> dict[str, int]:
    """How many runs there are in each step of the plan."""
    named = {"unlearning without PD": experiments.main_runs(profile, False),
             "unlearning with PD": experiments.main_runs(profile, True),
             "PO at other weights of PD": experiments.sweep_runs(profile)}
    return {f"{name}: {len(chosen)} runs": len(chosen) for name, chosen in named.items() if chosen}


def _table(profile: Profile, counts: Mapping, found: Mapping, sizes: Mapping) -> pd.DataFrame:
    pictures, steps = counts["pictures"], profile.unlearning.steps_for(counts["train"])
    answers = counts["answers"]
    rows = [("vision tower's features", "pictures", pictures, "tower",
             pictures * sizes.get("picture", nan)),
            ("original model: answers and gate", "answers", answers, "answering", answers * ANSWER)]
    for name, of in _runs(profile).items():
        rows += [(name, "steps", of * steps, "training",
                  of * sizes.get("adapter", nan) + sizes.get("checkpoint", nan)),
                 (name, "answers", of * answers, "answering", of * answers * ANSWER)]
    if questions := sum(each.questions for each in harness.named(profile.benchmarks)):
        of = 1 + 2 * len(experiments.main_runs(profile, True))
        rows.append((f"specificity by {profile.benchmarks}: {of} runs", "questions", of * questions,
                     "benchmark", sizes.get("merged", nan)))
    frame = pd.DataFrame(rows, columns=["step", "of", "count", "kind", "disk"])
    seconds, peak = (frame.kind.map(lambda kind, unit=unit: found.get(f"{kind}_{unit}", nan))
                     for unit in ("seconds", "bytes"))
    frame = frame.assign(**{"hours": frame["count"] * seconds / 3600, "GPU GiB": peak / GIB,
                            "disk GiB": frame.disk / GIB})
    return frame.drop(columns=["kind", "disk"]).set_index(["step", "of"])


def _short(profile: Profile, needed: float) -> str:
    """What is missing on the disk, in a sentence; room that the results have taken is room."""
    folder = root = paths.runs_root().resolve()
    while not folder.exists():
        folder = folder.parent
    there = sum(path.stat().st_size for path in paths.profile_dir(profile.name).rglob("*")
                if path.is_file())
    free = (shutil.disk_usage(folder).free + there) / GIB
    return (f"Too little disk: {needed:.1f} GiB are needed in {root}, and {free:.1f} GiB are free "
            "or this profile's. Set SAFEERASER_RUNS to a larger disk." if free < needed else "")


# Counted.


def counted(profile: Profile) -> dict[str, int]:
    """The data's sizes, or the paper's without data to read; answers of one model, and how many of
    them a model judges."""
    sizes, settings = dict(ASSUMED), profile.evaluation
    try:
        read = origins.checked(profile, pictures=False) if _here(profile.data, "dataset") else None
    except Missing:  # a plan says so, and a run checks them first
        read = None
    if read:
        records = [*read.train, *read.val]
        pairs = sum(len(of) for record in records for _, of in record.sets().values())
        sizes = {"train": len(read.train), "records": len(records), "pairs": pairs,
                 "pictures": len(features.pictures(read))}
        asked = Counter(q.set for q in evaluate.questions(read, settings.train_records))
    else:
        train = min(ASSUMED["train"], 6 * (settings.train_records or ASSUMED["train"]))
        of = ASSUMED["records"] - ASSUMED["train"] + train
        asked = Counter({kind: of * count for kind, count in PER_RECORD.items()})
    asked["harmful"] *= 1 + settings.samples
    judged = sum(count for kind, count in asked.items() if profile.judge_of(kind) != "rules")
    return {**sizes, "answers": asked.total(), "judged": judged, "assumed": not read}


def _sizes(profile: Profile, elsewhere: bool) -> dict[str, int]:
    """Bytes of the model's files, a picture's features, an adapter, a checkpoint, a merged model.

    From modules without weights, made by the model's config; none where that is not here.
    elsewhere: an open dtype is then that of a GPU.
    """
    folder, runtime = _here(profile.model), profile.runtime
    if folder is None or not (folder / "config.json").exists():
        return {}
    dtype = torch.bfloat16 if elsewhere and runtime.dtype == "auto" else models.dtype_of(runtime)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype,
                                                        trust_remote_code=False)
        merged = model.num_parameters() * getattr(torch, DTYPE).itemsize
        picture = features.size(model, read_processor(folder, config), 1)
        trained = models.add_lora(model, profile.unlearning).num_parameters(only_trainable=True)
    return {"weights": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
            "picture": picture, "adapter": trained * dtype.itemsize, "merged": merged,
            "checkpoint": trained * CHECKPOINT}


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
    found = runs.read_json(made.folder() / "metrics.json")
    return found | {"benchmark_seconds": specificity.SECONDS}, (
        f"Measured on {measurement.gpu() or 'this CPU'}. Hours are at most these: each run is "
        "taken to be as dear as the dearest loss, with PD.")


def _unmeasurable(profile: Profile) -> str:
    """Why nothing can be measured here, if so."""
    model, why = _here(profile.model), ""
    if measurement.gpu() is None:
        why = f"there is no GPU. --gpu NAME says what docs/full-scale.md knows of {_names()}"
    elif _here(profile.data, "dataset") is None:
        why = "they are measured on the data. --data gives their folder"
    elif model is None or model_check.check(model):
        why = f"{profile.model} has not been downloaded yet"
    return why and f"Hours cannot be told here: {why}."


def known(gpu: str) -> str:
    """What docs/full-scale.md expects of a GPU. ValueError, with the known names, if nothing."""
    found = {_plain(key): row for key, *row in _rows()}.get(_plain(gpu))
    if found is None:
        raise ValueError(f"docs/full-scale.md knows no GPU {gpu!r}; known: {_names()}. For another "
                         "one name the known one that is nearest in memory and speed.")
    name, room, seven, thirteen = found
    return (f"Hours cannot be measured here for another machine's {name} ({room} GiB). "
            f"Those of docs/full-scale.md, from data sheets: {seven} (llava-7b), {thirteen} "
            "(llava-13b).")


def _rows() -> list[tuple[str, ...]]:
    """(key, name, GiB, hours of llava-7b, hours of llava-13b) of each GPU that is known."""
    return ROW.findall(TABLE.read_text(encoding="utf-8"))


def _names() -> str:
    return ", ".join(key for key, *_ in _rows())


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower()).removesuffix("gb")
