"""What all figures share: colours, names, the way a run looks, checks, and saving.

The same sign means the same thing in every figure: a colour is a method, a hatch (bars) or a filled
marker (points) is "with PD", a hollow dashed bar is the paper's value.
"""

import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from functools import cache, wraps
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython import get_ipython
from IPython.display import display
from matplotlib import font_manager
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from lib.base import disk
from lib.base.runs import read_json, write_csv, write_json
from lib.data import discretion
from lib.evaluation.verdicts import UNJUDGED
from lib.unlearning.methods import METHODS
from lib.unlearning.terms import TERMS

mpl.style.use("default")  # a user's matplotlibrc (text.usetex and its kin) is for other figures
# Here, not by the first figure: it is drawn inside an rc_context, at whose end the "interactive"
# that Jupyter's backend sets would be off again, and a notebook would show its first figure only.
plt.switch_backend(mpl.get_backend())
if hasattr(get_ipython(), "kernel") and mpl.get_backend().lower() == "agg":
    get_ipython().run_line_magic("matplotlib", "inline")  # Agg, of the environment, shows nothing

METHOD_COLOURS = {"vanilla": "#7F7F7F"} | {key: each.colour for key, each in METHODS.items()}
METHOD_NAMES = {"vanilla": "original"} | {key: each.title for key, each in METHODS.items()}
METRIC_NAMES = {
    "sarr": "SARR",
    "rr": "RR",
    "asr": "ASR",
    "rouge_l": "ROUGE-L",
    "judge_score": "judge score",
    "exact_match": "exact match",
    "specificity": "specificity",
    "sarr_neighbour": "SARR of safe neighbours",
}
SPLIT_NAMES = {
    "efficacy": "efficacy (training pictures)",
    "generality": "generality (held-out pictures)",
    "as_released": "val as released (with pictures of train)",
}
# What a term or a set is for: to forget (black), to keep (sky blue), to decouple (purple).
FORGET, RETAIN, DECOUPLE = "#000000", "#56B4E9", "#CC79A7"
KIND_COLOURS = {"forget": FORGET, "refusal": FORGET, "retain": RETAIN, "prompt_decouple": DECOUPLE}
DASHES = ("-", "--", ":", "-.")  # of the terms of one colour, in their order


def _term_lines() -> dict[str, tuple[str, str]]:
    """The colour and dash of each term's line: the colour says what the term is for."""
    found: dict[str, tuple[str, str]] = {}
    for name, term in TERMS.items():
        colour = KIND_COLOURS[term.reads[0]]
        earlier = sum(of == colour for of, _ in found.values())
        found[name] = (colour, DASHES[earlier % len(DASHES)])
    return found


TERM_LINES = _term_lines()
SET_COLOURS = {
    "forget": "#4D4D4D",
    "retain text": "#B5DDF5",
    "retain image": RETAIN,
    "prompt decouple": DECOUPLE,
}
# Pale, so that black text on a label is readable on light and on dark pages.
LABEL_COLOURS = {
    "harmful": "#F5B48C",
    "refusal": "#A9D8F4",
    "degenerate": "#F6E58D",
    "normal": "#9BDCC4",
}
NEUTRAL = "#7F7F7F"  # in a legend: whatever the colour is
HATCH = "////"
SMALL = 8  # points; no text is smaller
FONT = "DejaVu Sans"  # comes with matplotlib, so that every machine draws the same

STYLE = {
    **sns.axes_style("whitegrid"),
    "font.family": FONT,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "axes.edgecolor": "#999999",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#E5E5E5",
    "hatch.linewidth": 1.0,
    "svg.hashsalt": "safeeraser",  # makes the ids inside an SVG the same each time
    "text.parse_math": False,  # "$5 or $6", and half a formula, in a text of the data
    "text.usetex": False,
}


def save(fig: plt.Figure, frame, name: str, folder: Path, alt: str,
         show_harmful: bool = False) -> None:
    """Writes name.png, name.svg and name.csv (what is plotted) and notes `alt` in alt.json.

    `frame`: the plotted frame or rows; pictures in it are left out of the CSV, and so is what
    `discretion` does not show. Two saves of one figure are byte-identical. Several processes may
    save into one folder at the same time. A notebook shows the figure, with `alt` for those who
    cannot see it; elsewhere it stays open.
    """
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise ValueError(f"Figure name {name!r}: use lower-case letters, digits and _ only.")
    if not alt.strip():
        raise ValueError(f"Figure {name}: write an alt text that says what the figure shows.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        fig.savefig(folder / f"{name}.png", dpi=150, metadata={"Description": alt})
        fig.set_layout_engine("none")  # made again it would move by 1e-14 and change the SVG's ids
        fig.savefig(folder / f"{name}.svg", metadata={"Date": None, "Description": alt})
    table = pd.DataFrame(frame).drop(columns="image", errors="ignore")
    table = discretion.frame(table, show_harmful)
    write_csv(folder / f"{name}.csv", table, index=False, float_format="%.6g")
    _note_alt(folder / "alt.json", name, alt)
    if get_ipython() is not None:
        display(fig, metadata={"image/png": {"alt": alt}})
        plt.close(fig)


def _note_alt(texts: Path, name: str, alt: str) -> None:
    with disk.locked(texts.parent / disk.LOCKS / texts.name):  # publish copies what is beside it
        write_json(texts, (read_json(texts) if texts.exists() else {}) | {name: alt})


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
    for column, colours in {"method": METHOD_COLOURS, "label": LABEL_COLOURS}.items():
        known = {*colours, *UNJUDGED}  # a judge may give no label
        if column in frame and (unknown := sorted(set(map(str, frame[column])) - known)):
            raise ValueError(
                f"plots.{name}: unknown {column} {', '.join(unknown)}. It knows "
                f"{', '.join(colours)}; others need a line in lib/unlearning/methods.py."
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


# Runs: a run is a method with or without PD.


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


def bar_look(
    method: str, prompt_decouple: int, pale: bool = False, hollow: bool = False
) -> dict:
    colour = METHOD_COLOURS[method]
    look = {"facecolor": colour, "edgecolor": "white", "linewidth": 0.8}
    if pale:
        look |= {"facecolor": paler(colour), "edgecolor": colour}
    if hollow:
        look |= {"facecolor": "none", "edgecolor": colour, "linestyle": "--"}
    return look | ({"hatch": HATCH} if prompt_decouple else {})


def point_look(method: str, prompt_decouple: int) -> dict:
    colour = METHOD_COLOURS[method]
    face = colour if prompt_decouple or method == "vanilla" else "white"
    return {"color": colour, "marker": "o", "markerfacecolor": face, "markeredgecolor": colour}


def paler(colour: str) -> tuple[float, ...]:
    return tuple(1 - 0.35 * (1 - part) for part in to_rgb(colour))


# Figures, axes and legends.


def grid(title: str, rows: int, columns: int, size: tuple[float, float], **kwargs):
    """A figure with its title and [rows, columns] axes; `size` in inches."""
    fig, axes = plt.subplots(
        rows, columns, figsize=size, layout="constrained", squeeze=False, **kwargs
    )
    headline(fig, title, size[0])
    return fig, axes


def headline(fig, title: str, width: float, size: int = 11) -> None:
    """A title over a (sub)figure `width` inches wide, in as many lines as it takes."""
    whole = title.replace(" %", "\xa0%")  # a number and its sign stay together
    lines = textwrap.fill(whole, int(width * 105 / size)).replace("\xa0", " ")
    fig.suptitle(lines, x=0.01, ha="left", fontsize=size, fontweight="bold", parse_math=False)


def percent_axis(axis, label: str, top: float = 112) -> None:
    """`top` above 100 leaves room for numbers over bars."""
    axis.set_label_text(label)
    axis.set_ticks(range(0, 101, 25))
    axis.axes.set(**{f"{axis.axis_name}lim": (0, top)})


def plain_numbers(axis) -> None:
    """100 instead of 10 to the power of 2."""
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(mpl.ticker.NullFormatter())


def step_axis(axis) -> None:
    """Whole numbers, also where a run has few steps."""
    axis.set_major_locator(mpl.ticker.MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))


def method_ticks(axes, places: list[tuple[str, int, float]]) -> None:
    methods = list(dict.fromkeys(method for method, _, _ in places))
    axes.set_xticks(range(len(methods)), [METHOD_NAMES[method] for method in methods])
    axes.set_xlim(-0.6, len(methods) - 0.4)
    axes.grid(axis="x", visible=False)


def errors(value, low, high) -> np.ndarray:
    """Lengths below and above the value, [2, n]; a percentile interval may just miss it."""
    lengths = [np.atleast_1d(value - low), np.atleast_1d(high - value)]
    return np.clip(np.nan_to_num(lengths), 0, None)


def percent(*rates: float) -> str:
    """`percent(0.3)` is "30 %"; of several rates it is their range.

    >>> percent(0.3, 0, 0.1)
    '0 % to 30 %'
    """
    ends = (min(rates), max(rates))
    return " to ".join(dict.fromkeys(f"{100 * rate:.0f} %" if rate == rate else "undefined"
                                     for rate in ends))


def number_over(axes, x: float, top: float, value: float) -> None:
    axes.annotate(
        f"{value:.0f}", (x, top), (0, 2), textcoords="offset points", ha="center", fontsize=SMALL
    )


def legend(fig, handles: list) -> None:
    fig.legend(handles=handles, loc="outside lower left", ncols=len(handles), frameon=False)


def bar_keys(frame: pd.DataFrame) -> list[Patch]:
    """Legend entries for without and with PD, if the frame holds both."""
    look = {"facecolor": NEUTRAL, "edgecolor": "white"}
    keys = [Patch(**look, label="without PD"), Patch(**look, hatch=HATCH, label="with PD")]
    return keys if frame.prompt_decouple.nunique() > 1 else []


def interval_key() -> Line2D:
    return Line2D([], [], color="black", marker="|", linestyle="", label="95 % interval")


def seeds_key() -> Patch:
    return Patch(facecolor="#CCCCCC", label="lowest to highest seed")


# Words and pictures.


def shorten(text: str, width: int, lines: int) -> str:
    """At most `lines` lines of `width` characters; what is cut ends in an ellipsis.

    What the font lacks becomes a box: a broken model's answer may hold any character.
    """
    known = "".join(c if c.isspace() or ord(c) in _charmap() else "□"
                    for c in discretion.plain(text))
    return "\n".join(textwrap.wrap(known, width, max_lines=lines, placeholder=" …"))


@cache
def _charmap() -> dict[int, int]:
    return font_manager.get_font(font_manager.findfont(FONT)).get_charmap()


def show_picture(axes, image) -> None:
    """`image`: a PIL image, or None for a question without a picture."""
    axes.set(xticks=[], yticks=[], anchor="NW")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    if image is None:
        axes.text(0.5, 0.5, "text\nonly", ha="center", va="center", color="#555555", fontsize=SMALL)
        axes.set(facecolor="#F2F2F2", box_aspect=1)
    else:
        axes.imshow(image.convert("RGB"), interpolation="nearest")


def write(axes, text: str, below: float, right: float = 0, **look) -> None:
    """Text that starts so many points below and right of the axes' upper left corner."""
    note = axes.annotate(
        text, (0, 1), (right, -below), xycoords="axes fraction", textcoords="offset points",
        va="top", fontsize=SMALL, parse_math=False, annotation_clip=False, **look,
    )  # fmt: skip
    note.set_in_layout(False)


def label_points(axes, points: list[tuple[float, float]], labels: list[str]) -> None:
    """Writes each label near its point, where it covers no point, no line and no other label.

    Tries places further and further away; a thin line leads to the point.
    """
    axes.figure.draw_without_rendering()  # pixel positions are known only after the layout
    spots, lines = axes.transData.transform(points), _line_pixels(axes)
    taken = [Bbox.from_bounds(x - 8, y - 8, 16, 16) for x, y in spots]
    turns = np.deg2rad([0, 180, 45, 135, 225, 315, 90, 270])
    offsets = [(r * np.cos(t), r * np.sin(t)) for r in (12, 22, 36, 52, 70, 90) for t in turns]
    for point, label in zip(points, labels, strict=True):
        note = axes.annotate(
            label, point, (0, 0), textcoords="offset points", va="center", fontsize=SMALL,
            arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.6},
        )  # fmt: skip
        note.set_in_layout(False)
        ranks = [_covered(axes, _place(note, offset), taken, lines) for offset in offsets]
        taken.append(_place(note, offsets[ranks.index(min(ranks))]))


def _line_pixels(axes) -> np.ndarray:
    """Places on the lines and error bars of the axes, dense enough to hit a label, [n, 2]."""
    lines = [(line, line.get_path()) for line in axes.lines]
    lines += [(bars, path) for bars in axes.collections for path in bars.get_paths()]
    paths = [artist.get_transform().transform_path(path) for artist, path in lines]
    return np.concatenate([path.interpolated(100).vertices for path in paths])


def _place(note, offset: tuple[float, float]) -> Bbox:
    """Moves the label and returns the box of its words, without the line."""
    note.set_position(offset)
    note.set_ha("left" if offset[0] > 1 else "right" if offset[0] < -1 else "center")
    note.update_positions(note.figure.canvas.get_renderer())
    return Text.get_window_extent(note).padded(2)


def _covered(axes, box: Bbox, taken: list[Bbox], lines: np.ndarray) -> tuple[bool, int, int]:
    """How bad a place is, worst first: outside; points and labels covered; lines covered."""
    inside = all(axes.bbox.contains(x, y) for x, y in box.corners())
    on_lines = (lines > box.min) & (lines < box.max)
    return not inside, box.count_overlaps(taken), int(on_lines.all(axis=1).sum())
