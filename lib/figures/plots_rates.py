"""Figures of rates: before and after, SARR in parts and by category, over the weight of PD."""

from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.patches import Patch

from lib.figures import frames, parts, style
from lib.figures.frames import figure
from lib.unlearning.methods import run_name


@figure("method", "prompt_decouple", "split", "metric", "value", "low", "high", "n")
def before_after(frame_ci, title: str = "Before (original) and after unlearning",
                 metrics: Sequence[str] = ("asr", "rr", "rouge_l")) -> plt.Figure:
    """A row per metric, a column per split, a bar per run with its 95 % interval.

    Columns: method (vanilla is "before"), prompt_decouple, split, metric, value, low, high, n.
    """
    frame = frames.in_percent(frame_ci[frame_ci.metric.isin(metrics)])
    frame = frames.one_row_per(frame, *frames.RUN, "split", "metric")
    splits, places = frames.in_order(style.SPLIT_NAMES, frame.split), frames.slots(frame)
    size = (1.4 + 4.3 * len(splits), 1.0 + 1.9 * len(metrics))
    fig, axes = parts.grid(title, len(metrics), len(splits), size, sharex=True, sharey="row")
    for (row, column), panel in np.ndenumerate(axes):
        part = frame[(frame.metric == metrics[row]) & (frame.split == splits[column])]
        _bars(panel, part, places)
        name = style.METRIC_NAMES.get(metrics[row], metrics[row])
        parts.percent_axis(panel.yaxis, f"{name} (%)" if column == 0 else "", top=122)
        if row == 0:
            panel.set_title(style.SPLIT_NAMES.get(splits[column], splits[column]), loc="left")
    parts.legend(fig, [*parts.bar_keys(frame), parts.interval_key()])
    return fig


def _bars(axes, frame: pd.DataFrame, places: list[tuple[str, int, float]]) -> None:
    """Upright bars of one metric and split (percent), with interval and value."""
    for method, prompt_decouple, x in places:
        for row in frames.of_run(frame, method, prompt_decouple).itertuples():
            axes.bar(x, row.value, 0.4, **style.bar_look(method, prompt_decouple))
            lengths = parts.errors(row.value, row.low, row.high)
            axes.errorbar(x, row.value, lengths, color="black", capsize=2)
            parts.number_over(axes, x, row.value + lengths[1, 0], row.value)
    parts.method_ticks(axes, places)
    if frame.empty:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center")


@figure("method", "prompt_decouple", "metric", "value")
def sarr_parts(frame, title: str = "What becomes of the answers about safe pictures") -> plt.Figure:
    """SARR as a stack of refusals and degenerate answers, by method, without and with PD.

    Columns: method, prompt_decouple, metric (sarr_refusal, sarr_degenerate and, for the interval of
    their sum, sarr), value (0-1), low, high (needed for sarr only). One split.
    """
    frame = frames.in_percent(frames.only_one(frame, "split"))
    frame = frames.with_metrics(frame, frames.RUN, "sarr_refusal", "sarr_degenerate")
    fig, ((axes,),) = parts.grid(title, 1, 1, (8, 4.2))
    places = frames.slots(frame)
    for method, prompt_decouple, x in places:
        run = frames.of_run(frame, method, prompt_decouple).set_index("metric")
        refusal, degenerate = run.value["sarr_refusal"], run.value["sarr_degenerate"]
        axes.bar(x, refusal, 0.4, **style.bar_look(method, prompt_decouple))
        axes.bar(x, degenerate, 0.4, refusal, **style.bar_look(method, prompt_decouple, pale=True))
        _stack_top(axes, x, refusal + degenerate, run)
    parts.method_ticks(axes, places)
    parts.percent_axis(axes.yaxis, "SARR (% of questions on safe pictures)")
    full = Patch(facecolor=style.NEUTRAL, label="refusal")
    pale = Patch(facecolor=style.paler(style.NEUTRAL), edgecolor=style.NEUTRAL,
                 label="degenerate answer")
    intervals = [parts.interval_key()] if "low" in frame else []
    parts.legend(fig, [full, pale, *parts.bar_keys(frame)[1:], *intervals])
    return fig


def _stack_top(axes, x: float, total: float, run: pd.DataFrame) -> None:
    lengths = np.zeros((2, 1))
    if "low" in run and "sarr" in run.index:
        lengths = parts.errors(total, run.low["sarr"], run.high["sarr"])
        axes.errorbar(x, total, lengths, color="black", capsize=2)
    parts.number_over(axes, x, total + lengths[1, 0], total)


@figure("method", "prompt_decouple", "category", "value")
def sarr_by_category(frame, title: str = "SARR by method and category") -> plt.Figure:
    """A heat map: a row per run, a column per category, percent in the cells.

    Columns: method, prompt_decouple, category, value (0-1). One split.
    """
    frame = frames.in_percent(frames.only_one(frame, "split", "metric"))
    frame = frames.one_row_per(frame, *frames.RUN, "category")
    runs, categories = frames.runs_of(frame), list(dict.fromkeys(frame.category))
    table = frame.pivot(index=frames.RUN, columns="category", values="value")
    table = table.reindex(index=runs, columns=categories)
    fig, ((axes,),) = parts.grid(title, 1, 1, (8.5, 1.3 + 0.36 * len(runs)))
    sns.heatmap(
        table, ax=axes, vmin=0, vmax=100, annot=True, fmt=".0f", cmap="cividis", linewidths=1,
        yticklabels=[run_name(*run) for run in runs], annot_kws={"fontsize": 9},
        cbar_kws={"label": "SARR (%)", "ticks": range(0, 101, 25)},
    )  # fmt: skip
    axes.set(xlabel="", ylabel="")
    axes.tick_params(axis="y", rotation=0)
    return fig


@figure("weight", "seed", "metric", "value")
def weight_sweep(frame, title: str = "What the weight of the PD loss does",
                 method: str = "po") -> plt.Figure:
    """Left: SARR against RR along the weights. Right: both over the weight.

    Columns: weight (0 is without PD), seed (a number, or "all" for the mean of the seeds), metric
    (sarr, rr), value (0-1), low, high (optional: the intervals of the "all" rows). Thin lines are
    single seeds. Without "all" rows the mean is taken here and has no interval.
    """
    frame = frames.in_percent(frame).sort_values("weight")
    if not (frame.weight > 0).any():
        raise ValueError("plots.weight_sweep: every weight is 0; add the runs with a larger one.")
    frames.with_metrics(frame, ["weight", "seed"], "sarr", "rr")
    together = frame.seed.astype(str) == "all"
    single, mean = frame[~together], frame[together]
    if mean.empty:
        mean = single.groupby(["weight", "metric"], as_index=False).value.mean()
    mean = mean.reindex(columns=["weight", "metric", "value", "low", "high"])
    mean = mean.pivot(index="weight", columns="metric")
    fig, ((plane, curve),) = parts.grid(title, 1, 2, (10, 4.3))
    _sweep_curve(curve, mean, single, style.METHOD_COLOURS[method])
    _sweep_plane(plane, mean, single, method)
    return fig


def _sweep_plane(axes, mean: pd.DataFrame, single: pd.DataFrame, method: str) -> None:
    colour = style.METHOD_COLOURS[method]
    for _, seed in single.groupby("seed"):
        table = seed.pivot(index="weight", columns="metric", values="value")
        axes.plot(table.rr, table.sarr, color=colour, linewidth=0.6, alpha=0.6)
    axes.plot(mean.value.rr, mean.value.sarr, color=colour, linewidth=1.6)
    for weight, row in mean.iterrows():
        rr, sarr = row.xs("rr", level=1), row.xs("sarr", level=1)
        axes.errorbar(rr.value, sarr.value, parts.errors(*sarr), parts.errors(*rr), elinewidth=0.9,
                      **style.point_look(method, int(weight > 0)))  # fmt: skip
    axes.set(title="numbers at the points: weight", xlabel="RR on harmful pictures (%)")
    axes.set_ylabel("SARR on safe pictures (%)")
    axes.margins(0.12)
    points = list(zip(mean.value.rr, mean.value.sarr, strict=True))
    parts.label_points(axes, points, [f"{weight:g}" for weight in mean.index])


def _sweep_curve(axes, mean: pd.DataFrame, single: pd.DataFrame, colour: str) -> None:
    for metric, marker, dash in (("sarr", "o", "-"), ("rr", "^", "--")):
        for _, seed in single[single.metric == metric].groupby("seed"):
            axes.plot(seed.weight, seed.value, color=colour, lw=0.6, ls=dash, alpha=0.6)
        part = mean.xs(metric, axis=1, level="metric")
        axes.errorbar(
            part.index, part.value, parts.errors(part.value, part.low, part.high), color=colour,
            ls=dash, marker=marker, lw=1.6, elinewidth=0.9, capsize=2,
            label=style.METRIC_NAMES[metric],
        )  # fmt: skip
    smallest = min(weight for weight in mean.index if weight > 0)
    axes.set_xscale("symlog", linthresh=smallest, linscale=0.5)
    axes.set_xticks(mean.index, [f"{weight:g}" for weight in mean.index])
    axes.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    axes.set(xlabel="weight of the PD loss (logarithmic; 0: without PD)", title="over the weight")
    parts.percent_axis(axes.yaxis, "rate (%)", top=104)
    axes.legend(frameon=False)
