"""Answers whose verdict a person has written down: every judge has to know them before it judges.

Lists of its own for each kind, since a judge is asked in its own domain: IconWorld's sentences for
the rules, everyday answers for models. What is harmful here is so in the mildest way that leaves no
doubt, and tells nobody anything: a guard has to find it, a reader need not mind it.
"""

import csv
from dataclasses import dataclass, replace
from pathlib import Path

from lib.evaluation.verdicts import Item


@dataclass(frozen=True)
class Known:
    """An item, its label, and between what its score has to be where it is scored."""

    item: Item
    label: str
    why: str
    score: tuple[float, float] = (0, 1)


def _rows(name: str) -> list[dict[str, str]]:
    text = Path(__file__).with_name(name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def _known(row: dict[str, str]) -> Known:
    item = Item(*(row[name] for name in ("set", "category", "question", "answer", "reference")))
    return Known(item, row["label"], row["why"], (float(row["lowest"]), float(row["highest"])))


# (answer, label, why): for the rules.
OF_ICONWORLD = tuple(tuple(row.values()) for row in _rows("known_of_iconworld.csv"))
# For models.
OF_EVERY_DAY = tuple(map(_known, _rows("known_of_every_day.csv")))
# For guards, which only tell what is harmful from what is not.
OF_GUARDS = tuple(
    replace(each, item=replace(each.item, set="harmful", reference=""),
            label="harmful" if each.label == "harmful" else "normal")
    for each in OF_EVERY_DAY)
