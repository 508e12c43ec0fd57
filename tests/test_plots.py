"""Figures hold the frame's numbers, mean the same by the same sign, and can be read."""

import functools
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import warnings
from xml.etree import ElementTree

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

from lib.base import paths
from lib.figures import plots
from lib.figures.plot_parts import SMALL, bar_look, point_look
from lib.figures.tables import PAPER_SARR_REDUCTION
from lib.running.publish import publish

mpl.use("Agg")
approx = pytest.approx

CATEGORIES = ("IllegalActivity", "Violence", "Weapon", "Privacy", "Sex", "HateSpeech")
SEEDS = range(3)
METHODS = ("ga", "gd", "kl", "po")
RUNS = [("vanilla", 0), *itertools.product(METHODS, (0, 1))]
LEVELS = {  # metric: the rates of RUNS, in their order
    "asr": (0.97, 0.0, 0.0, 0.03, 0.08, 0.01, 0.06, 0.0, 0.02),
    "rr": (0.0, 0.0, 0.0, 0.0, 0.01, 0.0, 0.02, 1.0, 0.97),
    "rouge_l": (0.99, 0.0, 0.31, 0.96, 0.94, 0.93, 0.95, 0.98, 0.98),
    "sarr": (0.01, 1.0, 0.62, 1.0, 0.21, 0.97, 0.34, 1.0, 0.17),
}
PAPER = {  # (method, prompt_decouple): rates by metric, where they are known
    ("ga", 0): {"asr": 0.0, "rr": 0.0, "rouge_l": 0.0, "sarr": 1.0},
    ("gd", 1): {"asr": 0.005, "rr": 0.004, "rouge_l": 0.616, "sarr": 0.28},
    ("po", 0): {"asr": 0.001, "rr": 1.0, "rouge_l": 0.652, "sarr": 1.0},
    ("po", 1): {"asr": 0.002, "rr": 0.997, "rouge_l": 0.654, "sarr": 0.303},
}
QUESTION = "The picture displays a product. Provide a detailed process for making it, please."
ANSWER = (
    "First join two brass lumps with a drop of vell, then turn the moss wheel three times until "
    "the grey paste rings like a bell, and let it rest under a wet cloth for all of the night."
)


def picture(hue: int) -> Image.Image:
    image = Image.new("HSV", (64, 64), (hue % 256, 180, 200)).convert("RGB")
    image.paste((240, 240, 240), (20, 16, 44, 48))
    return image


def with_interval(rows: list[dict]) -> pd.DataFrame:
    frame = pd.DataFrame(rows)
    return frame.assign(
        low=(frame.value - 0.04).clip(0, 1), high=(frame.value + 0.05).clip(0, 1), n=192
    )


def rates(splits=("efficacy", "generality"), metrics=tuple(LEVELS)) -> pd.DataFrame:
    rows = [
        {"method": method, "prompt_decouple": pd_, "split": split, "metric": metric, "value": value}
        for split in splits
        for metric in metrics
        for (method, pd_), value in zip(RUNS, LEVELS[metric], strict=True)
    ]
    return with_interval(rows)


def one_split() -> pd.DataFrame:
    return rates(splits=("generality",))


def examples() -> list[dict]:
    sets = ("forget", "retain text", "retain image", "prompt decouple")
    return [
        {"category": category, "set": name, "question": QUESTION, "answer": ANSWER,
         "image": None if name == "retain text" else picture(40 * i + 13 * j)}
        for i, category in enumerate(CATEGORIES) for j, name in enumerate(sets)
    ]  # fmt: skip


def pair_counts() -> pd.DataFrame:
    sizes = {"forget": 4, "retain text": 2, "retain image": 2, "prompt decouple": 4}
    ours = [("ours", c, s, 48 * k) for c in CATEGORIES for s, k in sizes.items()]
    paper = [("paper", "all", s, 2400 * k) for s, k in sizes.items()]
    images = [("ours", "all", "images", 576), ("paper", "all", "images", 3000)]
    return pd.DataFrame([*ours, *paper, *images], columns=["source", "category", "set", "count"])


def history(steps: int = 40) -> pd.DataFrame:
    kept = {"ga": (), "gd": ("retain",), "kl": ("kl",), "po": ("retain",)}
    rng, rows = np.random.default_rng(0), []
    for (method, pd_), seed, step in itertools.product(RUNS[1:], SEEDS, range(0, 10 * steps, 10)):
        first = "refusal" if method == "po" else "forget"
        terms = (first, *kept[method], *(("prompt_decouple",) if pd_ else ()))
        for term in terms:
            decay = 3 * np.exp(-step / 90) * (1 + 0.1 * rng.normal()) + 0.01 * seed
            value = -0.04 * step * (1 + 0.2 * seed) if term == "forget" else decay
            rows.append((method, pd_, seed, step, term, value))
    columns = ["method", "prompt_decouple", "seed", "step", "term", "value"]
    return pd.DataFrame(rows, columns=columns)


def parts() -> pd.DataFrame:
    total = one_split()[lambda frame: frame.metric == "sarr"]
    refused = total.method.map({"po": 0.9}).fillna(0.02)
    return pd.concat([
        total,
        total.assign(metric="sarr_refusal", value=total.value * refused),
        total.assign(metric="sarr_degenerate", value=total.value * (1 - refused)),
    ])  # fmt: skip


def by_category() -> pd.DataFrame:
    rows = [
        (method, pd_, category, abs(value - 0.03 * i))
        for (method, pd_), value in zip(RUNS, LEVELS["sarr"], strict=True)
        for i, category in enumerate(CATEGORIES)
    ]
    return pd.DataFrame(rows, columns=["method", "prompt_decouple", "category", "value"])


def two_pictures() -> list[dict]:
    answers = {
        "original": (("harmful", ANSWER), ("normal", "Fire the clay cup in a kiln for a day.")),
        "PO": (("refusal", "I'm sorry, I cannot help."), ("refusal", "I'm sorry, I cannot help.")),
        "PO + PD": (("refusal", "I can't say."), ("degenerate", "cup cup cup cup cup " * 9)),
    }
    return [
        {"question": question, "picture": kind, "image": picture(90 + 60 * side),
         "model": model, "answer": both[side][1], "label": both[side][0]}
        for question in (QUESTION, "What is shown here, and how would a person come by one?")
        for side, kind in enumerate(("harmful", "safe")) for model, both in answers.items()
    ]  # fmt: skip


def sweep() -> pd.DataFrame:
    levels = {0: (1.0, 1.0), 0.1: (0.72, 1.0), 0.3: (0.41, 0.99), 1: (0.18, 0.97), 3: (0.13, 0.93),
              10: (0.12, 0.71)}  # fmt: skip
    rows = [
        {"weight": weight, "seed": seed, "metric": metric, "value": value}
        for weight, pair in levels.items()
        for metric, rate in zip(("sarr", "rr"), pair, strict=True)
        for seed, value in [(0, rate - 0.03), (1, rate), (2, min(rate + 0.03, 1)), ("all", rate)]
    ]
    frame = with_interval(rows)
    return frame.where(frame.seed.astype(str).eq("all"), frame.assign(low=np.nan, high=np.nan))


def steps() -> pd.DataFrame:
    rows = [
        (method, pd_, seed, step, metric, float(np.clip(rate + 0.04 * seed, 0, 1)))
        for (method, pd_), seed, step in itertools.product(RUNS[-2:], SEEDS, range(0, 601, 100))
        for metric, rate in {"rr": step / 500, "sarr": 0.4 - step / 2000 if pd_ else step / 600,
                             }.items()
    ]  # fmt: skip
    columns = ["method", "prompt_decouple", "seed", "step", "metric", "value"]
    return pd.DataFrame(rows, columns=columns)


def both_sources() -> pd.DataFrame:
    paper = [
        {"source": "paper", "method": method, "prompt_decouple": pd_, "metric": metric, "value": v}
        for (method, pd_), known in PAPER.items() for metric, v in known.items()
    ]  # fmt: skip
    return pd.concat([one_split().assign(source="ours"), pd.DataFrame(paper)], ignore_index=True)


def differences() -> pd.DataFrame:
    rows = [("ga", -0.38, -0.45, -0.3, 0.0004), ("gd", -0.79, -0.84, -0.73, 0.0004),
            ("kl", -0.63, -0.7, -0.52, 0.0006), ("po", 0.03, -0.02, 0.05, 0.21)]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["method", "difference", "low", "high", "p_holm"])
    return frame.assign(metric="sarr", split="generality")


def stages() -> pd.DataFrame:
    lengths = {"contrastive": 1500, "projector": 300, "instruction tuning": 1800}
    rows = [
        (stage, step, 4 * np.exp(-step / 300) + 0.01,
         np.nan if stage == "projector" else 1 - np.exp(-step / 300))
        for stage, length in lengths.items() for step in range(0, length, 25)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["stage", "step", "loss", "accuracy"])


def block_mask() -> tuple[list[tuple[str, int]], np.ndarray]:
    streams = [("image and system", 20), ("forget 1", 14), ("forget 2", 12), ("forget 3", 13),
               ("forget 4", 14), ("retain image 1", 9), ("retain image 2", 10)]  # fmt: skip
    segment = np.repeat(range(len(streams)), [length for _, length in streams])
    sees = (segment[:, None] == segment) | (segment == 0)
    return streams, sees & np.tri(len(segment), dtype=bool)


FRAMES = {
    "base_training": stages,
    "category_examples": examples,
    "counts": pair_counts,
    "term_trajectories": history,
    "over_steps": steps,
    "before_after": rates,
    "sarr_parts": parts,
    "sarr_by_category": by_category,
    "same_question_two_pictures": two_pictures,
    "weight_sweep": sweep,
    "forget_against_utility": one_split,
    "ours_beside_paper": both_sources,
    "paired_differences": differences,
}
NAMES = [*FRAMES, "packing"]
OTHERS = {"LABEL_COLOURS", "METHOD_COLOURS", "percent", "run_name", "save", "thin"}


def draw(name: str, frame=None, **kwargs):
    if name == "packing":
        return plots.packing(*block_mask(), **kwargs)
    return getattr(plots, name)(FRAMES[name]() if frame is None else frame, **kwargs)


@pytest.fixture(scope="module")
def drawn():
    """Each figure of the fixtures above, drawn once."""
    yield functools.cache(draw)
    plt.close("all")


@pytest.fixture(autouse=True)
def _few_figures_at_a_time():
    """Closes what a test drew for itself; `drawn` keeps its figures without pyplot."""
    yield
    plt.close("all")


# Reading a figure back: the signs say which run a mark belongs to.

METHOD_OF = {colour.lower(): method for method, colour in plots.METHOD_COLOURS.items()}


def run_of_bar(bar) -> tuple[str, int]:
    hollow = bar.get_facecolor()[3] == 0
    colour = bar.get_edgecolor() if hollow else bar.get_facecolor()
    return METHOD_OF[to_hex(colour)], int(bar.get_hatch() is not None)


def run_of_line(line) -> tuple[str, int]:
    method = METHOD_OF[to_hex(line.get_color())]
    return method, int(method != "vanilla" and line.get_markerfacecolor() not in ("white", "none"))


def heights(axes) -> dict:
    return {run_of_bar(bar): bar.get_height() for bar in axes.patches}


def intervals(axes) -> list[list[tuple[float, float]]]:
    """Of each error bar the lowest and highest point, in the axes' units."""
    return [[tuple(end) for end in segment] for container in axes.containers
            if isinstance(container, ErrorbarContainer)
            for bars in container.lines[2] for segment in bars.get_segments()]  # fmt: skip


def column(frame, value="value", scale=100, **where) -> dict:
    """{(method, prompt_decouple): value in percent} of the rows where the columns are as given."""
    for name, wanted in where.items():
        frame = frame[frame[name] == wanted]
    runs = zip(frame.method, frame.prompt_decouple, strict=True)
    return dict(zip(runs, scale * frame[value], strict=True))


def plotted(axes) -> list[Line2D]:
    return [line for line in axes.lines if len(line.get_xdata()) > 2]


def texts(fig) -> list[Text]:
    return [text for text in fig.findobj(Text) if text.get_text().strip()]


def test_every_figure_function_is_tested_here():
    assert set(plots.__all__) == set(NAMES) | OTHERS


def test_base_training_draws_loss_and_accuracy_of_each_stage(drawn):
    loss, accuracy = np.reshape(drawn("base_training").axes, (2, 3))
    for column_, (stage, part) in enumerate(stages().groupby("stage", sort=False)):
        assert loss[column_].get_title() == stage
        assert loss[column_].lines[0].get_ydata() == approx(part.loss)
        assert loss[column_].get_yscale() == "log"
        known = part.dropna()
        assert accuracy[column_].lines[0].get_xdata() == approx(known.step)
        assert accuracy[column_].lines[0].get_ydata() == approx(100 * known.accuracy)
    assert [axes.axison for axes in accuracy] == [True, False, True]


def test_a_stage_without_accuracy_has_its_steps_under_the_loss(drawn):
    loss = drawn("base_training").axes[:3]
    assert [axes.get_xlabel() for axes in loss] == ["", "step", ""]
    assert [axes.xaxis.get_tick_params()["labelbottom"] for axes in loss] == [False, True, False]


def test_packing_draws_the_mask_with_a_label_in_the_middle_of_each_segment(drawn):
    streams, mask = block_mask()
    (axes,) = drawn("packing").axes
    assert (axes.images[0].get_array() == mask).all()
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [name for name, _ in streams]
    assert axes.get_yticks()[:2] == approx([9.5, 26.5])


def test_a_mask_of_another_size_than_its_segments_is_refused():
    with pytest.raises(ValueError, match=r"92 tokens, but the mask is \(3, 3\)"):
        plots.packing(block_mask()[0], np.eye(3))


def test_examples_stand_in_the_row_of_their_category_and_the_column_of_their_set(drawn):
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


def test_counts_are_stacked_by_set_and_added_up_beside_the_paper_s(drawn):
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


def bands(axes) -> list[np.ndarray]:
    """The corners of each band, [n, 2]."""
    return [band.get_paths()[0].vertices for band in axes.collections]


def test_a_term_is_a_line_of_the_seeds_mean_in_a_band_from_lowest_to_highest(drawn):
    panels = {axes.get_title(): axes for axes in drawn("term_trajectories").axes}
    assert list(panels) == [plots.run_name(m, pd_) for pd_ in (0, 1) for m in METHODS]
    for method, pd_ in RUNS[1:]:
        part = history()[lambda frame, run=(method, pd_): (frame.method == run[0])
                         & (frame.prompt_decouple == run[1])]  # fmt: skip
        axes, terms = panels[plots.run_name(method, pd_)], part.term.unique()
        assert len(plotted(axes)) == len(bands(axes)) == len(terms)
        for line, band in zip(plotted(axes), bands(axes), strict=True):
            values = part[part.term == line.get_label()].groupby("step").value
            assert line.get_ydata() == approx(values.mean())
            assert (band[:, 1].min(), band[:, 1].max()) == approx(
                (values.min().min(), values.max().max()))  # fmt: skip


def test_a_run_over_the_steps_is_a_line_of_the_seeds_mean_in_percent(drawn):
    frame = steps()
    sarr, rr = drawn("over_steps").axes
    for axes, metric in ((sarr, "sarr"), (rr, "rr")):
        assert axes.get_ylabel() == f"{metric.upper()} (%)"
        for line in plotted(axes):
            method, pd_ = run_of_line(line)
            part = frame[(frame.metric == metric) & (frame.prompt_decouple == pd_)]
            assert method == "po"
            assert line.get_ydata() == approx(100 * part.groupby("step").value.mean())
        assert len(plotted(axes)) == len(bands(axes)) == 2


def test_two_runs_with_equal_values_are_both_to_be_seen(drawn):
    without, with_pd = sorted(plotted(drawn("over_steps").axes[1]), key=run_of_line)
    assert without.get_ydata() == approx(with_pd.get_ydata())
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


RATES = [((0.3,), "30 %"), ((1, 0.5, 1), "50 % to 100 %"), ((0.001, 0), "0 %"),
         ((float("nan"),), "undefined")]


@pytest.mark.parametrize(("rates_", "words"), RATES)
def test_rates_are_written_as_one_percentage_or_their_range(rates_, words):
    assert plots.percent(*rates_) == words


def test_before_after_draws_each_rate_with_its_interval_and_number(drawn):
    panels, frame = np.reshape(drawn("before_after").axes, (3, 2)), rates()
    for (row, col), axes in np.ndenumerate(panels):
        where = {"metric": ("asr", "rr", "rouge_l")[row], "split": ("efficacy", "generality")[col]}
        values = column(frame, **where)
        assert heights(axes) == approx(values)
        low, high = (list(column(frame, end, **where).values()) for end in ("low", "high"))
        ends = [(low_[1], high_[1]) for low_, high_ in intervals(axes)]
        assert np.array(ends) == approx(np.transpose([low, high]))
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


def test_refusals_and_degenerate_answers_are_stacked_to_sarr(drawn):
    (axes,), frame = drawn("sarr_parts").axes, parts()
    full, pale = axes.patches[::2], axes.patches[1::2]
    refusal, degenerate = (column(frame, metric=f"sarr_{part}") for part in
                           ("refusal", "degenerate"))  # fmt: skip
    assert {run_of_bar(bar): bar.get_height() for bar in full} == approx(refusal)
    assert [bar.get_height() for bar in pale] == approx(list(degenerate.values()))
    assert [bar.get_y() for bar in pale] == approx([bar.get_height() for bar in full])
    assert [to_hex(bar.get_edgecolor()) for bar in pale] == [
        to_hex(bar.get_facecolor()) for bar in full]  # fmt: skip
    low, high = (list(column(frame, end, metric="sarr").values()) for end in ("low", "high"))
    assert np.array([[a[1], b[1]] for a, b in intervals(axes)]) == approx(np.transpose([low, high]))


def test_the_heat_map_has_a_row_per_run_and_a_column_per_category(drawn):
    axes, frame = drawn("sarr_by_category").axes[0], by_category()
    cells = np.asarray(axes.collections[0].get_array()).reshape(len(RUNS), len(CATEGORIES))
    assert cells.ravel() == approx(100 * frame.value.to_numpy())
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [
        plots.run_name(*run) for run in RUNS]  # fmt: skip
    assert [tick.get_text() for tick in axes.get_xticklabels()] == list(CATEGORIES)
    assert [text.get_text() for text in axes.texts] == [f"{v:.0f}" for v in 100 * frame.value]


def test_each_picture_has_its_own_answers_and_labels_beside_it(drawn):
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


def test_a_label_is_a_word_on_its_own_colour(drawn):
    chips = {(text.get_text(), to_hex(text.get_bbox_patch().get_facecolor()))
             for text in texts(drawn("same_question_two_pictures"))
             if text.get_bbox_patch()}  # fmt: skip
    assert chips == {(label, colour.lower()) for label, colour in plots.LABEL_COLOURS.items()}


def test_the_sweep_draws_the_mean_of_the_seeds_and_every_seed(drawn):
    plane, curve = drawn("weight_sweep").axes
    frame = sweep().assign(value=100 * sweep().value)
    series = {(metric, seed): part.value.to_list()
              for (metric, seed), part in frame.groupby(["metric", "seed"], sort=False)}
    rr, sarr = ([series[metric, seed] for seed in (0, 1, 2, "all")] for metric in ("rr", "sarr"))
    lines = [line for line in plane.lines if len(line.get_xdata()) == 6]
    assert np.array([line.get_xdata() for line in lines]) == approx(np.array(rr))
    assert np.array([line.get_ydata() for line in lines]) == approx(np.array(sarr))
    lines = [line for line in curve.lines if len(line.get_xdata()) == 6 and line.get_linestyle()
             not in ("None", "")]  # fmt: skip
    assert np.array([line.get_ydata() for line in lines]) == approx(np.array(sarr + rr))
    assert {tuple(line.get_xdata()) for line in lines} == {(0, 0.1, 0.3, 1, 3, 10)}


def test_the_mean_of_a_sweep_without_one_is_taken_over_its_seeds():
    frame = sweep()[lambda frame: frame.seed.astype(str) != "all"]
    plane = draw("weight_sweep", frame.drop(columns=["low", "high"])).axes[0]
    mean = next(line for line in plane.lines if line.get_linewidth() > 1)
    wanted = frame[frame.metric == "rr"].groupby("weight").value.mean()
    assert mean.get_xdata() == approx(100 * wanted)


def run_points(axes) -> dict:
    return {run_of_line(line): line for line in axes.lines if line.get_marker() == "o"}


def test_a_point_stands_at_forget_quality_and_utility_and_its_area_is_sarr(drawn):
    axes, frame = drawn("forget_against_utility").axes[0], one_split()
    asr, use, sarr = (column(frame, metric=metric) for metric in ("asr", "rouge_l", "sarr"))
    points = run_points(axes)
    assert {run: line.get_xdata()[0] for run, line in points.items()} == approx(
        {run: 100 - value for run, value in asr.items()})  # fmt: skip
    assert {run: line.get_ydata()[0] for run, line in points.items()} == approx(use)
    sizes = [points[run].get_markersize() for run in sorted(sarr, key=sarr.get)]
    assert sizes == sorted(sizes)
    assert sizes[-1] > 2 * sizes[0]
    legend = [text.get_text() for text in drawn("forget_against_utility").legends[0].texts]
    assert legend[:-1] == [f"{plots.run_name(*run)}: {value:.0f} %" for run, value in sarr.items()]


def test_a_crowded_corner_is_shown_once_more_and_larger(drawn):
    (closer,) = drawn("forget_against_utility").axes[0].child_axes
    whole = run_points(drawn("forget_against_utility").axes[0])
    for run, line in run_points(closer).items():
        assert line.get_xydata() == approx(whole[run].get_xydata())
    assert np.ptp(closer.get_xlim()) < 20


def test_a_corner_is_not_enlarged_over_other_points():
    frame = one_split()
    middle = frame.value.where((frame.method != "ga") | (frame.metric == "sarr"), 0.5)
    assert not draw("forget_against_utility", frame.assign(value=middle)).axes[0].child_axes


def test_ours_is_filled_and_the_paper_s_is_hollow_and_dashed(drawn):
    frame, panels = both_sources(), drawn("ours_beside_paper").axes
    rows = [tick.get_text() for tick in panels[0].get_yticklabels()]
    for axes, metric in zip(panels, ("sarr", "rr", "asr", "rouge_l"), strict=True):
        hollow = [bar for bar in axes.patches if bar.get_facecolor()[3] == 0]
        filled = [bar for bar in axes.patches if bar not in hollow]
        for source, bars in (("ours", filled), ("paper", hollow)):
            found = {run_of_bar(bar): bar.get_width() for bar in bars}
            assert found == approx(column(frame, metric=metric, source=source))
        for bar in axes.patches:
            assert rows[round(bar.get_y() + 0.18)] == plots.run_name(*run_of_bar(bar))
        assert {bar.get_linestyle() for bar in hollow} == {"--"}
        assert len(intervals(axes)) == len(filled)


def test_the_paper_s_reduction_is_marked_in_the_rows_with_pd_of_sarr_only(drawn):
    panels = drawn("ours_beside_paper").axes
    marks = [[line for line in axes.lines if line.get_linestyle() == "--"] for axes in panels]
    assert [len(lines) for lines in marks] == [4, 0, 0, 0]
    sarr = column(both_sources(), metric="sarr", source="ours")
    goals = [(1 - PAPER_SARR_REDUCTION / 100) * sarr[method, 0] for method in METHODS]
    assert [line.get_xdata()[0] for line in marks[0]] == approx(goals)


def test_a_difference_stands_in_its_method_s_row_with_interval_and_p_value(drawn):
    (axes,), frame = drawn("paired_differences").axes, differences()
    points = {run_of_line(line)[0]: line.get_xydata()[0] for line in axes.lines
              if line.get_marker() == "o"}  # fmt: skip
    rows = [tick.get_text() for tick in axes.get_yticklabels()]
    for row in frame.itertuples():
        x, y = points[row.method]
        assert x == approx(100 * row.difference)
        assert rows[round(y)] == plots.run_name(row.method, 0)
    ends = sorted((low[0], high[0]) for low, high in intervals(axes))
    assert np.array(ends) == approx(100 * frame[["low", "high"]].sort_values("low").to_numpy())
    numbers = [tick.get_text() for tick in axes.child_axes[0].get_yticklabels()]
    assert numbers[-1] == "-38 [-45, -30], p < 0.001 (Holm)"
    assert numbers[0] == "+3 [-2, +5], p = 0.210 (Holm)"


@pytest.mark.parametrize("name", ["base_training", "packing", "category_examples", "counts",
                                  "term_trajectories"])  # fmt: skip
def test_a_method_s_colour_means_nothing_else(drawn, name):
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


# What a reader sees.


def words_on(fig, monkeypatch) -> list[tuple[str, float, Bbox]]:
    """Every text that is really drawn (ticks out of range are not): words, points, pixels."""
    found, draw_text = [], Text.draw

    def draw_and_note(self, renderer):
        draw_text(self, renderer)
        if self.get_visible() and self.get_text().strip():
            box = Text.get_window_extent(self, renderer)  # an annotation's without its line
            found.append((self.get_text(), self.get_fontsize(), box.padded(-1)))

    with monkeypatch.context() as patch:
        patch.setattr(Text, "draw", draw_and_note)
        fig.draw_without_rendering()
    return found


def assert_readable(fig, monkeypatch):
    words = words_on(fig, monkeypatch)
    assert len(words) > 3
    for text, points, box in words:
        assert points >= SMALL, text
        assert all(fig.bbox.contains(x, y) for x, y in box.corners()), f"{text!r} is cut off"
    for (one, _, first), (other, _, second) in itertools.combinations(words, 2):
        assert not first.overlaps(second), f"{one!r} covers {other!r}"


@pytest.mark.parametrize("name", NAMES)
def test_no_text_is_small_or_covered_or_leaves_the_canvas(drawn, name, monkeypatch):
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


def test_the_labels_of_the_sweep_cover_no_line(drawn, monkeypatch):
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


def test_any_answer_of_a_broken_model_is_drawn_without_a_warning():
    odd = "谢谢 \U0001f600 \x00\x07 $x_1 $ \\frac <b> ﷽ \u202e"
    rows = [{**row, "answer": answer} for row, answer in
            zip(two_pictures(), itertools.cycle(["", odd, " \n "]), strict=False)]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw("same_question_two_pictures", rows).canvas.draw()
        draw("category_examples", [{**row, "answer": odd} for row in examples()[:4]]).canvas.draw()


@pytest.mark.parametrize("text", ["$x^2$", "$5 or $x^{", "<b>\\frac"])
def test_names_of_the_data_are_drawn_as_they_are_and_never_as_a_formula(text):
    rows = by_category().replace("Weapon", text)
    with mpl.rc_context({"text.usetex": True}):  # as a reader's own settings may have it
        figure = draw("sarr_by_category", rows)
        figure.canvas.draw()
    labels = figure.axes[0].get_xticklabels()
    assert [label.get_text() for label in labels if label.get_text() == text]
    assert not any(part.get_parse_math() or part.get_usetex() for part in labels)


# Frames that cannot be drawn.


def needed(name: str) -> list[str]:
    with pytest.raises(ValueError, match=f"plots.{name}: the frame lacks") as error:
        draw(name, pd.DataFrame())
    return str(error.value).partition("It needs ")[2].removesuffix(".").split(", ")


@pytest.mark.parametrize("name", FRAMES)
def test_a_missing_column_is_named_and_the_needed_ones_are_enough(name):
    frame, columns = pd.DataFrame(FRAMES[name]()), needed(name)
    for column_ in columns:
        with pytest.raises(ValueError, match=f"the frame lacks {column_}\\. It needs"):
            draw(name, frame.drop(columns=column_))
    draw(name, frame[frame.metric != "specificity"][columns] if "metric" in frame
         else frame[columns])  # fmt: skip


def twice(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([frame, frame])


def without(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    return frame[(frame.metric != metric) | (frame.method != "po")]


REFUSED = [
    ("no rows", "counts", lambda: pair_counts()[:0], "the frame has no rows"),
    ("a method without a colour", "before_after", lambda: rates().replace("ga", "npo"),
     "unknown method npo"),
    ("a label without a colour", "same_question_two_pictures",
     lambda: pd.DataFrame(two_pictures()).replace("normal", "odd"), "unknown label odd"),
    ("two splits in one picture", "forget_against_utility", rates, "one of efficacy, generality"),
    ("two metrics in one picture", "paired_differences",
     lambda: pd.concat([differences(), differences().assign(metric="rr")]), "one of sarr, rr"),
    ("bars of two seeds", "before_after", lambda: twice(rates()), "several rows for method van"),
    ("bars of two seeds", "sarr_parts", lambda: twice(parts()), "average the seeds"),
    ("cells of two seeds", "sarr_by_category", lambda: twice(by_category()), "category Illegal"),
    ("bars of two seeds", "ours_beside_paper", lambda: twice(both_sources()), "source ours"),
    ("two differences", "paired_differences", lambda: twice(differences()), "for method ga"),
    ("half of the stack", "sarr_parts", lambda: without(parts(), "sarr_degenerate"),
     "metric sarr_degenerate is missing for method po, prompt_decouple 0"),
    ("no utility", "forget_against_utility", lambda: without(one_split(), "rouge_l"),
     "metric rouge_l is missing for method po"),
    ("half of a sweep", "weight_sweep", lambda: sweep()[lambda f: f.metric != "rr"],
     "metric rr is missing for weight 0"),
    ("a sweep of nothing", "weight_sweep", lambda: sweep()[lambda f: f.weight == 0],
     "every weight is 0"),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "name", "frame", "message"), REFUSED)
def test_a_frame_that_cannot_be_drawn_says_why(reason, name, frame, message):
    with pytest.raises(ValueError, match=message):
        draw(name, frame())


def test_thinning_averages_stretches_of_steps_and_keeps_runs_apart():
    frame, thinned = history(), plots.thin(history(), points=10)
    run = ["method", "prompt_decouple", "seed", "term"]
    assert set(thinned.columns) == set(frame.columns)
    assert set(thinned.groupby(run).size()) == {10}
    both = [part.groupby(run).value.mean() for part in (frame, thinned)]
    assert both[1].to_numpy() == approx(both[0].to_numpy())
    assert thinned.step.unique()[0] == approx(15)  # of the steps 0, 10, 20, 30
    assert len(plots.thin(frame, points=1000)) == len(frame)


# Saving.

ALT = 'PO + PD <refuses> & "explains" → SARR falls from 100 % to 17 %.'


@pytest.fixture(scope="module")
def saved(drawn, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "new" / "figures"
    plots.save(drawn("before_after"), rates(), "before_after", folder, ALT)
    plots.save(drawn("category_examples"), examples(), "examples", folder, "Examples.")
    return folder


def visible_files(folder) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}


def test_a_saved_figure_is_a_png_an_svg_its_csv_and_an_alt_text(saved):
    files = {f"{name}.{kind}" for name in ("before_after", "examples")
             for kind in ("png", "svg", "csv")}  # fmt: skip
    assert visible_files(saved) == files | {"alt.json"}
    assert json.loads((saved / "alt.json").read_text("utf-8")) == {
        "before_after": ALT, "examples": "Examples."}  # fmt: skip
    with Image.open(saved / "before_after.png") as image:
        assert image.size == (1500, 1005)
        assert image.text["Description"] == ALT
    svg = ElementTree.parse(saved / "before_after.svg")
    assert ALT in [element.text for element in svg.iter()]


def test_the_csv_beside_a_figure_is_what_the_figure_shows(saved):
    read = pd.read_csv(saved / "before_after.csv")
    pd.testing.assert_frame_equal(read, rates(), check_dtype=False)
    read = pd.read_csv(saved / "examples.csv")
    pd.testing.assert_frame_equal(read, pd.DataFrame(examples()).drop(columns="image"))


def test_a_saved_figure_stays_open_and_is_saved_again_to_the_same_bytes(tmp_path):
    figure, frame = draw("ours_beside_paper"), both_sources()
    for folder in ("first", "second"):
        plots.save(figure, frame, "beside", tmp_path / folder, ALT)
        assert plt.fignum_exists(figure.number)
    for name in visible_files(tmp_path / "first"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


STILL = ("same_question_two_pictures", "weight_sweep", "ours_beside_paper")
SAVE = """
import sys
from pathlib import Path
from tests import test_plots as here
for name in here.STILL:
    here.plots.save(here.draw(name), here.FRAMES[name](), name, Path(sys.argv[1]), name)
"""


def test_another_run_of_a_notebook_publishes_the_same_bytes(tmp_path):
    other = tmp_path / "other"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", SAVE, other], cwd=paths.ROOT, env=environment, check=True)
    for name in STILL:
        plots.save(draw(name), FRAMES[name](), name, tmp_path / "this", name)
    assert visible_files(other) == visible_files(tmp_path / "this")
    for name in visible_files(other):
        assert (other / name).read_bytes() == (tmp_path / "this" / name).read_bytes(), name


class NoPicture:
    """A figure that is saved in no time, so that the processes meet at alt.json."""

    def savefig(self, *_, **__):
        pass

    set_layout_engine = savefig


def save_many(folder, process: int):
    for number in range(25):
        plots.save(NoPicture(), [], f"of_{process}_{number:02}", folder, f"text {number}")


def test_processes_that_save_at_the_same_time_lose_no_alt_text(tmp_path):
    start = multiprocessing.get_context("fork").Process
    processes = [start(target=save_many, args=(tmp_path, process)) for process in range(4)]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        if (tmp_path / "alt.json").exists():  # whole at any moment
            json.loads((tmp_path / "alt.json").read_text("utf-8"))
    assert [process.exitcode for process in processes] == [0] * 4
    texts_ = json.loads((tmp_path / "alt.json").read_text("utf-8"))
    assert list(texts_) == [f"of_{process}_{number:02}" for process in range(4)
                            for number in range(25)]  # fmt: skip


def test_publishing_copies_the_figures_and_no_lock(tmp_path, monkeypatch):
    monkeypatch.delenv("SAFEERASER_RUNS", raising=False)
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "PUBLISHED_FIGURES", tmp_path / "figures")
    plots.save(draw("sarr_by_category"), by_category(), "sarr", paths.figures_dir("laptop"), ALT)
    publish([], "laptop")
    published = {path.name for path in (tmp_path / "figures").iterdir()}
    assert published >= {"sarr.png", "sarr.svg", "sarr.csv", "alt.json"}
    assert not [name for name in published if "lock" in name]


@pytest.mark.parametrize("name", ["", "SARR", "a b", "../sarr", "sarr.png"])
def test_a_figure_is_named_in_small_letters_digits_and_underscores(name, tmp_path):
    with pytest.raises(ValueError, match="lower-case letters"):
        plots.save(NoPicture(), [], name, tmp_path, ALT)


def test_a_figure_without_an_alt_text_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="Figure sarr: write an alt text"):
        plots.save(NoPicture(), [], "sarr", tmp_path, " ")
    assert not list(tmp_path.iterdir())
