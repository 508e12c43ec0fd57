"""One frame per figure function, the figure drawn from it, and how a test reads it back."""

import functools
import itertools

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

from lib.figures import plots

mpl.use("Agg")

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


def draw(name: str, frame=None, **kwargs) -> plt.Figure:
    """The figure, of its frame above unless one is given; pyplot does not keep it."""
    if name == "packing":
        figure = plots.packing(*block_mask(), **kwargs)
    else:
        figure = getattr(plots, name)(FRAMES[name]() if frame is None else frame, **kwargs)
    plt.close(figure)
    return figure


drawn = functools.cache(draw)  # each figure of the frames above once


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


def bands(axes) -> list[np.ndarray]:
    """The corners of each band, [n, 2]."""
    return [band.get_paths()[0].vertices for band in axes.collections]


def texts(fig) -> list[Text]:
    return [text for text in fig.findobj(Text) if text.get_text().strip()]


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
