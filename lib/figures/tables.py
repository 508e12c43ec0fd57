"""Numbers per answer -> the main table (CSV, Markdown, LaTeX), and the paper's beside it.

Values in frames and CSV files are fractions (0 to 1); Markdown and LaTeX show percent.
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from lib.base.runs import write_csv
from lib.data import discretion
from lib.evaluation import metrics, statistics
from lib.evaluation.metrics import MAIN, METRICS
from lib.unlearning import methods

METHODS = {"vanilla": "Original"} | {key: each.title for key, each in methods.METHODS.items()}


def _columns(of_paper: bool) -> dict[tuple[str, str], str]:
    """{(metric, split): heading} of the main table, a split after the other."""
    return {(metric.key, split): heading for split in metrics.SPLITS
            for metric in METRICS.values() if metric.of_paper == of_paper
            for of, heading in metric.columns if of == split}


COLUMNS = _columns(of_paper=True)  # those of the paper's main table, in its order
FURTHER = _columns(of_paper=False)  # of data that have them
STAND_IN = "IconWorld, a stand-in world with a small LLaVA; not a safety benchmark"
CI_COLUMNS = ["method", "prompt_decouple", "split", "metric", "value", "low", "high", "n"]
NOTE = (
    "Percent, with 95 % intervals over images and seeds; n: answers, all seeds together. "
    "ROUGE-L (precision; F1 of a released model, unless official_quirks is on), Judge, Specificity "
    "and SARR are on the generality split"
)
RELEASED = ("Some of val is in train too: generality is measured on what is held out, and the "
            "split as_released of the CSV files is all of val")
NEAR = "SARR neighbours: harmless questions about the harmful pictures"

PAPER_FIELDS = ("model", "method", "prompt_decouple", "split", "metric", "percent", "source")
_KNOWN = pd.read_csv(Path(__file__).with_name("paper.csv"))  # the cells that are known to us
SECOND_HAND = "; ".join(_KNOWN["source"].unique())


def _paper() -> tuple[dict, ...]:
    """One dict per cell of the paper's main table, for both models and all methods."""
    known = {cell[:5]: cell[5:] for cell in _KNOWN[[*PAPER_FIELDS]].itertuples(index=False)}
    runs = [("vanilla", 0)] + [(method.key, pd_) for method in methods.METHODS.values()
                               if method.of_paper for pd_ in (0, 1)]
    cells = [(model, *run, split, metric) for model in _KNOWN["model"].unique()
             for run in runs for metric, split in COLUMNS]
    return tuple(dict(zip(PAPER_FIELDS, (*cell, *known.get(cell, (None, None))), strict=True))
                 for cell in cells)


# percent and source are None where a number is not known to us (which does not mean that the paper
# lacks it). The source names no split for ROUGE-L, judge score and SARR; they stand under
# generality, as ours do in the same table.
PAPER = _paper()
PAPER_SARR_REDUCTION = 79.5  # percent, by PD, on both models: abstract of arXiv 2502.12520


def described(profile) -> tuple[str, str]:
    """Where a profile's numbers come from, for a caption; and the paper's model beside them."""
    beside = "LLaVA-1.5-13B" if "13b" in profile.name else "LLaVA-1.5-7B"
    if not profile.real:
        return STAND_IN, beside
    model, data = (Path(place).name for place in (profile.model, profile.data or "no data"))
    judge = re.sub(r":/[^+]*/", ":", profile.judge)
    return f"{model} on {data}, judge {judge}{caution(profile)}", beside


def caution(profile) -> str:
    """What to add to a caption or title where rules judge a real model's answers; else nothing."""
    if not profile.judged_by_beginning:
        return ""
    asr = "ASR is an upper bound, " if profile.judge == "rules" else ""
    return f" (a rule that knows refusals only: {asr}SARR a lower bound)"


def note(table: pd.DataFrame) -> str:
    """What a reader of the main table has to know, for this table's metrics and splits."""
    notes = {NOTE: True, RELEASED: table["split"].eq("as_released").any(),
             NEAR: table["metric"].eq("sarr_neighbour").any()}
    return ". ".join(text for text, wanted in notes.items() if wanted)


def main_table(per_answer: pd.DataFrame) -> pd.DataFrame:
    """One row per method, prompt_decouple, seed, split and main metric: value (0 to 1), n.

    `per_answer` has one row per answer: method, prompt_decouple, seed, split, metric, record,
    value (`metrics.per_answer` of every run, with the run's first three columns added).
    """
    keys = ["method", "prompt_decouple", "seed", "split", "metric"]
    groups = _main(per_answer).groupby(keys, sort=False)["value"]
    return _in_order(groups.agg(value="mean", n="count").reset_index())


def main_table_ci(per_answer: pd.DataFrame) -> pd.DataFrame:
    """The same over all seeds, with 95 % low and high (`statistics.interval`); n: all answers."""
    return all_metrics_ci(_main(per_answer))[CI_COLUMNS]


def all_metrics_ci(per_answer: pd.DataFrame) -> pd.DataFrame:
    """`main_table_ci` for every metric in the frame, with n_records and n_seeds."""
    keys = ["method", "prompt_decouple", "split", "metric"]
    return _in_order(statistics.summarise(_whole(per_answer), keys))


def ours_beside_paper(table_ci: pd.DataFrame, world: str = STAND_IN,
                      model: str = "LLaVA-1.5-7B") -> pd.DataFrame:
    """`main_table_ci` after a column source ("ours" or "paper"), one row per number, and origin.

    Paper rows hold what is known to us of `model`, as fractions like ours; low, high and n are
    missing there. Ours is a small model in a stand-in world: compare shapes, not sizes.
    Raises ValueError for a model that the paper does not have.
    """
    paper = pd.DataFrame(PAPER)
    if model not in set(paper["model"]):
        raise ValueError(f"The paper has no model {model!r}; it has {sorted(set(paper['model']))}.")
    paper = paper[paper["model"].eq(model)].dropna(subset="percent")
    paper = paper.assign(value=paper["percent"] / 100, origin=f"{model}, {SECOND_HAND}")
    both = {"ours": table_ci.assign(origin=world), "paper": paper}
    columns = ["source", *CI_COLUMNS, "origin"]
    parts = [part.reindex(columns=columns).assign(source=name) for name, part in both.items()]
    return pd.concat([part.astype({"n": "Int64"}) for part in parts], ignore_index=True)


def wide(table_ci: pd.DataFrame) -> pd.DataFrame:
    """Rows: method with and without PD; columns: COLUMNS, and of FURTHER what there is; cells:
    "93.1 [90.2, 95.6] n=576"."""
    unknown = "not run" if table_ci["split"].eq("generality").any() else "not measured"
    return _spread(table_ci, [_cell(row) for row in table_ci.itertuples()], unknown)


def wide_beside_paper(beside: pd.DataFrame, model: str = "LLaVA-1.5-7B") -> pd.DataFrame:
    """`ours_beside_paper` as `wide`: the paper's row under ours, where a number is known to us."""
    ours = wide(beside[beside["source"].eq("ours")])
    paper = beside[beside["source"].eq("paper")]
    paper = _spread(paper, [f"{100 * value:.1f}" for value in paper["value"]], unknown="unknown")
    rows = {}
    for name in ours.index:
        rows[f"{name}, ours"] = ours.loc[name]
        if name in paper.index:
            rows[f"{name}, paper ({model})"] = paper.loc[name]
    return pd.DataFrame(rows).T


def held_out_beside_released(table_ci: pd.DataFrame) -> pd.DataFrame:
    """`main_table_ci` where some of val is in train: a row per run, for each metric its value
    on what is held out, as released, and their difference (percent, percentage points).

    Empty where the two are the same answers.
    """
    both = table_ci[table_ci["split"].isin(["generality", "as_released"])]
    both = both[both["metric"].isin(both["metric"][both["split"].eq("as_released")])]
    runs = [_name(row.method, row.prompt_decouple) for row in both.itertuples()]
    values = (100 * both["value"]).groupby([runs, both["metric"], both["split"]], sort=False).mean()
    wide = values.unstack().reindex(columns=["generality", "as_released"])
    wide["difference"] = wide["as_released"] - wide["generality"]
    wide = wide.unstack().swaplevel(axis=1)
    names = [name for name in MAIN if name in both["metric"].unique()]
    order = [(name, part) for name in names for part in _PARTS]
    return wide.reindex(index=dict.fromkeys(runs), columns=order).rename(columns=_PARTS, level=1)


_PARTS = {"generality": "held out", "as_released": "as released", "difference": "difference"}


def readings(answers: pd.DataFrame) -> pd.DataFrame:
    """SARR of IconWorld's answers by a strict and by a lenient reading, where the two differ.

    Strict is the metric's own, lenient `metrics.safe_answer_refusal_lenient`. Two rows per run:
    method, prompt_decouple, split, metric (the reading), value, low, high, n, n_records, n_seeds.
    `answers` are greedy ones of one split, of several runs (`experiments.answers`).
    """
    safe = answers[answers["set"].eq("safe")]
    read = {"strict": metrics.safe_answer_refusal, "lenient": metrics.safe_answer_refusal_lenient}
    long = pd.concat([safe.assign(metric=name, value=value(safe)) for name, value in read.items()])
    table = statistics.summarise(long, ["method", "prompt_decouple", "split", "metric"])
    run = table[["method", "prompt_decouple"]].apply(tuple, axis=1)
    changed = table["value"].groupby(run).transform("nunique") > 1
    return table[changed].reset_index(drop=True)


def markdown(table: pd.DataFrame, corner: str = "Method") -> str:
    """A pipe table of strings; the index is the first column."""
    lines = [[corner, *table.columns], ["---"] + ["---:"] * len(table.columns)]
    lines += [[name, *row] for name, row in zip(table.index, table.to_numpy(), strict=True)]
    shown = [[str(cell).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in shown) + "\n"


def latex(table: pd.DataFrame, caption: str, corner: str = "Method") -> str:
    """A table environment for the packages booktabs and graphicx; the index is the first column."""
    lines = [[corner, *table.columns]]
    lines += [[name, *row] for name, row in zip(table.index, table.to_numpy(), strict=True)]
    head, *body = [" & ".join(_escape(str(cell)) for cell in line) + r" \\" for line in lines]
    rows = ["  " + line for line in (r"\toprule", head, r"\midrule", *body, r"\bottomrule")]
    return "\n".join(
        [r"\begin{table}", r"\centering", rf"\caption{{{_escape(caption)}}}",
         r"\resizebox{\linewidth}{!}{%", rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
         *rows, r"\end{tabular}}", r"\end{table}", ""]
    )  # fmt: skip


def write_main_tables(per_answer: pd.DataFrame, folder: Path, world: str = STAND_IN,
                      model: str = "LLaVA-1.5-7B") -> list[Path]:
    """Write the tables of all runs into `folder` and return their paths.

    main_table.csv, main_table_ci.csv, all_metrics_ci.csv; main_table.md and .tex (wide, percent);
    main_table_beside_paper.csv and .md. `world` says in each caption where our numbers come from.
    """
    every_metric = all_metrics_ci(per_answer)
    table_ci = every_metric[every_metric["metric"].isin(MAIN)][CI_COLUMNS]
    beside = ours_beside_paper(table_ci, world, model)
    said = note(table_ci)
    caption = f"{world}. {said}."
    words = f"{discretion.markdown(world)}. {said}."  # names of a model and of data are in it
    both = f"Ours: {words} Paper: {model}, {SECOND_HAND}."
    frames = {"main_table.csv": main_table(per_answer), "main_table_ci.csv": table_ci,
              "all_metrics_ci.csv": every_metric, "main_table_beside_paper.csv": beside}
    texts = {
        "main_table.md": f"{words}\n\n{markdown(wide(table_ci))}",
        "main_table.tex": latex(wide(table_ci), caption),
        "main_table_beside_paper.md": f"{both}\n\n{markdown(wide_beside_paper(beside, model))}",
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame in frames.items():
        write_csv(folder / name, frame, index=False)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in (*frames, *texts)]


def write_answers(answers: pd.DataFrame, folder: Path) -> Path:
    """Write answers.csv.gz, one row per answer (`experiments.answers`), so that all may be counted
    again; without what the dataset has already. Two writings are byte-identical."""
    said = answers.drop(columns=["category", "image", "question", "reference", "judge"],
                        errors="ignore")
    path = folder / "answers.csv.gz"
    write_csv(path, discretion.frame(answers).loc[:, said.columns], index=False,
              compression={"method": "gzip", "mtime": 0})
    return path


def _whole(per_answer: pd.DataFrame) -> pd.DataFrame:
    unknown = sorted(set(per_answer["method"]) - set(METHODS))
    if unknown:
        raise ValueError(f"Unknown methods {unknown}: the tables know {list(METHODS)}.")
    return per_answer.assign(prompt_decouple=per_answer["prompt_decouple"].astype(int))


def _main(per_answer: pd.DataFrame) -> pd.DataFrame:
    return _whole(per_answer[per_answer["metric"].isin(MAIN)])


def _in_order(table: pd.DataFrame) -> pd.DataFrame:
    """The paper's order of methods and metrics; what is not a main metric comes last, by name."""
    rank = {"method": list(METHODS), "metric": [*MAIN, *sorted(set(table["metric"]) - set(MAIN))]}
    by = [
        name for name in ("method", "prompt_decouple", "seed", "split", "metric") if name in table
    ]
    return table.sort_values(
        by, ignore_index=True,
        key=lambda column: column.map(rank[column.name].index) if column.name in rank else column,
    )  # fmt: skip


def _cell(row) -> str:
    low, high = 100 * row.low, 100 * row.high
    return f"{100 * row.value:.1f} [{low:.1f}, {high:.1f}] n={row.n}"


def _spread(table: pd.DataFrame, cells: list[str], unknown: str = "not run") -> pd.DataFrame:
    names = [_name(row.method, row.prompt_decouple) for row in table.itertuples()]
    keys = list(zip(table["metric"], table["split"], strict=True))
    columns = COLUMNS | {key: heading for key, heading in FURTHER.items() if key in keys}
    long = pd.DataFrame({"name": names, "heading": map(columns.get, keys), "cell": cells}).dropna()
    spread = long.pivot(index="name", columns="heading", values="cell")
    return spread.reindex(index=dict.fromkeys(names), columns=columns.values()).fillna(unknown)


def _name(method: str, prompt_decouple: int) -> str:
    return METHODS[method] + (" + PD" if prompt_decouple else "")


def _escape(text: str) -> str:
    replaced = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    replaced |= {special: "\\" + special for special in "&%$#_{}"}
    return "".join(replaced.get(letter, letter) for letter in text)
