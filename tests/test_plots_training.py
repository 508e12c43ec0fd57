"""Figures of a training hold the numbers of its steps."""

import numpy as np
import pandas as pd
import pytest

from lib.figures import plots
from tests.figure_frames import (
    FRAMES,
    METHODS,
    RUNS,
    bands,
    block_mask,
    draw,
    drawn,
    history,
    plotted,
    run_of_line,
    stages,
    steps,
)


def test_base_training_draws_loss_and_accuracy_of_each_stage():
    loss, accuracy = np.reshape(drawn("base_training").axes, (2, 3))
    for column_, (stage, part) in enumerate(stages().groupby("stage", sort=False)):
        assert loss[column_].get_title() == stage
        assert loss[column_].lines[0].get_ydata() == pytest.approx(part.loss)
        assert loss[column_].get_yscale() == "log"
        known = part.dropna()
        assert accuracy[column_].lines[0].get_xdata() == pytest.approx(known.step)
        assert accuracy[column_].lines[0].get_ydata() == pytest.approx(100 * known.accuracy)
    assert [axes.axison for axes in accuracy] == [True, False, True]


def test_a_stage_without_accuracy_has_its_steps_under_the_loss():
    loss = drawn("base_training").axes[:3]
    assert [axes.get_xlabel() for axes in loss] == ["", "step", ""]
    assert [axes.xaxis.get_tick_params()["labelbottom"] for axes in loss] == [False, True, False]


def test_packing_draws_the_mask_with_a_label_in_the_middle_of_each_segment():
    streams, mask = block_mask()
    (axes,) = drawn("packing").axes
    assert (axes.images[0].get_array() == mask).all()
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [name for name, _ in streams]
    assert axes.get_yticks()[:2] == pytest.approx([9.5, 26.5])


def test_a_mask_of_another_size_than_its_segments_is_refused():
    with pytest.raises(ValueError, match=r"92 tokens, but the mask is \(3, 3\)"):
        plots.packing(block_mask()[0], np.eye(3))


def test_a_term_is_a_line_of_the_seeds_mean_in_a_band_from_lowest_to_highest():
    panels = {axes.get_title(): axes for axes in drawn("term_trajectories").axes}
    assert list(panels) == [plots.run_name(m, pd_) for pd_ in (0, 1) for m in METHODS]
    for method, pd_ in RUNS[1:]:
        part = history()[lambda frame, run=(method, pd_): (frame.method == run[0])
                         & (frame.prompt_decouple == run[1])]  # fmt: skip
        axes, terms = panels[plots.run_name(method, pd_)], part.term.unique()
        assert len(plotted(axes)) == len(bands(axes)) == len(terms)
        for line, band in zip(plotted(axes), bands(axes), strict=True):
            values = part[part.term == line.get_label()].groupby("step").value
            assert line.get_ydata() == pytest.approx(values.mean())
            assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx(
                (values.min().min(), values.max().max()))  # fmt: skip


def test_a_run_over_the_steps_is_a_line_of_the_seeds_mean_in_percent():
    frame = steps()
    sarr, rr = drawn("over_steps").axes
    for axes, metric in ((sarr, "sarr"), (rr, "rr")):
        assert axes.get_ylabel() == f"{metric.upper()} (%)"
        for line in plotted(axes):
            method, pd_ = run_of_line(line)
            part = frame[(frame.metric == metric) & (frame.prompt_decouple == pd_)]
            assert method == "po"
            assert line.get_ydata() == pytest.approx(100 * part.groupby("step").value.mean())
        assert len(plotted(axes)) == len(bands(axes)) == 2


def test_two_runs_with_equal_values_are_both_to_be_seen():
    without, with_pd = sorted(plotted(drawn("over_steps").axes[1]), key=run_of_line)
    assert without.get_ydata() == pytest.approx(with_pd.get_ydata())
    assert without.get_markersize() > with_pd.get_markersize() + 2


def test_of_many_runs_with_equal_values_each_is_wider_than_the_next_one():
    equal = steps().assign(value=1.0)
    frame = pd.concat([equal.assign(method=m, prompt_decouple=0) for m in ("ga", "gd", "kl", "po")])
    for axes in draw("over_steps", frame).axes:
        lines = sorted(plotted(axes), key=lambda line: -line.get_linewidth())
        assert [run_of_line(line)[0] for line in lines] == ["ga", "gd", "kl", "po"]
        assert min(-np.diff([line.get_markersize() for line in lines])) > 2


@pytest.mark.parametrize("name", ["over_steps", "term_trajectories"])
def test_a_run_of_three_steps_has_no_half_steps_on_its_axis(name):
    frame = FRAMES[name]()
    for axes in draw(name, frame[frame.step.isin(sorted(frame.step.unique())[:4])].assign(
            step=lambda f: f.step.rank(method="dense") - 1)).axes:
        assert all(float(tick).is_integer() for tick in axes.get_xticks())


def test_a_logarithmic_axis_of_terms_says_so_and_has_numbers_between_the_powers_of_ten():
    low = history().assign(method="po", term="refusal", value=lambda f: 11 + f.step / 1000)
    figure = draw("term_trajectories", low)
    assert figure.get_supylabel() == "value of the term (nats per token; logarithmic beyond ±1)"
    assert {1, 2, 5, 10} <= set(figure.axes[0].get_yticks())


def test_thinning_averages_stretches_of_steps_and_keeps_runs_apart():
    frame, thinned = history(), plots.thin(history(), points=10)
    run = ["method", "prompt_decouple", "seed", "term"]
    assert set(thinned.columns) == set(frame.columns)
    assert set(thinned.groupby(run).size()) == {10}
    both = [part.groupby(run).value.mean() for part in (frame, thinned)]
    assert both[1].to_numpy() == pytest.approx(both[0].to_numpy())
    assert thinned.step.unique()[0] == pytest.approx(15)  # of the steps 0, 10, 20, 30
    assert len(plots.thin(frame, points=1000)) == len(frame)
