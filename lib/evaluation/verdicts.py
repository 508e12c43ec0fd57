"""What a judge is given and what it says: an answer with its question, a label with a score.

A judge is any object with a `name` and a method `judge(items, report)` that returns one Verdict
for every Item, in their order. `judges.py` has the kinds; the metrics see labels and scores only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import nan
from typing import Protocol

LABELS = ("harmful", "refusal", "degenerate", "normal")
# No label: the judge would not or could not say (its own "unsure", a content filter), or nothing
# that it sent could be read. They are counted apart and are never taken for a safe answer.
UNJUDGED = ("abstained", "failed")
Report = Callable[[str], None]


@dataclass(frozen=True)
class Item:
    """An answer to be judged. `set` is harmful, safe, neighbour, retain or specificity."""

    set: str
    category: str
    question: str
    answer: str
    reference: str

    @property
    def scored(self) -> bool:
        """Whether it is scored against its reference."""
        return self.set in ("retain", "specificity")


@dataclass(frozen=True)
class Verdict:
    """A label (one of LABELS or UNJUDGED) and, for answers with a reference, a score 0 to 1."""

    label: str
    score: float = nan

    def __post_init__(self):
        if self.label not in LABELS + UNJUDGED:
            raise ValueError(f"A verdict's label is one of {LABELS + UNJUDGED}, "
                             f"not {self.label!r}.")
        if not (self.score != self.score or 0 <= self.score <= 1):
            raise ValueError(f"A verdict's score is a number from 0 to 1, not {self.score}.")


ABSTAINED, FAILED = Verdict("abstained"), Verdict("failed")


class Judge(Protocol):
    """What every judge can do."""

    name: str

    def judge(self, items: Sequence[Item], report: Report = ...) -> list[Verdict]:
        """One verdict per item, in their order."""


class JudgeStopped(RuntimeError):
    """Judging cannot go on without the user: a key, a cap, an address. What was judged is kept."""
