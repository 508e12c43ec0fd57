"""Make six steps with checkpoints inside: `python tests/killable_steps.py STORE JOURNAL FIRST`.

Tests kill this program. Whatever is done is appended to JOURNAL, one line each, after it is done.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from lib.base.runs import Store, read_json, write_json, write_jsonl

STEPS = [f"step{n}" for n in range(6)]
PARTS = 40


def expected_total(name: str, parts: int = PARTS) -> int:
    total = STEPS.index(name)
    for part in range(parts):
        total = (total * 31 + part) % 10_007
    return total


def note(journal: Path, *words: object) -> None:
    handle = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, (" ".join(map(str, words)) + "\n").encode())
    os.close(handle)


def build(folder: Path, name: str, journal: Path, pause: float = 0.002,
          report: Callable[[str], None] = lambda text: None) -> dict:
    saved = folder / "checkpoint" / "state.json"
    state = read_json(saved) if saved.exists() else {"part": 0, "total": STEPS.index(name)}
    note(journal, "start", name, state["part"], os.getpid())
    for part in range(state["part"], PARTS):
        time.sleep(pause)
        state = {"part": part + 1, "total": (state["total"] * 31 + part) % 10_007}
        write_json(saved, state)
        note(journal, "part", name, part)
        report(f"part {part + 1} of {PARTS}")
    write_jsonl(folder / "answers.jsonl", [{"step": name, "total": state["total"]}] * 200)
    (folder / "adapter").mkdir(exist_ok=True)
    (folder / "adapter" / "weights.bin").write_bytes(bytes([STEPS.index(name)]) * 100_000)
    note(journal, "end", name)
    return {"total": state["total"]}


def main(root: Path, journal: Path, first: int) -> None:
    for name in STEPS[first:] + STEPS[:first]:
        Store(root).make(name, {"seed": 1}, lambda folder, name=name: build(folder, name, journal))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
