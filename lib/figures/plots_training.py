"""Figures of a training: stages of the base model, a packed row, terms and rates over the steps."""

from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import ListedColormap
from matplotlib.lines import Line2D

from lib.figures import frames, parts, style
from lib.figures.frames import figure
from lib.unlearning.methods import run_name


@figure("stage", "step", "loss")
def base_training(frame, title: str = "Training of the base model, stage by stage") -> plt.Figure:
    """A column per stage: its loss and, where it is known, its accuracy below.

    Columns: stage, step, loss (nats), accuracy (0-1; optional, may be missing in some rows).
    """
    stages = list(dict.fromkeys(frame.stage))
    known = "accuracy" in frame and frame.accuracy.notna().any()
    size = (max(3.2 * len(stages), 5), 4.6 if known else 2.8)
    fig, axes = parts.grid(title, 2 if known else 1, len(stages), size, sharex="col")
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
    parts.plain_numbers(loss.yaxis)
    if lowest is not loss:
        measured = part.dropna(subset="accuracy")
        lowest.plot(measured.step, 100 * measured.accuracy, color="black", linewidth=1.2)
        parts.percent_axis(lowest.yaxis, "", top=104)
        if measured.empty:
            lowest.set_axis_off()
            lowest = loss
    lowest.set_xlabel("step")
    lowest.tick_params(labelbottom=True)
    lowest.locator_params(axis="x", nbins=5)


def packing(row_streams: Sequence[tuple[str, int]], mask: np.ndarray,
            title: str = "Which token of a packed row sees which") -> plt.Figure:
    """The block mask of one packed row.

    row_streams: (label, number of tokens) of each segment in order; mask: [tokens, tokens] bool,
    mask[i, j] where token i sees token j.
    """
    mask = np.asarray(mask, dtype=bool)
    lengths = np.array([length for _, length in row_streams])
    if mask.shape != (lengths.sum(), lengths.sum()):
        raise ValueError(f"The segments hold {lengths.sum()} tokens, but the mask is {mask.shape}.")
    with mpl.rc_context(style.STYLE):
        fig, ((axes,),) = parts.grid(title, 1, 1, (6.6, 6.8))
        axes.imshow(mask, cmap=ListedColormap(["white", style.NEUTRAL]), vmin=0, vmax=1)
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


def thin(history: pd.DataFrame, points: int = 60) -> pd.DataFrame:
    """Averages each run's steps in at most `points` equal stretches; a stretch keeps its mean step.

    Columns as in `term_trajectories`. Step-by-step values are too noisy to read and too many to
    publish.
    """
    run = [*frames.RUN, "seed", "term"]
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
    methods = list(dict.fromkeys(method for method, _ in frames.runs_of(history)))
    rows = sorted(history.prompt_decouple.unique())
    size = (2.5 * max(len(methods), 2), 2.2 * len(rows) + 0.9)
    fig, axes = parts.grid(title, len(rows), len(methods), size, sharex=True, sharey="col")
    for (row, column), panel in np.ndenumerate(axes):
        _terms(panel, frames.of_run(history, methods[column], rows[row]))
        panel.set(title=run_name(methods[column], rows[row]), ylabel="")
        panel.set_xlabel("step" if row == len(rows) - 1 else "")
        parts.step_axis(panel.xaxis)
    large = history.groupby("method").value.agg(lambda values: values.abs().max()) > BOUNDED
    for method, panels in zip(methods, axes.T, strict=True):
        for panel in panels if large[method] else ():  # not earlier: seaborn averages what is drawn
            _wide_axis(panel.yaxis)
    scale = f"; logarithmic beyond ±{LINEAR}" if large.all() else ""
    fig.supylabel(f"value of the term (nats per token{scale})", fontsize=9)
    lines = [Line2D([], [], color=colour, ls=dash, label=term.replace("_", " "))
             for term, (colour, dash) in style.TERM_LINES.items() if term in set(history.term)]
    parts.legend(fig, [*lines, parts.seeds_key()])
    return fig


def _wide_axis(axis) -> None:
    axis.axes.set_yscale("symlog", linthresh=LINEAR)
    ticks = mpl.ticker.SymmetricalLogLocator(base=10, linthresh=LINEAR, subs=(1, 2, 5))
    axis.set_major_locator(ticks)
    parts.plain_numbers(axis)


def _terms(axes, part: pd.DataFrame) -> None:
    axes.axhline(0, color="#999999", linewidth=0.8)
    for term in frames.in_order(style.TERM_LINES, part.term):
        colour, dash = style.TERM_LINES[term]
        _mean_and_band(axes, part[part.term == term], color=colour, linestyle=dash, linewidth=1.4,
                       label=term)


def _mean_and_band(axes, part: pd.DataFrame, **look) -> None:
    """A line of the seeds' mean over the steps, in a band from the lowest to the highest seed."""
    sns.lineplot(part, x="step", y="value", ax=axes, errorbar=("pi", 100), legend=False,
                 err_kws={"linewidth": 0}, **look)


@figure("method", "prompt_decouple", "seed", "step", "metric", "value")
def over_steps(frame, title: str = "SARR and RR during training") -> plt.Figure:
    """A panel per metric; a line per run (mean of the seeds) and the seeds' band.

    Columns: method, prompt_decouple, seed, step, metric (sarr, rr, asr ...), value (0-1).
    """
    frame = frames.in_percent(frame)
    metrics = frames.in_order(("sarr", "rr"), frame.metric)
    fig, axes = parts.grid(title, 1, len(metrics), (1.6 + 4.1 * len(metrics), 3.7), sharex=True)
    runs = frames.runs_of(frame)
    looks = {run: _run_line(run, len(runs) - place) for place, run in enumerate(runs, start=1)}
    for panel, metric in zip(axes[0], metrics, strict=True):
        for run in runs:
            part = frames.of_run(frame[frame.metric == metric], *run)
            _mean_and_band(panel, part, **looks[run])
        panel.set_xlabel("step")
        parts.step_axis(panel.xaxis)
        parts.percent_axis(panel.yaxis, f"{style.METRIC_NAMES.get(metric, metric)} (%)", top=104)
    parts.legend(fig, [*(Line2D([], [], **look) for look in looks.values()), parts.seeds_key()])
    return fig


def _run_line(run: tuple[str, int], behind: int) -> dict:
    """Runs of equal values lie upon each other: the more follow, the wider, so that all are seen.

    behind: how many runs are drawn after this one.
    """
    shape = {"linewidth": 1.6 + 1.2 * behind, "markersize": 5 + 3 * behind, "clip_on": False}
    shape["linestyle"] = "-" if run[1] or run[0] == "vanilla" else "--"
    return {"label": run_name(*run), **shape, **style.point_look(*run)}
