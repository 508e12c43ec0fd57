"""Figures that compare: forgetting with utility, ours with the paper's, with PD and without."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from lib.figures import frames, parts, style
from lib.figures.frames import figure
from lib.figures.tables import PAPER_SARR_REDUCTION
from lib.unlearning.methods import run_name


@figure("method", "prompt_decouple", "metric", "value", "low", "high")
def forget_against_utility(frame_ci, title: str = "Forget quality against utility",
                           utility: str = "rouge_l") -> plt.Figure:
    """A point per run: x forget quality, y utility, area SARR; a line joins the two of a method.

    Columns: method, prompt_decouple, metric (asr, sarr and `utility`), value, low, high (0-1). One
    split. Forget quality is 1 - ASR.
    """
    frame = frames.in_percent(frames.only_one(frame_ci, "split"))
    frame = frames.with_metrics(frame, frames.RUN, "asr", "sarr", utility)
    runs = {run: frames.of_run(frame, *run).set_index("metric") for run in frames.runs_of(frame)}
    fig, ((axes,),) = parts.grid(title, 1, 1, (9, 5))
    _trade_offs(axes, runs, utility)
    axes.set(xlabel="forget quality: 1 - ASR (%)", xlim=(-8, 112), ylim=(-10, 112),
             ylabel=f"utility: {style.METRIC_NAMES[utility]} (%)")
    _closer(axes, runs, utility)
    handles = [_run_key(run, part.value.sarr) for run, part in runs.items()]
    fig.legend(
        handles=[*handles, parts.interval_key()], loc="outside right upper", frameon=False,
        labelspacing=1.4, handletextpad=1.4, title="area: SARR", alignment="left",
    )  # fmt: skip
    return fig


def _trade_offs(axes, runs: dict, utility: str) -> None:
    for method in dict.fromkeys(method for method, _ in runs):
        ends = [runs[run].value for run in runs if run[0] == method]
        axes.plot([100 - end.asr for end in ends], [end[utility] for end in ends],
                  color=style.METHOD_COLOURS[method], linewidth=0.8)  # fmt: skip
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
        100 - asr.value, use.value, parts.errors(*use),
        parts.errors(100 - asr.value, 100 - asr.high, 100 - asr.low), elinewidth=0.9,
        **_run_look(run, part.value.sarr),
    )  # fmt: skip


def _run_look(run: tuple[str, int], sarr: float) -> dict:
    """The diameter (points) grows like the root of SARR (percent), so the area grows like SARR."""
    look = style.point_look(*run) | {"markersize": 4 + 1.3 * np.sqrt(sarr)}
    return look | ({"markerfacecolor": "none"} if look["markerfacecolor"] == "white" else {})


def _run_key(run: tuple[str, int], sarr: float) -> Line2D:
    return Line2D([], [], ls="", label=f"{run_name(*run)}: {sarr:.0f} %", **_run_look(run, sarr))


@figure("source", "method", "prompt_decouple", "metric", "value", "low", "high")
def ours_beside_paper(frame, title: str = "Ours beside the paper's",
                      metrics: Sequence[str] = ("sarr", "rr", "asr", "rouge_l"),
                      ours: str = "ours (small stand-in)", paper: str = "paper (LLaVA-1.5-7B)",
                      reduction: float = PAPER_SARR_REDUCTION / 100) -> plt.Figure:
    """A column per metric, a row per run: ours filled with its interval, the paper's hollow.

    Columns: source ("ours" | "paper"), method, prompt_decouple, metric, value, low, high (0-1; low
    and high missing for the paper, whose unknown values have no row or no value). One split. In the
    SARR panel a dashed mark shows where a run with PD would be after the paper's relative
    `reduction` from ours without PD.
    """
    frame = frames.in_percent(frames.only_one(frame, "split")).dropna(subset="value")
    frame = frames.one_row_per(frame, "source", *frames.RUN, "metric")
    runs = frames.runs_of(frame)[::-1]
    size = (1.2 + 2.3 * len(metrics), 1.3 + 0.42 * len(runs))
    fig, axes = parts.grid(title, 1, len(metrics), size, sharey=True)
    for panel, metric in zip(axes[0], metrics, strict=True):
        part = frame[frame.metric == metric]
        for row in part.itertuples():
            _source_bar(panel, row, runs.index((row.method, row.prompt_decouple)))
        parts.percent_axis(panel.xaxis, f"{style.METRIC_NAMES.get(metric, metric)} (%)", top=128)
        panel.grid(axis="y", visible=False)
        if metric == "sarr":
            _reduced(panel, part[part.source == "ours"], runs, reduction)
    axes[0, 0].set_yticks(range(len(runs)), [run_name(*run) for run in runs])
    parts.legend(fig, _source_keys(ours, paper, reduction))
    return fig


def _source_bar(axes, row, place: int) -> None:
    ours = row.source == "ours"
    y = place + (0.19 if ours else -0.19)
    look = style.bar_look(row.method, row.prompt_decouple, hollow=not ours)
    axes.barh(y, row.value, 0.36, **look)
    lengths = parts.errors(row.value, row.low, row.high)
    if ours:
        axes.errorbar(row.value, y, xerr=lengths, color="black", capsize=2)
    parts.number_beside(axes, row.value + lengths[1, 0], y, f"{row.value:.0f}", gap=4)


def _reduced(axes, ours: pd.DataFrame, runs: list[tuple[str, int]], reduction: float) -> None:
    for method, without in ours[ours.prompt_decouple == 0].set_index("method").value.items():
        if (method, 1) in runs:
            place, goal = runs.index((method, 1)), (1 - reduction) * without
            axes.plot([goal, goal], [place - 0.45, place + 0.45], "k--", linewidth=1.4)


def _source_keys(ours: str, paper: str, reduction: float) -> list:
    return [
        Patch(facecolor=style.NEUTRAL, label=ours),
        Patch(**style.PAPER_BAR, label=f"{paper}, where known to us"),
        Patch(facecolor=style.NEUTRAL, edgecolor="white", hatch=style.HATCH, label="with PD"),
        parts.interval_key(),
        Line2D([], [], color="k", ls="--", label=f"{100 * reduction:g} % below ours without PD"),
    ]


@figure("method", "difference", "low", "high", "p_holm")
def paired_differences(frame, title: str = "What PD changes, pair by pair",
                       metric: str = "sarr") -> plt.Figure:
    """A forest plot: a row per method, with PD minus without PD, and its interval.

    Columns as from `statistics.compare`: method, difference, low, high (fractions), p_holm. One
    split and one metric, which `metric` names for the axis.
    """
    frame = frames.in_percent(frames.only_one(frame, "split", "metric"))
    frame = frames.one_row_per(frame, "method")
    order = [method for method, _ in frames.runs_of(frame.assign(prompt_decouple=0))][::-1]
    frame = frame.set_index("method").loc[order]
    fig, ((axes,),) = parts.grid(title, 1, 1, (8, 1.3 + 0.45 * len(order)))
    axes.axvline(0, color="#666666", linewidth=1)
    for y, row in enumerate(frame.itertuples()):
        lengths = parts.errors(row.difference, row.low, row.high)
        axes.errorbar(row.difference, y, xerr=lengths, capsize=3, **style.point_look(row.Index, 1))
    axes.set_yticks(range(len(order)), [run_name(method, 0) for method in order])
    axes.set_ylim(-0.6, len(order) - 0.4)
    name = style.METRIC_NAMES.get(metric, metric)
    axes.set_xlabel(f"{name} with PD minus without (percentage points)")
    numbers = axes.secondary_yaxis("right")
    numbers.set_yticks(range(len(order)), [_difference(row) for row in frame.itertuples()])
    numbers.tick_params(length=0)
    numbers.spines["right"].set_visible(False)
    return fig


def _difference(row) -> str:
    p = "p < 0.001" if row.p_holm < 0.001 else f"p = {row.p_holm:.3f}"
    return f"{row.difference:+.0f} [{row.low:+.0f}, {row.high:+.0f}], {p} (Holm)"
