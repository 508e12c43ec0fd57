"""A judge's verdicts and what they cost, on disk, so that nothing is asked or paid for twice.

One file per judge, one JSON object per line, only ever appended to. A line is written in one go
(O_APPEND), so several processes may share a file; a process killed at any moment loses what it had
not been told yet, and at worst leaves half a line, which readers skip. There is nothing in it but
hashes, labels, scores and token counts: no question, no answer, no key.
"""

import errno
import hashlib
import json
import os
import re
import threading
from math import nan
from pathlib import Path

from lib.base import disk
from lib.evaluation.verdicts import Verdict


def key(*parts: object) -> str:
    """The sha256 of everything that determines a verdict, in hex."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def file_name(judge: str) -> str:
    """A name for a judge's file: readable, and different for different judges.

    >>> file_name("server:gpt-4o")
    'server-gpt-4o-a846e776.jsonl'
    """
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", judge).strip("-.")[-60:]
    return f"{readable}-{hashlib.sha256(judge.encode()).hexdigest()[:8]}.jsonl"


class Cache:
    """Verdicts by key, and the tokens (prompt, reply) that the judge has used so far, in all runs.

    What another process appends is seen after `refresh`.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self.tokens = (0, 0)
        self._verdicts: dict[str, Verdict] = {}
        self._read, self._lock = 0, threading.Lock()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            self._append(b"\n")  # so that the next line is not glued to half of another
        self.refresh()

    def __del__(self):
        if hasattr(self, "_file"):
            os.close(self._file)

    def get(self, key: str) -> Verdict | None:
        """The verdict under this key, if there is one."""
        return self._verdicts.get(key)

    def add(self, tokens: tuple[int, int], key: str = "", verdict: Verdict | None = None) -> None:
        """Keep what a request cost and, if it gave one, its verdict."""
        line: dict = {"tokens": list(tokens)}
        if verdict is not None:
            score = verdict.score if verdict.score == verdict.score else None
            line |= {"key": key, "label": verdict.label, "score": score}
        self._append(json.dumps(line).encode() + b"\n")
        self.refresh()

    def refresh(self) -> None:
        """Read the lines that were appended since, by whichever process."""
        with self._lock:
            size = os.fstat(self._file).st_size
            fresh = os.pread(self._file, size - self._read, self._read)
            whole = fresh[:fresh.rfind(b"\n") + 1]
            self._read += len(whole)
            for line in whole.splitlines():
                self._take(line)

    def _take(self, text: bytes) -> None:
        """Remember a line; one that was torn or edited into something else is left out."""
        try:
            line = json.loads(text)
            prompt, reply = map(int, line["tokens"])
            self.tokens = (self.tokens[0] + prompt, self.tokens[1] + reply)
            if "key" in line:
                score = nan if line["score"] is None else line["score"]
                self._verdicts[line["key"]] = Verdict(line["label"], score)
        except (ValueError, KeyError, TypeError, OverflowError):
            return

    def _append(self, line: bytes) -> None:
        try:
            whole = os.write(self._file, line) == len(line)
        except OSError as error:
            raise self._unwritten(error.errno) from error
        if not whole:
            raise self._unwritten(errno.ENOSPC)
        disk.sync(self._file)  # it was paid for: no power cut may take it

    def _unwritten(self, number: int | None) -> OSError:
        reason = os.strerror(number or errno.EIO)
        return OSError(number, f"{self.path} could not be written to the end ({reason}): make room "
                               "on its disk and run this again; what was judged before is kept.")
