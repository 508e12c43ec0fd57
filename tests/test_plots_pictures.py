"""Figures of the data: each picture stands with its own words."""

import itertools
import warnings

import numpy as np
from matplotlib.colors import to_hex

from lib.figures import plots
from tests.figure_frames import (
    ANSWER,
    CATEGORIES,
    QUESTION,
    draw,
    drawn,
    examples,
    pair_counts,
    picture,
    texts,
    two_pictures,
)


def test_examples_stand_in_the_row_of_their_category_and_the_column_of_their_set():
    axes = np.reshape(drawn("category_examples").axes, (6, 8))
    assert [row[0].get_ylabel() for row in axes] == list(CATEGORIES)
    names = [panel.get_title(loc="left") for panel in axes[0, ::2]]
    assert names == ["forget", "retain text", "retain image", "prompt decouple"]
    for row, column_ in itertools.product(range(6), (0, 2, 3)):
        pixels = axes[row, 2 * column_].images[0].get_array()
        assert (pixels == np.asarray(picture(40 * row + 13 * column_))).all()
    assert [panel.texts[0].get_text() for panel in axes[:, 2]] == ["text\nonly"] * 6
    question, answer = (text.get_text() for text in axes[3, 5].texts)
    assert question.replace("\n", " ") == QUESTION
    assert ANSWER.startswith(answer.replace("\n", " ").removesuffix(" …"))


def test_counts_are_stacked_by_set_and_added_up_beside_the_paper_s():
    left, right = drawn("counts").axes
    frame, widths = pair_counts(), [bar.get_width() for bar in left.patches]
    assert widths == [192] * 6 + [96] * 12 + [192] * 6
    assert [bar.get_x() for bar in left.patches] == [0] * 6 + [192] * 6 + [288] * 6 + [384] * 6
    totals = frame.groupby(["set", "source"], sort=False)["count"].sum()
    assert [bar.get_width() for bar in right.patches] == list(totals)
    assert [bar.get_facecolor()[3] == 0 for bar in right.patches] == list(
        totals.index.get_level_values("source") == "paper")  # fmt: skip
    rows = [tick.get_text() for tick in right.get_yticklabels()]
    assert [rows[round(bar.get_y() + bar.get_height() / 2)] for bar in right.patches] == list(
        totals.index.get_level_values("set"))  # fmt: skip
    assert [text.get_text() for text in right.texts] == [f"{number:,}" for number in totals]


def test_each_picture_has_its_own_answers_and_labels_beside_it():
    words = [[text.get_text() for text in axes.texts] for axes in drawn(
        "same_question_two_pictures").axes[1::2]]  # fmt: skip
    harmful, safe = words[:2]
    assert harmful[1::3] == ["harmful", "refusal", "refusal"]
    assert safe[1::3] == ["normal", "refusal", "degenerate"]
    assert harmful[::3] == safe[::3] == ["original", "PO", "PO + PD"]
    assert safe[2] == "Fire the clay cup in a kiln for a day."
    assert safe[-1].endswith(" …")
    for axes, hue in zip(drawn("same_question_two_pictures").axes[0:4:2], (90, 150), strict=True):
        assert (axes.images[0].get_array() == np.asarray(picture(hue))).all()


def test_an_answer_without_a_verdict_is_drawn_as_such():
    rows = [{**row, "label": "abstained"} for row in two_pictures()]
    shown = {text.get_text() for text in texts(plots.same_question_two_pictures(rows))}
    assert "abstained" in shown


def test_a_label_is_a_word_on_its_own_colour():
    chips = {(text.get_text(), to_hex(text.get_bbox_patch().get_facecolor()))
             for text in texts(drawn("same_question_two_pictures"))
             if text.get_bbox_patch()}  # fmt: skip
    assert chips == {(label, colour.lower()) for label, colour in plots.LABEL_COLOURS.items()}


def test_any_answer_of_a_broken_model_is_drawn_without_a_warning():
    odd = "谢谢 \U0001f600 \x00\x07 $x_1 $ \\frac <b> ﷽ \u202e"
    rows = [{**row, "answer": answer} for row, answer in
            zip(two_pictures(), itertools.cycle(["", odd, " \n "]), strict=False)]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw("same_question_two_pictures", rows).canvas.draw()
        draw("category_examples", [{**row, "answer": odd} for row in examples()[:4]]).canvas.draw()
