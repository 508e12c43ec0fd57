import itertools

import numpy as np
import pandas as pd
import pytest

from lib.evaluation import statistics


def frame_of(values, method="po", prompt_decouple=0, metric="sarr", split="generality"):
    """values: (seeds, records, answers) or (seeds, records)."""
    values = np.atleast_3d(np.asarray(values, dtype=float))
    seed, record, _ = np.indices(values.shape).reshape(3, -1)
    names = np.array([f"val/{k:03}" for k in range(values.shape[1])])
    columns = {"method": method, "prompt_decouple": prompt_decouple, "metric": metric}
    columns |= {"split": split, "seed": seed, "record": names[record], "value": values.ravel()}
    return pd.DataFrame(columns)


def simulate(rng, seeds, records, answers, seed_spread, record_spread):
    """Yes-or-no answers whose log-odds have a part per seed and a part per record."""
    of_seed = seed_spread * rng.normal(size=(seeds, 1, 1))
    of_record = record_spread * rng.normal(size=(1, records, 1))
    chance = 1 / (1 + np.exp(1 - of_seed - of_record))
    return rng.random((seeds, records, answers)) < chance


def true_rate(seed_spread, record_spread):
    normal = np.random.default_rng(7).normal(size=1_000_000)
    return np.mean(1 / (1 + np.exp(1 - np.hypot(seed_spread, record_spread) * normal)))


def coverage(interval, truth, trials, **world):
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(trials):
        low, high = interval(simulate(rng, **world))
        hits += low <= truth <= high
    return hits / trials


def ours(values):
    return statistics.interval(frame_of(values), draws=500)


def every_answer_on_its_own(values):
    return statistics.interval(frame_of(values.reshape(1, -1, 1)), draws=500)


CLUSTERED = {"seeds": 3, "records": 60, "answers": 4, "seed_spread": 0, "record_spread": 2}
TRIALS = 200
THREE_SIGMA = 3 * np.sqrt(0.95 * 0.05 / TRIALS)


def test_the_interval_covers_the_true_rate_95_times_in_100_when_answers_cluster_by_image():
    covered = coverage(ours, true_rate(0, 2), TRIALS, **CLUSTERED)
    assert abs(covered - 0.95) <= THREE_SIGMA


def test_a_bootstrap_that_takes_answers_as_independent_does_not_cover_it():
    covered = coverage(every_answer_on_its_own, true_rate(0, 2), 80, **CLUSTERED)
    assert covered < 0.80


def test_the_interval_of_one_seed_covers_the_rate_of_that_model():
    world = CLUSTERED | {"seeds": 1}
    assert abs(coverage(ours, true_rate(0, 2), TRIALS, **world) - 0.95) <= THREE_SIGMA


def test_three_seeds_that_differ_more_than_images_are_covered_as_the_docstring_warns():
    world = {"seeds": 3, "records": 60, "answers": 4, "seed_spread": 1, "record_spread": 0}
    assert 0.65 < coverage(ours, true_rate(1, 0), TRIALS, **world) < 0.85


def test_the_interval_is_that_of_all_possible_draws_written_out():
    values = np.array([[0.1, 0.9, 0.4, 0.0], [0.3, 1.0, 0.2, 0.5]])  # 4 x 256 possible draws
    draws = [
        values[np.ix_(seeds, records)].mean()
        for seeds in itertools.product(range(2), repeat=2)
        for records in itertools.product(range(4), repeat=4)
    ]
    expected = np.percentile(draws, (2.5, 97.5))
    low, high = statistics.interval(frame_of(values), draws=20_000)
    assert (low, high) == pytest.approx(expected, abs=0.02)


def test_records_with_more_answers_weigh_more():
    many = frame_of(np.ones((2, 1, 9)))
    few = frame_of(np.zeros((2, 1, 1))).assign(record="val/other")
    summary = statistics.summarise(pd.concat([many, few]), ["method"])
    assert summary.loc[0, "value"] == pytest.approx(0.9)
    assert (summary.loc[0, "low"], summary.loc[0, "high"]) == (0.0, 1.0)


def test_seeds_and_records_are_drawn_independently():
    # Were the same numbers drawn for both, no draw could miss the diagonal.
    assert statistics.interval(frame_of(np.eye(2))) == (0.0, 1.0)


def test_seeds_widen_the_interval():
    alike = np.tile(np.arange(40) % 2, (3, 1))
    unlike = np.stack([np.zeros(40), np.arange(40) % 2, np.ones(40)])
    widths = [np.ptp(statistics.interval(frame_of(values))) for values in (alike, unlike)]
    assert widths[1] > 2 * widths[0]


EQUAL = [
    ("no refusal in 48 records leaves up to 7.4 %", 0.0, 48, 0.0, 0.0740),
    ("all refused in 48 records leaves down to 92.6 %", 1.0, 48, 0.9260, 1.0),
    ("five times the records: a fifth of the doubt", 0.0, 240, 0.0, 0.0153),
    ("one record says next to nothing", 0.0, 1, 0.0, 0.975),
    ("equal scores between 0 and 1 could be off either way", 0.5, 48, 0.463, 0.537),
]


@pytest.mark.parametrize(("reason", "value", "records", "low", "high"), EQUAL)
def test_equal_answers_are_not_certainty(reason, value, records, low, high):
    frame = frame_of(np.full((3, records, 4), value))
    assert statistics.interval(frame) == pytest.approx((low, high), abs=6e-5), reason


def test_rounding_does_not_hide_that_all_answers_are_equal():
    low, high = statistics.interval(frame_of(np.full((3, 48, 7), 0.1)))
    assert high - low == pytest.approx(0.0740, abs=6e-5)


def test_the_bound_counts_records_and_not_answers():
    few = statistics.interval(frame_of(np.zeros((1, 48, 1))))
    assert statistics.interval(frame_of(np.zeros((3, 48, 100)))) == pytest.approx(few)


def test_the_interval_depends_on_the_answers_and_not_on_their_order():
    frame = frame_of(simulate(np.random.default_rng(3), 3, 20, 4, 1, 1))
    shuffled = frame.sample(frac=1, random_state=0)
    assert statistics.interval(frame) == statistics.interval(shuffled)


HALF = np.arange(20).reshape(1, 20) % 2
BAD = [
    ("no answers", frame_of(HALF).iloc[:0], "no answers"),
    ("two methods in one interval",
     pd.concat([frame_of(HALF), frame_of(HALF, method="ga")]), "one method"),
    ("two splits in one interval",
     pd.concat([frame_of(HALF), frame_of(HALF, split="efficacy")]), "one split"),
    ("a value that is not a share", frame_of(HALF * 3), "from 0 to 1"),
    ("no answer that was judged", frame_of(HALF * np.nan), "no verdict on any"),
    ("a seed that has not answered about one record",
     frame_of(np.zeros((2, 3))).iloc[:-1], "Seed 1 has no answers about record 'val/002'"),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "frame", "message"), BAD)
def test_a_frame_that_makes_no_interval_is_refused_in_words(reason, frame, message):
    with pytest.raises(ValueError, match=message):
        statistics.interval(frame)


def test_what_was_not_judged_counts_neither_in_the_rate_nor_in_n():
    values = np.arange(48).reshape(2, 6, 4) % 3 / 2
    judged, holes = frame_of(values), frame_of(values)
    holes.loc[[0, 7, 30], "value"] = np.nan
    left = holes.dropna()
    assert statistics.interval(holes) == statistics.interval(left) != statistics.interval(judged)
    row, = statistics.summarise(holes, ["metric"]).to_dict("records")
    assert (row["value"], row["n"], row["n_records"]) == (left["value"].mean(), 45, 6)


def test_a_record_of_which_no_answer_was_judged_is_left_out():
    values = np.arange(24).reshape(1, 6, 4) % 3 / 2
    values[0, 2] = np.nan
    assert np.isfinite(statistics.interval(frame_of(values))).all()


def test_an_answer_that_was_judged_on_one_side_only_is_compared_on_neither():
    rng = np.random.default_rng(3)
    after, before = rng.integers(2, size=(2, 2, 10, 4)).astype(float)
    after[0, 0, 1] = before[1, 5, 2] = np.nan
    change = statistics.paired_difference(*pair(after, before))
    both = ~np.isnan(after) & ~np.isnan(before)
    assert change.n == both.sum() == 78
    assert change.difference == pytest.approx(after[both].mean() - before[both].mean())


def pair(after, before):
    return frame_of(after, prompt_decouple=1), frame_of(before)


def test_the_difference_and_the_relative_reduction_are_those_of_the_means():
    after = np.tile([0, 0, 0, 1], (3, 10))
    change = statistics.paired_difference(*pair(after, np.ones((3, 40))))
    assert change.difference == pytest.approx(-0.75)
    assert change.relative_reduction == pytest.approx(0.75)
    assert change.low < -0.75 < change.high < 0
    assert (change.relative_low, change.relative_high) == pytest.approx((-change.high, -change.low))
    assert (change.n, change.n_records, change.n_seeds) == (120, 40, 3)


def test_the_relative_reduction_is_a_share_of_the_rate_without():
    rng = np.random.default_rng(1)
    before = rng.random((3, 200, 4)) < 0.8
    after = before & (rng.random((3, 200, 4)) < 0.25)
    change = statistics.paired_difference(*pair(after, before))
    assert change.relative_reduction == pytest.approx(1 - after.sum() / before.sum())
    assert change.relative_low < 0.75 < change.relative_high
    assert change.relative_high - change.relative_low < 0.1


def test_a_rate_of_zero_without_has_no_relative_reduction():
    change = statistics.paired_difference(*pair(HALF, np.zeros((1, 20))))
    shares = (change.relative_reduction, change.relative_low, change.relative_high)
    assert np.isnan(shares).all()
    assert change.difference == pytest.approx(0.5)


SETTLED = [
    ("refused always, with and without", 1, 1, 0.0, -0.0740, 0.0740, 0.0),
    ("refused always without, never with", 0, 1, -1.0, -1.0, -1 + 2 * 0.0740, 1.0),
]


@pytest.mark.parametrize(("reason", "after", "before", "d", "low", "high", "relative"), SETTLED)
def test_equal_differences_are_not_certainty(reason, after, before, d, low, high, relative):
    change = statistics.paired_difference(*pair(np.full((3, 48), after), np.full((3, 48), before)))
    shown = (change.difference, change.low, change.high, change.relative_reduction)
    assert shown == pytest.approx((d, low, high, relative), abs=2e-4), reason
    assert (change.relative_low, change.relative_high) == pytest.approx((-high, -low), abs=2e-4)


def test_pairing_uses_that_the_same_images_are_hard_on_both_sides():
    rng = np.random.default_rng(2)
    before = np.tile(rng.random((1, 60)), (3, 1)) * 0.8
    change = statistics.paired_difference(*pair(before + 0.1, before))
    assert change.high - change.low < 1e-3 + 2 * 0.06 * 1.1  # the bound for equal differences
    low, high = statistics.interval(frame_of(before))
    noisy = statistics.paired_difference(*pair(before + 0.02 * rng.random((3, 60)), before))
    assert noisy.high - noisy.low < 0.1 * (high - low)


def test_the_paired_interval_covers_the_true_difference():
    rng = np.random.default_rng(4)
    hits = 0
    for _ in range(100):
        hard = rng.random((1, 60, 1))  # the chance of a refusal is uniform; PD halves it
        draw = rng.random((2, 3, 60, 4))
        change = statistics.paired_difference(*pair(draw[0] < hard / 2, draw[1] < hard), draws=500)
        hits += change.low <= -0.25 <= change.high
    assert hits >= 95 - 3 * np.sqrt(100 * 0.95 * 0.05)


UNPAIRED = [
    ("a seed only one side has", np.zeros((3, 4)), np.zeros((2, 4)), "seed 2"),
    ("a record only one side has", np.zeros((2, 4)), np.zeros((2, 5)), "val/004"),
    ("another number of questions", np.zeros((2, 4, 3)), np.zeros((2, 4, 4)), "val/000"),
]


@pytest.mark.parametrize(("reason", "after", "before", "named"), UNPAIRED)
def test_sides_that_do_not_match_are_refused_by_name(reason, after, before, named):
    with pytest.raises(ValueError, match=named):
        statistics.paired_difference(*pair(after, before))


def every_pattern(differences):
    patterns = itertools.product((-1, 1), repeat=len(differences))
    sums = [abs(np.dot(signs, differences)) for signs in patterns]
    return np.mean([total >= abs(sum(differences)) - 1e-9 for total in sums])


FLIPS = [
    ("two of eight patterns are as far out", [0.5, 0.5, 0.5], 2 / 8),
    ("no difference anywhere is no evidence", [0.0, 0.0], 1.0),
    ("records that did not move carry no evidence", [0.5, 0.5, 0.5, 0.0, 0.0], 2 / 8),
    ("differences that cancel are no evidence", [0.3, -0.3], 1.0),
    ("the sign does not matter: two-sided", [-0.5, -0.5, -0.5], 2 / 8),
    ("no records at all", [], 1.0),
]


@pytest.mark.parametrize(("reason", "differences", "p"), FLIPS)
def test_the_permutation_p_is_the_share_of_sign_patterns(reason, differences, p):
    assert statistics.sign_flip_p(np.array(differences)) == pytest.approx(p), reason


@pytest.mark.parametrize("records", [1, 5, 10, 13])
def test_few_records_are_enumerated_exactly(records):
    differences = np.random.default_rng(records).normal(0.5, 1, records)
    expected = every_pattern(differences)
    assert statistics.sign_flip_p(differences) == pytest.approx(expected)


def test_p_is_about_the_mean_of_the_seeds():
    after = np.array([[1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0], [1, 0, 1, 0, 1, 0]])
    change = statistics.paired_difference(*pair(after, np.full((3, 6), 0.4)))
    assert change.p == pytest.approx(every_pattern(after.mean(0) - 0.4))
    assert change.p > 2 / 2**6  # the first seed alone


def test_many_records_are_sampled_and_agree_with_enumeration():
    differences = np.random.default_rng(0).normal(0.4, 1, 14)
    exact = every_pattern(differences)
    tolerance = 4 * np.sqrt(exact * (1 - exact) / statistics.FLIPS)
    assert 0.01 < exact < 0.5
    assert statistics.sign_flip_p(differences) == pytest.approx(exact, abs=tolerance)


def test_a_sampled_p_is_never_zero():
    assert statistics.sign_flip_p(np.ones(200)) == pytest.approx(1 / (statistics.FLIPS + 1))


def test_the_permutation_test_errs_5_times_in_100_where_nothing_changed():
    rng = np.random.default_rng(5)
    p = [statistics.sign_flip_p(rng.normal(size=12)) for _ in range(600)]
    assert abs(np.mean(np.array(p) <= 0.05) - 0.05) <= 3 * np.sqrt(0.05 * 0.95 / 600)


HOLM = [
    ("each is multiplied by what is left", [0.01, 0.02, 0.30, 0.04], [0.04, 0.06, 0.30, 0.08]),
    ("a corrected p is never below a smaller one's", [0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
    ("never above 1", [0.6, 0.7], [1.0, 1.0]),
    ("one test needs no correction", [0.03], [0.03]),
    ("equal p-values stay equal", [0.02, 0.02], [0.04, 0.04]),
]


@pytest.mark.parametrize(("reason", "p_values", "corrected"), HOLM)
def test_holm_is_what_a_hand_calculation_gives(reason, p_values, corrected):
    assert statistics.holm(p_values) == pytest.approx(corrected), reason


@pytest.mark.parametrize("p_values", [[0.1, float("nan")], [1.2], [-0.1]])
def test_holm_refuses_what_is_no_p_value(p_values):
    with pytest.raises(ValueError, match="between 0 and 1"):
        statistics.holm(p_values)


def four_methods():
    rng = np.random.default_rng(6)
    frames = [frame_of(rng.random((1, 30, 4)) < 0.02, "vanilla")]
    for method, rate in (("ga", 1.0), ("gd", 0.3), ("kl", 0.9), ("po", 0.2)):
        frames.append(frame_of(rng.random((3, 30, 4)) < 0.95, method))
        frames.append(frame_of(rng.random((3, 30, 4)) < rate, method, prompt_decouple=1))
    return pd.concat(frames)


def test_compare_gives_one_row_per_method_and_leaves_the_original_out():
    table = statistics.compare(four_methods(), "sarr", "generality")
    assert list(table["method"]) == ["ga", "gd", "kl", "po"]
    assert set(table["n"]) == {360}
    assert set(table["n_records"]) == {30}
    assert set(table["n_seeds"]) == {3}
    difference = table["value_with"] - table["value_without"]
    assert table["difference"].to_numpy() == pytest.approx(difference.to_numpy())
    reduction = 1 - table["value_with"] / table["value_without"]
    assert table["relative_reduction"].to_numpy() == pytest.approx(reduction.to_numpy())


def test_compare_gives_every_number_its_interval():
    table = statistics.compare(four_methods(), "sarr", "generality")
    for value, low, high in (
        ("value_without", "value_without_low", "value_without_high"),
        ("value_with", "value_with_low", "value_with_high"),
        ("difference", "low", "high"),
        ("relative_reduction", "relative_low", "relative_high"),
    ):
        assert (table[low] <= table[value]).all()
        assert (table[value] <= table[high]).all()
        assert (table[low] < table[high]).all()


def test_compare_corrects_over_the_methods():
    table = statistics.compare(four_methods(), "sarr", "generality")
    assert table["p_holm"].to_numpy() == pytest.approx(statistics.holm(table["p"]))
    by_method = table.set_index("method")["p_holm"]
    assert by_method["po"] < 0.001
    assert by_method["gd"] < 0.001


def test_compare_looks_at_one_metric_and_one_split():
    frame = four_methods()
    others = [frame.assign(split="efficacy", value=1.0), frame.assign(metric="rr", value=1.0)]
    alone = statistics.compare(frame, "sarr", "generality")
    among = statistics.compare(pd.concat([*others, frame]), "sarr", "generality")
    pd.testing.assert_frame_equal(alone, among)


def test_compare_names_the_run_that_is_missing():
    frame = four_methods()
    without_run = frame[~(frame["method"].eq("kl") & frame["prompt_decouple"].eq(1))]
    with pytest.raises(ValueError, match="'kl' has no answers with PD"):
        statistics.compare(without_run, "sarr", "generality")
    with pytest.raises(ValueError, match="'asr'"):
        statistics.compare(frame, "asr", "generality")


def test_the_paper_s_kind_of_reduction_is_found_where_it_was_put():
    row = statistics.compare(four_methods(), "sarr", "generality").set_index("method").loc["po"]
    assert row["relative_low"] < 1 - 0.2 / 0.95 < row["relative_high"]


def test_answers_that_are_all_alike_about_a_picture_count_as_one():
    rng = np.random.default_rng(0)
    single = rng.random((1, 200, 1)) < 0.3
    assert statistics.independent(frame_of(single)) == pytest.approx(200, rel=0.1)
    assert statistics.independent(frame_of(single.repeat(4, 2))) == pytest.approx(200, rel=0.1)
    independent = statistics.independent(frame_of(rng.random((1, 200, 4)) < 0.3))
    assert 600 < independent <= 800


def test_answers_of_which_none_differs_count_as_so_many_pictures():
    assert statistics.independent(frame_of(np.zeros((3, 48, 4)))) == 48
