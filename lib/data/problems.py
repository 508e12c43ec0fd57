"""What is wrong in a dataset folder: each thing with its place, and all of it on one screen."""

import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lib.base.files import read_jsonl, write_jsonl

MOST_KINDS = 9  # of problems on a screen of 24 lines, each of two or three
LONGEST = 160  # characters of a detail
LEFT_OUT, LIST = "left_out.jsonl", "dataset_problems.txt"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a dataset folder; `record` counts from 0, None where there is none.

    `what` and `advice` are the same for all problems of a kind, `detail` belongs to this one.
    """

    file: str
    record: int | None
    field: str
    what: str
    advice: str
    detail: str = ""

    @property
    def place(self) -> str:
        record = "" if self.record is None else f"record {self.record}"
        return ", ".join(part for part in (self.file, record, self.field) if part)

    @property
    def kind(self) -> tuple:
        """Equal for problems that are said together: of records, whichever file they are in."""
        file = self.file if self.record is None else None
        return file, re.sub(r"\[\d+\]", "[]", self.field), self.what, self.advice

    def __str__(self) -> str:
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.place}: {self.what}{detail}; {self.advice}."


class DatasetError(ValueError):
    """A dataset folder that cannot be used; `problems` holds everything that is wrong with it.

    `records`: how many each file has. `why`: a sentence, if what is left without them would be too
    little. `left`: how much it would be, if it is enough.
    """

    def __init__(self, root: Path, problems: Sequence[Problem], records: Mapping[str, int],
                 why: str = "", left: str = ""):
        self.root, self.problems = root, problems
        lines = [f"{root} cannot be used, {len(problems):,} problem(s) (records count from 0):",
                 *(f"  {line}" for line in grouped(problems, records))]
        lines += [f"--leave-out goes on without what cannot be used: with {left}."] * bool(left)
        lines += [f"Leaving out what cannot be used is not enough: {why}."] * bool(why)
        super().__init__("\n".join(lines))


def grouped(problems: Iterable[Problem], records: Mapping[str, int]) -> list[str]:
    """A sentence for each kind of problem, first of whole files, then of most records.

    At most MOST_KINDS, and one more for the rest. `records`: how many each file has.
    """
    kinds: dict[tuple, list[Problem]] = {}
    for problem in problems:
        kinds.setdefault(problem.kind, []).append(problem)
    ordered = sorted(kinds.values(), key=lambda kind: (kind[0].record is not None, -len(kind)))
    lines = [_sentence(kind, records) for kind in ordered[:MOST_KINDS]]
    if left := ordered[MOST_KINDS:]:
        lines.append(f"and {len(left):,} other kinds, {sum(map(len, left)):,} problem(s) in all.")
    return lines


def _sentence(kind: Sequence[Problem], records: Mapping[str, int]) -> str:
    first = kind[0]
    if len(kind) == 1:
        return str(first)
    detail = f": {first.detail}" if first.detail else ""
    _, field, _, _ = first.kind
    if first.record is None:
        where = f"{first.file}, {field}: {first.what} at {len(kind):,} places"
        return f"{where} (first: {first.field}{detail}); {first.advice}."
    had = sum(records.get(file, 0) for file in {problem.file for problem in kind})
    number = len({(problem.file, problem.record) for problem in kind})
    where = f"{field or 'it'} {first.what} in {number:,} of {had:,} records"
    return f"{where} (first: {first.file}, record {first.record}{detail}); {first.advice}."


def shortened(detail: str) -> str:
    """A detail of a length that a line has room for."""
    return detail if len(detail) <= LONGEST else f"{detail[: LONGEST - 4]} ..."


def left_out(folder: Path) -> tuple[Problem, ...]:
    """What was left out of the dataset whose step has this folder, as `keep` wrote it there."""
    file = folder / LEFT_OUT
    return tuple(Problem(**row) for row in (read_jsonl(file) if file.exists() else ()))


def keep(problems: Iterable[Problem], folder: Path) -> None:
    """Writes what is left out beside the results, one a line; nothing if nothing is."""
    if rows := [asdict(problem) for problem in problems]:
        write_jsonl(folder / LEFT_OUT, rows)


def write_list(problems: Sequence[Problem], file: Path, root: Path) -> str:
    """Writes all problems, one a line, and says where; never inside of the dataset folder `root`.

    If it cannot be written there, it is written to the folder for temporary files.
    """
    other, why = Path(tempfile.gettempdir(), f"safeeraser-{file.name}"), "it is in the dataset"
    for path in (file, other):
        if root.resolve() in path.resolve().parents:
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", encoding="utf-8", errors="backslashreplace") as out:
                out.writelines(f"{problem}\n" for problem in problems)
        except OSError as error:
            why = error.strerror
        else:
            return f"All of them, one a line: {path}"
    return f"The whole list cannot be written to {file} ({why})"
