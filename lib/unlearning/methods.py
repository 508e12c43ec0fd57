"""The methods: each is one line, a loss as weights of terms, without and with Prompt Decouple (PD).

`python -m lib.unlearning` prints them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from lib.unlearning.terms import TERMS

PD = "prompt_decouple"


@dataclass(frozen=True)
class Method:
    """One line of METHODS. `loss` and `with_pd` are weights of terms, as in the official code.

    `colour` is the method's in every figure; `of_paper` says whether SafeEraser compares it.
    """

    key: str
    title: str
    colour: str
    loss: Mapping[str, float]
    with_pd: Mapping[str, float]
    of_paper: bool = True


# Official code, forget.py:363-500. Adding PD halves GD's retain weight there, and the weight of PD
# differs by method; `po` is called `idk` there, and its one batch is a token-weighted mean. NPO is
# not among them: its rows are the term, the retain answers beside it, and PD, each with weight 1.
# Okabe and Ito's colours, and Tol's wine: they stay apart for every common colour blindness.
METHODS = {method.key: method for method in (
    Method("ga", "GA", "#D55E00", {"forget": -1.0}, {"forget": -1.0, PD: 0.5}),
    Method("gd", "GD", "#E69F00", {"forget": -1.0, "retain": 1.0},
           {"forget": -1.0, "retain": 0.5, PD: 0.5}),
    Method("kl", "KL", "#009E73", {"forget": -1.0, "kl": 1.0},
           {"forget": -1.0, "kl": 1.0, PD: 1.0}),
    Method("po", "PO", "#0072B2", {"refusal_and_retain": 1.0},
           {"refusal_and_retain": 1.0, PD: 1.0}),
    Method("npo", "NPO", "#882255", {"npo": 1.0, "retain": 1.0},
           {"npo": 1.0, "retain": 1.0, PD: 1.0}, of_paper=False),
)}
OF_PAPER = tuple(key for key, method in METHODS.items() if method.of_paper)
ROWS = ("official", "added")  # "added": PD taken at its word, weight 1, and nothing else changes


def weights(method: str, prompt_decouple: bool, prompt_decouple_weight: float | None = None,
            rows: str = "official") -> dict[str, float]:
    """The method's row of weights by term; `prompt_decouple_weight` replaces that one weight.

    >>> weights("gd", True)
    {'forget': -1.0, 'retain': 0.5, 'prompt_decouple': 0.5}
    >>> weights("po", True, 0.3)
    {'refusal_and_retain': 1.0, 'prompt_decouple': 0.3}
    >>> weights("po", True, rows="added")
    {'refusal': 1.0, 'retain': 1.0, 'prompt_decouple': 1.0}
    """
    if method not in METHODS or rows not in ROWS:
        raise ValueError(f"There is no method {method!r} in the rows {rows!r}; methods: "
                         f"{', '.join(METHODS)}; rows: {', '.join(ROWS)}.")
    chosen = METHODS[method]
    row = dict(chosen.with_pd if prompt_decouple else chosen.loss)
    if rows == "added":
        row = _added(chosen, prompt_decouple)
    if prompt_decouple_weight is not None:
        if not prompt_decouple:
            raise ValueError("A weight for PD needs prompt_decouple=True.")
        row[PD] = float(prompt_decouple_weight)
    return row


def _added(method: Method, prompt_decouple: bool) -> dict[str, float]:
    """The loss without PD, what it pools taken apart, and PD with weight 1."""
    row = {}
    for name, weight in method.loss.items():
        row |= dict.fromkeys(TERMS[name].reads if TERMS[name].pools_tokens else (name,), weight)
    return row | ({PD: 1.0} if prompt_decouple else {})


def run_name(method: str, prompt_decouple: bool | int) -> str:
    """What a run is called everywhere.

    >>> run_name("po", 1), run_name("vanilla", 0)
    ('PO + PD', 'original')
    """
    title = METHODS[method].title if method in METHODS else "original"
    return f"{title}{' + PD' if prompt_decouple else ''}"


def table(rows: str = "official") -> pd.DataFrame:
    """The rows of weights: one line per method without and with PD, one column per term."""
    lines = {run_name(method, added): weights(method, added, rows=rows)
             for method in METHODS for added in (False, True)}
    frame = pd.DataFrame.from_dict(lines, orient="index")
    return frame.reindex(columns=[term for term in TERMS if term in frame])


def main() -> None:
    for rows, title in (("official", "Official code (default)"), ("added", "PD simply added")):
        print(f"{title}\n{table(rows).to_string(na_rep='.')}\n")
    for term in TERMS.values():
        print(f"{term.name}: {term.meaning}")
