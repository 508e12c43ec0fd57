"""What a figure asks of the frame that it draws, and how it takes runs out of it.

A run is a method with or without PD.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import wraps

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd

from lib.data import discretion
from lib.evaluation.verdicts import UNJUDGED
from lib.figures.style import LABEL_COLOURS, METHOD_COLOURS, STYLE

RUN = ["method", "prompt_decouple"]


def figure(*columns: str) -> Callable:
    """Decorates a figure function: its frame must have these columns; draws in the one style.

    Every figure function then takes `show_harmful`, too: without it, it never sees what
    `discretion` does not show.
    """

    def decorate(draw: Callable) -> Callable:
        @wraps(draw)
        def drawn(frame, *args, show_harmful: bool = False, **kwargs) -> plt.Figure:
            frame = _checked(draw.__name__, pd.DataFrame(frame), columns)
            frame = discretion.frame(frame, show_harmful)
            with mpl.rc_context(STYLE):
                return draw(frame, *args, **kwargs)

        return drawn

    return decorate


def _checked(name: str, frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    missing = [column for column in columns if column not in frame]
    if missing or frame.empty:
        what = f"lacks {', '.join(missing)}" if missing else "has no rows"
        raise ValueError(f"plots.{name}: the frame {what}. It needs {', '.join(columns)}.")
    for column, colours, place in (("method", METHOD_COLOURS, "lib/unlearning/methods.py"),
                                   ("label", LABEL_COLOURS, "lib/figures/style.py")):
        known = {*colours, *UNJUDGED}  # a judge may give no label
        if column in frame and (unknown := sorted(set(map(str, frame[column])) - known)):
            raise ValueError(
                f"plots.{name}: unknown {column} {', '.join(unknown)}. It knows "
                f"{', '.join(colours)}; others need a line in {place}."
            )
    return frame


def only_one(frame: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The frame, which must not mix several splits (or metrics ...) in one picture."""
    for column in columns:
        if column in frame and frame[column].nunique() > 1:
            found = ", ".join(map(str, frame[column].dropna().unique()))
            raise ValueError(f"The figure shows one {column} only: select one of {found} first.")
    return frame


def one_row_per(frame: pd.DataFrame, *keys: str) -> pd.DataFrame:
    """The frame, which must hold a mark of the figure once: bars of two seeds would hide."""
    twice = frame[frame.duplicated(list(keys))]
    if not twice.empty:
        mark = ", ".join(f"{key} {twice[key].iloc[0]}" for key in keys)
        raise ValueError(f"There are several rows for {mark}: average the seeds or select first.")
    return frame


def with_metrics(frame: pd.DataFrame, by: list[str], *metrics: str) -> pd.DataFrame:
    """The frame, in which each group of `by` must have one row of each metric."""
    for group, part in frame.groupby(by, sort=False):
        missing = [metric for metric in metrics if metric not in set(part.metric)]
        if missing:
            mark = ", ".join(f"{key} {value}" for key, value in zip(by, group, strict=True))
            raise ValueError(f"The metric {', '.join(missing)} is missing for {mark}: add its row.")
    return one_row_per(frame, *by, "metric")


def in_percent(frame: pd.DataFrame) -> pd.DataFrame:
    rates = [name for name in ("value", "low", "high", "difference") if name in frame]
    return frame.assign(**{name: 100 * frame[name].astype(float) for name in rates})


def in_order(known: Iterable[str], values: pd.Series) -> list[str]:
    """The known names that occur, in the known order, then all others as they come."""
    found = list(dict.fromkeys(values))
    return [name for name in known if name in found] + [n for n in found if n not in known]


def runs_of(frame: pd.DataFrame) -> list[tuple[str, int]]:
    pairs = set(zip(frame.method, frame.prompt_decouple.astype(int), strict=True))
    return sorted(pairs, key=lambda run: (list(METHOD_COLOURS).index(run[0]), run[1]))


def of_run(frame: pd.DataFrame, method: str, prompt_decouple: int) -> pd.DataFrame:
    return frame[(frame.method == method) & (frame.prompt_decouple == prompt_decouple)]


def slots(frame: pd.DataFrame) -> list[tuple[str, int, float]]:
    """(method, prompt_decouple, x): methods one apart, the two runs of a method side by side."""
    runs = runs_of(frame)
    methods = list(dict.fromkeys(method for method, _ in runs))
    both = {method for method in methods if {(method, 0), (method, 1)} <= set(runs)}
    shift = {method: 0.21 if method in both else 0.0 for method in methods}
    return [(m, pd_, methods.index(m) + shift[m] * (2 * pd_ - 1)) for m, pd_ in runs]
