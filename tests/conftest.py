"""A world and a small trained LLaVA that the tests share: made once, in a few seconds."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from lib.base.paths import ROOT
from lib.running.profiles import Profile
from tests.tiny_profiles import TINY, TINY_REAL


def pytest_configure(config):
    """PEFT's own use of a name that transformers will drop is nothing that the tests could fix."""
    config.addinivalue_line("filterwarnings", "ignore:.*is_gradient_checkpointing")


@pytest.fixture(autouse=True)
def _all_is_as_it_was():
    """What the pipeline hands to its kernels, what is guarded, and a notebook's shell, in which
    figures are shown and closed, are one test's own."""
    with mock.patch.dict(os.environ):
        yield
    if "lib.data.discretion" in sys.modules:
        sys.modules["lib.data.discretion"].guard(None)
    if "IPython" in sys.modules:
        sys.modules["IPython"].InteractiveShell.clear_instance()


@pytest.fixture(scope="session")
def tiny() -> Profile:
    """A profile far below `smoke`: its model knows the words of answers, and sees little."""
    return TINY


@pytest.fixture(scope="session")
def tiny_runs(tiny, tmp_path_factory):
    """A runs folder in which the tiny profile's dataset, base model and original answers are."""
    import torch  # here, so that tests without a model do not wait for it

    from lib.running import experiments, origins

    folder, threads = tmp_path_factory.mktemp("tiny_runs"), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAFEERASER_RUNS", str(folder))
        patch.setattr(origins, "BASE_THREADS", 1)  # more only wait for each other
        for step in experiments.steps(tiny, ["00"], jobs=1):
            step.make(lambda text: None)
    torch.set_num_threads(threads)
    return folder


@pytest.fixture(scope="session")
def official(tmp_path_factory) -> tuple:
    """(model folder, dataset folder) as LLaVA-1.5's and SafeEraser's are, with 576 image tokens."""
    from tests import tiny_llava

    folder = tmp_path_factory.mktemp("official")
    return tiny_llava.write_model(folder / "model"), tiny_llava.write_dataset(folder / "data")


@pytest.fixture(scope="session")
def tiny_real(tmp_path_factory) -> Profile:
    """The llava-7b profile's path for a tiny model with 16 image tokens and six train records.

    Of its eight val records two are train's, as in a public copy of the data.
    """
    from tests import tiny_llava

    folder = tmp_path_factory.mktemp("given")
    return replace(TINY_REAL, model=str(tiny_llava.write_model(folder / "model", image_size=56)),
                   data=str(tiny_llava.write_dataset(folder / "data", released=True)))


@pytest.fixture(scope="session")
def at_tiny_real(tiny_real, tmp_path_factory) -> dict[str, str]:
    """The environment of a process that knows the profile tiny-real, model and data included.

    Such a process is a notebook's kernel, which knows a profile by its name alone.
    """
    places = (ROOT / "tests" / "kernel_start", ROOT, os.environ.get("PYTHONPATH", ""))
    return {"SAFEERASER_RUNS": str(tmp_path_factory.mktemp("real_runs")),
            "SAFEERASER_MODEL": tiny_real.model, "SAFEERASER_DATA": tiny_real.data,
            "PYTHONPATH": os.pathsep.join(str(place) for place in places if str(place)),
            "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def real_runs(tiny_real, at_tiny_real) -> Path:
    """A runs folder in which tiny-real's dataset, tower and original are: those of `real_chapters`,
    if that was first."""
    import torch

    from lib.running import experiments
    from tests.toy_pieces import in_this_process

    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAFEERASER_RUNS", at_tiny_real["SAFEERASER_RUNS"])
        for step in experiments.steps(tiny_real, ["00"], 1, in_this_process):
            if not step.is_done():
                step.make(lambda text: None)
    torch.set_num_threads(threads)
    return Path(at_tiny_real["SAFEERASER_RUNS"])


@pytest.fixture(scope="session")
def real_chapters(at_tiny_real) -> tuple[Path, subprocess.CompletedProcess]:
    """(its results, the call) of the whole pipeline at tiny-real: all runs, all notebooks."""
    call = subprocess.run(
        [sys.executable, "-m", "lib.running.pipeline", "--profile", TINY_REAL.name, "--jobs", "2"],
        cwd=ROOT, env={**os.environ, **at_tiny_real}, capture_output=True, text=True, timeout=1200)
    return Path(at_tiny_real["SAFEERASER_RUNS"], TINY_REAL.name), call


@pytest.fixture
def in_tiny_runs(tiny_runs, monkeypatch):
    """`experiments` reads the tiny profile's results."""
    monkeypatch.setenv("SAFEERASER_RUNS", str(tiny_runs))
    return tiny_runs


@pytest.fixture(scope="session")
def world(tiny_runs, tiny):
    """The tiny profile's dataset, as `lib.data.dataset` reads it."""
    from lib.data import dataset

    return dataset.read(next((tiny_runs / tiny.name).glob("dataset-*")) / "iconworld")


@pytest.fixture(scope="session")
def base_folder(tiny_runs, tiny):
    """Where the trained tiny model is."""
    return next((tiny_runs / tiny.name).glob("base-*")) / "model"


@pytest.fixture
def llava(base_folder):
    """(model, processor), trained a little; a fresh copy for every test."""
    from lib.model import llava as model

    return model.load(base_folder)
