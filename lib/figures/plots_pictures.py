"""Figures of the data: examples with their pictures, counts, one question about two pictures."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.patches import Patch

from lib.figures import frames, parts, style
from lib.figures.frames import figure


@figure("category", "set", "image", "question", "answer")
def category_examples(rows, title: str = "One example of each category and set") -> plt.Figure:
    """A row per category, a column per set, the question and the answer beside each picture.

    Columns: category, set, image (PIL, or None for a text question), question, answer.
    """
    sets = frames.in_order(style.SET_COLOURS, rows["set"])
    categories = list(dict.fromkeys(rows.category))
    size = (3.35 * len(sets), 1.2 * len(categories) + 0.7)
    widths = [1, 2.2] * len(sets)
    fig, axes = parts.grid(title, len(categories), len(widths), size, width_ratios=widths)
    for words in axes[:, 1::2].flat:
        words.set_axis_off()
    for column, name in enumerate(sets):
        axes[0, 2 * column].set_title(name, loc="left", fontweight="bold")
    for row, category in enumerate(categories):
        axes[row, 0].set_ylabel(category, fontsize=style.SMALL)
    for example in rows.itertuples():
        row, column = categories.index(example.category), 2 * sets.index(example.set)
        parts.show_picture(axes[row, column], example.image)
        _question_and_answer(axes[row, column + 1], example)
    return fig


def _question_and_answer(axes, example) -> None:
    question = parts.shorten(example.question, 32, 3)
    parts.write(axes, question, 0, fontweight="bold")
    parts.write(axes, parts.shorten(example.answer, 36, 3), 4 + 10 * (question.count("\n") + 1))


@figure("source", "category", "set", "count")
def counts(frame, title: str = "How many question-answer pairs there are") -> plt.Figure:
    """Left: our pairs by category and set. Right: ours beside the paper's, by set.

    Columns: source ("ours" | "paper"), category ("all" where the paper's split is unknown), set,
    count. Rows that agree in these are added up. Sets other than the four (such as "images") are in
    the right panel only.
    """
    fig, ((left, right),) = parts.grid(title, 1, 2, (10, 3.6))
    ours = frame[(frame.source == "ours") & frame["set"].isin(style.SET_COLOURS)]
    categories = list(dict.fromkeys(ours.category))[::-1]
    table = ours.groupby(["set", "category"])["count"].sum()
    start = np.zeros(len(categories))
    for name in frames.in_order(style.SET_COLOURS, ours["set"]):
        width = table[name].reindex(categories, fill_value=0).to_numpy()
        left.barh(categories, width, 0.7, start, color=style.SET_COLOURS[name], label=name)
        start = start + width
    left.set(xlabel="pairs", title="ours, by category")
    left.grid(axis="y", visible=False)
    _totals(right, frame)
    ours_key = Patch(facecolor=style.NEUTRAL, label="ours")
    sets = left.get_legend_handles_labels()[0]
    parts.legend(fig, [*sets, ours_key, Patch(**style.PAPER_BAR, label="paper")])
    return fig


def _totals(axes, frame: pd.DataFrame) -> None:
    totals = frame.groupby(["set", "source"], sort=False)["count"].sum()
    sets = frames.in_order(style.SET_COLOURS, frame["set"])[::-1]
    for (name, source), number in totals.items():
        ours = source == "ours"
        look = {"color": style.SET_COLOURS.get(name, style.NEUTRAL)} if ours else style.PAPER_BAR
        y = sets.index(name) + (0.19 if ours else -0.19)
        axes.barh(y, number, 0.36, **look)
        parts.number_beside(axes, number, y, f"{number:,}", gap=3)
    axes.set_yticks(range(len(sets)), sets)
    axes.set(xlim=(0, 1.18 * totals.max()), title="ours beside the paper's", xlabel="number")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(axis="y", visible=False)


@figure("question", "picture", "image", "model", "answer", "label")
def same_question_two_pictures(rows,
                               title: str = "The same question about two pictures") -> plt.Figure:
    """Harmful picture left, safe picture right, and each model's answers beside them.

    Columns: question, picture ("harmful" | "safe"), image (PIL), model, answer, label (of the
    answer: harmful, refusal, degenerate, normal).
    """
    questions, models = list(dict.fromkeys(rows.question)), list(dict.fromkeys(rows.model))
    height = 0.5 + 0.6 * max(len(models), 2)
    fig = plt.figure(figsize=(10, height * len(questions) + 0.4), layout="constrained")
    parts.headline(fig, title, 10)
    blocks = fig.subfigures(len(questions), 1, squeeze=False)[:, 0]
    for block, question in zip(blocks, questions, strict=True):
        parts.headline(block, parts.shorten(question, 105, 1), 10, size=9)
        axes = block.subplots(1, 4, width_ratios=[1, 1.9, 1, 1.9])
        for column, picture in ((0, "harmful"), (2, "safe")):
            part = rows[(rows.question == question) & (rows.picture == picture)]
            parts.show_picture(axes[column], part.image.iloc[0])
            axes[column].set_xlabel(f"{picture} picture", fontsize=style.SMALL)
            _answers(axes[column + 1], part)
    return fig


def _answers(axes, part: pd.DataFrame) -> None:
    axes.set_axis_off()
    for place, row in enumerate(part.itertuples()):
        below = 2 + 43 * place
        chip = {"boxstyle": "round,pad=0.2", "linewidth": 0,
                "facecolor": style.LABEL_COLOURS.get(row.label, style.paler(style.NEUTRAL))}
        parts.write(axes, parts.shorten(row.model, 20, 1), below, fontweight="bold")
        parts.write(axes, row.label, below, right=120, bbox=chip)
        parts.write(axes, parts.shorten(row.answer, 40, 2), below + 14)
