"""Specificity of a released model, from benchmark to table: lmms-eval has its stand-in here."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from lib.base.missing import Missing
from lib.base.paths import ROOT
from lib.base.runs import read_json
from lib.running import experiments
from lib.running.experiments import Run
from lib.scale import harness, specificity
from lib.scale.harness import HarnessError
from lib.unlearning.methods import METHODS
from tests.tiny_profiles import TINY_REAL

MODELS = 1 + 2 * len(METHODS)  # the original, and every method without and with PD

STAND_INS = ROOT / "tests" / "stand_ins"
MEAN = (0.62 + 0.86) / 2  # of what the stand-in says of GQA and POPE


@pytest.fixture
def asking(tiny_real, tmp_path, monkeypatch):
    """The tiny real profile with two benchmarks, and a runs folder of its own."""
    monkeypatch.setenv("SAFEERASER_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("PYTHONPATH", str(STAND_INS))
    monkeypatch.setenv("LMMS_CALLS", str(tmp_path / "calls"))
    harness._tried.cache_clear()  # of a test without the stand-in
    return replace(tiny_real, benchmarks="pope,GQA")


def calls(folder):
    path = Path(folder, "calls")
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def test_a_model_is_measured_once_and_nothing_of_it_but_numbers_stays(asking, tmp_path):
    told = []
    made = specificity.measured(asking, None)
    assert made.config["benchmarks"] == ["GQA", "POPE"]
    assert made.config["lmms_eval"] == "0.7.3"
    folder = made.make(told.append)
    assert read_json(folder / "metrics.json") == {"GQA": 0.62, "POPE": 0.86}
    assert list(folder.rglob("*.safetensors")) == []
    assert [call[0] for call in calls(tmp_path)] == ["gqa", "pope"]
    assert {tuple(call[3:]) for call in calls(tmp_path)} == {("float32", "cpu")}
    assert specificity.measured(replace(asking, benchmarks="GQA,POPE"), None).make() == folder
    assert len(calls(tmp_path)) == 2
    assert told == ["merges the adapter", "benchmark 1 of 2: GQA", "benchmark 2 of 2: POPE"]


def test_a_model_in_bfloat16_is_measured_in_float32(asking, tmp_path):
    runtime = replace(asking.runtime, dtype="bfloat16")
    specificity.measured(replace(asking, runtime=runtime, benchmarks="pope"), None).make()
    assert [tuple(call[3:]) for call in calls(tmp_path)] == [("float32", "cpu")]


def test_a_failed_benchmark_is_the_only_one_that_is_run_again(asking, tmp_path, monkeypatch):
    made = specificity.measured(asking, None)
    monkeypatch.setenv("LMMS_STAND_IN", json.dumps({"gqa": "crashes"}))
    with pytest.raises(HarnessError, match="GQA gave no result"):
        made.make()
    assert list((tmp_path / "runs").rglob("*.safetensors")) == []
    monkeypatch.delenv("LMMS_STAND_IN")
    made.make()
    assert [call[0] for call in calls(tmp_path)] == ["gqa", "pope", "gqa"]


def test_a_machine_with_another_lmms_eval_is_told_so(asking, tmp_path):
    with pytest.raises(HarnessError, match=r"lmms-eval is 0\.7\.3 here, and 0\.8 where this was"):
        specificity.measured(asking, None, version="0.8").make()
    assert calls(tmp_path) == []


def planned(profile, *chosen):
    return [step.name for step in experiments.steps(profile, chosen, jobs=1)]


def test_the_chapters_that_show_specificity_need_it(asking, tiny_real):
    for chapter in ("02", "03", "04", "05"):
        assert planned(asking, chapter)[-1] == f"specificity by pope,GQA: {MODELS} runs"
        assert planned(tiny_real, chapter) == [
            name for name in planned(asking, chapter) if "specificity" not in name]
    assert planned(asking, "00", "01") == planned(tiny_real, "00", "01")


REFUSED = [
    ("no lmms-eval", {}, {"PYTHONPATH": ""}, Missing, "needs lmms-eval 0.7.3"),
    ("no key", {"benchmarks": "all"}, {"OPENAI_API_KEY": ""}, Missing, "set OPENAI_API_KEY"),
    ("no such name", {"benchmarks": "MMMU"}, {}, ValueError, "known: all, GQA"),
    ("4 bits", {"runtime": replace(TINY_REAL.runtime, four_bit=True)}, {}, Missing, "4 bits"),
]


@pytest.mark.parametrize(("reason", "change", "environment", "error", "words"), REFUSED)
def test_what_cannot_be_measured_is_said_when_the_plan_is_made(
        asking, monkeypatch, reason, change, environment, error, words):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    harness._tried.cache_clear()
    with pytest.raises(error, match=words):
        planned(replace(asking, **change), "05")


def test_a_run_at_another_weight_of_pd_has_no_benchmarks(asking):
    frame = pd.DataFrame({"metric": ["sarr"]})
    assert specificity.joined(frame, asking, Run("po", True, 1, 0.3)) is frame
    assert specificity.joined(frame, replace(asking, benchmarks=""), None) is frame
    with pytest.raises(Missing, match="is not there yet"):
        specificity.joined(frame, asking, None)


# The whole pipeline, after all runs.


@pytest.fixture(scope="module")
def measured(real_chapters, at_tiny_real, tmp_path_factory):
    """(results, the folder of the calls) of chapters 03 and 05 with two benchmarks."""
    folder = tmp_path_factory.mktemp("measured")
    shutil.copytree(real_chapters[0], folder / "runs" / TINY_REAL.name)
    own = {"SAFEERASER_RUNS": str(folder / "runs"), "LMMS_CALLS": str(folder / "calls"),
           "PYTHONPATH": os.pathsep.join([str(STAND_INS), at_tiny_real["PYTHONPATH"]])}
    command = [sys.executable, "-m", "lib.running.pipeline", "--profile", TINY_REAL.name,
               "--jobs", "2",
               "--only", "03,05", "--benchmarks", "GQA,POPE"]
    call = subprocess.run(command, cwd=ROOT, env={**os.environ, **at_tiny_real, **own},
                          capture_output=True, text=True, timeout=1200)
    assert call.returncode == 0, call.stdout + call.stderr
    return folder / "runs" / TINY_REAL.name, folder


def test_every_model_is_asked_each_benchmark_once(measured):
    asked = calls(measured[1])
    assert sorted(call[0] for call in asked) == ["gqa"] * MODELS + ["pope"] * MODELS
    assert len({call[2] for call in asked}) == MODELS, "each model has weights of its own"


def test_the_main_table_has_specificity_as_the_mean_over_benchmarks(measured):
    table = pd.read_csv(measured[0] / "figures" / "main_table.csv")
    rows = table[table["metric"] == "specificity"]
    assert len(rows) == MODELS
    assert rows.value.tolist() == pytest.approx([MEAN] * MODELS)
    assert set(rows.n) == {2}


def test_chapter_03_draws_specificity(measured):
    drawn = pd.read_csv(measured[0] / "figures" / "specificity.csv")
    rows = drawn[drawn["metric"] == "specificity"]
    assert set(rows.method) == {"vanilla", *METHODS}
    assert rows.value.tolist() == pytest.approx([MEAN] * (1 + len(METHODS)))


def test_the_chapters_claim_something_about_it(measured):
    over_forgetting, table = (read_json(measured[0] / "claims" / f"{name}.json")
                              for name in ("03_over_forgetting", "05_sarr_evaluation"))
    costs = [row["shown"] for row in over_forgetting if "costs specificity" in row["claim"]]
    assert len(costs) == 3
    assert all(text.startswith("specificity 74 % before, 74 % after; ROUGE-L") for text in costs)
    recomputed, = (row for row in table if "recomputation" in row["claim"])
    assert recomputed["holds"], "of what this program answered; the benchmarks are lmms-eval's"
