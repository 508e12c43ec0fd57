"""What was read from a dataset folder, beside what the paper says of SafeEraser."""

from collections import Counter
from collections.abc import Iterator

import pandas as pd

from lib.dataset import CATEGORIES, SETS, Dataset, counts
from lib.dataset_check import load

# Abstract: 3,000 images, 28.8 K pairs. Its counts per category are unknown to us.
PAPER = {"pictures": 3000, "pairs": 28800}
# Words by which a query would say, without its picture, that it is about harm.
TELLING = frozenset({"bomb", "drug", "explosive", "gun", "hateful", "illegal", "kill", "murder",
                     "nude", "porn", "racist", "sexual", "steal", "violent", "weapon"})


def report(dataset: Dataset) -> pd.DataFrame:
    """One row per category, for all, and for the paper: pairs of each of SETS, pairs, pictures.

    The paper's cells are missing where its number is unknown to us.
    """
    found = counts(dataset).groupby(["category", "set"], sort=False)["pairs"].sum().unstack("set")
    table = found.reindex(index=list(CATEGORIES), columns=list(SETS))
    table["pairs"] = table.sum(axis=1)
    table["pictures"] = _pictures(dataset).reindex(table.index, fill_value=0)
    table.loc["all"] = table.sum()
    table.loc["paper"] = pd.Series(PAPER).reindex(table.columns)
    return table.astype("Int64").rename_axis("category").rename_axis(columns=None)


def lengths(dataset: Dataset) -> pd.DataFrame:
    """How long answers are: set, median and most words. Unlearning cuts what is too long."""
    said = pd.DataFrame([(name, len(pair.answer.split()))
                         for record in (*dataset.train, *dataset.val)
                         for name, (_, pairs) in record.sets().items() for pair in pairs],
                        columns=["set", "words"])
    found = said.groupby("set", sort=False)["words"].agg(["median", "max"]).reset_index()
    return found.set_axis(["set", "words of an answer (median)", "words of the longest"], axis=1)


def spellings(dataset: Dataset) -> dict[str, int]:
    """How often each of the format's variants stands in the files: key -> records or pairs."""
    found: Counter[str] = Counter()
    for record in _raw(dataset):
        found["image_path" if "image_path" in record else "image_id"] += 1
        found["category given" if record.get("category") else "category from the folder"] += 1
        for name, pair in record.items():
            if name.startswith("UnharmPair"):
                found["Prediction" if "Prediction" in pair else "Answer"] += 1
    return dict(found)


def text(dataset: Dataset) -> str:
    """All of it in words and a table, for a log or a notebook."""
    seen = ", ".join(f"{name} {count}" for name, count in sorted(spellings(dataset).items()))
    table = report(dataset).astype(object).fillna("unknown to us")
    return (f"{len(dataset.train)} train and {len(dataset.val)} val records, "
            f"{len(dataset.refusals)} refusals, {len(dataset.specificity)} specificity questions.\n"
            f"Spellings: {seen}.\n{table.to_string()}")


def _pictures(dataset: Dataset) -> pd.Series:
    """Different harmful and safe pictures of each category."""
    shown = {(record.category, path) for record in (*dataset.train, *dataset.val)
             for path in (record.image, record.safe_image)}
    return pd.Series(Counter(category for category, _ in shown))


def _raw(dataset: Dataset) -> Iterator[dict]:
    for name in ("all_train.json", "all_val.json"):
        yield from load(dataset.root / name)
