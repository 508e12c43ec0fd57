"""What was read from a dataset folder, beside what the paper says of SafeEraser."""

from collections import Counter
from collections.abc import Iterator

import pandas as pd

from lib.data.check import is_null
from lib.data.overlap import QUESTIONS, held_out, repeated
from lib.data.records import CATEGORIES, NEIGHBOURS, SETS, Dataset, Record, counts

# Abstract: 3,000 images, 28.8 K pairs. Its counts per category are unknown to us.
PAPER = {"pictures": 3000, "pairs": 28800}
BOTH = "Prediction beside Answer"
# Words by which a query would say, without its picture, that it is about harm.
TELLING = frozenset({"bomb", "drug", "explosive", "gun", "hateful", "illegal", "kill", "murder",
                     "nude", "porn", "racist", "sexual", "steal", "violent", "weapon"})


def report(dataset: Dataset) -> pd.DataFrame:
    """One row per category, for all, and for the paper: pairs of each of SETS, pairs, pictures.

    And of NEIGHBOURS, if there are any, which are not among the paper's pairs. The paper's cells
    are missing where its number is unknown to us.
    """
    found = counts(dataset).groupby(["category", "set"], sort=False)["pairs"].sum().unstack("set")
    table = found.reindex(index=list(CATEGORIES), columns=list(SETS))
    table["pairs"] = table.sum(axis=1)
    table["pictures"] = 0
    if NEIGHBOURS in found:
        table[NEIGHBOURS] = found[NEIGHBOURS]
    table.loc["all"] = table.sum()
    table["pictures"] = _pictures(dataset).reindex(table.index, fill_value=0)
    table.loc["paper"] = pd.Series(PAPER).reindex(table.columns)
    return table.astype("Int64").rename_axis("category").rename_axis(columns=None)


def left(dataset: Dataset) -> pd.DataFrame:
    """Per category, "3 of 4": the records and the pairs of each set that were not left out."""
    before = _held(dataset.had or dataset)
    now = _held(dataset).reindex(columns=before.columns, fill_value=0)
    return pd.DataFrame({column: [f"{now.loc[name, column]:,} of {had:,}"
                                  for name, had in before[column].items()]
                         for column in before}, index=before.index)


def _held(dataset: Dataset) -> pd.DataFrame:
    table = report(dataset).drop(index="paper", columns=["pairs", "pictures"])
    for split in ("val", "train"):
        records = Counter(record.category for record in getattr(dataset, split))
        records["all"] = sum(records.values())
        table.insert(0, split, [records[category] for category in table.index])
    return table


def remarks(dataset: Dataset) -> list[str]:
    """What a reader has to know of the data before results: a sentence each."""
    return [f"{sentence}." for sentence in _remarks(dataset)]


def _remarks(dataset: Dataset) -> Iterator[str]:
    val, kept = dataset.val, held_out(dataset.val)
    if not val:
        yield "There are no val records, so generality is not known"
    elif len(kept) < len(val):
        word_for_word = sum(QUESTIONS in record.seen for record in val)
        yield (f"{len(val) - len(kept):,} of {len(val):,} val records have a harmful picture of "
               f"train, {word_for_word:,} of them with all its questions: the other {len(kept):,} "
               "are held out")
    for split, records in (("train", dataset.train), ("val", dataset.val)):
        if again := repeated(records):
            yield f"{again:,} {split} record(s) have the same harmful picture as one before them"
    if both := spellings(dataset).get(BOTH):
        yield f"{both:,} retain pairs have Prediction and Answer: Prediction is trained on"
    records = (*dataset.train, *dataset.val)
    if near := sum(bool(record.neighbour_pairs) for record in records):
        yield (f"{near:,} of {len(records):,} records have harmless questions about their harmful "
               "picture (safeNb_pairs)")


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
    had = dataset.had or dataset
    for record in (record.stored for record in (*had.train, *had.val)):
        found["image_id" if is_null(record.get("image_path")) else "image_path"] += 1
        found["category given" if record.get("category") else "category from the folder"] += 1
        for name, pair in record.items():
            if name.startswith("UnharmPair") and isinstance(pair, dict):
                there = [key for key in ("Prediction", "Answer") if not is_null(pair.get(key))]
                found.update([*there[:1], *[BOTH] * (len(there) == 2)])
    return dict(found)


def text(dataset: Dataset) -> str:
    """All of it in words and a table, for a log or a notebook."""
    seen = ", ".join(f"{name} {count}" for name, count in sorted(spellings(dataset).items()))
    lines = [f"{len(dataset.train)} train and {len(dataset.val)} val records, "
             f"{len(dataset.refusals)} refusals, {len(dataset.specificity)} specificity questions.",
             said(dataset), f"Spellings: {seen}."]
    if not dataset.left_out:  # else there is a table of what is left
        lines.append(report(dataset).astype(object).fillna("unknown to us").to_string())
    return "\n".join(filter(None, lines))


def said(dataset: Dataset) -> str:
    """What is said before anything is done with the data: remarks, and what is left of them."""
    lines = remarks(dataset)
    if dataset.left_out:
        lines += [f"What has one of {len(dataset.left_out):,} problem(s) is left out. Left are:",
                  left(dataset).to_string()]
    return "\n".join(lines)


def as_stored(_: Dataset, record: Record) -> dict:
    """A record as it stands in its file."""
    return record.stored


def _pictures(dataset: Dataset) -> pd.Series:
    """Different harmful and safe pictures of each category, and of all, which may share some."""
    shown = {(name, path) for record in (*dataset.train, *dataset.val)
             for path in (record.image, record.safe_image) for name in (record.category, "all")}
    return pd.Series(Counter(category for category, _ in shown))
