"""The local engine: `lib/running/engines.py`."""

import multiprocessing
import os
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from lib.base.paths import ROOT
from lib.base.runs import read_json
from lib.running import engines, experiments, workers
from tests import toy_pieces
from tests.killable_steps import PARTS
from tests.test_runs_killed import journal_lines

quiet = [].append


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFEERASER_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def metrics(pieces):
    return [read_json(piece.folder / "metrics.json") for piece in pieces]


def test_each_worker_sees_one_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    pieces = toy_pieces.pieces("gpus", tmp_path / "journal", 0.02)
    workers.make_all(pieces, 8, quiet, gpus=["4", "7"])
    assert {each["gpu"] for each in metrics(pieces)} == {"4", "7"}
    pids = {words[3] for words in journal_lines(tmp_path / "journal") if words[0] == "start"}
    assert len(pids) == 2
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,7"


@pytest.mark.parametrize(("jobs", "found", "device", "slots", "words"), [
    (2, [], "cpu", 2, "2 side by side"),
    (2, [], "auto", 2, "2 side by side"),
    (8, ["0", "1", "2"], "auto", 3, "3 side by side, each on one GPU of 3"),
    (1, ["0", "1", "2"], "cuda", 1, "1 side by side, each on one GPU of 3"),
])
def test_the_local_engine_fills_the_gpus_or_the_cores(jobs, found, device, slots, words):
    engine = engines.local(jobs, found, device)
    assert (engine.slots, engine.summary) == (slots, words)


def test_a_profile_that_needs_a_gpu_is_refused_where_there_is_none():
    with pytest.raises(RuntimeError, match="needs a GPU, and none is to be seen"):
        engines.local(2, [], "cuda")


def test_a_missing_ray_is_answered_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(engines.environment, "extra", lambda name: [f"no-such-{name}>=2"])
    with pytest.raises(ValueError, match=r"no-such-ray is missing here: .* -m pip install"):
        engines.check("ray", None)


def test_what_computes_on_a_gpu_is_given_to_the_engine(tiny_real, runs):
    given = []
    steps = experiments.steps(tiny_real, ["02"], 2, lambda pieces, jobs, report: given.extend(
        piece.folder.name.split("-")[0] for piece in pieces))
    for step in steps[1:]:
        step.make(quiet)
    assert set(given) == {"tower", "labels"}


def test_a_piece_that_fails_stops_no_other_and_is_said_at_the_end(tmp_path):
    pieces = toy_pieces.pieces("others", tmp_path / "journal")
    with pytest.raises(RuntimeError, match="1 of 5 failed, the first of them bad") as stopped:
        workers.make_all([toy_pieces.lone("bad", toy_pieces.fail), *pieces], 2, quiet)
    assert "ValueError: the loss is not a number" in str(stopped.value)
    assert all(piece.is_whole() for piece in pieces)


@pytest.mark.parametrize(("reason", "work", "error"), [
    ("a worker dies", toy_pieces.die, "A worker died, perhaps for want of memory"),
    ("the driver gives up", time.sleep, "stopped by hand")])
def test_whatever_ends_the_work_no_worker_is_left_or_waited_for(tmp_path, reason, work, error):
    def report(text):
        if reason == "the driver gives up" and "step0: part" in text:
            raise RuntimeError("stopped by hand")

    pieces = toy_pieces.pieces("slow", tmp_path / "journal", 5)
    if work is toy_pieces.die:
        pieces[1] = toy_pieces.lone("bad", partial(late, work))
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=error):
        workers.make_all(pieces, 2, report)
    assert time.monotonic() - began < 60, "one piece takes longer"
    assert not multiprocessing.active_children()


def late(work, report):
    """After the other worker began: the pool has to see it die in the midst of things."""
    time.sleep(10)
    work(report)


def test_a_driver_that_is_killed_takes_its_workers_along_and_the_next_goes_on(tmp_path):
    journal = tmp_path / "journal"
    command = [sys.executable, "-m", "tests.toy_pieces", "killed", str(journal), "0.05"]
    driver = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    wait_for(lambda: len(journal_lines(journal)) > 10)
    driver.kill()
    driver.wait()
    pids = [int(words[3]) for words in journal_lines(journal) if words[0] == "start"]
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    pieces = toy_pieces.pieces("killed", journal)
    workers.make_all(pieces, 2, quiet)
    lines = journal_lines(journal)
    assert Counter(words[1] for words in lines if words[0] == "end") == dict.fromkeys(
        toy_pieces.NAMES, 1)
    parts = Counter((words[1], words[2]) for words in lines if words[0] == "part")
    assert len(parts) >= len(pieces) * PARTS - len(pids)  # a kill may come before a line
    assert set(parts.values()) == {1}


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
