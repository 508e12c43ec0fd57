"""A journal loses at most the line in hand."""

import pytest

from lib.base.journal import Journal

SAID = {"greedy 0 harmful train/x 0": "First,\nheat it.",
        "greedy 0 safe train/x 0": "“Ünï” \u2028 "}


def test_what_was_added_is_there_again(tmp_path):
    path = tmp_path / "checkpoint" / "answers.jsonl"
    journal = Journal(path)
    for name, text in SAID.items():
        journal.add({name: text})
    assert journal.texts == Journal(path).texts == SAID
    journal.add({})
    assert len(path.read_bytes().splitlines()) == 2


def test_without_a_path_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    journal = Journal(None)
    journal.add(SAID)
    assert journal.texts == SAID
    assert list(tmp_path.iterdir()) == []


def test_wherever_the_file_is_cut_whole_lines_stay_and_can_be_added_to(tmp_path):
    path = tmp_path / "answers.jsonl"
    Journal(path).add(SAID)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        journal = Journal(path)
        assert list(journal.texts) == list(SAID)[: length >= first]
        journal.add(SAID)
        assert Journal(path).texts == SAID


@pytest.mark.parametrize("damage", [b"\0" * 30, b'["a"]\n', b"nonsense\n", b"3\n"])
def test_what_follows_a_damaged_line_is_asked_again(tmp_path, damage):
    path = tmp_path / "answers.jsonl"
    Journal(path).add(SAID)
    whole = path.read_bytes()
    path.write_bytes(whole + damage + whole)
    assert Journal(path).texts == SAID
    assert path.read_bytes() == whole
