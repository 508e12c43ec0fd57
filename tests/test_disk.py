"""Flushes and locks, and file systems that lack them: `lib/base/disk.py`."""

import errno
import fcntl
import os
import subprocess
import sys

import pytest

from lib.base import disk
from lib.base.paths import ROOT
from lib.base.runs import Store, write_json

HOLDER = """
import sys, time
from pathlib import Path
from lib.base import disk
with disk.locked(Path(sys.argv[1]), shared="shared" in sys.argv):
    print("mine", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A function that starts a process which holds the lock, until it is killed."""
    started = []

    def start(*how):
        command = [sys.executable, "-c", HOLDER, str(tmp_path / "locks" / "it"), *how]
        started.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True,
                                        env={**os.environ, "PYTHONPATH": str(ROOT)}))
        assert started[-1].stdout.readline() == "mine\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def no_locks(monkeypatch, request):
    """As on a file system without locks."""
    def refuse(*arguments):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)


WITHOUT = pytest.mark.parametrize("no_locks", [errno.ENOLCK, errno.ENOSYS], indirect=True)


@pytest.mark.parametrize(("first", "second", "had"), [
    ((), False, False), ((), True, False), (("shared",), False, False), (("shared",), True, True)])
def test_a_lock_is_one_processs_or_the_readers(tmp_path, holder, first, second, had):
    process = holder(*first)
    with disk.locked(tmp_path / "locks" / "it", wait=False, shared=second) as mine:
        assert mine is had
    process.kill()
    process.wait()
    with disk.locked(tmp_path / "locks" / "it", wait=False) as mine:
        assert mine is True


@WITHOUT
def test_without_locks_a_result_is_made_and_nothing_is_left_of_the_marker(tmp_path, no_locks):
    folder = Store(tmp_path).make("step", {}, lambda partial: {"asr": 0.5})
    assert Store(tmp_path).is_done("step", {})
    assert [path.name for path in (tmp_path / ".locks").iterdir()] == [folder.name]


@WITHOUT
def test_without_locks_a_marker_keeps_the_others_out(tmp_path, no_locks):
    with disk.locked(tmp_path / "it") as first, disk.locked(tmp_path / "it", wait=False) as second:
        assert (first, second) == (True, False)
    with disk.locked(tmp_path / "it", wait=False) as third:
        assert third is True


@WITHOUT
def test_without_locks_a_killed_process_keeps_nobody_out(tmp_path, no_locks):
    child = os.fork()
    if child == 0:
        with disk.locked(tmp_path / "it"):
            os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    with disk.locked(tmp_path / "it") as mine:
        assert mine is True


@pytest.mark.parametrize("lacking", [errno.EINVAL, errno.ENOSYS])
def test_a_folder_that_cannot_be_flushed_loses_no_work(tmp_path, monkeypatch, lacking):
    sync = os.fsync

    def files_only(handle):
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(lacking, os.strerror(lacking))
        sync(handle)

    monkeypatch.setattr(os, "fsync", files_only)
    Store(tmp_path).make("step", {}, lambda partial: write_json(partial / "deep" / "x.json", [1]))
    assert Store(tmp_path).is_done("step", {})


def test_a_disk_that_fails_is_an_error(tmp_path, monkeypatch):
    def fail(handle):
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="the disk is broken"):
        disk.flush_all(tmp_path)


def test_results_are_cleared_but_for_what_is_kept_and_the_locks(tmp_path):
    store, elsewhere = tmp_path / "link", tmp_path / "elsewhere"
    elsewhere.mkdir()
    store.symlink_to(elsewhere)
    (tmp_path / "precious").mkdir()
    (store / "figures").symlink_to(tmp_path / "precious")
    Store(store).make("step", {}, lambda partial: None)
    write_json(store / "judges" / "verdicts.json", ["paid for"])
    (store / "table.csv").touch()
    disk.clear(store, keep=["judges"])
    assert sorted(path.name for path in store.iterdir()) == [".locks", "judges"]
    assert (store / "judges" / "verdicts.json").exists()
    assert (tmp_path / "precious").exists()
    assert store.is_symlink()


@pytest.mark.parametrize("work", [
    disk.at_work, lambda root: disk.locked(root / ".locks" / "step-0123456789ab")],
    ids=["a command", "a step"])
def test_nothing_is_cleared_while_another_is_at_work(tmp_path, work):
    (tmp_path / "result").touch()
    with work(tmp_path), pytest.raises(disk.BusyError, match="another process is at work in"):
        disk.clear(tmp_path)
    assert (tmp_path / "result").exists()
    disk.clear(tmp_path)
    assert not (tmp_path / "result").exists()
