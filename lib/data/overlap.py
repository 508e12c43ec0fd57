"""What train and val share: released data may have a record in both, and then val measures memory.

Pictures are the same if their files are, whatever their names. So it can be told without opening
them, and says the same whether they were opened or not.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pandas as pd

from lib.data.records import CATEGORIES, Dataset, Record

HARMFUL, SAFE, QUESTIONS = SEEN = ("harmful picture", "safe picture", "questions")


def digest(path: Path) -> str:
    """SHA-256 of a file; read once per process, unless it changes."""
    state = path.stat()
    return _digest(path, state.st_mtime_ns, state.st_size)


@cache
def _digest(path: Path, _changed: int, _size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def compared(train: Sequence[Record], val: Sequence[Record]) -> tuple[Record, ...]:
    """The val records, each with `seen`: which of SEEN train has too."""
    harmful = {digest(record.image) for record in train}
    safe = {digest(record.safe_image) for record in train}
    asked = {query for record in train for query in _queries(record)}
    seen = ((HARMFUL, lambda r: digest(r.image) in harmful),
            (SAFE, lambda r: digest(r.safe_image) in safe),
            (QUESTIONS, lambda r: _queries(r) <= asked))
    return tuple(replace(record, seen=frozenset(name for name, held in seen if held(record)))
                 for record in val)


def repeated(records: Sequence[Record]) -> int:
    """How many records have a harmful picture that one before them has."""
    return len(records) - len({digest(record.image) for record in records})


def held_out(records: Iterable[Record]) -> tuple[Record, ...]:
    """Those whose harmful picture train does not have."""
    return tuple(record for record in records if HARMFUL not in record.seen)


def examples(dataset: Dataset) -> tuple[Record, ...]:
    """The records that a chapter looks at: of each category those of val that are held out, or all
    of val, or of train, whichever is the first to have any. Held-out ones come first.
    """
    parts = (held_out(dataset.val), dataset.val, dataset.train)
    taken: dict[str, int] = {}
    for number, records in enumerate(parts):
        for record in records:
            taken.setdefault(record.category, number)
    return tuple(record for number, records in enumerate(parts) for record in records
                 if taken[record.category] == number)


def overlap(dataset: Dataset) -> pd.DataFrame:
    """Per category, and for "all": val's records, those held out, and what train has too.

    "seen" counts the records that are not held out; "harmful pictures" and "safe pictures" are
    different pictures; "questions" are those of the forget set that train asks, word for word,
    about the same picture.
    """
    asked = {query for record in dataset.train for query in _queries(record)}
    names = [name for name in CATEGORIES if any(r.category == name for r in dataset.val)]
    parts = {name: [r for r in dataset.val if r.category == name] for name in names}
    parts["all"] = dataset.val
    rows = {name: _shared(records, asked) for name, records in parts.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("category")


def _shared(records: Sequence[Record], asked: set[tuple[str, str]]) -> dict[str, int]:
    kept = len(held_out(records))
    return {"val records": len(records), "held out": kept, "seen": len(records) - kept,
            "harmful pictures": len({digest(r.image) for r in records if HARMFUL in r.seen}),
            "safe pictures": len({digest(r.safe_image) for r in records if SAFE in r.seen}),
            "questions": sum(len(_queries(record) & asked) for record in records)}


def _queries(record: Record) -> set[tuple[str, str]]:
    """(picture, question) of the forget set."""
    shown = digest(record.image)
    return {(shown, pair.question) for pair in record.unsafe_pairs}
