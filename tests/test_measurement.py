"""`lib/scale/measurement.py`: the real path, for a tiny model on a CPU."""

from dataclasses import replace

import pytest

from lib.base import runs
from lib.model import generate
from lib.running import experiments
from lib.scale import measurement
from lib.scale.measurement import QUESTIONS, STEPS
from lib.unlearning import train


@pytest.fixture
def calls(monkeypatch):
    """What is made meanwhile: the losses' weights of each step, and how many are asked at once."""
    steps, asked = [], []
    collect, answer = train._Run.collect, generate.answer

    def counted(run, *details):
        steps.append(dict(run.task.row))
        return collect(run, *details)

    def said(*details, queries, settings):
        asked.append(len(queries))
        return answer(*details, queries, settings)

    monkeypatch.setattr(train._Run, "collect", counted)
    monkeypatch.setattr(generate, "answer", said)
    return steps, asked


@pytest.fixture
def short(tiny_real, tmp_path, monkeypatch):
    monkeypatch.setenv("SAFEERASER_RUNS", str(tmp_path))
    return replace(tiny_real, evaluation=replace(tiny_real.evaluation, batch=None))


def test_steps_and_answers_are_timed_after_one_that_is_not_and_only_once(short, calls):
    steps, asked = calls
    folder = measurement.measurement(short).make()
    found = runs.read_json(folder / "metrics.json")
    assert {name.rpartition("_")[0] for name in found} == {"tower", "training", "answering"}
    assert all(value > 0 for value in found.values())
    assert len(steps) == STEPS + 1
    assert asked == [1, QUESTIONS]
    assert measurement.measurement(short).make() == folder
    assert len(steps) == STEPS + 1
    assert [path.name for path in folder.parent.glob("*-*")] == [folder.name], "nothing is left"


def test_the_dearest_loss_has_pd_and_asks_the_original_model(short, calls):
    measurement.measurement(short).make()
    (row,) = {tuple(row) for row in calls[0]}
    assert set(row) == {"forget", "kl", "prompt_decouple"}


@pytest.mark.parametrize("batch", [4, 40])
def test_the_questions_fill_a_run_s_batch(short, calls, batch):
    filled = replace(short, evaluation=replace(short.evaluation, batch=batch))
    measurement.measurement(filled).make()
    assert calls[1] == [1, max(batch, QUESTIONS)]


def test_another_gpu_setting_or_model_is_measured_anew(short, official, monkeypatch):
    runtime = replace(short.runtime, micro_batch=1)
    names = {measurement.measurement(profile).folder().name for profile in (
        short, replace(short, runtime=runtime), replace(short, model=str(official[0])),
        replace(short, data=str(official[1])), replace(short, official_quirks=True))}
    monkeypatch.setattr(measurement, "gpu", lambda: "another")
    assert len(names | {measurement.measurement(short).folder().name}) == 6


def test_what_is_measured_stands_among_no_runs(short):
    folders = {step.id for step in experiments.steps(short, ["00", "04"], 1)}
    assert measurement.measurement(short).folder().name not in folders
