"""Figures that compare: each mark stands where its run and its source say."""

import numpy as np
import pytest

from lib.figures import plots
from lib.figures.tables import PAPER_SARR_REDUCTION
from tests.figure_frames import (
    METHODS,
    both_sources,
    column,
    differences,
    draw,
    drawn,
    intervals,
    one_split,
    run_of_bar,
    run_of_line,
)


def run_points(axes) -> dict:
    return {run_of_line(line): line for line in axes.lines if line.get_marker() == "o"}


def test_a_point_stands_at_forget_quality_and_utility_and_its_area_is_sarr():
    axes, frame = drawn("forget_against_utility").axes[0], one_split()
    asr, use, sarr = (column(frame, metric=metric) for metric in ("asr", "rouge_l", "sarr"))
    points = run_points(axes)
    assert {run: line.get_xdata()[0] for run, line in points.items()} == pytest.approx(
        {run: 100 - value for run, value in asr.items()})  # fmt: skip
    assert {run: line.get_ydata()[0] for run, line in points.items()} == pytest.approx(use)
    sizes = [points[run].get_markersize() for run in sorted(sarr, key=sarr.get)]
    assert sizes == sorted(sizes)
    assert sizes[-1] > 2 * sizes[0]
    legend = [text.get_text() for text in drawn("forget_against_utility").legends[0].texts]
    assert legend[:-1] == [f"{plots.run_name(*run)}: {value:.0f} %" for run, value in sarr.items()]


def test_a_crowded_corner_is_shown_once_more_and_larger():
    (closer,) = drawn("forget_against_utility").axes[0].child_axes
    whole = run_points(drawn("forget_against_utility").axes[0])
    for run, line in run_points(closer).items():
        assert line.get_xydata() == pytest.approx(whole[run].get_xydata())
    assert np.ptp(closer.get_xlim()) < 20


def test_a_corner_is_not_enlarged_over_other_points():
    frame = one_split()
    middle = frame.value.where((frame.method != "ga") | (frame.metric == "sarr"), 0.5)
    assert not draw("forget_against_utility", frame.assign(value=middle)).axes[0].child_axes


def test_ours_is_filled_and_the_paper_s_is_hollow_and_dashed():
    frame, panels = both_sources(), drawn("ours_beside_paper").axes
    rows = [tick.get_text() for tick in panels[0].get_yticklabels()]
    for axes, metric in zip(panels, ("sarr", "rr", "asr", "rouge_l"), strict=True):
        hollow = [bar for bar in axes.patches if bar.get_facecolor()[3] == 0]
        filled = [bar for bar in axes.patches if bar not in hollow]
        for source, bars in (("ours", filled), ("paper", hollow)):
            found = {run_of_bar(bar): bar.get_width() for bar in bars}
            assert found == pytest.approx(column(frame, metric=metric, source=source))
        for bar in axes.patches:
            assert rows[round(bar.get_y() + 0.18)] == plots.run_name(*run_of_bar(bar))
        assert {bar.get_linestyle() for bar in hollow} == {"--"}
        assert len(intervals(axes)) == len(filled)


def test_the_paper_s_reduction_is_marked_in_the_rows_with_pd_of_sarr_only():
    panels = drawn("ours_beside_paper").axes
    marks = [[line for line in axes.lines if line.get_linestyle() == "--"] for axes in panels]
    assert [len(lines) for lines in marks] == [4, 0, 0, 0]
    sarr = column(both_sources(), metric="sarr", source="ours")
    goals = [(1 - PAPER_SARR_REDUCTION / 100) * sarr[method, 0] for method in METHODS]
    assert [line.get_xdata()[0] for line in marks[0]] == pytest.approx(goals)


def test_a_difference_stands_in_its_method_s_row_with_interval_and_p_value():
    (axes,), frame = drawn("paired_differences").axes, differences()
    points = {run_of_line(line)[0]: line.get_xydata()[0] for line in axes.lines
              if line.get_marker() == "o"}  # fmt: skip
    rows = [tick.get_text() for tick in axes.get_yticklabels()]
    for row in frame.itertuples():
        x, y = points[row.method]
        assert x == pytest.approx(100 * row.difference)
        assert rows[round(y)] == plots.run_name(row.method, 0)
    ends = sorted((low[0], high[0]) for low, high in intervals(axes))
    wanted = 100 * frame[["low", "high"]].sort_values("low").to_numpy()
    assert np.array(ends) == pytest.approx(wanted)
    numbers = [tick.get_text() for tick in axes.child_axes[0].get_yticklabels()]
    assert numbers[-1] == "-38 [-45, -30], p < 0.001 (Holm)"
    assert numbers[0] == "+3 [-2, +5], p = 0.210 (Holm)"
