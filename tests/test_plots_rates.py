"""Figures of rates hold the frame's numbers, each with its interval."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

from lib.figures import plots
from tests.figure_frames import (
    CATEGORIES,
    RUNS,
    by_category,
    column,
    draw,
    drawn,
    heights,
    intervals,
    parts,
    plotted,
    rates,
    run_of_bar,
    sweep,
    words_on,
)


def test_before_after_draws_each_rate_with_its_interval_and_number():
    panels, frame = np.reshape(drawn("before_after").axes, (3, 2)), rates()
    for (row, col), axes in np.ndenumerate(panels):
        where = {"metric": ("asr", "rr", "rouge_l")[row], "split": ("efficacy", "generality")[col]}
        values = column(frame, **where)
        assert heights(axes) == pytest.approx(values)
        low, high = (list(column(frame, end, **where).values()) for end in ("low", "high"))
        ends = [(low_[1], high_[1]) for low_, high_ in intervals(axes)]
        assert np.array(ends) == pytest.approx(np.transpose([low, high]))
        assert [text.get_text() for text in axes.texts] == [f"{v:.0f}" for v in values.values()]


def test_a_run_without_a_rate_leaves_its_place_empty_and_moves_no_other():
    frame = rates()
    gone = (frame.method == "ga") & (frame.metric == "asr")
    gone |= (frame.metric == "rouge_l") & (frame.split == "efficacy")
    fig = draw("before_after", frame[~gone])
    names = [tick.get_text() for tick in fig.axes[-1].get_xticklabels()]
    for bar in (bar for axes in fig.axes for bar in axes.patches):
        middle = bar.get_x() + bar.get_width() / 2
        assert names[round(middle)] == plots.run_name(run_of_bar(bar)[0], 0)
    assert len(fig.axes[0].patches) == len(RUNS) - 2
    assert [text.get_text() for text in fig.axes[4].texts] == ["not measured"]


def test_refusals_and_degenerate_answers_are_stacked_to_sarr():
    (axes,), frame = drawn("sarr_parts").axes, parts()
    full, pale = axes.patches[::2], axes.patches[1::2]
    refusal, degenerate = (column(frame, metric=f"sarr_{part}") for part in
                           ("refusal", "degenerate"))  # fmt: skip
    assert {run_of_bar(bar): bar.get_height() for bar in full} == pytest.approx(refusal)
    assert [bar.get_height() for bar in pale] == pytest.approx(list(degenerate.values()))
    assert [bar.get_y() for bar in pale] == pytest.approx([bar.get_height() for bar in full])
    assert [to_hex(bar.get_edgecolor()) for bar in pale] == [
        to_hex(bar.get_facecolor()) for bar in full]  # fmt: skip
    low, high = (list(column(frame, end, metric="sarr").values()) for end in ("low", "high"))
    ends = np.array([[a[1], b[1]] for a, b in intervals(axes)])
    assert ends == pytest.approx(np.transpose([low, high]))


def test_the_heat_map_has_a_row_per_run_and_a_column_per_category():
    axes, frame = drawn("sarr_by_category").axes[0], by_category()
    cells = np.asarray(axes.collections[0].get_array()).reshape(len(RUNS), len(CATEGORIES))
    assert cells.ravel() == pytest.approx(100 * frame.value.to_numpy())
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [
        plots.run_name(*run) for run in RUNS]  # fmt: skip
    assert [tick.get_text() for tick in axes.get_xticklabels()] == list(CATEGORIES)
    assert [text.get_text() for text in axes.texts] == [f"{v:.0f}" for v in 100 * frame.value]


def test_the_sweep_draws_the_mean_of_the_seeds_and_every_seed():
    plane, curve = drawn("weight_sweep").axes
    frame = sweep().assign(value=100 * sweep().value)
    series = {(metric, seed): part.value.to_list()
              for (metric, seed), part in frame.groupby(["metric", "seed"], sort=False)}
    rr, sarr = ([series[metric, seed] for seed in (0, 1, 2, "all")] for metric in ("rr", "sarr"))
    lines = [line for line in plane.lines if len(line.get_xdata()) == 6]
    assert np.array([line.get_xdata() for line in lines]) == pytest.approx(np.array(rr))
    assert np.array([line.get_ydata() for line in lines]) == pytest.approx(np.array(sarr))
    lines = [line for line in curve.lines if len(line.get_xdata()) == 6 and line.get_linestyle()
             not in ("None", "")]  # fmt: skip
    assert np.array([line.get_ydata() for line in lines]) == pytest.approx(np.array(sarr + rr))
    assert {tuple(line.get_xdata()) for line in lines} == {(0, 0.1, 0.3, 1, 3, 10)}


def test_the_mean_of_a_sweep_without_one_is_taken_over_its_seeds():
    frame = sweep()[lambda frame: frame.seed.astype(str) != "all"]
    plane = draw("weight_sweep", frame.drop(columns=["low", "high"])).axes[0]
    mean = next(line for line in plane.lines if line.get_linewidth() > 1)
    wanted = frame[frame.metric == "rr"].groupby("weight").value.mean()
    assert mean.get_xdata() == pytest.approx(100 * wanted)


def test_the_labels_of_the_sweep_cover_no_line(monkeypatch):
    plane = drawn("weight_sweep").axes[0]
    labels = {text.get_text() for text in plane.texts}
    boxes = [box for text, _, box in words_on(drawn("weight_sweep"), monkeypatch)
             if text in labels and plane.bbox.fully_containsx(box.x0)
             and plane.bbox.fully_containsy(box.y0)]  # fmt: skip
    assert len(boxes) == len(labels) == 6
    for line in plotted(plane):
        places = line.get_transform().transform_path(line.get_path()).interpolated(200).vertices
        assert not any(((places > box.min) & (places < box.max)).all(axis=1).any()
                       for box in boxes)  # fmt: skip
