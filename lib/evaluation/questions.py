"""What a model is asked in the evaluation: every question, with its set and split."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lib.data.dataset import CATEGORIES, NEIGHBOURS, Dataset, Record
from lib.data.overlap import HARMFUL, SAFE


@dataclass(frozen=True)
class Question:
    """One question of the evaluation; `record` is what an interval resamples."""

    set: str  # harmful, safe, neighbour, retain or specificity
    split: str  # train, val, or val_seen: of val, but with a picture or record that train has too
    record: str
    category: str
    image: Path | None
    question_index: int
    question: str
    reference: str


def questions(dataset: Dataset, train_records: int | None) -> list[Question]:
    """All of val, specificity, and of train the first `train_records` of each category (or all)."""
    train = [record for category in CATEGORIES
             for record in [r for r in dataset.train if r.category == category][:train_records]]
    asked = [q for record in (*train, *dataset.val) for q in of_record(record)]
    numbers: dict[str, int] = {}
    for item in dataset.specificity:
        index = numbers[item.id] = numbers.get(item.id, -1) + 1
        asked.append(Question("specificity", "val", item.id, "", item.image, index, item.question,
                              item.answer))
    return asked


def of_record(record: Record) -> list[Question]:
    """The questions of one record: harmful, safe, retain (texts first, then pictures), neighbour.

    Those about the safe picture are held out if train has neither this one nor the harmful one,
    all others if train does not have the harmful one.
    """
    sets = record.sets()
    kinds = {"harmful": ["forget"], "safe": ["prompt decouple"],
             "retain": ["retain text", "retain image"], "neighbour": [NEIGHBOURS]}
    found = []
    for kind, names in kinds.items():
        shown = {HARMFUL, SAFE} if kind == "safe" else {HARMFUL}
        split = "val_seen" if shown & record.seen else record.split
        pairs = [(None if name == "retain text" else sets[name][0], pair)
                 for name in names if name in sets for pair in sets[name][1]]
        found += [Question(kind, split, record.id, record.category, image, i,
                           pair.question, pair.answer)
                  for i, (image, pair) in enumerate(pairs)]
    return found


def held_out(asked: Sequence[Question], kind: str) -> list[Question]:
    """The questions of a set that are held out; if none are, those of val, and else of train."""
    parts = (only(asked, set=kind, split=split) for split in ("val", "val_seen", "train"))
    return next(filter(None, parts), [])


def only(asked: Sequence[Question], **fields) -> list[Question]:
    """The questions with these field values, such as set="harmful", split="val"."""
    return [q for q in asked if all(getattr(q, name) == value for name, value in fields.items())]
