"""The run store under kill -9 and with several processes at once: `lib/base/runs.py`."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest

from lib.base.paths import ROOT
from lib.base.runs import Store, read_json, read_jsonl
from tests.killable_steps import PARTS, STEPS, expected_total

KILLS = 20


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


def python(*arguments, **options):
    return subprocess.Popen([sys.executable, *map(str, arguments)], text=True, cwd=ROOT,
                            env={**os.environ, "PYTHONPATH": str(ROOT)}, **options)


def journal_lines(journal):
    return [line.split() for line in journal.read_text().splitlines()] if journal.exists() else []


def no_files(folder):
    return {}


def test_of_several_processes_that_want_the_same_steps_one_builds_each(tmp_path):
    journal = tmp_path / "journal"
    children = [python("tests/killable_steps.py", tmp_path / "runs", journal, first,
                       stderr=subprocess.PIPE) for first in (0, 0, 3)]
    errors = [child.communicate(timeout=60)[1] for child in children]
    assert [child.returncode for child in children] == [0, 0, 0], errors
    done = Counter(words[1] for words in journal_lines(journal) if words[0] == "end")
    assert done == dict.fromkeys(STEPS, 1)
    assert all(Store(tmp_path / "runs").is_done(name, {"seed": 1}) for name in STEPS)


def test_two_threads_that_want_the_same_step_build_it_once(store):
    built = []

    def slow(folder):
        time.sleep(0.1)
        built.append(folder)

    threads = [threading.Thread(target=store.make, args=("x", {}, slow)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert store.is_done("x", {})


ORPHAN = """
import os, sys, time
from pathlib import Path
from lib.base.runs import Store

def build(folder):
    worker = os.fork()
    if worker == 0:
        time.sleep(60)
        os._exit(0)
    print(worker, flush=True)
    time.sleep(60)

Store(Path(sys.argv[1])).make("x", {}, build)
"""


def test_a_worker_that_outlives_its_killed_parent_does_not_hold_the_lock(store):
    parent = python("-c", ORPHAN, store.root, stdout=subprocess.PIPE)
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    try:
        rerun = threading.Thread(target=store.make, args=("x", {}, no_files), daemon=True)
        rerun.start()
        rerun.join(timeout=5)
        os.kill(worker, 0)  # raises if the worker is gone, and the test with it
        assert store.is_done("x", {})
    finally:
        os.kill(worker, signal.SIGKILL)


class Watcher(threading.Thread):
    """Looks at the store all the time, with eyes of its own, and keeps what must never be."""

    def __init__(self, root):
        super().__init__(daemon=True)
        self.root, self.first_seen, self.wrong, self.looks = root, {}, [], 0
        self.over = threading.Event()

    def run(self):
        while not self.over.wait(0.001):
            self.look()

    def look(self):
        self.looks += 1
        for folder in self.root.glob("step?-????????????"):
            manifest = folder / "manifest.json"
            text = manifest.read_text() if manifest.exists() else '{"files": "no manifest"}'
            if self.first_seen.setdefault(folder.name, text) != text:
                self.wrong.append(f"{folder} was made a second time")
            if json.loads(text)["files"] != fingerprints(folder):
                self.wrong.append(f"{folder} holds {sorted(fingerprints(folder))}")


def fingerprints(folder):
    contents = {path.relative_to(folder).as_posix(): path.read_bytes()
                for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"}
    return {name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in contents.items()}


def kill_somewhere(child, journal, dice):
    """Kill the child while it starts, or when it is some lines and milliseconds further."""
    before, further = len(journal_lines(journal)), dice.randint(0, 6)
    while len(journal_lines(journal)) < before + further and child.poll() is None:
        time.sleep(0.0005)
    time.sleep(dice.uniform(0, 0.01 if further else 0.1))
    child.kill()
    assert child.wait() == -signal.SIGKILL, "it failed, or was done before: give it more parts"


def ended_in_vain(root, journal):
    """Return how often each step was built to its end that has no manifest to show for it."""
    ends = Counter(words[1] for words in journal_lines(journal) if words[0] == "end")
    safe = {path.parent.name.split("-")[0] for path in root.glob("*/manifest.json")}
    return {name: times for name, times in ends.items() if name not in safe}


def test_kill_9_at_random_moments_loses_at_most_the_step_in_hand(tmp_path):
    root, journal, dice = tmp_path / "runs", tmp_path / "journal", random.Random(20_260)
    in_vain, watcher = {}, Watcher(root)
    watcher.start()
    for _ in range(KILLS):
        kill_somewhere(python("tests/killable_steps.py", root, journal, 0), journal, dice)
        in_vain.update(ended_in_vain(root, journal))
    assert python("tests/killable_steps.py", root, journal, 0).wait(timeout=60) == 0
    watcher.over.set()
    watcher.join()

    assert watcher.wrong == []
    assert watcher.looks > 100
    assert_results_are_right(root)
    assert_nothing_was_done_twice(journal_lines(journal), in_vain)
    done = {Store(root).folder(name, {"seed": 1}).name for name in STEPS}
    assert {path.name for path in root.iterdir()} == {".locks", *done}
    assert set(watcher.first_seen) <= done


def assert_results_are_right(root):
    for name in STEPS:
        folder = Store(root).folder(name, {"seed": 1})
        total = expected_total(name)
        assert read_json(folder / "metrics.json") == {"total": total}
        assert read_jsonl(folder / "answers.jsonl") == [{"step": name, "total": total}] * 200
        assert read_json(folder / "manifest.json")["files"] == fingerprints(folder)


def assert_nothing_was_done_twice(lines, in_vain):
    """Every step ended once, but for kills between its end and its manifest; every part once."""
    ends = Counter(words[1] for words in lines if words[0] == "end")
    assert ends == {name: 1 + in_vain.get(name, 0) for name in STEPS}
    parts = Counter((words[1], words[2]) for words in lines if words[0] == "part")
    assert set(parts.values()) == {1}, "a part was done again although its checkpoint was there"
    unwritten = len(STEPS) * PARTS - len(parts)
    assert unwritten <= KILLS, "only a kill between a part's checkpoint and its line loses the line"
    resumed = [words for words in lines if words[0] == "start" and int(words[2]) > 0]
    assert len(resumed) >= 10


@pytest.mark.parametrize(("before", "allowed"), [
    ((), {"absent", "whole"}),
    (("--damaged",), {"absent", "whole", "damaged"}),
])
def test_a_crash_before_any_touch_of_the_disk_is_mended_by_the_next_call(tmp_path, before, allowed):
    child = python("tests/crash_points.py", tmp_path / "runs", *before,
                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    rows = [json.loads(line) for line in child.communicate(timeout=60)[0].splitlines()]
    *crashed, last = rows
    assert (child.returncode, last["status"]) == (0, 0)
    assert len(crashed) > 30
    assert {row["status"] for row in crashed} == {signal.SIGKILL}
    assert {row["crashed"] for row in crashed} == allowed
    assert {(row["again"], row["end"], *row["others"]) for row in rows} == {(0, "whole")}
