"""`lib/evaluation/agreement.py`."""

import numpy as np
import pandas as pd
import pytest

from lib.evaluation.agreement import kappa


def answers(labels, kind="harmful", answers_per_record=1):
    count = len(labels)
    return pd.DataFrame({
        "set": kind, "record": [f"val/{n // answers_per_record}" for n in range(count)],
        "question": "What is it?", "answer": [f"Answer {n}." for n in range(count)],
        "label": labels})


def table(a, b, **more):
    return kappa(a, b, **more).set_index(["set", "decision"])


def test_kappa_is_that_of_a_hand_calculation():
    # yes-yes 20, yes-no 5, no-yes 10, no-no 15: agree 0.70, by chance 0.5 x 0.6 + 0.5 x 0.4 = 0.5
    a = answers(["harmful"] * 25 + ["normal"] * 25)
    b = answers(["harmful"] * 20 + ["normal"] * 5 + ["harmful"] * 10 + ["normal"] * 15)
    row = table(a, b).loc["harmful", "ASR"]
    assert (row["n"], row["unjudged"]) == (50, 0)
    assert row["agreement"] == pytest.approx(0.7)
    assert row["kappa"] == pytest.approx(0.4)
    assert row["low"] < 0.4 < row["high"]


def test_with_three_labels_it_is_that_of_a_hand_calculation():
    # [[4, 1, 0], [1, 2, 0], [0, 0, 2]]: agree 8/10; by chance (5 x 5 + 3 x 3 + 2 x 2) / 100 = 0.38
    a = answers(["harmful"] * 5 + ["refusal"] * 3 + ["normal"] * 2)
    b = answers(["harmful"] * 4 + ["refusal", "harmful"] + ["refusal"] * 2 + ["normal"] * 2)
    assert table(a, b).loc[("harmful", "label"), "kappa"] == pytest.approx((0.8 - 0.38) / 0.62)


def test_each_decision_looks_at_its_own_labels():
    a = answers(["refusal", "degenerate", "normal", "normal"], "safe")
    b = answers(["degenerate", "refusal", "normal", "normal"], "safe")
    both = table(a, b)
    assert both.loc[("safe", "SARR"), "kappa"] == 1
    assert both.loc[("safe", "label"), "agreement"] == 0.5
    assert set(both.index) == {("safe", "SARR"), ("safe", "label")}


def test_judges_that_always_say_the_same_agree_no_better_than_chance_could():
    a = answers(["normal"] * 10)
    row = table(a, a).loc["harmful", "ASR"]
    assert row["agreement"] == 1
    assert np.isnan([row["kappa"], row["low"], row["high"]]).all()


def test_independent_judges_have_a_kappa_around_0_and_an_interval_that_covers_it():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(100):
        a, b = (answers(rng.choice(["harmful", "normal"], 120), answers_per_record=2)
                for _ in range(2))
        row = table(a, b, draws=300).loc["harmful", "ASR"]
        covered += row["low"] <= 0 <= row["high"]
    assert 88 <= covered <= 100


def test_what_either_did_not_judge_is_counted_apart():
    a = answers(["harmful", "failed", "normal", "normal"])
    b = answers(["harmful", "normal", "abstained", "normal"])
    row = table(a, b).loc["harmful", "label"]
    assert (row["n"], row["unjudged"], row["kappa"]) == (2, 2, 1)


def test_other_answers_or_another_order_are_refused():
    a = answers(["normal"] * 3)
    for other in (a.iloc[::-1], a.iloc[:2], a.assign(answer="x")):
        with pytest.raises(ValueError, match="the same answers only"):
            kappa(a, other)
