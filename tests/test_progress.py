"""Lines with the time that is left: `lib/base/progress.py`."""

import pytest

from lib.base import progress
from lib.base.progress import Progress, minutes_in_words


@pytest.fixture
def clock(monkeypatch):
    """A clock in seconds that the test sets."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_finished_step_prints_its_count_its_seconds_and_the_time_that_is_left(clock, capsys):
    steps = Progress([1, 2])
    steps.start("pre-training")
    clock[0] = 60
    steps.finish("pre-training", 1)
    assert capsys.readouterr().out == "[1/2] pre-training ... 60 s, about 2 min left\n"


def test_the_time_that_is_left_follows_the_pace_so_far(clock, capsys):
    steps = Progress([1, 2])
    steps.start("pre-training")
    clock[0] = 180
    steps.finish("pre-training", 1)
    assert "about 4 min left" in capsys.readouterr().out  # 2 minutes at (1 + 3) / (1 + 1)


def test_a_few_quick_steps_do_not_promise_that_the_long_ones_will_be_quick(clock, capsys):
    steps = Progress([0.02, 0.02, 10])
    for name in ("a", "b"):
        clock[0] += 0.1
        steps.finish(name, 0.02, seconds=0.1)
    assert "about 10 min left" in capsys.readouterr().out.splitlines()[-1]


def test_the_last_step_leaves_nothing(clock, capsys):
    steps = Progress([0.1, 0.2])
    steps.finish("a", 0.1, seconds=3)
    steps.finish("b", 0.2, seconds=3)
    assert capsys.readouterr().out.splitlines()[-1] == "[2/2] b ... 3 s"


def test_a_log_gets_at_most_one_report_a_minute(clock, capsys):
    steps = Progress([10])
    steps.start("runs")
    for second in range(0, 150, 10):
        clock[0] = second
        steps.report(f"{second} s of work")
    assert capsys.readouterr().out == "[1/1] runs: 60 s of work\n[1/1] runs: 120 s of work\n"


def test_a_terminal_keeps_one_line_that_is_overwritten(clock, capsys, monkeypatch):
    steps = Progress([10])
    steps.live = True
    monkeypatch.setenv("COLUMNS", "30")
    steps.start("runs")
    steps.report("a text that is much longer than the terminal is wide")
    steps.finish("runs", 10, seconds=41)
    shown = capsys.readouterr().out
    assert shown.count("\n") == 1
    assert shown.endswith("\033[K[1/1] runs ... 41 s\n")
    assert max(len(part) for part in shown.split("\r\033[K")[:-1]) < 30


@pytest.mark.parametrize(("reason", "minutes", "words"), [
    ("seconds below a minute", 0.2, "12 s"),
    ("whole minutes", 12.4, "12 min"),
    ("not sixty seconds", 0.996, "1 min"),
    ("hours when minutes are too many to read", 150, "2.5 h"),
])
def test_a_duration_is_said_as_a_person_would(reason, minutes, words):
    assert minutes_in_words(minutes) == words, reason
