"""`lib/scale/judge_cache.py`."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lib.base.paths import ROOT
from lib.evaluation.verdicts import Verdict
from lib.scale.judge_cache import Cache, file_name, key


@pytest.fixture
def path(tmp_path):
    return tmp_path / "judges" / "judge.sqlite"


def test_a_verdict_is_there_in_the_next_process(path):
    Cache(path).add((300, 12), "k", Verdict("normal", 0.25))
    Cache(path).add((10, 1), "l", Verdict("refusal"))
    again = Cache(path)
    assert again.verdicts().get("k") == Verdict("normal", 0.25)
    assert repr(again.verdicts().get("l")) == repr(Verdict("refusal"))
    assert again.verdicts().get("m") is None
    assert again.tokens == (310, 13)


def test_what_led_to_no_verdict_is_paid_for_all_the_same(path):
    Cache(path).add((300, 12), "k")
    assert Cache(path).tokens == (300, 12)
    assert Cache(path).verdicts().get("k") is None


@pytest.mark.parametrize("torn", [
    b'{"tokens": [1, 1], "key": "k", "lab', b'{"tokens"', b"\xff\xfe", b"null", b"[]", b'"x"',
    b'{"tokens": [1]}', b'{"tokens": [1e999, 1]}',
    b'{"tokens": [1, 1], "key": "k", "label": "fine", "score": null}',
    b'{"tokens": [1, 1], "key": "k", "label": "normal", "score": 7}',
    b'{"tokens": [1, 1], "key": "k"}'])
def test_a_line_that_was_torn_or_edited_costs_itself_only(path, torn):
    Cache(path).add((1, 1), "a", Verdict("normal"))
    with path.open("ab") as file:
        file.write(torn)  # and no end of line: killed here
    Cache(path).add((1, 1), "b", Verdict("harmful"))
    again = Cache(path)
    assert [again.verdicts().get(name) and again.verdicts().get(name).label for name in "abk"] == [
        "normal", "harmful", None]


def test_a_process_sees_what_another_appends(path):
    one, other = Cache(path), Cache(path)
    one.add((1, 2), "k", Verdict("normal"))
    other.refresh()
    assert other.verdicts().get("k").label == "normal"
    assert other.tokens == (1, 2)


WRITES = """
import sys
from pathlib import Path
from lib.scale.judge_cache import Cache
from lib.evaluation.verdicts import Verdict
cache = Cache(Path(sys.argv[1]))
for n in range(500):
    cache.add((1, 1), f"{sys.argv[2]} {n} " + "x" * (37 * n % 900), Verdict("normal"))
"""


def test_processes_that_write_at_once_lose_nothing(path):
    writers = [subprocess.Popen([sys.executable, "-c", WRITES, str(path), name], cwd=ROOT)
               for name in "abc"]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    again = Cache(path)
    assert again.tokens == (1500, 1500)
    assert all(again.verdicts().get(f"{name} {n} " + "x" * (37 * n % 900))
               for name in "abc" for n in range(500))


def test_the_key_changes_with_every_part_and_is_a_hash():
    assert len({key("a", "b"), key("ab", ""), key("a", ["b"]), key("a"), key({"a": "b"})}) == 5
    assert key({"a": 1, "b": 2}) == key({"b": 2, "a": 1})
    assert len(key("a")) == 64


@pytest.mark.parametrize("name", ["server:../../etc/passwd", "local:/models/a b", "server:" + "x" *
                                  500, "local:~/..", "server:Ω"])
def test_a_judge_s_file_stays_in_its_folder_whatever_its_name(name, tmp_path):
    assert (tmp_path / file_name(name)).parent == tmp_path
    assert len(file_name(name)) < 100
    (tmp_path / file_name(name)).touch()
    assert file_name(name) != file_name(name + "x")


def test_a_full_disk_is_said_with_the_file():
    full = Path("/dev/full")  # takes no byte, on Linux
    if not full.exists():
        pytest.skip("there is no /dev/full here")
    with pytest.raises(OSError, match=r"/dev/full could not be written .*make room") as error:
        Cache(full).add((1, 1), "key", Verdict("normal"))
    assert error.value.errno == errno.ENOSPC


def test_what_was_paid_for_is_on_the_disk_before_it_is_counted(tmp_path, monkeypatch):
    flushed, sync = [], os.fsync
    cache = Cache(tmp_path / "judge.sqlite")
    monkeypatch.setattr(os, "fsync", lambda handle: (flushed.append(cache.tokens), sync(handle)))
    cache.add((10, 2))
    assert (flushed, cache.tokens) == ([(0, 0)], (10, 2))
