"""Words of figures: rates in words, names of the data as they are."""

import matplotlib as mpl
import pytest

from lib.figures import plots
from tests.figure_frames import by_category, draw

RATES = [((0.3,), "30 %"), ((1, 0.5, 1), "50 % to 100 %"), ((0.001, 0), "0 %"),
         ((float("nan"),), "undefined")]


@pytest.mark.parametrize(("rates_", "words"), RATES)
def test_rates_are_written_as_one_percentage_or_their_range(rates_, words):
    assert plots.percent(*rates_) == words


@pytest.mark.parametrize("text", ["$x^2$", "$5 or $x^{", "<b>\\frac"])
def test_names_of_the_data_are_drawn_as_they_are_and_never_as_a_formula(text):
    rows = by_category().replace("Weapon", text)
    with mpl.rc_context({"text.usetex": True}):  # as a reader's own settings may have it
        figure = draw("sarr_by_category", rows)
        figure.canvas.draw()
    labels = figure.axes[0].get_xticklabels()
    assert [label.get_text() for label in labels if label.get_text() == text]
    assert not any(part.get_parse_math() or part.get_usetex() for part in labels)
