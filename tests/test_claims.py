from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from lib.base import runs
from lib.base.paths import profile_dir
from lib.figures import claims
from lib.running import profiles

LAPTOP, SMOKE = profiles.get("laptop"), profiles.get("smoke")


@pytest.fixture(autouse=True)
def _own_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("SAFEERASER_RUNS", str(tmp_path))


def test_claims_are_recorded_by_chapter_and_listed_in_order():
    claims.check(LAPTOP, "03", "PO over-forgets.", True, "SARR 0.98 >= 0.90")
    claims.finding(LAPTOP, "02", "GA forgets.", False, "ASR 0.40 > 0.03")
    claims.check(LAPTOP, "02", "PO refuses.", True, "RR 1.00")
    table = claims.table(LAPTOP)
    assert list(table.columns) == ["chapter", "kind", "claim", "verdict", "holds", "shown"]
    assert table.values.tolist() == [
        ["02", "finding", "GA forgets.", "✗ does not hold", False, "ASR 0.40 > 0.03"],
        ["02", "check", "PO refuses.", "✓ holds", True, "RR 1.00"],
        ["03", "check", "PO over-forgets.", "✓ holds", True, "SARR 0.98 >= 0.90"],
    ]
    assert runs.read_json(profile_dir("laptop") / "claims" / "03.json") == [
        {"kind": "check", "claim": "PO over-forgets.", "holds": True, "shown": "SARR 0.98 >= 0.90"}]


def test_a_claim_is_words_whatever_names_are_in_it():
    line = claims._Line("holds", "<b>*x*</b> $y$", "`a` <img>\u202e")
    assert line._repr_markdown_() == (
        "**holds** · &#60;b&#62;&#42;x&#42;&#60;/b&#62; &#36;y&#36; · `'a' <img>\ufffd`")
    assert repr(line) == "holds · <b>*x*</b> $y$ · `a` <img>\u202e"


def test_profiles_do_not_share_their_claims():
    claims.check(LAPTOP, "02", "GA forgets.", True, "")
    assert claims.table(SMOKE).empty


def test_start_forgets_the_chapters_earlier_claims_and_no_others():
    claims.check(LAPTOP, "02", "Of an earlier run.", True, "")
    claims.check(LAPTOP, "03", "Of another chapter.", True, "")
    claims.start(LAPTOP, "02")
    assert claims.table(LAPTOP)["claim"].tolist() == ["Of another chapter."]


def test_claims_that_two_record_at_the_same_time_are_both_kept():
    with ThreadPoolExecutor(4) as pool:
        for n in range(60):
            pool.submit(claims.check, LAPTOP, "02", f"Claim {n}.", True, "")
    assert sorted(claims.table(LAPTOP)["claim"]) == sorted(f"Claim {n}." for n in range(60))


def test_a_cell_that_is_run_again_replaces_its_claim():
    claims.check(LAPTOP, "02", "PO refuses.", False, "RR 0.50")
    claims.check(LAPTOP, "02", "PO refuses.", True, "RR 0.99")
    assert claims.table(LAPTOP)[["holds", "shown"]].values.tolist() == [[True, "RR 0.99"]]


def test_without_claims_the_table_is_empty_but_has_its_columns():
    table = claims.table(LAPTOP)
    assert table.empty
    assert table["holds"].dtype == bool


@pytest.mark.parametrize(("reason", "value", "holds"), [
    ("true", True, True),
    ("false", False, False),
    ("NumPy true", np.float64(0.9) > 0.5, True),
    ("NumPy false", np.float64(0.1) > 0.5, False),
    ("pandas true", pd.Series([True, True]).all(), True),
    ("NaN is true to Python, but no proof", float("nan"), False),
    ("missing value", pd.NA, False),
    ("None", None, False),
    ("several truth values", pd.Series([True, True]), False),
    ("text", "False", False),
])
def test_only_a_truth_value_that_is_true_holds(reason, value, holds):
    claims.check(LAPTOP, "02", "A claim.", value, "")
    assert claims.table(LAPTOP)["holds"].tolist() == [holds]


@pytest.mark.parametrize(("profile", "holds", "verdict"), [
    (LAPTOP, True, "✓ holds"),
    (LAPTOP, False, "✗ does not hold"),
    (SMOKE, True, "not judged at this profile"),
    (SMOKE, False, "not judged at this profile"),
])
def test_a_notebook_shows_verdict_text_and_numbers_in_one_line(profile, holds, verdict):
    InteractiveShell.instance()
    with capture_output() as captured:
        claims.check(profile, "02", "PO refuses.", holds, "RR 0.99 >= 0.98")
    [shown] = captured.outputs
    assert shown.data["text/markdown"] == f"**{verdict}** · PO refuses. · `RR 0.99 >= 0.98`"
    assert shown.data["text/plain"] == f"{verdict} · PO refuses. · RR 0.99 >= 0.98"
    assert claims.table(profile)["verdict"].tolist() == [verdict]


def test_outside_of_a_notebook_the_line_is_printed(capsys):
    claims.check(LAPTOP, "02", "PO refuses.", True, "RR 0.99")
    assert capsys.readouterr().out == "✓ holds · PO refuses. · RR 0.99\n"


ANSWERED = [
    ("some of val is held out", ["train", "val", "val_seen"], "generality", ""),
    ("all of val is train's", ["train", "val_seen"], "as_released", "as released"),
    ("there is no val", ["train"], "efficacy", "no val record"),
]


@pytest.mark.parametrize(("reason", "splits", "split", "words"), ANSWERED)
def test_a_chapter_says_when_its_numbers_are_no_generality(reason, splits, split, words):
    answers = pd.DataFrame([{"set": kind, "split": each} for kind in ("harmful", "safe")
                            for each in splits])
    InteractiveShell.instance()
    with capture_output() as shown:
        assert claims.headline(answers) == split, reason
    said = "".join(output.data["text/markdown"] for output in shown.outputs)
    assert words in said
    assert bool(said) == (split != "generality")
