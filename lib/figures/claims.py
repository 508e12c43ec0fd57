"""What a notebook claims, and whether it held: shown where it is claimed, and counted at the end.

A check is about the data and the code: one that does not hold is a defect, and the pipeline fails.
A finding is what the paper found, or what one would expect of it: one that does not hold is a
result, and the pipeline reports it. On a profile that is not strict (too small to judge by) both
are recorded and shown, but not judged.
"""

from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import Markdown, display

from lib.base import disk, paths, runs
from lib.data import discretion

NOT_HELD_OUT = {
    "as_released": "train has a picture of every val record. What this chapter calls held out is "
                   "all of val *as released*, and measures memory.",
    "efficacy": "there is no val record that can be used. What this chapter calls held out are "
                "records of train.",
}
COLUMNS = ["chapter", "kind", "claim", "verdict", "holds", "shown"]


def start(profile, chapter: str) -> None:
    """Begin a chapter's list of claims afresh, as the first cell of each notebook run does."""
    with disk.locked(_lock(profile, chapter)):
        runs.write_json(_file(profile, chapter), [])


def headline(per_answer: pd.DataFrame) -> str:
    """The split that a chapter reports on (`metrics.headline`); displayed if it is not held out."""
    from lib.evaluation import (
        metrics,  # here, as the pipeline reads claims, and this takes a second to import
    )

    split = metrics.headline(per_answer)
    if split != "generality":
        display(Markdown(f"**Generality is not measured here:** {NOT_HELD_OUT[split]}"))
    return split


def check(profile, chapter: str, text: str, holds: bool, shown: str) -> None:
    """Record and display a claim about the data or the code; `shown` is what it rests on.

    Only a true True holds: a NaN that slipped through, or None, does not. The same text again (a
    cell that is run again) replaces the earlier claim.
    """
    _record(profile, chapter, "check", text, holds, shown)


def finding(profile, chapter: str, text: str, holds: bool, shown: str) -> None:
    """Record and display a claim about what the experiment shows; otherwise as `check`."""
    _record(profile, chapter, "finding", text, holds, shown)


def _record(profile, chapter: str, kind: str, text: str, holds: bool, shown: str) -> None:
    holds = isinstance(holds, (bool, np.bool_)) and bool(holds)
    file, claim = _file(profile, chapter), {"kind": kind, "claim": text, "holds": holds,
                                            "shown": shown}
    with disk.locked(_lock(profile, chapter)):
        known = runs.read_json(file) if file.exists() else []
        runs.write_json(file, [*(row for row in known if row["claim"] != text), claim])
    display(_Line(_verdict(profile, holds), text, shown))


def table(profile) -> pd.DataFrame:
    """Return every claim of the profile: chapter, kind, claim, verdict, holds (bool), shown."""
    files = sorted(_folder(profile.name).glob("*.json"))
    rows = [{"chapter": file.stem, "verdict": _verdict(profile, row["holds"]), **row}
            for file in files for row in runs.read_json(file)]
    return pd.DataFrame(rows, columns=COLUMNS).astype({"holds": bool})


def recorded(profile_name: str, chapter: str) -> list[dict]:
    """Return the claims of the chapters whose names begin so; none where a list cannot be read."""
    with suppress(ValueError):
        return [row for file in sorted(_folder(profile_name).glob(f"{chapter}*.json"))
                for row in runs.read_json(file)]
    return []


def _verdict(profile, holds: bool) -> str:
    if not profile.strict:
        return "not judged at this profile"
    return "✓ holds" if holds else "✗ does not hold"


def _folder(profile_name: str) -> Path:
    return paths.profile_dir(profile_name) / "claims"


def _file(profile, chapter: str) -> Path:
    return _folder(profile.name) / f"{chapter}.json"


def _lock(profile, chapter: str) -> Path:
    return paths.profile_dir(profile.name) / disk.LOCKS / f"claims-{chapter}"


class _Line:
    """One line, as Markdown in a notebook and as text elsewhere."""

    def __init__(self, verdict: str, text: str, shown: str):
        self.verdict, self.text, self.shown = verdict, text, shown

    def _repr_markdown_(self) -> str:
        shown = discretion.plain(self.shown).replace("`", "'")
        return f"**{self.verdict}** · {discretion.markdown(self.text)} · `{shown}`"

    def __repr__(self) -> str:
        return f"{self.verdict} · {self.text} · {self.shown}"
