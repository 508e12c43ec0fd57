"""What is there before any unlearning: the dataset, the original model, its tower's features.

A profile with a model of our own writes IconWorld and trains the small LLaVA; a real one checks the
dataset folder that it is given, takes the released model, and keeps its tower's features on disk.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from lib import dataset as datasets
from lib import dataset_report, features, iconworld, memory, model_check, pretrain, runs, sources
from lib import model as models
from lib.batching import Features
from lib.dataset_check import MARKS
from lib.dataset_problems import LIST, keep, left_out, write_list
from lib.features import StoredFeatures
from lib.missing import Missing
from lib.paths import private, profile_dir
from lib.profiles import Profile, data_of

RECIPE = 3  # to be raised when code changes what a run's numbers are
BASE_THREADS = 2  # whatever the machine has: the number of threads is part of the arithmetic
Report = Callable[[str], None]
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


@dataclass(frozen=True)
class Made:
    """A result in the profile's store, and how it is built; `needs` have to be there first."""

    profile: Profile
    step: str
    config: dict
    build: Callable[[Path], dict | None]
    needs: tuple[Made, ...] = ()

    def folder(self) -> Path:
        """Where it is, or will be."""
        return self._store().folder(self.step, self.config)

    def is_done(self) -> bool:
        """Whether it is there, every file as it was written."""
        return self._store().is_done(self.step, self.config)

    def make(self) -> Path:
        """Its folder, after building what is missing. Raises memory.OutOfMemory with advice."""
        if self.profile.real:  # what models say there may be harmful
            private(profile_dir(self.profile.name))
        with memory.advised(self.profile, f"making {self.step}"):
            return self._store().make(self.step, self.config, self.build)

    def done(self) -> Path:
        """Its folder. Raises Missing, with what to run, if it is not there."""
        if not self.folder().exists():
            raise Missing(
                f"{self.folder()} is not there yet: run ./reproduce.sh --profile "
                f"{self.profile.name}, which makes all that the notebooks read.")
        return self.folder()

    def forget(self) -> None:
        """Remove it, if it is there, so that `make` makes it again."""
        self._store().remove(self.step, self.config)

    def _store(self) -> runs.Store:
        return runs.Store(profile_dir(self.profile.name))


def quiet(text: str) -> None:
    """Reports nothing."""


# The dataset.


def dataset(profile: Profile, report: Report = quiet) -> Made:
    """IconWorld, written; or the report on the folder that the profile names, after its check."""
    if profile.real:
        config = {"recipe": RECIPE, **sources.identity(data_of(profile), "dataset"),
                  **({"leave_out": True} if profile.leave_out else {}),
                  **({"marks": marks} if (marks := _marks(profile.model)) else {})}
        return Made(profile, "dataset", config, partial(_check_dataset, profile))
    config = {"recipe": RECIPE, "world": asdict(profile.world)}

    def build(partial_folder: Path) -> dict:
        folder = iconworld.write(profile.world, partial_folder / "iconworld")
        read = datasets.read(folder)
        return {"train": len(read.train), "val": len(read.val)}

    return Made(profile, "dataset", config, build)


def _check_dataset(profile: Profile, folder: Path) -> dict:
    read = checked(profile)
    keep(read.left_out, folder)
    if read.left_out:
        print(f"\n{dataset_report.said(read)}", flush=True)
    dataset_report.report(read).to_csv(folder / "report.csv")
    (folder / "report.txt").write_text(f"{dataset_report.text(read)}\n", encoding="utf-8")
    return {"train": len(read.train), "val": len(read.val), **dataset_report.spellings(read),
            "data": str(read.root)}  # where `leaks` finds what must not be published


def checked(profile: Profile, pictures: bool = True) -> datasets.Dataset:
    """The real profile's dataset as its folder is now. Raises Missing, with all that is wrong."""
    try:
        return datasets.read(sources.folder(data_of(profile), "dataset"), pictures,
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
        return _read(sources.folder(data_of(profile), "dataset"), folder, False)
    return _read(folder / "iconworld", folder, True)


@cache
def _read(folder: Path, made: Path, pictures: bool) -> datasets.Dataset:
    """Checks a thousand pictures once per process: what is in the store does not change."""
    known = left_out(made)
    return datasets.read(folder, pictures, leave_out=bool(known), known=known)


# The model from which is unlearned.


def base(profile: Profile, report: Report = quiet) -> Made:
    """The small LLaVA, from nothing."""
    config = {"recipe": RECIPE, "world": asdict(profile.world), "seed": profile.pretraining.seed,
              "architecture": asdict(profile.architecture),
              "pretraining": asdict(profile.pretraining)}

    def build(folder: Path) -> dict:
        torch.set_num_threads(BASE_THREADS)
        model, processor, log = pretrain.train(profile, report)
        models.save(model, processor, folder / "model")
        runs.write_jsonl(folder / "log.jsonl", log)
        return {"parameters": sum(p.numel() for p in model.parameters())}

    return Made(profile, "base", config, build)


def load(profile: Profile) -> tuple:
    """(model, processor): the original, before any unlearning."""
    gc.collect()  # two of these may not fit into a GPU, and models are freed late
    if profile.real:
        return models.load(profile.model, profile.runtime)
    return models.load(base(profile).done() / "model")


def identity(profile: Profile) -> dict:
    """What determines the original model, for a config."""
    if not profile.real:
        return {"base": base(profile).folder().name}
    return {**sources.identity(profile.model), "dtype": profile.runtime.dtype,
            "four_bit": profile.runtime.four_bit}


def tower(profile: Profile, report: Report = quiet) -> Made:
    """The vision tower's features of all pictures, for a profile that keeps them on disk."""
    data = dataset(profile)
    config = {**identity(profile), "dataset": data.folder().name, "recipe": RECIPE}

    def build(folder: Path) -> dict:
        model, processor = load(profile)
        read = read_dataset(profile)
        images = features.pictures(read)
        features.write(folder / features.FILE, model, processor, images, read.root, report=report)
        return {"pictures": len(images)}

    return Made(profile, "tower", config, build, (data,))


def tower_features(profile: Profile, model, processor) -> Features | StoredFeatures:
    """Pictures' features: from the disk, or computed and kept in memory."""
    if profile.runtime.stored_features:
        return StoredFeatures(tower(profile).done() / features.FILE, read_dataset(profile).root,
                              Features(model, processor))
    return Features(model, processor) if profile.real else _shared(base(profile).folder())


@cache
def _shared(base_folder: Path) -> Features:
    """The tower never changes, so one worker's runs share its features."""
    return Features(*models.load(base_folder / "model"))


def needs(profile: Profile) -> tuple[Made, ...]:
    """What every answer is made from."""
    own = () if profile.real else (base(profile),)
    stored = (tower(profile),) if profile.runtime.stored_features else ()
    return (dataset(profile), *own, *stored)
