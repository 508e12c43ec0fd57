"""Answers that a person has labelled, from a file of the user's: they tell how a judge errs.

The file is .csv or .jsonl (JSON Lines), with the FIELDS in each row. What is wrong with it is said
all at once, by line and field. Its texts may be harmful, and are never shown.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pandas as pd

from lib.data.discretion import quoted
from lib.evaluation.verdicts import LABELS

FIELDS = ("label", "set", "category", "question", "answer")
SETS = ("harmful", "safe", "neighbour")  # whose answers ASR, RR and SARR are about
NAMED = 8  # lines, for one kind of problem


def to_label(answers: pd.DataFrame, count: int, rng_seed: int = 0) -> pd.DataFrame:
    """So many greedy answers on val of each set, drawn at random, with a `label` to be filled in.

    Without the judge's label, which a person should not see first. May hold harmful answers.
    """
    asked = answers[answers["decoding"].eq("greedy") & answers["split"].eq("val")]
    sets = (asked[asked["set"].eq(kind)] for kind in SETS)
    drawn = [each.sample(min(count, len(each)), random_state=rng_seed) for each in sets]
    return pd.concat(drawn, ignore_index=True).assign(label="")[list(FIELDS)]


def read(path: Path | str) -> pd.DataFrame:
    """The labelled answers: set, category, question, answer, expected, and an empty reference.

    Raises ValueError that lists all that is wrong with the file.
    """
    path, problems = Path(path).expanduser(), {}

    def note(line: int, field: str, what: str) -> None:
        problems.setdefault((field, what), []).append(line)

    rows = [_checked(line, row, note) for line, row in _rows(path, note)]
    if not rows and not problems:
        note(1, "", "there are no answers: write one in each line, with its label")
    if problems:
        places = "\n".join(f"  {_lines(lines)}{field and f', field {field!r}'}: {what}."
                           for (field, what), lines in problems.items())
        raise ValueError(f"{path}, the labelled sample, cannot be used:\n{places}")
    return pd.DataFrame(rows).rename(columns={"label": "expected"}).assign(reference="")


def _lines(numbers: list[int]) -> str:
    """`_lines([3, 5])` is "lines 3, 5"; of many the first are named and the others counted."""
    more = f" and {len(numbers) - NAMED} more" if len(numbers) > NAMED else ""
    return f"line{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers[:NAMED]))}{more}"


def _checked(line: int, row: Mapping, note: Callable) -> dict[str, str]:
    """The FIELDS of a row, set and label in lower case, after noting what is wrong with them."""
    texts = {field: row[field] for field in FIELDS if isinstance(row.get(field), str)}
    for field in FIELDS:
        if field not in texts:
            note(line, field, "is missing or not a text; give every answer this field")
    for field, values in (("set", SETS), ("label", LABELS)):
        text = texts[field] = texts.get(field, values[0]).strip().lower()
        if text not in values:
            said = f"is {quoted(repr(text))}" if text else "is empty"
            note(line, field, f"{said}; write {' or '.join(values)}, or leave the answer out")
    if not texts.get("question", "?").strip():
        note(line, "question", "is empty; copy the question that was asked")
    return texts


def _rows(path: Path, note: Callable) -> Iterator[tuple[int, Mapping]]:
    """(line, row) of each answer in the file."""
    kinds = {".csv": _csv, ".jsonl": _json}
    if path.suffix.lower() not in kinds:
        raise ValueError(f"{path}, the labelled sample, is no .csv and no .jsonl: save it as one.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path}, the labelled sample, is not UTF-8: save it as that.") from None
    except OSError as error:
        raise ValueError(f"{path}, the labelled sample, cannot be read ({error.strerror}): check "
                         "what follows --labelled, or SAFEERASER_LABELLED.") from None
    yield from kinds[path.suffix.lower()](text, note)


def _csv(text: str, note: Callable) -> Iterator[tuple[int, Mapping]]:
    """Rows under a header; with commas, semicolons or tabs, as the header has."""
    signs = text.partition("\n")[0].count
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=signs),
                        strict=True)
    names, line = None, 1  # a row may span several lines: its first
    try:
        for cells in reader:
            if cells and names is None:
                names = [cell.strip().lower() for cell in cells]
            elif cells:
                if len(cells) > len(names):
                    note(line, "", "has more values than the header has names; put quotes around "
                                   "a text with commas")
                yield line, dict(zip(names, cells, strict=False))
            line = reader.line_num + 1
    except csv.Error as error:
        note(line, "", f"cannot be read as CSV ({error}); save the file anew")


def _json(text: str, note: Callable) -> Iterator[tuple[int, Mapping]]:
    """One JSON object in each line that is not empty."""
    for line, part in enumerate(text.split("\n"), start=1):
        try:
            row = json.loads(part) if part.strip() else None
        except (ValueError, RecursionError):
            row = part
        if isinstance(row, dict):
            yield line, row
        elif row is not None:
            note(line, "", "is no JSON object; write one answer as {...} in each line")
