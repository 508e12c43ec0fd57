"""What was said so far, on disk as it comes: a killed evaluation goes on answer by answer."""

import json
import os
from pathlib import Path


class Journal:
    """Texts by name, one JSON line each in a file to which lines are only ever added.

    A process that is killed loses at most the line in hand. None instead of a path: nothing is
    written. Only one process may write at a time, which the run store's lock sees to.
    """

    def __init__(self, path: Path | None):
        self.path = path
        self.texts: dict[str, str] = {}
        if path is not None and path.exists():
            self._read(path)

    def add(self, texts: dict[str, str]) -> None:
        """Remember these texts, too."""
        self.texts.update(texts)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(b"".join(json.dumps(pair).encode() + b"\n" for pair in texts.items()))

    def _read(self, path: Path) -> None:
        """Read whole lines up to the first that is not; what follows is cut off the file."""
        end = 0
        for line in path.read_bytes().splitlines(keepends=True):
            try:
                name, text = json.loads(line)
            except (ValueError, TypeError):
                break
            if not line.endswith(b"\n"):
                break
            self.texts[name] = text
            end += len(line)
        os.truncate(path, end)
