"""Every figure function is reached by `plots`, and what it draws can be read."""

import itertools

import pandas as pd
import pytest

from lib.figures import plots
from lib.figures.style import SMALL
from tests.figure_frames import (
    NAMES,
    QUESTION,
    draw,
    drawn,
    examples,
    history,
    one_split,
    stages,
    two_pictures,
    words_on,
)

OTHERS = {"LABEL_COLOURS", "METHOD_COLOURS", "METRIC_NAMES", "percent", "run_name", "save", "thin"}


def test_every_figure_function_is_tested_here():
    assert set(plots.__all__) == set(NAMES) | OTHERS


def assert_readable(fig, monkeypatch):
    words = words_on(fig, monkeypatch)
    assert len(words) > 3
    for text, points, box in words:
        assert points >= SMALL, text
        assert all(fig.bbox.contains(x, y) for x, y in box.corners()), f"{text!r} is cut off"
    for (one, _, first), (other, _, second) in itertools.combinations(words, 2):
        assert not first.overlaps(second), f"{one!r} covers {other!r}"


@pytest.mark.parametrize("name", NAMES)
def test_no_text_is_small_or_covered_or_leaves_the_canvas(name, monkeypatch):
    assert_readable(drawn(name), monkeypatch)


LONG = "With the prompt-decouple loss the model explains a cup again, while it still refuses " * 3


@pytest.mark.parametrize("name", ["paired_differences", "sarr_parts", "packing", "base_training",
                                  "same_question_two_pictures"])  # fmt: skip
def test_a_long_title_takes_as_many_lines_as_it_needs(name, monkeypatch):
    assert_readable(draw(name, title=LONG), monkeypatch)


def one_run() -> pd.DataFrame:
    return one_split()[lambda frame: (frame.method == "po") & (frame.prompt_decouple == 1)]


def long_words() -> list[dict]:
    return [{**row, "model": "a model with a very long name", "answer": "x" * 400,
             "question": QUESTION * 4} for row in two_pictures()[::3]]  # fmt: skip


UNUSUAL = [
    ("only one run", "before_after", one_run),
    ("only one run", "forget_against_utility", one_run),
    ("only one method", "term_trajectories", lambda: history()[lambda f: f.method == "ga"]),
    ("no value of the paper", "ours_beside_paper", lambda: one_split().assign(source="ours")),
    ("no accuracy at all", "base_training", lambda: stages().drop(columns="accuracy")),
    ("one category of one set", "category_examples", lambda: examples()[:1]),
    ("names, questions and answers without end", "same_question_two_pictures", long_words),
]


@pytest.mark.parametrize(("reason", "name", "frame"), UNUSUAL)
def test_an_unusual_frame_gives_a_readable_figure(reason, name, frame, monkeypatch):
    assert_readable(draw(name, frame()), monkeypatch)
