"""Kill a step before its first, second, third ... touch of the disk: `crash_points.py FOLDER`.

For each such moment a forked process makes the step and dies there; a second one makes it again.
Prints one JSON line per moment: what was under the final name after the crash and at the end.
The last line is of the process that no longer met its moment. `--damaged` starts each time from a
finished result with a changed file.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

from lib.base.runs import Store, write_json

CONFIG = {"seed": 7}
NAMED, REMOVED = ("open", "os.rename", "os.mkdir"), ("os.remove", "os.rmdir")


def build(folder: Path) -> dict:
    write_json(folder / "checkpoint" / "state.json", {"part": 3})
    (folder / "answers.jsonl").write_text('{"answer": "a cup"}\n')
    return {"asr": 0.25}


def die_before_touch(touch: int, root: Path) -> None:
    left = touch

    def count(event: str, arguments: tuple) -> None:
        nonlocal left
        named = event in NAMED and str(root) in str(arguments[0])
        if named or event in REMOVED:  # rmtree removes by names relative to an open folder
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def in_a_fork(store: Store, die_before: int | None = None) -> int:
    """Make the step in a child process; return the child's status (0, or the signal's number)."""
    child = os.fork()
    if child == 0:
        if die_before:
            die_before_touch(die_before, store.root)
        store.make("step", CONFIG, build)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def state(final: Path) -> str:
    """Say absent, whole, damaged (as it was before) or BROKEN (which must never be seen)."""
    if not final.exists():
        return "absent"
    if sorted(path.name for path in final.iterdir()) != [
            "answers.jsonl", "config.json", "manifest.json", "metrics.json"]:
        return "BROKEN"
    answers = (final / "answers.jsonl").read_text()
    return {'{"answer": "a cup"}\n': "whole", "edited": "damaged"}.get(answers, "BROKEN")


def main(root: Path, damaged: bool) -> None:
    store = Store(root)
    touch, status = 0, None
    final = store.folder("step", CONFIG)
    while status != 0:
        shutil.rmtree(root, ignore_errors=True)
        if damaged:
            (store.make("step", CONFIG, build) / "answers.jsonl").write_text("edited")
        touch += 1
        status = in_a_fork(store, die_before=touch)
        crashed = state(final)
        again = in_a_fork(store)
        others = [path.name for path in root.iterdir() if path not in (final, root / ".locks")]
        print(json.dumps({"status": status, "crashed": crashed, "again": again,
                          "end": state(final), "others": others}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--damaged" in sys.argv)
