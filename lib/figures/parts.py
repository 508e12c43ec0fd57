"""Parts that figures share: grids, axes, legends, intervals, words and pictures."""

import textwrap
from functools import cache

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from lib.data import discretion
from lib.figures.style import FONT, HATCH, NEUTRAL, SMALL
from lib.unlearning.methods import run_name

# Figures, axes and legends.


def grid(title: str, rows: int, columns: int, size: tuple[float, float], **kwargs):
    """A figure with its title and [rows, columns] axes; `size` in inches."""
    fig, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False,
                             **kwargs)
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
    axes.set_xticks(range(len(methods)), [run_name(method, 0) for method in methods])
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
    _number(axes, f"{value:.0f}", (x, top), (0, 2), ha="center")


def number_beside(axes, end: float, y: float, text: str, gap: int) -> None:
    """A number right of where a lying bar ends, `gap` points away."""
    _number(axes, text, (end, y), (gap, 0), va="center")


def _number(axes, text: str, place: tuple, points: tuple, **aligned) -> None:
    axes.annotate(text, place, points, textcoords="offset points", fontsize=SMALL, **aligned)


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
