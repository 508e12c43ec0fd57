"""What is there before any unlearning: the dataset, the original model, its tower's features.

A profile with a model of our own writes IconWorld and trains the small LLaVA; a real one checks the
dataset folder that it is given, takes the released model, and keeps its tower's features on disk.
"""

import gc
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from lib.base import runs
from lib.base.extras import scale
from lib.base.missing import Missing
from lib.base.paths import profile_dir
from lib.data import dataset as datasets
from lib.data import report as dataset_report
from lib.data.check import MARKS
from lib.data.problems import LIST, keep, left_out, write_list
from lib.model import check as model_check
from lib.model import llava as models
from lib.model import pretrain
from lib.model.packing import Features
from lib.running.profiles import Profile, data_of
from lib.running.results import Report, Result
from lib.world import iconworld

BASE_THREADS = 2  # whatever the machine has: the number of threads is part of the arithmetic
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


# The dataset.


def dataset(profile: Profile) -> Result:
    """IconWorld, written; or the report on the folder that the profile names, after its check."""
    facts = {"part": "dataset"}
    if profile.real:
        config = {**scale("sources").identity(data_of(profile), "dataset"),
                  **({"leave_out": True} if profile.leave_out else {}),
                  **({"marks": marks} if (marks := _marks(profile.model)) else {})}
        return Result(profile, "dataset", config, partial(_check_dataset, profile), facts=facts)
    return Result(profile, "dataset", {"world": asdict(profile.world)},
                  partial(_write_dataset, profile), facts=facts)


def _write_dataset(profile: Profile, folder: Path, report: Report) -> dict:
    read = datasets.read(iconworld.write(profile.world, folder / "iconworld"))
    return {"train": len(read.train), "val": len(read.val)}


def _check_dataset(profile: Profile, folder: Path, report: Report) -> dict:
    read = checked(profile)
    keep(read.left_out, folder)
    if read.left_out:
        print(f"\n{dataset_report.said(read)}", flush=True)
    runs.write_csv(folder / "report.csv", dataset_report.report(read))
    (folder / "report.txt").write_text(f"{dataset_report.text(read)}\n", encoding="utf-8")
    return {"train": len(read.train), "val": len(read.val), **dataset_report.spellings(read),
            "data": str(read.root)}


def checked(profile: Profile, pictures: bool = True) -> datasets.Dataset:
    """The real profile's dataset as its folder is now. Raises Missing, with all that is wrong."""
    try:
        return datasets.read(scale("sources").folder(data_of(profile), "dataset"), pictures,
                             profile.leave_out, marks=_marks(profile.model))
    except datasets.DatasetError as error:
        place = write_list(error.problems, profile_dir(profile.name) / LIST, error.root)
        raise Missing(f"{error}\n{place}") from error


@cache
def _marks(model: str) -> list[str]:
    """What a model reads as more than text, beside what every dataset is searched for."""
    found = model_check.marks(Path(model)) if Path(model).is_dir() else ()
    return sorted(mark for mark in found if not MARKS.search(mark))


def read_dataset(profile: Profile) -> datasets.Dataset:
    """The profile's dataset; written or checked first if that has not been done."""
    folder = dataset(profile).make()
    if profile.real:
        return _read(scale("sources").folder(data_of(profile), "dataset"), folder, False)
    return _read(folder / "iconworld", folder, True)


@cache
def _read(folder: Path, made: Path, pictures: bool) -> datasets.Dataset:
    """Checks a thousand pictures once per process: what is in the store does not change."""
    known = left_out(made)
    return datasets.read(folder, pictures, leave_out=bool(known), known=known)


# The model from which is unlearned.


def base(profile: Profile) -> Result:
    """The small LLaVA, from nothing."""
    config = {"world": asdict(profile.world), "seed": profile.pretraining.seed,
              "architecture": asdict(profile.architecture),
              "pretraining": asdict(profile.pretraining)}
    return Result(profile, "base", config, partial(_pretrain, profile),
                  facts={"part": "small LLaVA, from nothing"})


def _pretrain(profile: Profile, folder: Path, report: Report) -> dict:
    torch.set_num_threads(BASE_THREADS)
    model, processor, log = pretrain.train(profile.world, profile.architecture,
                                           profile.pretraining, report)
    models.save(model, processor, folder / "model")
    runs.write_jsonl(folder / "log.jsonl", log)
    return {"parameters": sum(p.numel() for p in model.parameters())}


def load(profile: Profile) -> tuple:
    """(model, processor): the original, before any unlearning."""
    gc.collect()  # two of these may not fit into a GPU, and models are freed late
    if profile.real:
        return models.load(scale("sources").folder(profile.model), profile.runtime)
    return models.load(base(profile).done() / "model")


def identity(profile: Profile) -> dict:
    """What determines the original model, for a config."""
    if not profile.real:
        return {"base": base(profile).folder().name}
    dtype = str(models.dtype_of(profile.runtime)).removeprefix("torch.")
    return {**scale("sources").identity(profile.model), "dtype": dtype,
            "four_bit": profile.runtime.four_bit}


def tower(profile: Profile) -> Result:
    """The vision tower's features of all pictures, for a profile that keeps them on disk."""
    data = dataset(profile)
    config = {**identity(profile), "dataset": data.folder().name}
    return Result(profile, "tower", config, partial(_write_features, profile), (data,),
                  {"part": "vision tower's features"})


def _write_features(profile: Profile, folder: Path, report: Report) -> dict:
    features, (model, processor) = scale("features"), load(profile)
    read = read_dataset(profile)
    images = features.pictures(read)
    features.write(folder / features.FILE, model, processor, images, read.root, report=report)
    return {"pictures": len(images)}


def tower_features(profile: Profile, model, processor):
    """Pictures' features: from the disk, or computed and kept in memory."""
    if profile.runtime.stored_features:
        stored = scale("features")
        return stored.StoredFeatures(tower(profile).done() / stored.FILE,
                                     read_dataset(profile).root, Features(model, processor))
    return Features(model, processor) if profile.real else _shared(base(profile).folder())


@cache
def _shared(base_folder: Path) -> Features:
    """The tower never changes, so one worker's runs share its features."""
    return Features(*models.load(base_folder / "model"))


def needs(profile: Profile) -> tuple[Result, ...]:
    """What every answer is made from."""
    own = () if profile.real else (base(profile),)
    stored = (tower(profile),) if profile.runtime.stored_features else ()
    return (dataset(profile), *own, *stored)
