"""`lib/scale/judge_cache.py`."""

import sqlite3
import subprocess
import sys
from unittest import mock

import pytest

from lib.base.paths import ROOT
from lib.evaluation.verdicts import JudgeStopped, Verdict
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


def test_what_an_earlier_form_kept_is_not_lost_without_a_word(path):
    path.parent.mkdir()
    path.with_suffix(".jsonl").write_text('{"tokens": [300, 12], "key": "a", "label": "normal"}')
    with pytest.raises(JudgeStopped, match=r"judge\.jsonl holds verdicts .* move it away"):
        Cache(path)
    assert not path.exists()


def test_a_process_sees_what_another_appends(path):
    one, other = Cache(path), Cache(path)
    one.add((1, 2), "k", Verdict("normal"))
    assert other.verdicts().get("k").label == "normal"
    assert other.tokens == (1, 2)


WRITES = """
import sys
from pathlib import Path
from lib.scale.judge_cache import Cache
from lib.evaluation.verdicts import Verdict
cache = Cache(Path(sys.argv[1]))
for n in range(60):
    cache.add((1, 1), f"{sys.argv[2]} {n} " + "x" * (37 * n % 900), Verdict("normal"))
"""


def test_processes_that_write_at_once_lose_nothing(path):
    writers = [subprocess.Popen([sys.executable, "-c", WRITES, str(path), name], cwd=ROOT)
               for name in "abc"]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    again = Cache(path)
    assert again.tokens == (180, 180)
    assert all(again.verdicts().get(f"{name} {n} " + "x" * (37 * n % 900))
               for name in "abc" for n in range(60))


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


def test_a_disk_that_is_full_is_said_with_the_file_and_nothing_is_half_written(path):
    one = Cache(path)
    with one._open() as file:
        pages, = file.execute("PRAGMA page_count").fetchone()
    connect = sqlite3.connect

    def small(*place, **how):
        file = connect(*place, **how)
        file.execute(f"PRAGMA max_page_count = {pages}")
        return file

    with mock.patch("sqlite3.connect", small), \
            pytest.raises(JudgeStopped, match=r"judge\.sqlite could not .* full.*make room"):
        one.add((1, 1), "k" * 5000, Verdict("normal"))
    assert one.tokens == (0, 0)
    assert one.verdicts() == {}


def test_a_file_that_is_none_of_ours_is_said(path):
    path.parent.mkdir()
    path.write_text("Something else." * 100)
    with pytest.raises(JudgeStopped, match="not a database"):
        Cache(path)


def test_what_was_paid_for_is_flushed_to_the_disk(path):
    with Cache(path)._open() as file:
        assert file.execute("PRAGMA synchronous").fetchone() == (2,)  # before a commit returns
