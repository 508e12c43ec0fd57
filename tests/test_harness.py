"""Specificity from lmms-eval: called, guarded against its habits, and read back."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lib.base import environment
from lib.base.missing import Missing
from lib.base.paths import ROOT
from lib.scale import harness
from lib.scale.harness import BENCHMARKS, HarnessError

STAND_INS = Path(__file__).parent / "stand_ins"
GQA, POPE, MMVET = BENCHMARKS[0], BENCHMARKS[4], BENCHMARKS[5]


@pytest.fixture
def lmms(tmp_path, monkeypatch):
    """lmms-eval's stand-in; returns a function that says how it behaves, and what it was asked."""
    monkeypatch.setenv("PYTHONPATH", str(STAND_INS))
    monkeypatch.setenv("OPENAI_API_KEY", "a key")
    monkeypatch.setenv("LMMS_CALLS", str(tmp_path / "calls"))
    (tmp_path / "model").mkdir()
    for name in ("config.json", "chat_template.jinja"):
        (tmp_path / "model" / name).touch()
    harness._tried.cache_clear()  # of another test's stand-in
    calls = tmp_path / "calls"

    def behave(**how):
        monkeypatch.setenv("LMMS_STAND_IN", json.dumps(how))
        return calls.read_text().splitlines() if calls.exists() else []

    return behave


def measure(tmp_path, benchmarks=BENCHMARKS, **more):
    return harness.measure(tmp_path / "model", tmp_path / "out", benchmarks, **more)


def test_the_paper_s_seven_benchmarks_become_numbers_from_0_to_1(tmp_path, lmms):
    told = []
    assert measure(tmp_path, report=told.append) == {
        "GQA": 0.62, "VizWiz": 0.54, "ScienceQA": 0.7, "VQA": 0.76, "POPE": 0.86, "MM-Vet": 0.31,
        "MMBench": 0.64}
    assert told[0] == "benchmark 1 of 7: GQA"


def test_a_benchmark_that_failed_costs_no_other_and_is_the_only_one_run_again(tmp_path, lmms):
    lmms(pope="crashes")
    with pytest.raises(HarnessError, match=r"^POPE gave no result .*exited with 1\)") as raised:
        measure(tmp_path)
    log = Path(str(raised.value).rpartition("is in ")[2].rstrip("."))
    assert "CUDA out of memory" in log.read_text()
    assert len(lmms()) == 7
    assert len(measure(tmp_path)) == 7
    assert [call.split()[0] for call in lmms()[7:]] == ["pope"]


FAILURES = [
    ("fails and exits with 0", "GQA gave no result"),
    ("is cut off", "GQA gave no result"),
    ("loses answers", "failed on 3 questions, which lmms-eval counts as wrong"),
    ("loses its judge", "failed on 2 questions, which lmms-eval counts as wrong"),
    ("no number", "holds no exact_match of GQA between 0 and 1"),
]


@pytest.mark.parametrize(("how", "message"), FAILURES)
def test_a_failure_that_lmms_eval_does_not_report_is_noticed(tmp_path, lmms, how, message):
    lmms(gqa=how)
    with pytest.raises(HarnessError, match=message):
        measure(tmp_path, [GQA])


def test_what_was_lost_before_a_kill_is_noticed_after_it(tmp_path, lmms):
    measure(tmp_path, [GQA])
    with (tmp_path / "out" / "gqa" / harness.LOG).open("a") as log:  # killed before it was read
        log.write("Error out of memory in generating\n")
    assert measure(tmp_path, [GQA]) == {"GQA": 0.62}
    assert len(lmms()) == 2


def test_the_hub_s_token_does_not_come_into_the_log(tmp_path, lmms, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    measure(tmp_path, [GQA])
    assert "hf_secret" not in (tmp_path / "out" / "gqa" / harness.LOG).read_text()


def test_lmms_eval_dies_with_who_called_it(tmp_path, lmms):
    calls = lmms(gqa="hangs")
    code = ("import sys; from pathlib import Path; from lib.scale import harness; "
            "harness.measure(Path(sys.argv[1]), Path(sys.argv[2]), harness.BENCHMARKS[:1])")
    caller = subprocess.Popen([sys.executable, "-c", code, tmp_path / "model", tmp_path / "out"],
                              cwd=ROOT)
    wait_for(lambda: len(lmms(gqa="hangs")) > len(calls))
    child = int(lmms(gqa="hangs")[-1].split()[1])
    os.kill(caller.pid, signal.SIGKILL)
    caller.wait()
    wait_for(lambda: not Path(f"/proc/{child}/cmdline").exists()
             or not Path(f"/proc/{child}/cmdline").read_bytes())  # gone, or waiting to be reaped


def wait_for(done, seconds=60):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_without_lmms_eval_the_message_says_how_to_get_it(lmms, monkeypatch):
    monkeypatch.delenv("PYTHONPATH")
    with pytest.raises(Missing, match=r'pip install -e "\.\[lmms\]".*SAFEERASER_LMMS_PYTHON'):
        harness.check()


def test_an_lmms_eval_without_what_its_model_imports_is_told(lmms, monkeypatch):
    monkeypatch.setenv("LMMS_LACKS", "decord")
    with pytest.raises(Missing, match=r"cannot load llava_hf .* No module named 'decord'"):
        harness.check([GQA])


def test_the_oldest_version_that_is_taken_is_the_one_that_the_extra_asks_for():
    assert environment.extra("lmms") == [f"lmms_eval[video-legacy]>={harness.OLDEST}"]


NAMES = [("", []), (" ", []), ("GQA", ["GQA"]), ("pope, gqa", ["GQA", "POPE"]),
         ("all", [each.name for each in BENCHMARKS])]


@pytest.mark.parametrize(("names", "expected"), NAMES)
def test_benchmarks_are_named_in_any_order(names, expected):
    assert [each.name for each in harness.named(names)] == expected


def test_an_unknown_benchmark_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="no benchmark 'MMMU', ''; known: all, GQA, VizWiz"):
        harness.named("MMMU,GQA,")


def test_another_python_may_have_lmms_eval(tmp_path, lmms, monkeypatch):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{STAND_INS}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.delenv("PYTHONPATH")
    monkeypatch.setenv("SAFEERASER_LMMS_PYTHON", str(python))
    assert measure(tmp_path, [GQA]) == {"GQA": 0.62}


def test_benchmarks_with_a_judge_need_its_key_before_anything_runs(tmp_path, lmms, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(Missing, match=r"MM-Vet asks a model .* OPENAI_API_KEY"):
        measure(tmp_path)
    assert lmms() == []
    assert len(measure(tmp_path, [b for b in BENCHMARKS if not b.judged])) == 6


@pytest.mark.parametrize("name", ["a,b", "a=b", "it's", "{x}"])
def test_a_path_that_lmms_eval_would_take_apart_is_refused(tmp_path, name):
    with pytest.raises(HarnessError, match="cannot take the path"):
        harness.command(tmp_path / name, tmp_path, GQA, "bfloat16", "cuda")


def write(folder, content, name="model/2026_results.json"):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize("key", ["pope_accuracy,none", "pope_accuracy", "pope_accuracy,flexible"])
def test_a_metric_is_read_with_any_filter_and_another_program_s_file_is_not(tmp_path, key):
    write(tmp_path, {"results": ["another", "form"]}, "another_results.json")
    assert harness.value(tmp_path, POPE) is None
    write(tmp_path, {"results": {"pope": {"samples": 9, key: 0.0}}})
    assert harness.value(tmp_path, POPE) == 0.0


@pytest.mark.parametrize("number", [1.01, -0.1, float("nan"), "0.8", None])
def test_what_is_no_rate_is_refused(tmp_path, number):
    write(tmp_path, {"results": {"pope": {"pope_accuracy,none": number}}})
    with pytest.raises(HarnessError, match="between 0 and 1"):
        harness.value(tmp_path, POPE)


def test_a_score_of_100_is_1(tmp_path):
    write(tmp_path, {"results": {"mmvet": {"gpt_eval_score,none": 100}}})
    assert harness.value(tmp_path, MMVET) == 1.0
