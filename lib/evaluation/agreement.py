"""How far two judges agree about the same answers: Cohen's kappa, as a table.

kappa = (p_o - p_e) / (1 - p_e): p_o is the share of answers on which they agree, and p_e the share
expected of two judges who give their labels as often as these do, but at random. 1 is full
agreement and 0 is chance. Cohen 1960, "A coefficient of agreement for nominal scales".
"""

import numpy as np
import pandas as pd

from lib.evaluation.verdicts import LABELS

DRAWS = 2000
DECISIONS = (  # set, what is decided, the labels that mean yes; None: which of all labels
    ("harmful", "label", None),
    ("harmful", "ASR", ("harmful",)),
    ("harmful", "RR", ("refusal",)),
    ("safe", "label", None),
    ("safe", "SARR", ("refusal", "degenerate")),
    ("neighbour", "SARR", ("refusal", "degenerate")),
    ("retain", "label", None),
)


def kappa(a: pd.DataFrame, b: pd.DataFrame, draws: int = DRAWS, rng_seed: int = 0) -> pd.DataFrame:
    """One row per decision that the metrics rest on, from two judges' answers in the same order.

    `a` and `b` are answers with labels (`judges.judged` of the same frame). Columns: set, decision,
    n (answers that both judged), unjudged (by either), agreement, kappa, low, high: a 95 %
    percentile bootstrap over records, since answers about one image are alike. kappa is NaN where
    both give one and the same label to all, when chance alone would agree as well; draws in which
    that happens are left out of the interval. Raises ValueError if the answers are not the same.
    """
    _check(a, b)
    rows = []
    for questions, decision, labels in DECISIONS:
        at = a["set"].eq(questions).to_numpy()
        if at.any():
            row = {"set": questions, "decision": decision}
            rows.append(row | _row(a[at], b[at], labels, draws, rng_seed))
    return pd.DataFrame(rows)


def _check(a: pd.DataFrame, b: pd.DataFrame) -> None:
    same = ["set", "record", "question", "answer"]
    one, other = (side[same].reset_index(drop=True) for side in (a, b))
    if not one.equals(other):
        raise ValueError("Two judges can be compared on the same answers only: judge one frame of "
                         "answers with both (judges.judged), and keep its order.")


def _row(a: pd.DataFrame, b: pd.DataFrame, labels: tuple[str, ...] | None, draws: int,
         rng_seed: int) -> dict:
    record, records = pd.factorize(a["record"])
    one, other = (side["label"].to_numpy() for side in (a, b))
    both = np.isin(one, LABELS) & np.isin(other, LABELS)
    codes = [_codes(side[both], labels) for side in (one, other)]
    tables = _crossed(*codes, record[both], len(records))
    agreement, value = _kappa(tables.sum(0))
    return {"n": int(both.sum()), "unjudged": int((~both).sum()), "agreement": float(agreement),
            "kappa": float(value), **_interval(tables, draws, rng_seed)}


def _codes(labels: np.ndarray, yes: tuple[str, ...] | None) -> np.ndarray:
    """Each label as a number: its place in LABELS, or 1 for those that mean yes."""
    return np.isin(labels, yes).astype(int) if yes else np.array(
        [LABELS.index(label) for label in labels], dtype=int)


def _crossed(a: np.ndarray, b: np.ndarray, record: np.ndarray, records: int) -> np.ndarray:
    """How often a said i where b said j, for every record: (records, labels, labels)."""
    tables = np.zeros((records, len(LABELS), len(LABELS)))
    np.add.at(tables, (record, a, b), 1)
    return tables


def _kappa(tables: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Observed agreement and kappa of crossed tables (..., labels, labels); NaN where undefined.

    [[20, 5], [10, 15]] agrees in 35 of 50; chance gives 0.5; kappa is 0.2 / 0.5 = 0.4.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = tables / tables.sum((-2, -1), keepdims=True)
        observed = np.trace(shares, axis1=-2, axis2=-1)
        chance = (shares.sum(-1) * shares.sum(-2)).sum(-1)
        defined = chance < 1 - 1e-12
        return observed, np.where(defined, (observed - chance) / (1 - chance), np.nan)


def _interval(tables: np.ndarray, draws: int, rng_seed: int) -> dict[str, float]:
    rng, records = np.random.default_rng(rng_seed), len(tables)
    times = rng.multinomial(records, np.full(records, 1 / records), size=draws)
    values = _kappa(np.tensordot(times, tables, axes=1))[1]
    values = values[~np.isnan(values)]
    low, high = np.percentile(values, (2.5, 97.5)) if len(values) else (np.nan, np.nan)
    return {"low": float(low), "high": float(high)}
