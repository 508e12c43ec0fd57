"""Figures: a tidy frame goes in, a matplotlib figure comes out.

Rates and their intervals are fractions (0-1) in the frames and percent on the axes. Each function
takes `title`, which should say the finding; without it the title only names what is shown. What
colours, hatches and markers mean is in plot_parts.py.
"""

from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import ListedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from lib.figures.plot_parts import (
    HATCH,
    LABEL_COLOURS,
    METHOD_COLOURS,
    METHOD_NAMES,
    METRIC_NAMES,
    NEUTRAL,
    SET_COLOURS,
    SMALL,
    SPLIT_NAMES,
    STYLE,
    TERM_LINES,
    bar_keys,
    bar_look,
    errors,
    figure,
    grid,
    headline,
    in_order,
    in_percent,
    interval_key,
    label_points,
    legend,
    method_ticks,
    number_over,
    of_run,
    one_row_per,
    only_one,
    paler,
    percent,
    percent_axis,
    plain_numbers,
    point_look,
    runs_of,
    save,
    seeds_key,
    shorten,
    show_picture,
    slots,
    step_axis,
    with_metrics,
    write,
)
from lib.figures.tables import PAPER_SARR_REDUCTION
from lib.unlearning.methods import run_name

__all__ = [
    "LABEL_COLOURS", "METHOD_COLOURS", "base_training", "before_after", "category_examples",
    "counts", "forget_against_utility", "ours_beside_paper", "over_steps", "packing",
    "paired_differences", "percent", "run_name", "same_question_two_pictures", "sarr_by_category",
    "sarr_parts", "save", "term_trajectories", "thin", "weight_sweep",
]  # fmt: skip

RUN = ["method", "prompt_decouple"]
PAPER_BAR = {"facecolor": "none", "edgecolor": "#4D4D4D", "linestyle": "--"}


# Chapter 00: the model.


@figure("stage", "step", "loss")
def base_training(frame, title: str = "Training of the base model, stage by stage") -> plt.Figure:
    """A column per stage: its loss and, where it is known, its accuracy below.

    Columns: stage, step, loss (nats), accuracy (0-1; optional, may be missing in some rows).
    """
    stages = list(dict.fromkeys(frame.stage))
    known = "accuracy" in frame and frame.accuracy.notna().any()
    size = (max(3.2 * len(stages), 5), 4.6 if known else 2.8)
    fig, axes = grid(title, 2 if known else 1, len(stages), size, sharex="col")
    for column, stage in zip(axes.T, stages, strict=True):
        _stage(column, frame[frame.stage == stage], stage)
    axes[0, 0].set_ylabel("loss (nats, logarithmic)")
    if known:
        axes[1, 0].set_ylabel("accuracy (%)")
    return fig


def _stage(column, part: pd.DataFrame, stage: str) -> None:
    """Loss and, where there is a second panel in the column, accuracy below."""
    loss, lowest = column[0], column[-1]
    loss.plot(part.step, part.loss, color="black", linewidth=1.2)
    loss.set(title=stage, yscale="log")
    loss.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
    plain_numbers(loss.yaxis)
    if lowest is not loss:
        measured = part.dropna(subset="accuracy")
        lowest.plot(measured.step, 100 * measured.accuracy, color="black", linewidth=1.2)
        percent_axis(lowest.yaxis, "", top=104)
        if measured.empty:
            lowest.set_axis_off()
            lowest = loss
    lowest.set_xlabel("step")
    lowest.tick_params(labelbottom=True)
    lowest.locator_params(axis="x", nbins=5)


def packing(
    row_streams: Sequence[tuple[str, int]],
    mask: np.ndarray,
    title: str = "Which token of a packed row sees which",
) -> plt.Figure:
    """The block mask of one packed row.

    row_streams: (label, number of tokens) of each segment in order; mask: [tokens, tokens] bool,
    mask[i, j] where token i sees token j.
    """
    mask = np.asarray(mask, dtype=bool)
    lengths = np.array([length for _, length in row_streams])
    if mask.shape != (lengths.sum(), lengths.sum()):
        raise ValueError(f"The segments hold {lengths.sum()} tokens, but the mask is {mask.shape}.")
    with mpl.rc_context(STYLE):
        fig, ((axes,),) = grid(title, 1, 1, (6.6, 6.8))
        axes.imshow(mask, cmap=ListedColormap(["white", NEUTRAL]), vmin=0, vmax=1)
        _segments(axes, [label for label, _ in row_streams], lengths)
    return fig


def _segments(axes, labels: list[str], lengths: np.ndarray) -> None:
    ends = np.cumsum(lengths) - 0.5
    for end in ends[:-1]:
        axes.axhline(end, color="#4D4D4D", linewidth=0.6)
        axes.axvline(end, color="#4D4D4D", linewidth=0.6)
    axes.grid(visible=False)
    axes.set_xticks(ends - lengths / 2, labels, rotation=90, parse_math=False)
    axes.set_yticks(ends - lengths / 2, labels, parse_math=False)
    axes.set(xlabel="token that is seen", ylabel="token that sees (grey: sees)")


# Chapter 01: the data.


@figure("category", "set", "image", "question", "answer")
def category_examples(rows, title: str = "One example of each category and set") -> plt.Figure:
    """A row per category, a column per set, the question and the answer beside each picture.

    Columns: category, set, image (PIL, or None for a text question), question, answer.
    """
    sets, categories = in_order(SET_COLOURS, rows["set"]), list(dict.fromkeys(rows.category))
    size = (3.35 * len(sets), 1.2 * len(categories) + 0.7)
    fig, axes = grid(title, len(categories), 2 * len(sets), size, width_ratios=[1, 2.2] * len(sets))
    for words in axes[:, 1::2].flat:
        words.set_axis_off()
    for column, name in enumerate(sets):
        axes[0, 2 * column].set_title(name, loc="left", fontweight="bold")
    for row, category in enumerate(categories):
        axes[row, 0].set_ylabel(category, fontsize=SMALL)
    for example in rows.itertuples():
        row, column = categories.index(example.category), 2 * sets.index(example.set)
        show_picture(axes[row, column], example.image)
        _question_and_answer(axes[row, column + 1], example)
    return fig


def _question_and_answer(axes, example) -> None:
    question = shorten(example.question, 32, 3)
    write(axes, question, 0, fontweight="bold")
    write(axes, shorten(example.answer, 36, 3), 4 + 10 * (question.count("\n") + 1))


@figure("source", "category", "set", "count")
def counts(frame, title: str = "How many question-answer pairs there are") -> plt.Figure:
    """Left: our pairs by category and set. Right: ours beside the paper's, by set.

    Columns: source ("ours" | "paper"), category ("all" where the paper's split is unknown), set,
    count. Rows that agree in these are added up. Sets other than the four (such as "images") are in
    the right panel only.
    """
    fig, ((left, right),) = grid(title, 1, 2, (10, 3.6))
    ours = frame[(frame.source == "ours") & frame["set"].isin(SET_COLOURS)]
    categories = list(dict.fromkeys(ours.category))[::-1]
    table = ours.groupby(["set", "category"])["count"].sum()
    start = np.zeros(len(categories))
    for name in in_order(SET_COLOURS, ours["set"]):
        width = table[name].reindex(categories, fill_value=0).to_numpy()
        left.barh(categories, width, 0.7, start, color=SET_COLOURS[name], label=name)
        start = start + width
    left.set(xlabel="pairs", title="ours, by category")
    left.grid(axis="y", visible=False)
    _totals(right, frame)
    ours_key = Patch(facecolor=NEUTRAL, label="ours")
    sets = left.get_legend_handles_labels()[0]
    legend(fig, [*sets, ours_key, Patch(**PAPER_BAR, label="paper")])
    return fig


def _totals(axes, frame: pd.DataFrame) -> None:
    totals = frame.groupby(["set", "source"], sort=False)["count"].sum()
    sets = in_order(SET_COLOURS, frame["set"])[::-1]
    for (name, source), number in totals.items():
        ours = source == "ours"
        look = {"color": SET_COLOURS.get(name, NEUTRAL)} if ours else PAPER_BAR
        y = sets.index(name) + (0.19 if ours else -0.19)
        axes.barh(y, number, 0.36, **look)
        axes.annotate(
            f"{number:,}", (number, y), (3, 0), textcoords="offset points", va="center",
            fontsize=SMALL,
        )  # fmt: skip
    axes.set_yticks(range(len(sets)), sets)
    axes.set(xlim=(0, 1.18 * totals.max()), title="ours beside the paper's", xlabel="number")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(axis="y", visible=False)


# Chapters 02-04: unlearning.


def thin(history: pd.DataFrame, points: int = 60) -> pd.DataFrame:
    """Averages each run's steps in at most `points` equal stretches; a stretch keeps its mean step.

    Columns as in `term_trajectories`. Step-by-step values are too noisy to read and too many to
    publish.
    """
    run = [*RUN, "seed", "term"]
    first = history.step.min()
    length = max((history.step.max() - first + 1) / points, 1)
    stretch = ((history.step - first) // length).rename("stretch")
    means = history.groupby([*run, stretch], sort=False)[["step", "value"]].mean()
    return means.reset_index().drop(columns="stretch")


BOUNDED = 5  # nats: terms that stay below need no logarithmic axis; GA's falls without bound
LINEAR = 1  # nats: a logarithmic axis is linear between minus and plus this


@figure("method", "prompt_decouple", "seed", "step", "term", "value")
def term_trajectories(history, title: str = "Every term of the loss, step by step") -> plt.Figure:
    """A column per method, without PD above and with PD below; mean of the seeds and their band.

    Columns: method, prompt_decouple, seed, step, term, value (nats per token, as it enters the
    loss: a forget term that is subtracted is negative). See `thin` for long histories.
    """
    methods = list(dict.fromkeys(method for method, _ in runs_of(history)))
    rows = sorted(history.prompt_decouple.unique())
    size = (2.5 * max(len(methods), 2), 2.2 * len(rows) + 0.9)
    fig, axes = grid(title, len(rows), len(methods), size, sharex=True, sharey="col")
    for (row, column), panel in np.ndenumerate(axes):
        _terms(panel, of_run(history, methods[column], rows[row]))
        panel.set(title=run_name(methods[column], rows[row]), ylabel="")
        panel.set_xlabel("step" if row == len(rows) - 1 else "")
        step_axis(panel.xaxis)
    large = history.groupby("method").value.agg(lambda values: values.abs().max()) > BOUNDED
    for method, panels in zip(methods, axes.T, strict=True):
        for panel in panels if large[method] else ():  # not earlier: seaborn averages what is drawn
            _wide_axis(panel.yaxis)
    scale = f"; logarithmic beyond ±{LINEAR}" if large.all() else ""
    fig.supylabel(f"value of the term (nats per token{scale})", fontsize=9)
    lines = [
        Line2D([], [], color=TERM_LINES[t][0], ls=TERM_LINES[t][1], label=t.replace("_", " "))
        for t in in_order(TERM_LINES, history.term)
    ]
    legend(fig, [*lines, seeds_key()])
    return fig


def _wide_axis(axis) -> None:
    axis.axes.set_yscale("symlog", linthresh=LINEAR)
    axis.set_major_locator(
        mpl.ticker.SymmetricalLogLocator(base=10, linthresh=LINEAR, subs=(1, 2, 5))
    )
    plain_numbers(axis)


def _terms(axes, part: pd.DataFrame) -> None:
    axes.axhline(0, color="#999999", linewidth=0.8)
    for term in in_order(TERM_LINES, part.term):
        colour, dash = TERM_LINES[term]
        sns.lineplot(
            part[part.term == term], x="step", y="value", ax=axes, color=colour, linestyle=dash,
            errorbar=("pi", 100), linewidth=1.4, err_kws={"linewidth": 0}, label=term, legend=False,
        )  # fmt: skip


@figure("method", "prompt_decouple", "seed", "step", "metric", "value")
def over_steps(frame, title: str = "SARR and RR during training") -> plt.Figure:
    """A panel per metric; a line per run (mean of the seeds) and the seeds' band.

    Columns: method, prompt_decouple, seed, step, metric (sarr, rr, asr ...), value (0-1).
    """
    frame = in_percent(frame)
    metrics = in_order(METRIC_NAMES, frame.metric)
    fig, axes = grid(title, 1, len(metrics), (1.6 + 4.1 * len(metrics), 3.7), sharex=True)
    runs = runs_of(frame)
    looks = {run: _run_line(run, len(runs) - place) for place, run in enumerate(runs, start=1)}
    for panel, metric in zip(axes[0], metrics, strict=True):
        for run in runs:
            part = of_run(frame[frame.metric == metric], *run)
            sns.lineplot(
                part, x="step", y="value", ax=panel, errorbar=("pi", 100), legend=False,
                err_kws={"linewidth": 0}, **looks[run],
            )  # fmt: skip
        panel.set_xlabel("step")
        step_axis(panel.xaxis)
        percent_axis(panel.yaxis, f"{METRIC_NAMES.get(metric, metric)} (%)", top=104)
    legend(fig, [*(Line2D([], [], **look) for look in looks.values()), seeds_key()])
    return fig


def _run_line(run: tuple[str, int], behind: int) -> dict:
    """Runs of equal values lie upon each other: the more follow, the wider, so that all are seen.

    behind: how many runs are drawn after this one.
    """
    shape = {"linewidth": 1.6 + 1.2 * behind, "markersize": 5 + 3 * behind, "clip_on": False}
    shape["linestyle"] = "-" if run[1] or run[0] == "vanilla" else "--"
    return {"label": run_name(*run), **shape, **point_look(*run)}


@figure("method", "prompt_decouple", "split", "metric", "value", "low", "high", "n")
def before_after(
    frame_ci,
    title: str = "Before (original) and after unlearning",
    metrics: Sequence[str] = ("asr", "rr", "rouge_l"),
) -> plt.Figure:
    """A row per metric, a column per split, a bar per run with its 95 % interval.

    Columns: method (vanilla is "before"), prompt_decouple, split, metric, value, low, high, n.
    """
    frame = in_percent(frame_ci[frame_ci.metric.isin(metrics)])
    frame = one_row_per(frame, *RUN, "split", "metric")
    splits, places = in_order(SPLIT_NAMES, frame.split), slots(frame)
    size = (1.4 + 4.3 * len(splits), 1.0 + 1.9 * len(metrics))
    fig, axes = grid(title, len(metrics), len(splits), size, sharex=True, sharey="row")
    for (row, column), panel in np.ndenumerate(axes):
        part = frame[(frame.metric == metrics[row]) & (frame.split == splits[column])]
        _bars(panel, part, places)
        name = METRIC_NAMES.get(metrics[row], metrics[row])
        percent_axis(panel.yaxis, f"{name} (%)" if column == 0 else "", top=122)
        if row == 0:
            panel.set_title(SPLIT_NAMES.get(splits[column], splits[column]), loc="left")
    legend(fig, [*bar_keys(frame), interval_key()])
    return fig


def _bars(axes, frame: pd.DataFrame, places: list[tuple[str, int, float]]) -> None:
    """Upright bars of one metric and split (percent), with interval and value."""
    for method, prompt_decouple, x in places:
        for row in of_run(frame, method, prompt_decouple).itertuples():
            axes.bar(x, row.value, 0.4, **bar_look(method, prompt_decouple))
            lengths = errors(row.value, row.low, row.high)
            axes.errorbar(x, row.value, lengths, color="black", capsize=2)
            number_over(axes, x, row.value + lengths[1, 0], row.value)
    method_ticks(axes, places)
    if frame.empty:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center")


@figure("method", "prompt_decouple", "metric", "value")
def sarr_parts(frame, title: str = "What becomes of the answers about safe pictures") -> plt.Figure:
    """SARR as a stack of refusals and degenerate answers, by method, without and with PD.

    Columns: method, prompt_decouple, metric (sarr_refusal, sarr_degenerate and, for the interval of
    their sum, sarr), value (0-1), low, high (needed for sarr only). One split.
    """
    frame = in_percent(only_one(frame, "split"))
    frame = with_metrics(frame, RUN, "sarr_refusal", "sarr_degenerate")
    fig, ((axes,),) = grid(title, 1, 1, (8, 4.2))
    places = slots(frame)
    for method, prompt_decouple, x in places:
        run = of_run(frame, method, prompt_decouple).set_index("metric")
        refusal, degenerate = run.value["sarr_refusal"], run.value["sarr_degenerate"]
        axes.bar(x, refusal, 0.4, **bar_look(method, prompt_decouple))
        axes.bar(x, degenerate, 0.4, refusal, **bar_look(method, prompt_decouple, pale=True))
        _stack_top(axes, x, refusal + degenerate, run)
    method_ticks(axes, places)
    percent_axis(axes.yaxis, "SARR (% of questions on safe pictures)")
    full = Patch(facecolor=NEUTRAL, label="refusal")
    pale = Patch(facecolor=paler(NEUTRAL), edgecolor=NEUTRAL, label="degenerate answer")
    intervals = [interval_key()] if "low" in frame else []
    legend(fig, [full, pale, *bar_keys(frame)[1:], *intervals])
    return fig


def _stack_top(axes, x: float, total: float, run: pd.DataFrame) -> None:
    lengths = np.zeros((2, 1))
    if "low" in run and "sarr" in run.index:
        lengths = errors(total, run.low["sarr"], run.high["sarr"])
        axes.errorbar(x, total, lengths, color="black", capsize=2)
    number_over(axes, x, total + lengths[1, 0], total)


@figure("method", "prompt_decouple", "category", "value")
def sarr_by_category(frame, title: str = "SARR by method and category") -> plt.Figure:
    """A heat map: a row per run, a column per category, percent in the cells.

    Columns: method, prompt_decouple, category, value (0-1). One split.
    """
    frame = in_percent(only_one(frame, "split", "metric"))
    frame = one_row_per(frame, *RUN, "category")
    runs, categories = runs_of(frame), list(dict.fromkeys(frame.category))
    table = frame.pivot(index=RUN, columns="category", values="value")
    table = table.reindex(index=runs, columns=categories)
    fig, ((axes,),) = grid(title, 1, 1, (8.5, 1.3 + 0.36 * len(runs)))
    sns.heatmap(
        table, ax=axes, vmin=0, vmax=100, annot=True, fmt=".0f", cmap="cividis", linewidths=1,
        yticklabels=[run_name(*run) for run in runs], annot_kws={"fontsize": 9},
        cbar_kws={"label": "SARR (%)", "ticks": range(0, 101, 25)},
    )  # fmt: skip
    axes.set(xlabel="", ylabel="")
    axes.tick_params(axis="y", rotation=0)
    return fig


@figure("question", "picture", "image", "model", "answer", "label")
def same_question_two_pictures(
    rows, title: str = "The same question about two pictures"
) -> plt.Figure:
    """Harmful picture left, safe picture right, and each model's answers beside them.

    Columns: question, picture ("harmful" | "safe"), image (PIL), model, answer, label (of the
    answer: harmful, refusal, degenerate, normal).
    """
    questions, models = list(dict.fromkeys(rows.question)), list(dict.fromkeys(rows.model))
    height = 0.5 + 0.6 * max(len(models), 2)
    fig = plt.figure(figsize=(10, height * len(questions) + 0.4), layout="constrained")
    headline(fig, title, 10)
    blocks = fig.subfigures(len(questions), 1, squeeze=False)[:, 0]
    for block, question in zip(blocks, questions, strict=True):
        headline(block, shorten(question, 105, 1), 10, size=9)
        axes = block.subplots(1, 4, width_ratios=[1, 1.9, 1, 1.9])
        for column, picture in ((0, "harmful"), (2, "safe")):
            part = rows[(rows.question == question) & (rows.picture == picture)]
            show_picture(axes[column], part.image.iloc[0])
            axes[column].set_xlabel(f"{picture} picture", fontsize=SMALL)
            _answers(axes[column + 1], part)
    return fig


def _answers(axes, part: pd.DataFrame) -> None:
    axes.set_axis_off()
    for place, row in enumerate(part.itertuples()):
        below = 2 + 43 * place
        chip = {"boxstyle": "round,pad=0.2", "linewidth": 0,
                "facecolor": LABEL_COLOURS.get(row.label, paler(NEUTRAL))}
        write(axes, shorten(row.model, 20, 1), below, fontweight="bold")
        write(axes, row.label, below, right=120, bbox=chip)
        write(axes, shorten(row.answer, 40, 2), below + 14)


@figure("weight", "seed", "metric", "value")
def weight_sweep(
    frame, title: str = "What the weight of the PD loss does", method: str = "po"
) -> plt.Figure:
    """Left: SARR against RR along the weights. Right: both over the weight.

    Columns: weight (0 is without PD), seed (a number, or "all" for the mean of the seeds), metric
    (sarr, rr), value (0-1), low, high (optional: the intervals of the "all" rows). Thin lines are
    single seeds. Without "all" rows the mean is taken here and has no interval.
    """
    frame = in_percent(frame).sort_values("weight")
    if not (frame.weight > 0).any():
        raise ValueError("plots.weight_sweep: every weight is 0; add the runs with a larger one.")
    with_metrics(frame, ["weight", "seed"], "sarr", "rr")
    together = frame.seed.astype(str) == "all"
    single, mean = frame[~together], frame[together]
    if mean.empty:
        mean = single.groupby(["weight", "metric"], as_index=False).value.mean()
    mean = mean.reindex(columns=["weight", "metric", "value", "low", "high"])
    mean = mean.pivot(index="weight", columns="metric")
    fig, ((plane, curve),) = grid(title, 1, 2, (10, 4.3))
    _sweep_curve(curve, mean, single, METHOD_COLOURS[method])
    _sweep_plane(plane, mean, single, method)
    return fig


def _sweep_plane(axes, mean: pd.DataFrame, single: pd.DataFrame, method: str) -> None:
    colour = METHOD_COLOURS[method]
    for _, seed in single.groupby("seed"):
        table = seed.pivot(index="weight", columns="metric", values="value")
        axes.plot(table.rr, table.sarr, color=colour, linewidth=0.6, alpha=0.6)
    axes.plot(mean.value.rr, mean.value.sarr, color=colour, linewidth=1.6)
    for weight, row in mean.iterrows():
        rr, sarr = row.xs("rr", level=1), row.xs("sarr", level=1)
        axes.errorbar(rr.value, sarr.value, errors(*sarr), errors(*rr), elinewidth=0.9,
                      **point_look(method, int(weight > 0)))  # fmt: skip
    axes.set(title="numbers at the points: weight", xlabel="RR on harmful pictures (%)")
    axes.set_ylabel("SARR on safe pictures (%)")
    axes.margins(0.12)
    points = list(zip(mean.value.rr, mean.value.sarr, strict=True))
    label_points(axes, points, [f"{weight:g}" for weight in mean.index])


def _sweep_curve(axes, mean: pd.DataFrame, single: pd.DataFrame, colour: str) -> None:
    for metric, marker, dash in (("sarr", "o", "-"), ("rr", "^", "--")):
        for _, seed in single[single.metric == metric].groupby("seed"):
            axes.plot(seed.weight, seed.value, color=colour, lw=0.6, ls=dash, alpha=0.6)
        part = mean.xs(metric, axis=1, level="metric")
        axes.errorbar(
            part.index, part.value, errors(part.value, part.low, part.high), color=colour,
            ls=dash, marker=marker, lw=1.6, elinewidth=0.9, capsize=2, label=METRIC_NAMES[metric],
        )  # fmt: skip
    smallest = min(weight for weight in mean.index if weight > 0)
    axes.set_xscale("symlog", linthresh=smallest, linscale=0.5)
    axes.set_xticks(mean.index, [f"{weight:g}" for weight in mean.index])
    axes.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    axes.set(xlabel="weight of the PD loss (logarithmic; 0: without PD)", title="over the weight")
    percent_axis(axes.yaxis, "rate (%)", top=104)
    axes.legend(frameon=False)


# Chapter 05: all together.


@figure("method", "prompt_decouple", "metric", "value", "low", "high")
def forget_against_utility(
    frame_ci, title: str = "Forget quality against utility", utility: str = "rouge_l"
) -> plt.Figure:
    """A point per run: x forget quality, y utility, area SARR; a line joins the two of a method.

    Columns: method, prompt_decouple, metric (asr, sarr and `utility`), value, low, high (0-1). One
    split. Forget quality is 1 - ASR.
    """
    frame = in_percent(only_one(frame_ci, "split"))
    frame = with_metrics(frame, RUN, "asr", "sarr", utility)
    runs = {run: of_run(frame, *run).set_index("metric") for run in runs_of(frame)}
    fig, ((axes,),) = grid(title, 1, 1, (9, 5))
    _trade_offs(axes, runs, utility)
    axes.set(xlabel="forget quality: 1 - ASR (%)", ylabel=f"utility: {METRIC_NAMES[utility]} (%)")
    axes.set(xlim=(-8, 112), ylim=(-10, 112))
    _closer(axes, runs, utility)
    handles = [_run_key(run, part.value.sarr) for run, part in runs.items()]
    fig.legend(
        handles=[*handles, interval_key()], loc="outside right upper", frameon=False,
        labelspacing=1.4, handletextpad=1.4, title="area: SARR", alignment="left",
    )  # fmt: skip
    return fig


def _trade_offs(axes, runs: dict, utility: str) -> None:
    for method in dict.fromkeys(method for method, _ in runs):
        ends = [runs[run].value for run in runs if run[0] == method]
        axes.plot([100 - end.asr for end in ends], [end[utility] for end in ends],
                  color=METHOD_COLOURS[method], linewidth=0.8)  # fmt: skip
    # The largest first, so that no point hides another.
    for run in sorted(runs, key=lambda run: -runs[run].value.sarr):
        _run_point(axes, run, runs[run][["value", "low", "high"]], utility)


def _closer(axes, runs: dict, utility: str) -> None:
    """The upper right corner once more, enlarged, if it is crowded and there is room for it."""
    points = np.array([[100 - part.value.asr, part.value[utility]] for part in runs.values()])
    corner = points[(points > 80).all(axis=1)]
    free = ((points < 5) | (points > [75, 78])).any(axis=1).all()
    if len(corner) > 2 and free:
        inset = axes.inset_axes((12, 12, 60, 58), transform=axes.transData)
        _trade_offs(inset, runs, utility)
        low = corner.min(axis=0) - 6
        inset.set(xlim=(low[0], 103), ylim=(low[1], 103))
        inset.locator_params(nbins=5)
        inset.spines[:].set_visible(True)
        axes.indicate_inset_zoom(inset, edgecolor="#666666")


def _run_point(axes, run: tuple[str, int], part: pd.DataFrame, utility: str) -> None:
    asr, use = part.loc["asr"], part.loc[utility]
    axes.errorbar(
        100 - asr.value, use.value, errors(*use),
        errors(100 - asr.value, 100 - asr.high, 100 - asr.low), elinewidth=0.9,
        **_run_look(run, part.value.sarr),
    )  # fmt: skip


def _run_look(run: tuple[str, int], sarr: float) -> dict:
    """The diameter (points) grows like the root of SARR (percent), so the area grows like SARR."""
    look = point_look(*run) | {"markersize": 4 + 1.3 * np.sqrt(sarr)}
    return look | ({"markerfacecolor": "none"} if look["markerfacecolor"] == "white" else {})


def _run_key(run: tuple[str, int], sarr: float) -> Line2D:
    return Line2D([], [], ls="", label=f"{run_name(*run)}: {sarr:.0f} %", **_run_look(run, sarr))


@figure("source", "method", "prompt_decouple", "metric", "value", "low", "high")
def ours_beside_paper(
    frame,
    title: str = "Ours beside the paper's",
    metrics: Sequence[str] = ("sarr", "rr", "asr", "rouge_l"),
    ours: str = "ours (small stand-in)",
    paper: str = "paper (LLaVA-1.5-7B)",
    reduction: float = PAPER_SARR_REDUCTION / 100,
) -> plt.Figure:
    """A column per metric, a row per run: ours filled with its interval, the paper's hollow.

    Columns: source ("ours" | "paper"), method, prompt_decouple, metric, value, low, high (0-1; low
    and high missing for the paper, whose unknown values have no row or no value). One split. In the
    SARR panel a dashed mark shows where a run with PD would be after the paper's relative
    `reduction` from ours without PD.
    """
    frame = in_percent(only_one(frame, "split")).dropna(subset="value")
    frame = one_row_per(frame, "source", *RUN, "metric")
    runs = runs_of(frame)[::-1]
    size = (1.2 + 2.3 * len(metrics), 1.3 + 0.42 * len(runs))
    fig, axes = grid(title, 1, len(metrics), size, sharey=True)
    for panel, metric in zip(axes[0], metrics, strict=True):
        part = frame[frame.metric == metric]
        for row in part.itertuples():
            _source_bar(panel, row, runs.index((row.method, row.prompt_decouple)))
        percent_axis(panel.xaxis, f"{METRIC_NAMES.get(metric, metric)} (%)", top=128)
        panel.grid(axis="y", visible=False)
        if metric == "sarr":
            _reduced(panel, part[part.source == "ours"], runs, reduction)
    axes[0, 0].set_yticks(range(len(runs)), [run_name(*run) for run in runs])
    legend(fig, _source_keys(ours, paper, reduction))
    return fig


def _source_bar(axes, row, place: int) -> None:
    ours = row.source == "ours"
    y = place + (0.19 if ours else -0.19)
    axes.barh(y, row.value, 0.36, **bar_look(row.method, row.prompt_decouple, hollow=not ours))
    lengths = errors(row.value, row.low, row.high)
    if ours:
        axes.errorbar(row.value, y, xerr=lengths, color="black", capsize=2)
    axes.annotate(
        f"{row.value:.0f}", (row.value + lengths[1, 0], y), (4, 0), textcoords="offset points",
        va="center", fontsize=SMALL,
    )  # fmt: skip


def _reduced(axes, ours: pd.DataFrame, runs: list[tuple[str, int]], reduction: float) -> None:
    for method, without in ours[ours.prompt_decouple == 0].set_index("method").value.items():
        if (method, 1) in runs:
            place, goal = runs.index((method, 1)), (1 - reduction) * without
            axes.plot([goal, goal], [place - 0.45, place + 0.45], "k--", linewidth=1.4)


def _source_keys(ours: str, paper: str, reduction: float) -> list:
    return [
        Patch(facecolor=NEUTRAL, label=ours),
        Patch(**PAPER_BAR, label=f"{paper}, where known to us"),
        Patch(facecolor=NEUTRAL, edgecolor="white", hatch=HATCH, label="with PD"),
        interval_key(),
        Line2D([], [], color="k", ls="--", label=f"{100 * reduction:g} % below ours without PD"),
    ]


@figure("method", "difference", "low", "high", "p_holm")
def paired_differences(
    frame, title: str = "What PD changes, pair by pair", metric: str = "sarr"
) -> plt.Figure:
    """A forest plot: a row per method, with PD minus without PD, and its interval.

    Columns as from `statistics.compare`: method, difference, low, high (fractions), p_holm. One
    split and one metric, which `metric` names for the axis.
    """
    frame = one_row_per(in_percent(only_one(frame, "split", "metric")), "method")
    order = [method for method, _ in runs_of(frame.assign(prompt_decouple=0))][::-1]
    frame = frame.set_index("method").loc[order]
    fig, ((axes,),) = grid(title, 1, 1, (8, 1.3 + 0.45 * len(order)))
    axes.axvline(0, color="#666666", linewidth=1)
    for y, row in enumerate(frame.itertuples()):
        lengths = errors(row.difference, row.low, row.high)
        axes.errorbar(row.difference, y, xerr=lengths, capsize=3, **point_look(row.Index, 1))
    axes.set_yticks(range(len(order)), [METHOD_NAMES[method] for method in order])
    axes.set_ylim(-0.6, len(order) - 0.4)
    axes.set_xlabel(f"{METRIC_NAMES.get(metric, metric)} with PD minus without (percentage points)")
    numbers = axes.secondary_yaxis("right")
    numbers.set_yticks(range(len(order)), [_difference(row) for row in frame.itertuples()])
    numbers.tick_params(length=0)
    numbers.spines["right"].set_visible(False)
    return fig


def _difference(row) -> str:
    p = "p < 0.001" if row.p_holm < 0.001 else f"p = {row.p_holm:.3f}"
    return f"{row.difference:+.0f} [{row.low:+.0f}, {row.high:+.0f}], {p} (Holm)"
