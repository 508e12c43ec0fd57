"""What a notebook claims, and whether it held: shown where it is claimed, and counted at the end.

A check is about the data and the code: one that does not hold is a defect, and the pipeline fails.
A finding is what the paper found, or what one would expect of it: one that does not hold is a
result, and the pipeline reports it. On a profile that is not strict (too small to judge by) both
are recorded and shown, but not judged.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import display

from lib import paths, runs

COLUMNS = ["chapter", "kind", "claim", "verdict", "holds", "shown"]


def start(profile, chapter: str) -> None:
    """Begin a chapter's list of claims afresh, as the first cell of each notebook run does."""
    runs.write_json(_file(profile, chapter), [])


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
    file = _file(profile, chapter)
    others = [row for row in runs.read_json(file) if row["claim"] != text] if file.exists() else []
    runs.write_json(file, [*others, {"kind": kind, "claim": text, "holds": holds, "shown": shown}])
    display(_Line(_verdict(profile, holds), text, shown))


def table(profile) -> pd.DataFrame:
    """Return every claim of the profile: chapter, kind, claim, verdict, holds (bool), shown."""
    rows = [{"chapter": file.stem, "verdict": _verdict(profile, row["holds"]), **row}
            for file in sorted(_folder(profile).glob("*.json")) for row in runs.read_json(file)]
    return pd.DataFrame(rows, columns=COLUMNS).astype({"holds": bool})


def _verdict(profile, holds: bool) -> str:
    if not profile.strict:
        return "not judged at this profile"
    return "✓ holds" if holds else "✗ does not hold"


def _folder(profile) -> Path:
    return paths.profile_dir(profile.name) / "claims"


def _file(profile, chapter: str) -> Path:
    return _folder(profile) / f"{chapter}.json"


class _Line:
    """One line, as Markdown in a notebook and as text elsewhere."""

    def __init__(self, verdict: str, text: str, shown: str):
        self.verdict, self.text, self.shown = verdict, text, shown

    def _repr_markdown_(self) -> str:
        return f"**{self.verdict}** · {self.text} · `{self.shown}`"

    def __repr__(self) -> str:
        return f"{self.verdict} · {self.text} · {self.shown}"
