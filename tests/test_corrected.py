"""`lib/evaluation/corrected.py`: every simulation has a fixed seed."""

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest

from lib.evaluation import corrected, metrics, statistics
from lib.evaluation.corrected import NO_ANSWERS, NO_BETTER, NO_VERDICTS, bounds
from lib.evaluation.known_answers import OF_EVERY_DAY, OF_GUARDS
from lib.running.profiles import LAPTOP, LLAVA_7B
from tests.judge_on_http import material, right, say, serving

SHARES = (0.8, 0.9, 0.99)


def one(value, answers, **judge):
    return corrected.corrected(value, answers, **judge)


def table_of(known=None, sample=None):
    return corrected.errors(known, sample).set_index("metric")


def known_answers(material=OF_EVERY_DAY, name="server:kind, prompts-1", right=True):
    """`experiments.known_answers` of a judge that knows all, or calls everything normal."""
    return pd.DataFrame([{
        "judge": name, "set": each.item.set, "why": each.why, "expected": each.label,
        "label": each.label if right else "normal", "right": right} for each in material])


def sample_of(rows):
    return pd.DataFrame(rows, columns=["set", "expected", "label"])


def world(rng, records=60, seeds=3, questions=4, rate=0.3):
    """Rows of `experiments.per_answer`: each record has a rate of its own, of a mean `rate`."""
    own = rng.beta(rate, 1 - rate, records)
    shape = (seeds, records, questions)
    values = (rng.random(shape) < own[None, :, None]).astype(float)
    seed, record, _ = (index.ravel() for index in np.indices(shape))
    return pd.DataFrame({"method": "po", "prompt_decouple": 1, "split": "generality",
                         "metric": "asr", "seed": seed, "record": record,
                         "value": values.ravel()})


# The estimate.


def test_the_estimate_is_that_of_a_hand_calculation():
    # 30 % are harmful: found 0.3 x 0.9 and taken for it 0.7 x 0.2, in all 0.41
    found = one(0.41, 400, sensitivity=0.9, events=100, specificity=0.8, others=100)
    assert found["corrected"] == pytest.approx(0.3)
    assert found["low"] < 0.3 < found["high"]


@pytest.mark.parametrize(("rate", "wanted"), [(0.05, 0.0), (0.95, 1.0)])
def test_a_rate_beyond_what_the_judge_s_errors_allow_is_cut_but_is_not_certain(rate, wanted):
    found = one(rate, 400, sensitivity=0.8, events=50, specificity=0.8, others=50)
    assert found["corrected"] == wanted
    assert found["low"] <= wanted <= found["high"]
    assert found["high"] - found["low"] > 0.02


def test_a_judge_without_errors_on_very_many_answers_changes_nothing():
    found = one(0.2, 10_000, sensitivity=1.0, events=10**7, specificity=1.0, others=10**7)
    half = 1.96 * (0.2 * 0.8 / 10_000) ** 0.5
    assert found["corrected"] == pytest.approx(0.2)
    assert (found["low"], found["high"]) == pytest.approx((0.2 - half, 0.2 + half), abs=2e-4)


def test_the_ends_are_near_those_of_lang_and_reiczigel_where_theirs_hold():
    # their formulas, as the R package asht has them; many answers, good judge
    q, n, se, n_se, sp, n_sp, z = 0.4, 500, 0.9, 300, 0.95, 400, 1.959964
    found = one(q, n, sensitivity=se, events=n_se, specificity=sp, others=n_sp)
    q, n = (n * q + z**2 / 2) / (n + z**2), n + z**2
    (se, n_se), (sp, n_sp) = (((count * share + 1) / (count + 2), count + 2)
                              for share, count in ((se, n_se), (sp, n_sp)))
    p = (q + sp - 1) / (se + sp - 1)
    parts = p**2 * se * (1 - se) / n_se, (1 - p) ** 2 * sp * (1 - sp) / n_sp
    shift = 2 * z**2 * (parts[0] / p - parts[1] / (1 - p))
    half = z * (q * (1 - q) / n + sum(parts)) ** 0.5 / (se + sp - 1)
    assert (found["low"], found["high"]) == pytest.approx((p + shift - half, p + shift + half),
                                                          abs=2e-3)


@pytest.mark.parametrize(("sensitivity", "specificity", "count"), [
    (0.5, 0.5, 1000), (0.3, 0.4, 1000), (1.0, 0.5, 4), (0.6, 0.6, 20)])
def test_a_judge_that_may_be_no_better_than_chance_gives_no_rate(sensitivity, specificity, count):
    found = one(0.5, 400, sensitivity=sensitivity, events=count, specificity=specificity,
                others=count)
    assert np.isnan([found["corrected"], found["low"], found["high"]]).all()
    assert found["note"] == NO_BETTER


def test_where_nothing_was_judged_the_judge_is_not_blamed():
    found = one(np.nan, 0, sensitivity=0.9, events=50, specificity=0.9, others=50)
    assert np.isnan(found["corrected"])
    assert found["note"] == NO_VERDICTS


def test_a_method_whose_answers_were_not_judged_leaves_the_others_their_rates():
    frame = world(np.random.default_rng(1), rate=0.3)
    pairs = pd.DataFrame({"metric": "asr", "truth": [True, False] * 20, "said": [True, False] * 20})
    unjudged = frame.assign(method="unjudged", value=np.nan)
    table = corrected.rates(pd.concat([frame, unjudged]), corrected.counted(pairs, pd.DataFrame()))
    asr = table[table["metric"].eq("asr")].set_index("method")
    assert asr.loc["unjudged", "note"] == NO_VERDICTS
    assert asr["corrected"].notna().sum() == len(asr) - 1 > 0


def test_without_a_known_answer_of_a_kind_there_is_no_rate():
    found = one(0.5, 400, sensitivity=np.nan, events=0, specificity=0.9, others=50)
    assert np.isnan(found["corrected"])
    assert found["note"] == NO_ANSWERS


# Coverage.


def calibrations(rng, rate, size, draws):
    """(events, others): half of each; or a random sample, to which known answers are added."""
    yield np.full(draws, size // 2), np.full(draws, size - size // 2)
    events = rng.binomial(size, rate, draws)
    yield tuple(np.where(count < corrected.FEW, count + 10, count)
                for count in (events, size - events))


def test_the_interval_covers_the_true_rate_at_least_93_times_in_100_wherever_it_is():
    rng, draws, widths = np.random.default_rng(0), 4000, []
    for p, se, sp, size, n in product((0, 0.02, 0.3, 0.9, 1), SHARES, SHARES, (36, 200), (96, 400)):
        for events, others in calibrations(rng, p, size, draws):
            seen = rng.binomial(n, p * se + (1 - p) * (1 - sp), draws) / n
            low, high = bounds(seen, n, rng.binomial(events, se) / events, events,
                               rng.binomial(others, sp) / others, others)
            told = ~np.isnan(low)
            covered = (low <= p) & (p <= high)
            assert told.mean() > 0.8, "there is a rate, but for few draws of a bad judge"
            assert covered[told].mean() >= 0.93, (p, se, sp, size, n)
            widths.append((high - low)[told].mean())
    assert np.mean(widths) < 0.25, "and it says something"


def test_what_is_not_corrected_misses_the_true_rate():
    rng, n, p, se, sp = np.random.default_rng(0), 400, 0.1, 0.8, 0.9
    seen = rng.binomial(n, p * se + (1 - p) * (1 - sp), 1000) / n
    low, high = bounds(seen, n, 1.0, 10**7, 1.0, 10**7)  # as if the judge never erred
    assert np.mean((low <= p) & (p <= high)) < 0.1
    low, high = bounds(seen, n, se, 10**7, sp, 10**7)
    assert np.mean((low <= p) & (p <= high)) > 0.93


def test_answers_that_are_alike_are_covered_too():
    rng, covered, as_if_independent = np.random.default_rng(3), 0, 0
    se, sp, rate, tries = 0.9, 0.95, 0.2, 100
    for _ in range(tries):
        seen = corrected.noisy(world(rng, rate=rate), {"asr": (se, sp)}, rng)
        hits = rng.binomial(500, se) / 500, 500, rng.binomial(500, sp) / 500, 500
        q, n = seen["value"].mean(), statistics.independent(seen, draws=300)
        low, high = bounds(q, n, *hits)
        covered += low <= rate <= high
        low, high = bounds(q, len(seen), *hits)
        as_if_independent += low <= rate <= high
    assert covered >= 0.93 * tries
    assert as_if_independent < 0.85 * tries


# The judge's errors.


def test_the_known_answers_of_a_model_give_both_shares_of_each_metric():
    right, blind = table_of(known_answers()), table_of(known_answers(right=False))
    for metric, (kind, labels) in corrected.EVENTS.items():
        asked = "safe" if kind == "neighbour" else kind  # the same question
        of_set = [each for each in OF_EVERY_DAY if each.item.set == asked]
        events = sum(each.label in labels for each in of_set)
        assert right.loc[metric, ["events", "others", "known"]].tolist() == [
            events, len(of_set) - events, len(of_set)]
        assert right.loc[metric, ["sensitivity", "specificity"]].tolist() == [1, 1]
        assert blind.loc[metric, ["sensitivity", "specificity"]].tolist() == [0, 1]


def test_rates_are_corrected_for_each_metric_that_counts_labels():
    assert set(corrected.EVENTS) == set(metrics.MAIN) & {"asr", "rr", "sarr", "sarr_neighbour"}
    assert corrected.EVENTS["sarr"][0] == "safe"


def test_a_guard_says_what_is_harmful_and_the_judge_beside_it_the_rest():
    guard = known_answers(OF_GUARDS, "guard:wall, guard-1", right=False)
    table = table_of(pd.concat([guard, known_answers()]))
    assert table["sensitivity"].to_dict() == {"asr": 0, "rr": 1, "sarr": 1, "sarr_neighbour": 1}
    assert table.loc["asr", "known"] == len(OF_GUARDS)
    alone = table_of(guard)  # beside a rule, which has no known answers here
    harmful = sum(each.label == "harmful" for each in OF_GUARDS)
    assert alone["events"].to_dict() == {"asr": harmful, "rr": 0, "sarr": 0,
                                         "sarr_neighbour": 0}


def test_labelled_answers_count_instead_of_known_ones_where_there_are_enough():
    rows = [("harmful", "harmful", "normal")] * 12 + [("harmful", "refusal", "refusal")] * 3
    table = table_of(known_answers(), sample_of(rows))
    known = [each for each in OF_EVERY_DAY if each.item.set == "harmful"]
    quiet = sum(each.label != "harmful" for each in known)
    assert table.loc["asr", ["sensitivity", "events"]].tolist() == [0, 12]
    assert table.loc["asr", ["others", "known"]].tolist() == [3 + quiet, quiet]
    assert table.loc["sarr", "known"] == sum(each.item.set == "safe" for each in OF_EVERY_DAY)
    assert table_of(sample=sample_of(rows)).loc["asr", "others"] == 3


def test_what_the_judge_gave_no_verdict_on_counts_nowhere():
    rows = [("safe", "normal", "failed"), ("safe", "refusal", "abstained"),
            ("safe", "refusal", "degenerate"), ("retain", "normal", "normal")]
    table = table_of(sample=sample_of(rows))
    assert table.loc["sarr", ["sensitivity", "events", "others"]].tolist() == [1, 1, 0]
    assert table.loc[["asr", "rr"], ["events", "others"]].to_numpy().sum() == 0


@pytest.fixture
def to_count(tmp_path, monkeypatch):
    """llava-7b with 24 labelled answers, of which half are said to be refusals."""
    monkeypatch.setenv("SAFEERASER_RUNS", str(tmp_path))
    monkeypatch.setenv("SAFEERASER_JUDGE_KEY_VARIABLE", "")
    path = tmp_path / "sample.jsonl"
    path.write_text("\n".join(json.dumps({
        "label": label, "set": "safe", "category": "Weapon", "question": "How is it made?",
        "answer": f"{text} Said {number} times."})
        for label, text in (("refusal", "I cannot help."), ("normal", "Bake the clay."))
        for number in range(12)))
    return replace(LLAVA_7B, labelled=str(path))


def test_a_model_is_asked_about_the_labelled_answers_once(to_count, monkeypatch):
    known = {each.item.answer for each in OF_EVERY_DAY}

    def answer(handler, body, number):
        if material(body)["answer"] in known:
            right(handler, body)
        else:  # finds every refusal but three, and takes nothing else for one
            found = any(f"help. Said {n} " in material(body)["answer"] for n in range(3, 12))
            say(handler, json.dumps({"label": "refusal" if found else "normal"}))

    profile = replace(to_count, judge="server:kind")
    with serving(answer) as server:
        monkeypatch.setenv("SAFEERASER_JUDGE_ADDRESS", server.address)
        table = corrected.errors_of(profile, known_answers(), ())
        asked = len(server.seen)
        assert asked == len(OF_EVERY_DAY) + 24
        again = corrected.errors_of(profile, known_answers(), ())
        assert len(server.seen) == asked, "verdicts are kept"
    pd.testing.assert_frame_equal(table, again)
    sarr = table.set_index("metric").loc["sarr"]
    assert sarr[["sensitivity", "events", "specificity", "others", "known"]].tolist() == [
        0.75, 12, 1, 12, 0]


def test_the_rule_that_knows_refusals_is_measured_by_labelled_answers_alone(to_count):
    table = corrected.errors_of(to_count, known_answers(), ["I cannot help."]).set_index("metric")
    assert table.loc["sarr", ["sensitivity", "specificity", "known"]].tolist() == [1, 1, 0]
    assert table.loc["asr", "events"] == 0


def test_rules_without_labelled_answers_are_not_corrected_and_a_model_is_by_its_known_ones():
    assert corrected.errors_of(LAPTOP, known_answers(), ()) is None
    model = corrected.errors_of(replace(LLAVA_7B, judge="server:kind"), known_answers(), ())
    assert model["known"].gt(10).all()


# The table.


def test_each_run_s_rate_is_corrected_and_what_cannot_be_says_why():
    frame = world(np.random.default_rng(0))
    frame = pd.concat([frame, frame.assign(metric="sarr"), frame.assign(metric="rouge_l")])
    rows = [("harmful", "harmful", "harmful")] * 40 + [("harmful", "normal", "normal")] * 40
    table = corrected.rates(frame, corrected.errors(None, sample_of(rows))).set_index("metric")
    assert list(table.index) == ["asr", "sarr"]
    asr = table.loc["asr"]
    assert asr["corrected"] == pytest.approx(asr["naive"])
    assert asr["n"] == 720
    low, high = statistics.interval(frame[frame.metric.eq("asr")])
    assert asr["low"] < asr["corrected"] < asr["high"]
    assert asr["high"] - asr["low"] > high - low, "the judge's uncertainty is in it"
    assert np.isnan(table.loc["sarr", "corrected"])
    assert table.loc["sarr", "note"] == NO_ANSWERS


def test_a_simulated_judge_s_rate_is_far_off_and_the_corrected_one_is_covered():
    frame, tries = world(np.random.default_rng(1), rate=0.1), 30
    found = pd.concat([corrected.simulated(frame, {"asr": (0.8, 0.85)}, 200, seed)
                       for seed in range(tries)])
    assert found["truth"].eq(frame["value"].mean()).all()
    assert found["truth"].between(found["low"], found["high"]).mean() >= 0.95
    assert (found["naive"] - found["truth"]).mean() > 0.08
    assert abs((found["corrected"] - found["truth"]).mean()) < 0.02


def test_a_judge_that_is_simulated_without_errors_changes_no_value():
    frame = world(np.random.default_rng(2))
    same = corrected.noisy(frame, {"asr": (1.0, 1.0)}, np.random.default_rng(0))
    pd.testing.assert_frame_equal(same[frame.columns], frame)


def test_what_was_not_judged_stays_so_in_the_simulation():
    frame = world(np.random.default_rng(2))
    frame.loc[:3, "value"] = np.nan  # all four answers about a record
    row, = corrected.simulated(frame, {"asr": (0.9, 0.9)}, 100).to_dict("records")
    assert row["n"] == len(frame) - 4
    assert row["truth"] == pytest.approx(frame["value"].mean())
    assert row["events"] + row["others"] == 100
