"""The one style of all figures: colours, names, the look of a run, matplotlib's settings.

The same sign means the same thing in every figure: a colour is a method, a hatch (bars) or a filled
marker (points) is "with PD", a hollow dashed bar is the paper's value.
"""

import matplotlib as mpl
import matplotlib.pyplot as plt
import seaborn as sns
from IPython import get_ipython
from matplotlib.colors import to_rgb

from lib.evaluation.metrics import METRICS
from lib.unlearning.methods import METHODS
from lib.unlearning.terms import TERMS

mpl.style.use("default")  # a user's matplotlibrc (text.usetex and its kin) is for other figures
# Here, not by the first figure: it is drawn inside an rc_context, at whose end the "interactive"
# that Jupyter's backend sets would be off again, and a notebook would show its first figure only.
plt.switch_backend(mpl.get_backend())
if hasattr(get_ipython(), "kernel") and mpl.get_backend().lower() == "agg":
    get_ipython().run_line_magic("matplotlib", "inline")  # Agg, of the environment, shows nothing

METHOD_COLOURS = {"vanilla": "#7F7F7F"} | {key: each.colour for key, each in METHODS.items()}
METRIC_NAMES = {key: each.title for key, each in METRICS.items()}
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
PAPER_BAR = {"facecolor": "none", "edgecolor": "#4D4D4D", "linestyle": "--"}
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


def bar_look(method: str, prompt_decouple: int, pale: bool = False, hollow: bool = False) -> dict:
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
