"""A world and a small trained LLaVA that the tests share: made once, in a few seconds."""

from dataclasses import replace

import pytest

from lib.profiles import LLAVA_7B, SMOKE, Architecture, Profile, World

TINY = replace(
    SMOKE,
    name="tiny",
    seeds=(1,),
    world=World(train_per_category=2, val_per_category=1, specificity_pictures=4),
    architecture=Architecture(patch_size=32, hidden=32, tower_layers=2, language_layers=2,
                              heads=2, intermediate=64),
    pretraining=replace(SMOKE.pretraining, pictures=168, contrastive_steps=30, language_steps=40,
                        alignment_steps=20, instruction_steps=160, batch=8, lr=5e-3),
    unlearning=replace(SMOKE.unlearning, steps=6, images=2, probe_every=3, checkpoint_every=2),
    evaluation=replace(SMOKE.evaluation, train_records=1, samples=2, batch=16),
)

# The llava-7b profile with less of everything, for the tiny model of tests/tiny_llava.py.
TINY_REAL = replace(
    LLAVA_7B,
    name="tiny-real",
    seeds=(1,),
    sweep_weights=(0.3,),
    unlearning=replace(LLAVA_7B.unlearning, epochs=1, images=2, queries=2, lora_rank=4,
                       lora_alpha=8, lr=1e-2, probe_every=2, checkpoint_every=1),
    evaluation=replace(LLAVA_7B.evaluation, train_records=None, max_new_tokens=4, batch=16,
                       samples=1),
)


def pytest_configure(config):
    """PEFT's own use of a name that transformers will drop is nothing that the tests could fix."""
    config.addinivalue_line("filterwarnings", "ignore:.*is_gradient_checkpointing")


@pytest.fixture(scope="session")
def tiny() -> Profile:
    """A profile far below `smoke`: its model knows the words of answers, and sees little."""
    return TINY


@pytest.fixture(scope="session")
def tiny_runs(tiny, tmp_path_factory):
    """A runs folder in which the tiny profile's dataset, base model and original answers are."""
    import torch  # here, so that tests without a model do not wait for it

    from lib import experiments, origins

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
    """The llava-7b profile's path for a tiny model with 16 image tokens and six train records."""
    from tests import tiny_llava

    folder = tmp_path_factory.mktemp("given")
    return replace(TINY_REAL, model=str(tiny_llava.write_model(folder / "model", image_size=56)),
                   data=str(tiny_llava.write_dataset(folder / "data")))


@pytest.fixture
def in_tiny_runs(tiny_runs, monkeypatch):
    """`experiments` reads the tiny profile's results."""
    monkeypatch.setenv("SAFEERASER_RUNS", str(tiny_runs))
    return tiny_runs


@pytest.fixture(scope="session")
def world(tiny_runs, tiny):
    """The tiny profile's dataset, as `lib.dataset` reads it."""
    from lib import dataset

    return dataset.read(next((tiny_runs / tiny.name).glob("dataset-*")) / "iconworld")


@pytest.fixture(scope="session")
def base_folder(tiny_runs, tiny):
    """Where the trained tiny model is."""
    return next((tiny_runs / tiny.name).glob("base-*")) / "model"


@pytest.fixture
def llava(base_folder):
    """(model, processor), trained a little; a fresh copy for every test."""
    from lib import model

    return model.load(base_folder)
