"""A judge's verdicts and what they cost, on disk, so that nothing is asked or paid for twice.

One SQLite file per judge, which several processes may share: what `add` has returned from is on the
disk, and outlives a kill or a power cut. There is nothing in it but hashes, labels, scores and
token counts: no question, no answer, no key.
"""

import hashlib
import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from math import nan
from pathlib import Path

from lib.evaluation.verdicts import JudgeStopped, Verdict

TABLES = ("CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, label TEXT, score REAL)",
          "CREATE TABLE IF NOT EXISTS spent (prompt INTEGER, reply INTEGER)")
PATIENCE = 60  # seconds that a process waits for another's turn


def key(*parts: object) -> str:
    """The sha256 of everything that determines a verdict, in hex."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def file_name(judge: str) -> str:
    """A name for a judge's file: readable, and different for different judges.

    >>> file_name("server:gpt-4o")
    'server-gpt-4o-a846e776.sqlite'
    """
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", judge).strip("-.")[-60:]
    return f"{readable}-{hashlib.sha256(judge.encode()).hexdigest()[:8]}.sqlite"


class Cache:
    """Verdicts by key, and the tokens (prompt, reply) that the judge has used so far, in all runs.

    Raises JudgeStopped where the file cannot be read or written.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        old = self.path.with_suffix(".jsonl")
        if old.exists():
            raise JudgeStopped(f"{old} holds verdicts as earlier versions kept them, which is read "
                               "no more. To have them asked and paid for anew, move it away.")
        with self._open() as file:
            for table in TABLES:
                file.execute(table)

    @property
    def tokens(self) -> tuple[int, int]:
        """What all requests so far were billed: tokens of prompts and of replies."""
        with self._open() as file:
            return file.execute("SELECT coalesce(sum(prompt), 0), coalesce(sum(reply), 0) "
                                "FROM spent").fetchone()

    def verdicts(self) -> dict[str, Verdict]:
        """All that are kept, by key."""
        with self._open() as file:
            return {key: Verdict(label, nan if score is None else score)
                    for key, label, score in file.execute("SELECT * FROM verdicts")}

    def add(self, tokens: tuple[int, int], key: str = "", verdict: Verdict | None = None) -> None:
        """Keep what a request cost and, if it gave one, its verdict."""
        with self._open() as file:
            file.execute("INSERT INTO spent VALUES (?, ?)", tokens)
            if verdict is not None:
                file.execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?)",
                             (key, verdict.label, verdict.score))

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """The file; what is done in the block is done as a whole, or not at all."""
        try:
            with closing(sqlite3.connect(self.path, timeout=PATIENCE)) as file, file:
                file.execute("PRAGMA journal_mode = PERSIST")  # else each `add` removes a file
                yield file
        except sqlite3.Error as error:
            raise JudgeStopped(f"{self.path} could not be read or written ({error}): make room on "
                               "its disk, or free it, and run this again; what was judged before "
                               "is kept.") from error
