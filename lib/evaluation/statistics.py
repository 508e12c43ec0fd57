"""Rates -> 95 % intervals, paired differences and corrected p-values.

Every function reads a tidy frame with one row per answer: method, prompt_decouple (0/1), seed,
split, metric, record, value (0 to 1). Two things make answers alike: they come from the same
trained model (a seed), or they are about the same image (a record, called cluster below). Both are
resampled, crossed: every seed has answered about every record. A value is NaN where the judge gave
no verdict: it counts neither in a rate nor in n, and in a comparison its partner does not, either.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import lru_cache

import numpy as np
import pandas as pd

DRAWS = 2000
FLIPS = 10_000
TAIL = 0.025  # of 95 %, on each side
EXACT_UP_TO = 13  # so many records have 8,192 sign patterns: fewer than FLIPS, so all are tried
SAME = 1e-12  # rounding apart, the draws are all one number
CONSTANT = ("method", "prompt_decouple", "split", "metric")


@dataclass(frozen=True)
class Difference:
    """With PD less without PD. Rates and differences are fractions, not percent.

    `relative_reduction` is 1 - with / without, the kind of number in the paper's "SARR falls by
    79.5 %". It and its interval are NaN when the rate without PD is 0, in the data or in a
    bootstrap draw: there is nothing that a share could be taken of.
    """

    difference: float
    low: float
    high: float
    p: float
    relative_reduction: float
    relative_low: float
    relative_high: float
    n: int  # answers on each side
    n_records: int
    n_seeds: int


def interval(frame: pd.DataFrame, rng_seed: int = 0, draws: int = DRAWS) -> tuple[float, float]:
    """95 % percentile bootstrap of the mean value, over seeds and records crossed.

    Each draw takes seeds and, independently, records with replacement, and averages the answers
    of the drawn pairs (Owen 2007 calls it the pigeonhole bootstrap). Where only records differ
    it covers the true rate about 95 times in 100. Three limits:

    - One seed: only records are resampled; the interval is about that one model.
    - Few seeds: a percentile interval cannot reach beyond the seeds it has seen. With three, where
      seeds differ more than images do, it covers the mean of all seeds about 75 times in 100.
    - No answer differs from another: resampling gives no spread, which must not read as
      certainty. The records not seen may differ, so for value 0 the upper end is
      u = 1 - 0.025^(1/records), the exact (Clopper-Pearson) bound on the share of records with
      any other value; for value 1 the lower end is 1 - u; in general each end moves by the share
      u of its way to 0 or 1. It counts records, not answers, as if all answers about an image
      agreed, so it is wide: 48 records with 0 give [0, 0.074].

    Raises ValueError when frame mixes methods, splits or metrics, or when answers are missing.
    """
    cells = _cells(frame)
    means = _resample(cells, rng_seed, draws)
    return _ends(means, cells.sums.shape[1], lowest=0.0, highest=1.0)


def independent(frame: pd.DataFrame, rng_seed: int = 0, draws: int = DRAWS) -> float:
    """How many independent answers would tell a rate as well as these, which are alike, tell it.

    rate (1 - rate) / the variance of `interval`'s draws, at most the number of answers; where no
    answer differs from another, the number of records. Values are 0 or 1. Raises as `interval`.
    """
    cells = _cells(frame)
    means = _resample(cells, rng_seed, draws)
    if np.ptp(means) <= SAME:
        return float(cells.sums.shape[1])
    return float(min(cells.mean * (1 - cells.mean) / means.var(), cells.counts.sum()))


def summarise(frame: pd.DataFrame, by: list[str], draws: int = DRAWS) -> pd.DataFrame:
    """One row per group: the columns `by`, value, low, high, n (answers), n_records, n_seeds."""
    rows = []
    for keys, group in frame.groupby(by, sort=False):
        low, high = interval(group, draws=draws)
        value = {"value": group["value"].mean(), "low": low, "high": high,
                 "n": int(group["value"].count())}
        units = {"n_records": group["record"].nunique(), "n_seeds": group["seed"].nunique()}
        rows.append(dict(zip(by, keys, strict=True)) | value | units)
    return pd.DataFrame(rows)


def paired_difference(
    with_pd: pd.DataFrame, without: pd.DataFrame, rng_seed: int = 0, draws: int = DRAWS
) -> Difference:
    """What PD changes in one method's metric: same seeds, same records, same questions.

    The interval is the bootstrap of `interval`, with the same draw for both sides, and the same
    bound where no record's difference differs from another's. p is `sign_flip_p`. What was not
    judged on both sides is left out: `difference` may be a little off that of the two rates.
    Raises ValueError when the two sides do not hold the same seeds, records and answer counts.
    """
    _check_pairs(_cells(with_pd), _cells(without))
    with_pd, without = _judged_on_both_sides(with_pd, without)
    after, before = _cells(with_pd), _cells(without)
    change = replace(before, sums=after.sums - before.sums)
    n_seeds, n_records = change.sums.shape
    change_draws, before_draws = (_resample(cells, rng_seed, draws) for cells in (change, before))
    ends = _ends(change_draws, n_records, lowest=-1.0, highest=1.0)
    relative = (np.nan, np.nan, np.nan)
    if before_draws.min() > 0:
        reduction = 0.0 - change.mean / before.mean  # 0.0 - 0.0, for it would print as -0.0
        relative = (reduction, *_relative(change_draws, before_draws, ends))
    p = sign_flip_p(change.sums.mean(0), rng_seed)
    return Difference(change.mean, *ends, p, *relative, int(without["value"].count()), n_records,
                      n_seeds)


def sign_flip_p(differences: np.ndarray, rng_seed: int = 0, flips: int = FLIPS) -> float:
    """Two-sided p of "PD changes nothing", from one seed-averaged difference per record.

    Were PD without effect, each record's difference could as well have had the other sign. p is
    the share of sign patterns whose sum is at least as far from 0 as the observed one: of all
    patterns for few records, else of 10,000 random ones and the observed (so p >= 1e-4).
    [0.5, 0.5, 0.5] gives 2 of 8 patterns, 0.25. It speaks of new images and of these seeds'
    models; what a new seed would do is in the interval, not in p.
    """
    moved = differences[np.abs(differences) > SAME]  # a zero is the same with either sign
    if len(moved) <= EXACT_UP_TO:
        signs = 1 - 2 * (np.arange(2 ** len(moved))[:, None] >> np.arange(len(moved)) & 1)
    else:
        rng = np.random.default_rng(rng_seed)
        signs = 1 - 2 * rng.integers(2, size=(flips, len(moved)), dtype=np.int8)
        signs = np.vstack([signs, np.ones(len(moved), np.int8)])
    return float(np.mean(np.abs(signs @ moved) >= abs(moved.sum()) - 1e-9))


def holm(p_values: list[float] | np.ndarray) -> np.ndarray:
    """Holm's step-down correction: of m tests the k-th smallest p is multiplied by m - k + 1.

    [0.01, 0.04, 0.03] becomes [0.03, 0.06, 0.06]: a corrected p is never below a smaller one's.
    """
    p_values = np.asarray(p_values, dtype=float)
    if not np.all((p_values >= 0) & (p_values <= 1)):
        raise ValueError(f"p-values lie between 0 and 1; these do not: {p_values.tolist()}.")
    order = np.argsort(p_values, kind="stable")
    stepped = p_values[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty_like(p_values)
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return corrected


def compare(frame: pd.DataFrame, metric: str, split: str) -> pd.DataFrame:
    """One row per method: the rate without PD, with PD, their difference and p, Holm-corrected.

    Columns: method, metric, split, value_without and value_with (each with its _low and _high),
    then the fields of Difference, and p_holm, corrected over the methods in the frame. The
    original model ("vanilla") has no PD and is left out.
    """
    chosen = frame[frame["metric"].eq(metric) & frame["split"].eq(split)]
    methods = [method for method in chosen["method"].unique() if method != "vanilla"]
    if not methods:
        raise ValueError(f"There are no answers of any method for {metric!r} on {split!r}.")
    table = pd.DataFrame([_compare_method(chosen, method) for method in methods])
    table.insert(1, "metric", metric)
    table.insert(2, "split", split)
    table.insert(table.columns.get_loc("p") + 1, "p_holm", holm(table["p"]))
    return table


def _compare_method(frame: pd.DataFrame, method: str) -> dict:
    row = {"method": method}
    sides = {}
    for name, switch in (("without", 0), ("with", 1)):
        side = frame[frame["method"].eq(method) & frame["prompt_decouple"].eq(switch)]
        if side.empty:
            raise ValueError(f"Method {method!r} has no answers {name} PD: make that run first.")
        low, high = interval(side)
        row |= {f"value_{name}": side["value"].mean()}
        row |= {f"value_{name}_low": low, f"value_{name}_high": high}
        sides[name] = side
    return row | asdict(paired_difference(sides["with"], sides["without"]))


@dataclass(frozen=True)
class Cells:
    """Sums of values and counts of answers, all (seeds, records), with the names of both."""

    sums: np.ndarray
    counts: np.ndarray  # of judged answers
    asked: np.ndarray  # of all answers
    seeds: pd.Index
    records: pd.Index

    @property
    def mean(self) -> float:
        return float(self.sums.sum() / self.counts.sum())


def _cells(frame: pd.DataFrame) -> Cells:
    _check(frame)
    seed, seeds = pd.factorize(frame["seed"], sort=True)
    record, records = pd.factorize(frame["record"], sort=True)
    shape, cell = (len(seeds), len(records)), seed * len(records) + record
    values, size = frame["value"].astype(float), len(seeds) * len(records)
    sums = np.bincount(cell, values.fillna(0.0), size)
    asked = np.bincount(cell, minlength=size).reshape(shape)
    counts = asked - np.bincount(cell, values.isna(), size).reshape(shape).astype(int)
    for seed, record in np.argwhere(asked == 0):
        name = f"Seed {seeds[seed]} has no answers about record {records[record]!r}"
        raise ValueError(f"{name}, which other seeds have: make that run again.")
    return Cells(sums.reshape(shape), counts, asked, pd.Index(seeds), pd.Index(records))


def _check(frame: pd.DataFrame) -> None:
    if frame.empty:
        raise ValueError("There are no answers to compute an interval from.")
    mixed = [name for name in CONSTANT if name in frame and frame[name].nunique() > 1]
    if mixed:
        raise ValueError(f"An interval is about one {', one '.join(mixed)}: select it first.")
    if not (frame["value"].between(0, 1) | frame["value"].isna()).all():
        raise ValueError("Every value must be a number from 0 to 1, the range of all metrics.")
    if frame["value"].isna().all():
        raise ValueError("The judge gave no verdict on any of these answers: judge them again.")


def _check_pairs(after: Cells, before: Cells) -> None:
    tables = [pd.DataFrame(side.asked, side.seeds, side.records) for side in (after, before)]
    surplus = tables[0].sub(tables[1], fill_value=0).fillna(0).stack()
    if surplus.any():
        seed, record = surplus[surplus.ne(0)].index[0]
        raise ValueError(
            f"With and without PD must have answered the same questions, but seed {seed}, record "
            f"{record!r} has more answers on one side: make the missing run first."
        )


def _judged_on_both_sides(one: pd.DataFrame, other: pd.DataFrame) -> tuple:
    """Both frames with NaN wherever either has it; a record's answers pair up in their order."""
    values = []
    for side in (one, other):
        number = side.groupby(["seed", "record"]).cumcount()
        values.append(side.set_index(["seed", "record", number])["value"])
    judged = values[0].notna() & values[1].notna()  # aligned by seed, record and number
    return tuple(side.assign(value=value.where(judged.reindex(value.index)).to_numpy())
                 for side, value in zip((one, other), values, strict=True))


def _resample(cells: Cells, rng_seed: int, draws: int) -> np.ndarray:
    n_seeds, n_records = cells.sums.shape
    seeds = _times_drawn(n_seeds, draws, rng_seed, 0)  # (draws, seeds)
    records = _times_drawn(n_records, draws, rng_seed, 1)  # (draws, records)
    sums = ((seeds @ cells.sums) * records).sum(1)
    return sums / ((seeds @ cells.counts) * records).sum(1)  # (draws,)


@lru_cache(maxsize=32)
def _times_drawn(size: int, draws: int, rng_seed: int, stream: int) -> np.ndarray:
    rng = np.random.default_rng([rng_seed, stream])  # seeds and records must not be drawn alike
    drawn = rng.integers(size, size=(draws, size)) + size * np.arange(draws)[:, None]
    return np.bincount(drawn.ravel(), minlength=draws * size).reshape(draws, size).astype(float)


def _ends(means: np.ndarray, n_records: int, lowest: float, highest: float) -> tuple[float, float]:
    if np.ptp(means) > SAME:
        return _percentiles(means)
    unseen = 1 - TAIL ** (1 / n_records)
    value = float(means[0])
    return value - unseen * (value - lowest), value + unseen * (highest - value)


def _percentiles(draws: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(draws, (100 * TAIL, 100 * (1 - TAIL)))
    return float(low), float(high)


def _relative(
    change: np.ndarray, before: np.ndarray, ends: tuple[float, float]
) -> tuple[float, float]:
    """Ends of the relative reduction, from draws of the change and of the rate without PD."""
    if np.ptp(change) > SAME or np.ptp(before) > SAME:
        return _percentiles(-change / before)
    return -ends[1] / before[0], -ends[0] / before[0]
