"""The same sign means the same thing in every figure."""

import itertools

import pytest
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from lib.figures import plots
from lib.figures.style import bar_look, point_look
from tests.figure_frames import METHOD_OF, RUNS, drawn


@pytest.mark.parametrize("name", ["base_training", "packing", "category_examples", "counts",
                                  "term_trajectories"])  # fmt: skip
def test_a_method_s_colour_means_nothing_else(name):
    colours = set()
    for mark in drawn(name).findobj(lambda artist: isinstance(artist, (Line2D, Patch))):
        both = (mark.get_edgecolor(), mark.get_facecolor()) if isinstance(mark, Patch) else (
            mark.get_color(),)  # fmt: skip
        colours |= {to_hex(colour) for colour in both}
    for image in (image for axes in drawn(name).axes for image in axes.images):
        if image.get_array().ndim == 2:
            colours |= {to_hex(colour) for colour in image.cmap.colors}
    assert not colours & (set(METHOD_OF) - {plots.METHOD_COLOURS["vanilla"].lower()})


def test_no_two_runs_look_the_same():
    signs = [(bar_look(*run)["facecolor"], bar_look(*run).get("hatch")) for run in RUNS]
    assert len(set(signs)) == len(RUNS)
    points = [(look["color"], look["markerfacecolor"]) for look in itertools.starmap(
        point_look, RUNS)]  # fmt: skip
    assert len(set(points)) == len(RUNS)
