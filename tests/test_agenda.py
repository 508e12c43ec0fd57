"""What is to be made and who makes it: `lib/running/agenda.py`."""

import pytest

from lib.base.runs import Store
from lib.running.agenda import Agenda, Piece


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "toy")


def piece(store, name):
    return Piece(name, store.folder(name, {}), lambda report: make(store, name))


def make(store, name):
    return store.make(name, {}, lambda folder: {})


def test_what_is_there_is_not_on_the_agenda(store):
    make(store, "a")
    agenda = Agenda([piece(store, "a"), piece(store, "b")])
    assert [each.name for each in agenda.waiting] == ["b"]
    assert agenda.told() == "0 of 1 done; waiting for another process that makes b"


def test_each_piece_is_handed_out_once(store):
    agenda = Agenda([piece(store, name) for name in "ab"])
    assert [agenda.take().name, agenda.take().name, agenda.take()] == ["a", "b", None]
    assert agenda.told() == "0 of 2 done; a: starts; b: starts"


def test_two_drivers_share_the_pieces_and_the_second_learns_of_the_first_ones(store):
    ours, theirs = (Agenda([piece(store, name) for name in "abc"]) for _ in range(2))
    first, second = ours.take(), theirs.take()
    assert (first.name, second.name) == ("a", "b")
    make(store, "a")
    ours.finish(first)
    assert theirs.take().name == "c"
    assert theirs.told().startswith("1 of 3 done; ")
    assert not any(each.name == "a" for each in theirs.waiting)


def test_the_pieces_of_a_driver_that_gave_up_can_be_taken_by_another_one(store):
    ours, theirs = (Agenda([piece(store, "a")]) for _ in range(2))
    ours.take()
    assert theirs.take() is None
    ours.close()
    assert theirs.take().name == "a"


def test_a_failed_piece_is_named_with_what_it_said_when_all_is_done(store):
    agenda = Agenda([piece(store, name) for name in "ab"])
    for failure in ("out of memory", None):
        agenda.finish(agenda.take(), failure)
    assert not agenda.is_open()
    with pytest.raises(RuntimeError, match="1 of 2 failed, the first of them a:\nout of memory"):
        agenda.check()


def test_the_time_that_is_left_follows_from_the_pace_so_far(store, monkeypatch):
    now = iter([0, 120])
    monkeypatch.setattr("lib.running.agenda.time.monotonic", lambda: next(now))
    agenda = Agenda([piece(store, name) for name in "abc"])
    agenda.finish(agenda.take())
    assert agenda.told().startswith("1 of 3 done, about 4 min left")
